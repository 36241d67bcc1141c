"""Passwords that operators have chosen themselves, in the console or by `postback operator password`.

The configuration says who is an operator and which password he begins with; the console may not write it. What he
chooses is a row of the ledger instead: a hash, sealed under `security.seal_keys` together with his name and with the
hash of the configuration in whose place it counts. So whoever may write the ledger alone gives nobody a password, no
row counts for another operator, and another hash in the configuration is the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite

from receiver.errors import LedgerAway, SealBroken
from receiver.signing import Seal, Secret, digest
from workers.ledger import queries
from workers.ledger.database import away_when_it_fails
from workers.ledger.tables import operator_passwords


class Chosen(msgspec.Struct, frozen=True):
    name: str
    """In small letters."""
    instead_of: str
    """The digest of the configuration's hash."""
    password_hash: str


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Chosen)
_INSERTS: dict[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class ChosenPasswords:
    """What was chosen, as this process has read it last: while the ledger is away, that counts on."""

    def __init__(self, engine: Engine, seal_keys: Sequence[Secret]) -> None:
        self._engine = engine
        self._seal = Seal(seal_keys, "password")
        self._read: dict[str, bytes] | None = None

    def current(self, name: str, configured: Secret) -> Secret:
        """The hash that counts for the operator `name` now. Raises `LedgerAway` when the ledger was never read by this
        process, and `SealBroken` for a row that is not ours."""
        sealed = self._rows().get(name.lower())
        if sealed is None:
            return configured
        chosen = self._opened(sealed)
        if chosen.name != name.lower():
            raise SealBroken("The row was sealed for another operator.")
        if chosen.instead_of != digest(configured.reveal()):
            return configured
        return Secret(chosen.password_hash.encode(), "ledger")

    def choose(self, connection: Connection, name: str, configured: Secret, password_hash: str) -> None:
        """From the end of this transaction on `password_hash` counts for `name`, in all consoles."""
        row = Chosen(name.lower(), digest(configured.reveal()), password_hash)
        statement = _INSERTS[connection.dialect.name](operator_passwords).values(
            name=row.name, sealed=self._seal.seal(_ENCODER.encode(row))
        )
        connection.execute(
            statement.on_conflict_do_update(index_elements=["name"], set_={"sealed": statement.excluded.sealed})
        )

    def renew(self, name: str) -> None:
        """Seals his row with the newest key, so that an older key may go once everybody has signed in. Raises
        `LedgerAway`."""
        sealed = self._rows().get(name.lower())
        if sealed is None or (anew := self._seal.seal(self._seal.open(sealed))) == sealed:
            return
        same = (operator_passwords.c.name == name.lower(), operator_passwords.c.sealed == sealed)
        with away_when_it_fails(), self._engine.begin() as connection:
            connection.execute(update(operator_passwords).where(*same).values(sealed=anew))

    def _rows(self) -> dict[str, bytes]:
        try:
            with queries.reading(self._engine) as connection:
                found = connection.execute(select(operator_passwords.c.name, operator_passwords.c.sealed))
                self._read = {row.name: row.sealed for row in found}
        except LedgerAway:
            if self._read is None:
                raise
        return self._read

    def _opened(self, sealed: bytes) -> Chosen:
        try:
            return _DECODER.decode(self._seal.open(sealed))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SealBroken("The row cannot be read.") from None
