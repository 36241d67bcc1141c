"""Alembic's migrations of the ledger: first expand, and contract in a later version.

A migration runs while the version before it still works, reads and writes. So it adds: tables, indexes, columns that
may be null or have a server default. What is no longer used goes in a version after the one that stopped using it, and
that migration says so, as does one that cannot be otherwise:

    op.execute(f"UPDATE compatibility SET since = '{revision}'")

Older versions then refuse to start, and are to be stopped first. A new word among the effects of stored events breaks
them too. `tests/workers/test_compatibility.py` finds a migration that breaks and does not say so.
"""
