"""A whole installation under load and random faults: ``python -m tests.chaos --minutes 2 --seed 7``.

Four senders send for minutes while processes are killed and stopped, connections are cut and disks are full. What was
answered 200 is written down by the sender, and afterwards held against the ledger from outside.
"""
