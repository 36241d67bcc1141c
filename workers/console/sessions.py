"""Sessions: what a browser shows to be known again, signed, and the tokens that prove a form to be ours.

The cookie holds everything but what has ended: that is in the ledger, which all consoles share, so that signing out
holds although somebody kept a copy of the cookie.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from itsdangerous import BadData, Signer, URLSafeSerializer
from sqlalchemy import Engine

from receiver.errors import LedgerAway
from receiver.signing import Secret, digest
from workers.console.operators import Operator
from workers.ledger import queries, sessions

Via = Literal["password", "proxy"]

RENEWED_EVERY = 60
"""Seconds after which a request renews the cookie."""
_LONGEST_COOKIE = 1000
_CLOCKS_DIFFER = 5


class Session(msgspec.Struct, frozen=True):
    id: str
    name: str
    fingerprint: str
    """Of the operator's password when the session began."""
    via: Via
    began: int
    seen: int
    """Seconds since 1970."""


class Sessions:
    """Makes and reads session cookies and form tokens."""

    def __init__(self, keys: Sequence[Secret], idle: int, longest: int, clock: Callable[[], float] = time.time) -> None:
        """`keys` oldest first; `idle` and `longest` in seconds."""
        options: dict[str, Any] = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
        revealed = [key.reveal() for key in keys]
        self._cookies = URLSafeSerializer(revealed, salt="postback.console.session", signer_kwargs=options)
        self._forms = Signer(revealed, salt="postback.console.form", **options)
        self._tickets = URLSafeSerializer(revealed, salt="postback.console.ticket", signer_kwargs=options)
        self._idle, self._longest, self._clock = idle, longest, clock

    def begin(self, operator: Operator, via: Via) -> Session:
        now = int(self._clock())
        return Session(secrets.token_urlsafe(24), operator.name, operator.fingerprint, via, now, now)

    def cookie(self, session: Session) -> str:
        text: str = self._cookies.dumps(msgspec.to_builtins(session))
        return text

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None for one that is not ours, or whose time is over."""
        if len(cookie) > _LONGEST_COOKIE:
            return None
        try:
            session = msgspec.convert(self._cookies.loads(cookie), Session)
        except (BadData, msgspec.ValidationError):
            return None
        now = self._clock()
        # A time that has not come yet is as wrong as one that is over; clocks of two machines differ a little.
        idle, age = now - session.seen, now - session.began
        return session if -_CLOCKS_DIFFER <= idle <= self._idle and -_CLOCKS_DIFFER <= age <= self._longest else None

    def renewed(self, session: Session) -> Session | None:
        """The session seen now; None while the cookie is new enough."""
        now = int(self._clock())
        return msgspec.structs.replace(session, seen=now) if now - session.seen >= RENEWED_EVERY else None

    def expires(self, session: Session) -> int:
        """When a copy of its cookie is worth nothing any more, in seconds since 1970."""
        return session.began + self._longest

    def ticket(self, use: str, bound: str, value: Sequence[str]) -> str:
        """What a page gives its form to send back, so that the next step knows what the one before has found. For one
        use, and for whoever `bound` names: a visit or a session."""
        text: str = self._tickets.dumps([use, digest(bound), int(self._clock()), *value])
        return text

    def opened(self, ticket: str, use: str, bound: str, lasts: int) -> list[str] | None:
        """The value of a ticket; None for one that is not ours, not for this, or older than `lasts` seconds."""
        if len(ticket) > _LONGEST_COOKIE:
            return None
        try:
            for_, whose, made, *value = self._tickets.loads(ticket)
        except (BadData, ValueError):
            return None
        fits = (for_, whose) == (use, digest(bound)) and -_CLOCKS_DIFFER <= self._clock() - made <= lasts
        return value if fits else None

    def form_token(self, id_: str) -> str:
        """What a form must send back, for a session or for a visit that is not signed in yet."""
        return self._forms.get_signature(id_.encode()).decode()

    def proves(self, token: str, id_: str) -> bool:
        try:
            given = token.encode("ascii")
        except UnicodeEncodeError:
            return False
        return len(given) < 100 and self._forms.verify_signature(id_.encode(), given)


class Ended:
    """Sessions that were ended before their time. The ledger knows them all; this process remembers its own, so that
    signing out holds here although the ledger is away, and owes them to the ledger until it has them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}
        self._owed: dict[str, int] = {}

    def add(self, id_: str, expires: int) -> None:
        """Raises `LedgerAway` when it holds in this process alone for now; `settle` makes up for it."""
        with self._lock:
            self._here = _not_over(self._here) | {id_: expires}
            self._owed = _not_over(self._owed) | {id_: expires}
        self._write(id_, expires)

    def settle(self) -> int:
        """Writes what is owed to the ledger; gives how many. Raises `LedgerAway`."""
        with self._lock:
            owed = self._owed = _not_over(self._owed)
        for id_, expires in owed.items():
            self._write(id_, expires)
        return len(owed)

    def _write(self, id_: str, expires: int) -> None:
        sessions.end(self._engine, id_, expires)
        with self._lock:
            self._owed = {known: until for known, until in self._owed.items() if known != id_}

    def __contains__(self, id_: str) -> bool:
        if id_ in self._here:
            return True
        try:
            with queries.reading(self._engine) as connection:
                return sessions.has_ended(connection, id_)
        except LedgerAway:
            # Whoever is signed in must be able to see that the ledger is away; there is nothing else to see then.
            return False


def _not_over(ends: dict[str, int]) -> dict[str, int]:
    now = time.time()
    return {known: until for known, until in ends.items() if until > now}
