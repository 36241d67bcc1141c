"""Second factors: the devices of operators that show one-time passwords, and the recovery codes beside them.

What an operator has enrolled is a row of the ledger, sealed under `security.seal_keys` together with his name, as his
chosen password is: whoever may write the ledger alone gives nobody a device, and a device that was taken off leaves a
row that says so. A secret must be known to be compared, so it is kept under a key-stream of the same keys (HMAC-SHA256
of a nonce that is used once): whoever may read the ledger, or a backup of it, makes no code.

A one-time password counts once: the step of the last one is written where it was the one that was read, so that of two
consoles with the same code one has it.
"""

from __future__ import annotations

import hmac
import secrets
import time
from base64 import b32encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, Engine, select, update

from receiver.errors import SealBroken
from receiver.signing import Secret, digest
from workers.console import totp
from workers.console.sealed import OfOperator, SealedRows
from workers.ledger.tables import second_factors

RECOVERY_CODES = 10
LONGEST = 64
"""Characters of a code that is looked at."""
_RECOVERY = 15
"""Bytes of a recovery code: 120 bits, 24 characters."""
_NONCE = 16


class Factor(OfOperator, frozen=True):
    id: str
    """Of this enrolment; "" after the device was taken off."""
    key: str = ""
    """Which of `security.seal_keys` hides the secret."""
    nonce: bytes = b""
    hidden: bytes = b""
    recovery: tuple[str, ...] = ()
    """Digests of the recovery codes that were not used. A slow hash is not needed: there are 120 random bits to guess,
    and nothing that a person has chosen."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A code that counted."""

    recovery: bool
    """Whether it was a recovery code; it is gone now."""
    left: int
    """Recovery codes that remain."""


class SecondFactors:
    """What was enrolled. Which device an operator has counts on as it was read last while the ledger is away; a code
    is good only where the ledger notes that it was used."""

    def __init__(self, engine: Engine, seal_keys: Sequence[Secret], clock: Callable[[], float] = time.time) -> None:
        self._rows = SealedRows(engine, seal_keys, "second_factor", second_factors, Factor)
        self._keys = {digest(b"second_factor", key.reveal())[:16]: key for key in seal_keys}
        self._newest = next(reversed(self._keys))
        self._clock = clock

    def device(self, name: str) -> str:
        """Names the enrolment of the operator's device; "" for one who has none. Raises `LedgerAway` when the ledger
        was never read by this process, and `SealBroken` for a row that is not ours."""
        sealed = self._rows.find(name)
        return self._rows.open(name, sealed).id if sealed is not None else ""

    def fits(self, secret: bytes, given: str) -> int | None:
        """The step of a device's code that fits now; None when none does."""
        return totp.fitting(secret, _plain(given), self._clock())

    def enrol(self, connection: Connection, name: str, secret: bytes, step: int) -> list[str]:
        """From the end of this transaction on the device with `secret` counts for `name`, for codes after `step`, and
        none before it. Gives his recovery codes."""
        codes = [b32encode(secrets.token_bytes(_RECOVERY)).decode() for _ in range(RECOVERY_CODES)]
        recovery = tuple(_hashed(name, code) for code in codes)
        factor = Factor(name.lower(), secrets.token_hex(8), recovery=recovery)
        self._rows.put(connection, self._hiding(factor, secret), last_step=step)
        return ["-".join(code[at : at + 4] for at in range(0, len(code), 4)) for code in codes]

    def take_off(self, connection: Connection, name: str) -> None:
        """Leaves a row: where there is none, nobody knows whether somebody has deleted it."""
        self._rows.put(connection, Factor(name.lower(), ""), last_step=0)

    def take(self, connection: Connection, name: str, given: str) -> Taken | None:
        """Lets a code count, of the device or for recovery, within this transaction; None for one that does not. Raises
        `SealBroken`."""
        row = connection.execute(select(second_factors).where(second_factors.c.name == name.lower())).first()
        if row is None or len(given) > LONGEST or not (factor := self._rows.open(name, row.sealed)).id:
            return None
        plain, secret = _plain(given), self._revealed(factor)
        step = totp.fitting(secret, plain, self._clock())
        hashed = _hashed(name, plain)
        left = tuple(each for each in factor.recovery if not hmac.compare_digest(each, hashed))
        recovery = len(left) < len(factor.recovery)
        if not recovery and (step is None or step <= row.last_step):
            return None
        if recovery or factor.key != self._newest:
            factor = self._hiding(msgspec.structs.replace(factor, recovery=left), secret)
        same = [second_factors.c[column] == getattr(row, column) for column in ("name", "sealed", "last_step")]
        values = {"sealed": self._rows.seal(factor), "last_step": row.last_step if recovery else step}
        taken = connection.execute(update(second_factors).where(*same).values(values))
        return Taken(recovery, len(left)) if taken.rowcount == 1 else None

    def _hiding(self, factor: Factor, secret: bytes) -> Factor:
        """With `secret` under the newest key."""
        nonce = secrets.token_bytes(_NONCE)
        hidden = _mixed(secret, self._stream(self._newest, nonce))
        return msgspec.structs.replace(factor, key=self._newest, nonce=nonce, hidden=hidden)

    def _revealed(self, factor: Factor) -> bytes:
        if factor.key not in self._keys:
            raise SealBroken("The key that hides the secret is not in security.seal_keys.")
        return _mixed(factor.hidden, self._stream(factor.key, factor.nonce))

    def _stream(self, key: str, nonce: bytes) -> bytes:
        own = hmac.digest(self._keys[key].reveal(), b"postback.second_factor.hidden", "sha256")
        return hmac.digest(own, nonce, "sha256")


def _mixed(text: bytes, stream: bytes) -> bytes:
    assert len(text) <= len(stream)
    return bytes(one ^ other for one, other in zip(text, stream, strict=False))


def _hashed(name: str, code: str) -> str:
    return digest(b"recovery", name.lower().encode(), code.encode())


def _plain(given: str) -> str:
    """As it is compared: apps and people write codes in groups."""
    return "".join(given.split()).replace("-", "").upper()
