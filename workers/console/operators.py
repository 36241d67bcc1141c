"""Who may sign in: the operators of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from receiver import logs
from receiver.errors import LedgerAway, SealBroken
from receiver.settings import Role, Settings
from receiver.signing import Secret, digest
from workers.console import passwords
from workers.console.chosen import ChosenPasswords

log = logs.get("workers.console.operators")


@dataclass(frozen=True, slots=True)
class Operator:
    """`password_hash` is None for one who comes through a trusted proxy only."""

    name: str
    role: Role
    password_hash: Secret | None

    @property
    def fingerprint(self) -> str:
        """Changes with the password: a session that was opened with another one ends."""
        return digest(self.name.encode(), self.password_hash.reveal() if self.password_hash else b"")[:16]


class Operators:
    def __init__(self, settings: Settings, chosen: ChosenPasswords) -> None:
        """Raises `ConfigurationError` for a hash that cannot be used."""
        self.chosen = chosen
        self._configured: dict[str, Operator] = {}
        for index, entry in enumerate(settings.security.operators):
            if entry.password_hash is not None:
                passwords.require_good(
                    entry.password_hash.reveal().decode(), f"security.operators[{index}].password_hash"
                )
            self._configured[entry.name.lower()] = Operator(entry.name, entry.role, entry.password_hash)
        # Tried for names that nobody has, so that an answer takes as long as for one that somebody has.
        self._stand_in = next(
            (each.password_hash for each in self._configured.values() if each.password_hash),
            Secret(passwords.make(passwords.generate()).encode()),
        )

    def __bool__(self) -> bool:
        return bool(self._configured)

    def configured(self, name: str) -> Operator | None:
        """As the configuration has him, with the password that he began with."""
        return self._configured.get(name.lower())

    def named(self, name: str) -> Operator | None:
        """The operator, with the password that counts now. For somebody who is signed in already: while it cannot be
        known, as the ledger is away from the start, the configuration's counts; there is nothing to see then."""
        operator = self.configured(name)
        if operator is None or operator.password_hash is None:
            return operator
        try:
            return replace(operator, password_hash=self.chosen.current(name, operator.password_hash))
        except LedgerAway:
            return operator
        except SealBroken:
            return replace(operator, password_hash=None)

    def proven(self, name: str, password: str) -> Operator | None:
        """The operator with this name and password. Takes a quarter of a second of a processor on purpose.

        Raises `LedgerAway` while it cannot be known which password counts, whoever asks.
        """
        operator = self.configured(name)
        known = operator.password_hash if operator else None
        try:
            stored = self.chosen.current(name, known or self._stand_in)
        except SealBroken:
            log.error("password_seal_unfit", operator=operator.name if operator else "")
            stored, known = self._stand_in, None
        right = passwords.verify(password, stored.reveal().decode())
        return replace(operator, password_hash=stored) if right and operator and known is not None else None
