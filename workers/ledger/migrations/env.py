"""Runs the migrations in one transaction, on the database that `workers.ledger.database.migrate` names."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from workers.ledger.database import MIGRATION_LOCK, open_engine
from workers.ledger.tables import metadata

engine = open_engine(context.config.attributes["database_url"])
try:
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        with context.begin_transaction():
            if engine.dialect.name == "postgresql":
                # Several machines may start at once. SQLite has one writer at a time anyway.
                connection.execute(text("SET LOCAL lock_timeout = '60s'"))
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            context.run_migrations()
finally:
    engine.dispose()
