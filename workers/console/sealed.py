"""What the console keeps of an operator himself: one row of the ledger, sealed under `security.seal_keys` together with
his name. So whoever may write the ledger alone makes no row, and none counts for another operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from receiver.errors import LedgerAway, SealBroken
from receiver.signing import Seal, Secret
from workers.ledger import queries


class OfOperator(msgspec.Struct, frozen=True):
    name: str
    """In small letters."""


T = TypeVar("T", bound=OfOperator)

_ENCODER = msgspec.msgpack.Encoder()
_INSERTS: dict[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class SealedRows(Generic[T]):
    """The rows of one table, as this process has read them last: while the ledger is away, those count on."""

    def __init__(self, engine: Engine, seal_keys: Sequence[Secret], purpose: str, table: Table, kind: type[T]) -> None:
        """`table` has the columns `name` and `sealed`; a row holds a `kind`. `purpose` as for `Seal`."""
        self._engine = engine
        self._table = table
        self._seal = Seal(seal_keys, purpose)
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._read: dict[str, bytes] | None = None

    def find(self, name: str) -> bytes | None:
        """The operator's row, still sealed. Raises `LedgerAway` when the ledger was never read by this process."""
        try:
            with queries.reading(self._engine) as connection:
                found = connection.execute(select(self._table.c.name, self._table.c.sealed))
                self._read = {row.name: row.sealed for row in found}
        except LedgerAway:
            if self._read is None:
                raise
        return self._read.get(name.lower())

    def open(self, name: str, sealed: bytes) -> T:
        """What a row of the operator holds. Raises `SealBroken` for one that is not ours, or not his."""
        try:
            row = self._decoder.decode(self._seal.open(sealed))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SealBroken("The row cannot be read.") from None
        if row.name != name.lower():
            raise SealBroken("The row was sealed for another operator.")
        return row

    def seal(self, row: T) -> bytes:
        """With the newest key."""
        return self._seal.seal(_ENCODER.encode(row))

    def put(self, connection: Connection, row: T, **columns: Any) -> None:
        """In place of the operator's row, if he has one; with the values of the table's other columns."""
        values = {"sealed": self.seal(row), **columns}
        statement = _INSERTS[connection.dialect.name](self._table).values(name=row.name, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
