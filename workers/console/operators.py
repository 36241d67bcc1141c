"""Who may sign in: the operators of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from receiver.settings import Role, Settings
from receiver.signing import Secret, digest
from workers.console import passwords


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
    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError` for a hash that cannot be used."""
        self._operators: dict[str, Operator] = {}
        for index, entry in enumerate(settings.security.operators):
            if entry.password_hash is not None:
                passwords.require_good(
                    entry.password_hash.reveal().decode(), f"security.operators[{index}].password_hash"
                )
            self._operators[entry.name.lower()] = Operator(entry.name, entry.role, entry.password_hash)
        # Tried for names that nobody has, so that an answer takes as long as for one that somebody has.
        self._stand_in = next(
            (each.password_hash.reveal().decode() for each in self._operators.values() if each.password_hash),
            passwords.make(passwords.generate()),
        )

    def __bool__(self) -> bool:
        return bool(self._operators)

    def named(self, name: str) -> Operator | None:
        return self._operators.get(name.lower())

    def proven(self, name: str, password: str) -> Operator | None:
        """The operator with this name and password. Takes a quarter of a second of a processor on purpose."""
        operator = self.named(name)
        known = operator.password_hash.reveal().decode() if operator and operator.password_hash else None
        right = passwords.verify(password, known or self._stand_in)
        return operator if right and known is not None else None
