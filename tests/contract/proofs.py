"""What makes a request proven, written down a second time from the vendors' pages alone: nothing of the receiver is
used here, so that a fault there is no fault here."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, urlsplit

QUICKSTREAM, CHECKOUT, DEBITSUCCESS, PAYMENTZ = (
    "/notify/quickstream/acme",
    "/notify/checkout/main",
    "/notify/debitsuccess/gym",
    "/notify/paymentz/eu",
)
PASSWORDS = ["old:pässword", "new:pässword"]
SIGNATURE_KEYS, STATIC_KEY = [b"cko-old-key", b"cko-new-key"], "cko-static-key"
EVENT_TOKENS = ["event-old-token", "event-new-token"]
FORM_TOKEN, WEBHOOK_TOKEN = "FormTok1", "HookTok1"
SECURE_KEYS = [b"pz-old-key", b"pz-new-key"]


@dataclass(frozen=True)
class Wire:
    """A request as it is written to the socket. Header values may hold a folded line."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    source: str = "127.0.0.1"
    length: int | None = None
    """Content-Length, where it is not that of the body."""
    piece: int | None = None
    """Bytes of each chunk, where the body comes in chunks."""
    trailers: tuple[tuple[str, str], ...] = ()
    """Headers behind a body that comes in chunks, which prove nothing."""

    def written(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: h"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.piece is not None:
            lines += ["Transfer-Encoding: chunked", "", ""]
            return "\r\n".join(lines).encode("latin-1") + self._chunks(self.piece)
        lines += [f"Content-Length: {len(self.body) if self.length is None else self.length}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body

    def _chunks(self, piece: int) -> bytes:
        parts = [self.body[start : start + piece] for start in range(0, len(self.body), piece)]
        last = "".join(f"{name}: {value}\r\n" for name, value in self.trailers).encode("latin-1")
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + last + b"\r\n"

    @property
    def sent_body(self) -> bytes:
        return self.body if self.length is None or self.piece is not None else self.body[: self.length]

    def header(self, name: str) -> str | None:
        """The value of a header that occurs once; None otherwise."""
        values = [value.strip(" \t") for given, value in self.headers if given.lower() == name]
        return values[0] if len(values) == 1 else None


def proven(wire: Wire) -> bool:
    """Whether `wire` may become a verified notification of the endpoint that it is sent to."""
    if wire.method != "POST" or any("\r" in value or "\n" in value for _, value in wire.headers):
        return False
    if wire.piece is None and wire.length is not None and not 0 < wire.length <= len(wire.body):
        return False
    target = wire.target.rstrip(" ")  # before the version, where more than one space says the same
    path = urlsplit(target).path if re.match(r"[A-Za-z]+://", target) else target
    judge = _JUDGES.get(path.partition("?")[0].partition("#")[0])
    return judge is not None and judge(wire)


def _quickstream(wire: Wire) -> bool:
    given = wire.header("authorization") or ""
    scheme, _, encoded = given.partition(" ")
    if wire.source != "127.0.0.1" or scheme.lower() != "basic":
        return False
    try:
        text = b64decode(encoded.strip(" ").encode("latin-1"), validate=True)
    except ValueError:
        return False
    return text in [f"acme:{password}".encode() for password in PASSWORDS]


def _checkout(wire: Wire) -> bool:
    given = (wire.header("cko-signature") or "").lower()
    right = [hmac.new(key, wire.sent_body, "sha256").hexdigest() for key in SIGNATURE_KEYS]
    return given in right and wire.header("authorization") == STATIC_KEY


def _debitsuccess(wire: Wire) -> bool:
    names = {name.lower() for name, _ in wire.headers}
    if names & {"x-token", "x-eventname"}:
        return wire.header("x-token") in EVENT_TOKENS
    try:
        members: Any = json.loads(_text(wire.sent_body), object_pairs_hook=list)
    except ValueError:
        return False
    if not isinstance(members, list):
        return False
    said = {(str(pair[0]).lower(), _word(pair[1])) for pair in members if isinstance(pair, tuple)}
    return {("paymentformtoken", FORM_TOKEN), ("webhooktoken", WEBHOOK_TOKEN)} <= said


def _paymentz(wire: Wire) -> bool:
    """In one of the variants in which a checksum is known to come; whether it is believed is another question."""
    body = _members(_text(wire.sent_body))
    parts = [body.get(name, "") for name in ("paymentId", "merchantTransactionId", "amount", "transactionStatus")]
    amounts = {parts[2], parts[2].partition(".")[0]}
    for amount, short, charset, key in product(
        amounts, {parts[3], "Y", "N", "P", "3D", "C"}, ("utf-8", "latin-1"), SECURE_KEYS
    ):
        text = "|".join((parts[0], parts[1], amount, short)).encode(charset, "replace")
        if hashlib.md5(text + b"|" + key, usedforsecurity=False).hexdigest() == body.get("checksum", "").lower():
            return True
    return False


def _members(text: str) -> dict[str, str]:
    try:
        value = json.loads(text, parse_float=str, parse_int=str)
    except ValueError:
        return dict(parse_qsl(text, keep_blank_values=True, encoding="latin-1"))
    return {name: _word(member) for name, member in value.items()} if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("latin-1")


_JUDGES: dict[str, Callable[[Wire], bool]] = {
    QUICKSTREAM: _quickstream,
    CHECKOUT: _checkout,
    DEBITSUCCESS: _debitsuccess,
    PAYMENTZ: _paymentz,
}
