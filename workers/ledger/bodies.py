"""Raw bodies at rest: the one place that seals and opens them, with AES-256-GCM under `security.body_keys`.

A sealed body is a nonce of 12 bytes, the ciphertext and a tag of 16, and its row names the key in `body_key`. The row's
id, provider and facility are authenticated with it, so that a body moved to another row does not open. Rows without a
`body_key` are plain: they were written before a key was configured, and stay readable.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from receiver.errors import BodyLocked, BodyPurged, ConfigurationError
from receiver.signing import Secret
from workers.ledger.tables import notifications, repeats

_NONCE = 12
_KEY_ID = 16
"""Hexadecimal digits that name a key without telling anything of it."""


class Bodies:
    """Seals with the newest key and opens with all. Without keys bodies are stored plain."""

    def __init__(self, keys: Sequence[Secret] = ()) -> None:
        """`keys` oldest first. Raises `ConfigurationError` when the extra is not installed."""
        self._keys = {_derived(key, b"id").hex()[:_KEY_ID]: _derived(key, b"key") for key in keys}
        self._newest = next(reversed(self._keys), None)
        if keys:
            try:
                from cryptography.exceptions import InvalidTag
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError:
                raise ConfigurationError(
                    "security.body_keys: needs the extra: pip install 'postback-receiver[encrypt]'."
                ) from None
            self._cipher, self._invalid = AESGCM, InvalidTag

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Names of the configured keys, oldest first."""
        return tuple(self._keys)

    def stored(self, body: bytes, row_id: str, provider: str, facility: str) -> dict[str, Any]:
        """The columns `body` and `body_key` of the row."""
        if self._newest is None:
            return {"body": body, "body_key": None}
        of = _named(row_id, provider, facility)
        nonce = os.urandom(_NONCE)
        sealed = self._cipher(_row_key(self._keys[self._newest], of)).encrypt(nonce, body, of)
        return {"body": nonce + sealed, "body_key": self._newest}

    def opened(self, row: Any, provider: str, facility: str) -> bytes:
        """The raw body of a row of `notifications`, or of a conflict in `repeats`.

        Raises `BodyPurged` when its time is over, and `BodyLocked` when no configured key opens it.
        """
        if row.purged_at is not None:
            raise BodyPurged(f"The raw body of {row.id} was purged at {row.purged_at:%Y-%m-%dT%H:%M:%SZ}.")
        stored: bytes = row.body
        if row.body_key is None:
            return stored
        key = self._keys.get(row.body_key)
        if key is None:
            raise BodyLocked(f"The raw body of {row.id} needs the key {row.body_key}: not in security.body_keys.")
        of = _named(row.id, provider, facility)
        try:
            return self._cipher(_row_key(key, of)).decrypt(stored[:_NONCE], stored[_NONCE:], of)
        except (self._invalid, ValueError):
            raise BodyLocked(f"The raw body of {row.id} was altered, or is that of another row.") from None


def keys_in_use(connection: Connection) -> set[str]:
    """Names of the keys that a stored body is encrypted with. Each is one step in an index, however many bodies."""
    found: set[str] = set()
    for table in (notifications, repeats):
        name = ""
        while name := connection.scalar(select(func.min(table.c.body_key)).where(table.c.body_key > name)):
            found.add(name)
    return found


def _derived(key: Secret, use: bytes) -> bytes:
    return hmac.digest(key.reveal(), b"postback.body." + use, "sha256")


def _row_key(key: bytes, of: bytes) -> bytes:
    """Each row has a key of its own: random nonces under one key are safe for some thousand million bodies only."""
    return hmac.digest(key, of, "sha256")


def _named(row_id: str, provider: str, facility: str) -> bytes:
    # None of the three can hold a NUL, so no two rows have one name.
    return f"{row_id}\0{provider}\0{facility}".encode()
