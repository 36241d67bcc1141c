"""One-time passwords as authenticator apps make them: RFC 6238 with SHA-1, six digits and steps of 30 seconds."""

from __future__ import annotations

import hmac
import secrets
from base64 import b32encode
from urllib.parse import quote

DIGITS = 6
STEP = 30
"""Seconds."""
DRIFT = 1
"""Steps that the two clocks may differ, each way."""
SECRET = 20
"""Bytes: what RFC 4226 recommends."""


def generate() -> bytes:
    return secrets.token_bytes(SECRET)


def code(secret: bytes, step: int) -> str:
    """The password of one step since 1970: RFC 4226 with the step as its counter."""
    mac = hmac.digest(secret, step.to_bytes(8, "big"), "sha1")
    at = mac[-1] & 0x0F
    number = int.from_bytes(mac[at : at + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**DIGITS:0{DIGITS}}"


def fitting(secret: bytes, given: str, now: float) -> int | None:
    """The newest step whose password is `given`; None where none is. As long for a wrong one as for a right one."""
    here, found = int(now) // STEP, None
    for step in range(here - DRIFT, here + DRIFT + 1):
        if hmac.compare_digest(code(secret, step).encode(), given.encode()):
            found = step
    return found


def text(secret: bytes) -> str:
    """In base32, in groups of four, to be typed."""
    written = b32encode(secret).decode()
    return " ".join(written[at : at + 4] for at in range(0, len(written), 4))


def uri(secret: bytes, name: str, issuer: str) -> str:
    """What a QR code says to an app. Without the parameters that are every app's default: some refuse them."""
    label = f"{quote(issuer, safe='')}:{quote(name, safe='')}"
    return f"otpauth://totp/{label}?secret={b32encode(secret).decode()}&issuer={quote(issuer, safe='')}"
