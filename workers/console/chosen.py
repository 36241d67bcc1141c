"""Passwords that operators have chosen themselves, in the console or by `postback operator password`.

The configuration says who is an operator and which password he begins with; the console may not write it. What he
chooses is a row of the ledger instead: a hash, sealed under `security.seal_keys` together with his name and with the
hash of the configuration in whose place it counts. So whoever may write the ledger alone gives nobody a password, no
row counts for another operator, and another hash in the configuration is the last word.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, update

from receiver.signing import Secret, digest
from workers.console.sealed import OfOperator, SealedRows
from workers.ledger.database import away_when_it_fails
from workers.ledger.tables import operator_passwords


class Chosen(OfOperator, frozen=True):
    instead_of: str
    """The digest of the configuration's hash."""
    password_hash: str


class ChosenPasswords:
    """What was chosen, as this process has read it last: while the ledger is away, that counts on."""

    def __init__(self, engine: Engine, seal_keys: Sequence[Secret]) -> None:
        self._engine = engine
        self._rows = SealedRows(engine, seal_keys, "password", operator_passwords, Chosen)

    def current(self, name: str, configured: Secret) -> Secret:
        """The hash that counts for the operator `name` now. Raises `LedgerAway` when the ledger was never read by this
        process, and `SealBroken` for a row that is not ours."""
        sealed = self._rows.find(name)
        if sealed is None:
            return configured
        chosen = self._rows.open(name, sealed)
        if chosen.instead_of != digest(configured.reveal()):
            return configured
        return Secret(chosen.password_hash.encode(), "ledger")

    def choose(self, connection: Connection, name: str, configured: Secret, password_hash: str) -> None:
        """From the end of this transaction on `password_hash` counts for `name`, in all consoles."""
        self._rows.put(connection, Chosen(name.lower(), digest(configured.reveal()), password_hash))

    def renew(self, name: str) -> None:
        """Seals his row with the newest key, so that an older key may go once everybody has signed in. Raises
        `LedgerAway`."""
        sealed = self._rows.find(name)
        if sealed is None or (anew := self._rows.seal(self._rows.open(name, sealed))) == sealed:
            return
        same = (operator_passwords.c.name == name.lower(), operator_passwords.c.sealed == sealed)
        with away_when_it_fails(), self._engine.begin() as connection:
            connection.execute(update(operator_passwords).where(*same).values(sealed=anew))
