"""Proofs: secrets, constant-time comparison, Basic credentials, HMAC, and the seal on what crosses the queue.

Every comparison is over bytes and takes the same time whatever differs. Each check takes a list of secrets, oldest
first, so that a secret can be changed without a gap. Nothing here returns a truth value that a caller could ignore:
the checks raise `Refused`.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import quote_plus

import msgspec
from itsdangerous import BadSignature, Signer

from receiver.errors import Reason, Refused, SealBroken


class Secret:
    """A secret's bytes, with the place where they came from. Shows only that place.

    Raises `ValueError` for no bytes at all: an empty secret would let an empty proof pass.
    """

    __slots__ = ("_value", "origin", "used")

    def __init__(self, value: bytes, origin: str = "literal") -> None:
        if not value:
            raise ValueError(f"The secret from {origin} is empty.")
        self._value = value
        self.origin = origin
        self.used = 0
        """How often it has proven something in this process."""

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.origin})"


def matches(given: bytes, secrets: Sequence[Secret]) -> Secret | None:
    """The one of `secrets` that `given` equals. All are compared, so that time does not tell which. Whoever takes it
    for a proof counts it in `Secret.used`."""
    found = None
    for secret in secrets:
        if hmac.compare_digest(given, secret.reveal()):
            found = secret
    return found


def require_basic(authorization: str | None, username: str, passwords: Sequence[Secret]) -> None:
    """RFC 7617 credentials, UTF-8, split at the first colon only.

    Raises `Refused`: `credentials_missing` (401) without the header, `credentials_refused` (403) for anything else
    that does not match, malformed values and other schemes included.
    """
    if authorization is None:
        raise Refused(Reason.CREDENTIALS_MISSING, "The Authorization header is missing.")
    scheme, _, encoded = authorization.partition(" ")
    try:
        given = binascii.a2b_base64(encoded.strip(), strict_mode=True) if scheme.lower() == "basic" else b""
    except ValueError:
        given = b""
    user, colon, password = given.partition(b":")
    # Both are compared whatever the first one gives.
    right_user = hmac.compare_digest(user, username.encode())
    right_password = matches(password, passwords)
    if not (colon and right_user) or right_password is None:
        raise Refused(Reason.CREDENTIALS_REFUSED, "The Authorization header does not match this endpoint.")
    right_password.used += 1


def require_static(given: str | None, secrets: Sequence[Secret], header: str) -> None:
    """A header whose whole value is the secret. Raises `Refused`: `credentials_refused`, for a missing one as well
    (401 would ask for Basic credentials, which these senders do not have)."""
    if given is None:
        raise Refused(Reason.CREDENTIALS_REFUSED, f"The {header} header is missing.")
    found = matches(_as_sent(given), secrets)
    if found is None:
        raise Refused(Reason.CREDENTIALS_REFUSED, f"The {header} header does not match this endpoint.")
    found.used += 1


def require_hmac_sha256(given: str | None, body: bytes, keys: Sequence[Secret], header: str) -> None:
    """Hex HMAC-SHA256 of the raw body under one of `keys`. Raises `Refused`: `signature_missing` or `_refused`."""
    if not given:
        raise Refused(Reason.SIGNATURE_MISSING, f"The {header} header is missing.")
    signature = _as_sent(given.lower())
    found = None
    for key in keys:
        if hmac.compare_digest(signature, hmac.digest(key.reveal(), body, "sha256").hex().encode()):
            found = key
    if found is None:
        raise Refused(Reason.SIGNATURE_REFUSED, f"The {header} header does not match the body.")
    found.used += 1


def canonical_return(pairs: Sequence[tuple[str, str]]) -> str:
    """What QuickStream signs of a browser return: the decoded parameters without ``hmac``, sorted by name and encoded
    again as ``java.net.URLEncoder`` does. Parameters of the same name keep their order.

    Vendor: https://quickstream.westpac.com.au/docs/general/validating-the-hmac
    Raises `UnicodeEncodeError` for half a surrogate pair, which no sender can have sent as UTF-8.
    """
    signed = sorted((pair for pair in pairs if pair[0] != "hmac"), key=lambda pair: pair[0])
    return "&".join(f"{_java_url_encoded(name)}={_java_url_encoded(value)}" for name, value in signed)


def return_digest(pairs: Sequence[tuple[str, str]], password: Secret) -> str:
    """Lower-case hex HMAC-SHA256 of the canonical text under a secure token request password."""
    return hmac.digest(password.reveal(), canonical_return(pairs).encode("ascii"), "sha256").hex()


def require_return_hmac(pairs: Sequence[tuple[str, str]], passwords: Sequence[Secret]) -> None:
    """The ``hmac`` among the decoded parameters of a browser return. Raises `Refused`: `signature_missing` or
    `signature_refused`. Nothing in a return is used only once, so a proven one may still be a replay."""
    given = [value for name, value in pairs if name == "hmac"]
    if not any(given):
        raise Refused(Reason.SIGNATURE_MISSING, "The hmac parameter is missing.")
    found = None
    try:
        for password in passwords:
            # One encoding and one order only: trying variants until one fits would weaken the proof.
            if hmac.compare_digest(_as_sent(given[0]), return_digest(pairs, password).encode()):
                found = password
    except UnicodeEncodeError:
        found = None
    if found is None or len(given) > 1:
        raise Refused(Reason.SIGNATURE_REFUSED, "The hmac parameter does not match the others.")
    found.used += 1


def _java_url_encoded(text: str) -> str:
    # Python leaves "~" and escapes "*"; Java the other way round.
    return quote_plus(text, safe="*").replace("~", "%7E")


def _as_sent(text: str) -> bytes:
    """The bytes that the server read as Latin-1. Text that cannot come from there equals no secret and no digest."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return b""


def digest(*parts: bytes | str) -> str:
    """SHA-256 over length-prefixed parts, in hex: a name for content, not a proof of origin."""
    return hashlib.sha256(_PARTS.encode(parts)).hexdigest()


# MessagePack prefixes each part with its kind and length.
_PARTS = msgspec.msgpack.Encoder()


class Seal:
    """Signs what crosses the queue, so that only what an accept process wrote becomes a record."""

    def __init__(self, keys: Sequence[Secret], purpose: str) -> None:
        """`keys` oldest first: the newest signs, all verify. `purpose` separates batches from other messages."""
        self._signer = Signer(
            [key.reveal() for key in keys],
            salt=f"postback.{purpose}",
            digest_method=hashlib.sha256,
            key_derivation="hmac",
        )

    def seal(self, message: bytes) -> bytes:
        return self._signer.sign(message)

    def open(self, sealed: bytes) -> bytes:
        """The sealed message; raises `SealBroken`."""
        try:
            return self._signer.unsign(sealed)
        except BadSignature:
            raise SealBroken("The seal fits none of the keys in security.seal_keys.") from None
