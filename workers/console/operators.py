"""Who may sign in: the operators of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from receiver import logs
from receiver.errors import LedgerAway, SealBroken
from receiver.settings import Role, Settings
from receiver.signing import Secret, digest
from workers.console import passwords
from workers.console.chosen import ChosenPasswords
from workers.console.factors import SecondFactors

log = logs.get("workers.console.operators")


@dataclass(frozen=True, slots=True)
class Operator:
    """`password_hash` is None for one who comes through a trusted proxy only."""

    name: str
    role: Role
    password_hash: Secret | None
    device: str = ""
    """Names the enrolment of his second factor; "" for one who has none."""

    @property
    def fingerprint(self) -> str:
        """Changes with the password and with the second factor: a session that was opened with others ends."""
        password = self.password_hash.reveal() if self.password_hash else b""
        return digest(self.name.encode(), password, *([self.device.encode()] if self.device else []))[:16]


class Operators:
    def __init__(self, settings: Settings, chosen: ChosenPasswords, factors: SecondFactors) -> None:
        """Raises `ConfigurationError` for a hash that cannot be used."""
        self.chosen, self.factors = chosen, factors
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
        """The operator, with the password and the device that count now. For somebody who is signed in already: while
        they cannot be known, as the ledger is away from the start, the configuration's password counts; there is
        nothing to see then."""
        operator = self.configured(name)
        if operator is None or operator.password_hash is None:
            return operator
        try:
            return replace(
                operator,
                password_hash=self.chosen.current(name, operator.password_hash),
                device=self.factors.device(name),
            )
        except LedgerAway:
            return operator
        except SealBroken:
            return replace(operator, password_hash=None)

    def proven(self, name: str, password: str) -> Operator | None:
        """The operator with this name and password, and the device that he has to show a code of as well. Takes a
        quarter of a second of a processor on purpose.

        Raises `LedgerAway` while it cannot be known which password and device count, whoever asks.
        """
        operator = self.configured(name)
        known = operator.password_hash if operator else None
        try:
            stored = self.chosen.current(name, known or self._stand_in)
        except SealBroken:
            log.error("password_seal_unfit", operator=operator.name if operator else "")
            stored, known = self._stand_in, None
        device = self._device(name)
        right = passwords.verify(password, stored.reveal().decode())
        if not right or operator is None or known is None or device is None:
            return None
        return replace(operator, password_hash=stored, device=device)

    def _device(self, name: str) -> str | None:
        try:
            return self.factors.device(name)
        except SealBroken:
            log.error("second_factor_seal_unfit", operator=name.lower())
            return None
