"""The way of one notification on the accept side, one line per step: `Accept._accept` is the walk.

A raw ASGI application: routing and middleware of a framework cost a quarter of the requests per second here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from receiver import cards, logs, metrics
from receiver.attempts import Attempts
from receiver.door import ENDS_UNREAD
from receiver.errors import NotStored, Quarantined, Reason, Refused
from receiver.expected import HeldLimit, Tokens
from receiver.inbox import Commits
from receiver.notification import Envelope, Expectation, new_id, now_us
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Identity, Message, Provider
from receiver.refusals import Refusal, RefusalLog
from receiver.settings import Settings, allowed_networks, networks
from receiver.signing import digest
from receiver.source import Address, AllowedSources, TrustedProxies, parse, shown

log = logs.get("receiver.accept")

MAX_HELD_BODY = 16 << 10
"""Bytes of an unverified body: the sender's own have a few hundred."""

LOOK_EVERY = 0.1
"""Seconds between two looks for bodies that are too slow."""

LOOKED_THROUGH = 1000
"""Characters of a refused path that are searched for card numbers: far fewer are kept."""

_USUAL_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json", "application/xml", "text/xml", ""})
_NOBODY = TrustedProxies(())
_NOTHING: Mapping[str, int] = {}
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint with all that its requests need, looked up once at start."""

    endpoint: Endpoint
    provider: Provider
    sources: AllowedSources
    direct: Callable[[str | None], str]
    """The address, as it is shown, of a peer that is no proxy. Raises `Refused`."""
    proposed: AllowedSources | None
    """A list on trial."""
    outside: Any
    headers: Mapping[bytes, str]
    """Names of the headers that the provider reads."""
    accepted: Any
    quarantined: Any
    held: Any


class Accept:
    """``POST /notify/{provider}/{facility}``."""

    def __init__(
        self,
        settings: Settings,
        inbox: Commits,
        tokens: Tokens,
        held: HeldLimit,
        refusals: RefusalLog,
        attempts: Attempts,
    ) -> None:
        self.use(settings)
        self._proxies = TrustedProxies(networks(settings.receive.trusted_proxies, "receive.trusted_proxies"))
        believed = settings.receive.forwarded_header
        self._forwarded = (believed.lower().encode(),) if believed else (b"x-forwarded-for", b"forwarded")
        self._max_body = int(settings.receive.max_body)
        self._body_timeout = settings.receive.body_timeout
        self._deadlines = Deadlines(self._body_timeout)
        self._inbox = inbox
        self._tokens = tokens
        self._held = held
        self._refusals = refusals
        self._attempts = attempts
        self.tally = metrics.Tally()

    def use(self, settings: Settings) -> None:
        """From now on these are the endpoints and their secrets; a request under way keeps those that it began with."""
        self._routes = {f"/notify/{e.path}".encode(): _route(e) for e in settings.endpoint}

    async def watch(self) -> None:
        """Ends bodies that are too slow, for as long as the application runs."""
        await self._deadlines.watch()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter()
        visit = Visit()
        try:
            notification_id, status = await self._accept(scope, receive, visit)
        except Refused as refused:
            await self._refuse(scope, send, visit, refused)
        except NotStored as lost:
            await self._not_stored(send, visit, lost)
        except Gone:
            return
        except Exception:
            # A fault of ours is no reason to lose a payment: the sender is told to send it again.
            log.exception("accept_failed", provider=visit.provider, facility=visit.facility)
            await self._not_stored(send, visit, NotStored("The receiver failed."))
        else:
            await _answer(send, 200, b'{"id":"%s","status":"%s"}' % (notification_id.encode(), status))
            self.tally.answered(time.perf_counter() - began)

    async def _accept(self, scope: Any, receive: Any, visit: Visit) -> tuple[str, bytes]:
        # fmt: off
        route = visit.route = self._endpoint(scope)                                     # 1 endpoint
        visit.source = self._source(scope, route)                                       # 2 source
        message = self._credentials(scope, route, visit)                                # 3 credentials
        message = await self._body(scope, receive, message, visit)                      # 4 body
        verified = await self._authenticate(route, message, visit)                      # 5 authenticate
        message, visit.masked = _without_cards(route, message)                         #   mask card numbers
        identity, doubt = self._identify(route, message)                                # 6 identify
        envelope = self._envelope(route, message, visit, verified, identity, doubt)
        await self._inbox.commit(envelope)                                              # 7 commit
        return envelope.id, self._status(route, envelope)                               # 8 answer
        # fmt: on

    def _endpoint(self, scope: Any) -> Route:
        # The path as sent, undecoded: there is one spelling of each endpoint and no other reaches it.
        route = self._routes.get(scope["raw_path"])
        if route is None:
            raise Refused(Reason.UNKNOWN_ENDPOINT, "There is no such endpoint.")
        if scope["method"] != "POST":
            raise Refused(Reason.METHOD_REFUSED, "Notifications are sent with POST.")
        return route

    def _source(self, scope: Any, route: Route) -> str:
        if not self._proxies:
            peer = scope["client"]
            return route.direct(peer[0] if peer else None)
        address = self._client(scope)
        route.sources.require(address)
        return shown(address)

    def _client(self, scope: Any) -> Address:
        peer = scope["client"]
        if not self._proxies:
            return self._proxies.client(peer[0] if peer else None, ())
        given: dict[bytes, list[bytes]] = {name: [] for name in self._forwarded}
        for name, value in scope["headers"]:
            if name in given:
                given[name].append(value)
        forwarded_for, forwarded = given.get(b"x-forwarded-for", ()), given.get(b"forwarded", ())
        return self._proxies.client(peer[0] if peer else None, forwarded_for, forwarded)

    def _credentials(self, scope: Any, route: Route, visit: Visit) -> Message:
        headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = route.headers.get(raw)
            if name is not None:
                if name in headers:
                    # Of two, one would be checked and the other might be used.
                    raise Refused(Reason.REQUEST_MALFORMED, f"The {name} header occurs twice.")
                headers[name] = value.decode("latin-1")
        visit.content_type = headers.pop("content-type", "")
        if visit.content_type not in _USUAL_TYPES:
            visit.content_type = visit.content_type.partition(";")[0].strip().lower()
        visit.size = _length(headers.pop("content-length", None))
        message = Message(visit.content_type, headers, b"")
        route.provider.check_headers(message, route.endpoint)
        return message

    async def _body(self, scope: Any, receive: Any, message: Message, visit: Visit) -> Message:
        if visit.size > self._max_body:
            raise Refused(Reason.BODY_TOO_LARGE, f"The body may have at most {self._max_body} bytes.")
        reader = self._deadlines.begin()
        try:
            body = await self._read(receive, visit)
        except asyncio.CancelledError:
            if not self._deadlines.passed(reader):
                raise
            raise Refused(Reason.BODY_TOO_SLOW, f"The body did not arrive within {self._body_timeout} s.") from None
        finally:
            self._deadlines.end(reader)
        if not body:
            raise Refused(Reason.BODY_EMPTY, "The body is empty.")
        return Message(message.content_type, message.headers, body)

    async def _read(self, receive: Any, visit: Visit) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Gone
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_body:
                visit.size = size
                raise Refused(Reason.BODY_TOO_LARGE, f"The body may have at most {self._max_body} bytes.")
            if not event.get("more_body", False):
                visit.size = size
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _authenticate(self, route: Route, message: Message, visit: Visit) -> bool:
        """False only for a token that nobody registered yet: there is nothing to compare with, so it is held."""
        token = route.provider.token_of(message)
        expected: Expectation | None = None
        if token is not None:
            expected = await self._tokens.find(route.endpoint.provider, route.endpoint.facility, token)
            if expected is None:
                await self._hold(route.endpoint, message, visit)
                return False
        route.provider.authenticate(message, route.endpoint, expected)
        return True

    async def _hold(self, endpoint: Endpoint, message: Message, visit: Visit) -> None:
        """The limits of what is kept without a proof come before all further work on it."""
        if len(message.body) > MAX_HELD_BODY:
            raise Refused(Reason.BODY_TOO_LARGE, "The body is too large to be held without proof.")
        visit.id = new_id(now_us())
        await self._held.take(endpoint.provider, endpoint.facility, visit.source, visit.id)

    def _identify(self, route: Route, message: Message) -> tuple[Identity, Quarantined | None]:
        try:
            return route.provider.identify(message, route.endpoint), None
        except Quarantined as quarantined:
            doubt = quarantined
        except Exception:
            # Some senders send only once: a fault of ours must not cost the payment.
            log.exception("identify_failed", provider=route.endpoint.provider, facility=route.endpoint.facility)
            doubt = Quarantined(Reason.INTERPRETATION_FAILED, "the receiver failed to read the body")
        # The body's own digest is the key, so that a later, readable notification is no repeat of this one.
        content = digest(message.content_type.encode(), message.body)
        return Identity(f"body:{content}", "unknown", content), doubt

    def _envelope(
        self,
        route: Route,
        message: Message,
        visit: Visit,
        verified: bool,
        identity: Identity,
        doubt: Quarantined | None,
    ) -> Envelope:
        received_at, kept = now_us(), route.provider.kept_headers
        envelope = Envelope(
            id=visit.id or new_id(received_at),
            provider=route.endpoint.provider,
            facility=route.endpoint.facility,
            received_at=received_at,
            source=visit.source,
            content_type=message.content_type,
            headers={name: message.headers[name] for name in kept if name in message.headers} if kept else {},
            body=message.body,
            verified=verified,
            dedupe_key=identity.dedupe_key,
            event_type=identity.event_type,
            fingerprint=identity.fingerprint,
            quarantine=doubt.reason if doubt else "",
            detail=doubt.detail if doubt else "",
        )
        for place, numbers in visit.masked.items():
            report_cards(envelope.provider, envelope.facility, place, numbers, envelope.id)
        return envelope

    def _status(self, route: Route, envelope: Envelope) -> bytes:
        if route.proposed is not None:
            address = parse(envelope.source)
            if address is not None and not route.proposed.allow(address):
                self.tally.count(route.outside)
        if envelope.verified and not envelope.quarantine:
            self.tally.count(route.accepted)
            return b"accepted"
        if envelope.verified:
            self.tally.count(route.quarantined)
            status, event = b"quarantined", "notification_quarantined"
        else:
            self.tally.count(route.held)
            status, event = b"held", "notification_held"
        log.warning(
            event,
            id=envelope.id,
            provider=envelope.provider,
            facility=envelope.facility,
            reason=envelope.quarantine or Reason.TOKEN_UNKNOWN,
        )
        return status

    async def refused(self, scope: Any, visit: Visit, refused: Refused) -> Refused:
        """What a refused request is answered, counted, and within limits recorded."""
        source = visit.source or self._seen(scope)
        judged = await self._attempts.judge(refused, visit.route.endpoint.path if visit.route else "", source)
        if judged is refused:
            self.record(scope, visit, refused)
        else:
            self.tally.count(metrics.refused(visit.provider, visit.facility, judged.reason))
        return judged

    def record(self, scope: Any, visit: Visit, refused: Refused) -> None:
        """Counts and keeps a refusal: no body, no header's value, no control character."""
        metrics.refused(visit.provider, visit.facility, refused.reason).inc()
        given = (scope["path"][:LOOKED_THROUGH], visit.content_type[:LOOKED_THROUGH])
        path, content_type = map(cards.masked_text, given)
        if (path, content_type) != given:
            report_cards(visit.provider, visit.facility, "refusal", 1)
        self._refusals.add(
            Refusal(
                at=now_us(),
                provider=visit.provider or _text(path),
                facility=visit.facility,
                source=visit.source or self._seen(scope),
                reason=refused.reason,
                detail=refused.detail,
                status=refused.status,
                size=visit.size,
                content_type=_text(content_type),
            )
        )
        log.info("request_refused", provider=visit.provider, facility=visit.facility, reason=refused.reason)

    def _seen(self, scope: Any) -> str:
        """The address of a request that was refused before or by its address."""
        try:
            return shown(self._client(scope))
        except Refused:
            return _text(str(scope["client"][0])) if scope["client"] else ""

    async def _refuse(self, scope: Any, send: Any, visit: Visit, refused: Refused) -> None:
        refused = await self.refused(scope, visit, refused)
        headers = []
        if refused.reason is Reason.CREDENTIALS_MISSING:
            # Some clients send their credentials only after a challenge (RFC 7617).
            headers.append((b"www-authenticate", b'Basic realm="postback", charset="UTF-8"'))
        if refused.reason is Reason.METHOD_REFUSED:
            headers.append((b"allow", b"POST"))
        if refused.reason in (Reason.HELD_FULL, Reason.ATTEMPTS_FULL):
            headers.append((b"retry-after", b"60"))
        await _answer(send, refused.status, _error(refused.reason, refused.detail), headers)

    async def _not_stored(self, send: Any, visit: Visit, lost: NotStored) -> None:
        metrics.NOT_STORED.labels(visit.provider, visit.facility).inc()
        log.error("notification_not_stored", provider=visit.provider, facility=visit.facility, detail=lost.detail)
        status = visit.route.provider.not_stored_status if visit.route else 503
        headers = [(b"retry-after", b"5")] if status == 503 else []
        detail = "The notification could not be stored. Send it again."
        await _answer(send, status, _error(lost.reason, detail), headers)


class Visit:
    """What is known of a request so far, for its refusal record."""

    __slots__ = ("content_type", "id", "masked", "route", "size", "source")

    def __init__(self) -> None:
        self.route: Route | None = None
        self.id = ""
        """Of what is held; any other gets its id with its envelope."""
        self.source = ""
        self.content_type = ""
        self.size = 0
        self.masked = _NOTHING
        """Card numbers by place."""

    @property
    def provider(self) -> str:
        return self.route.endpoint.provider if self.route else ""

    @property
    def facility(self) -> str:
        return self.route.endpoint.facility if self.route else ""


class Deadlines:
    """Cancels tasks that are not done within some seconds: `asyncio.timeout` for each would be a timer for each. One
    look at all of them, every `LOOK_EVERY` seconds, costs a fraction, and the first one is always the oldest."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[asyncio.Task[Any], float] = {}
        self._over: set[asyncio.Task[Any]] = set()

    def begin(self) -> asyncio.Task[Any]:
        """The running task, which from now on has its seconds."""
        task = asyncio.current_task()
        assert task is not None
        self._until[task] = time.monotonic() + self._seconds
        return task

    def passed(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was this deadline that cancelled `task`, which then goes on."""
        if task not in self._over:
            return False
        task.uncancel()
        return True

    def end(self, task: asyncio.Task[Any]) -> None:
        self._until.pop(task, None)
        if self._over:
            self._over.discard(task)

    async def watch(self) -> None:
        """For as long as the application runs."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = time.monotonic()
            for task, until in list(self._until.items()):
                if until > now:
                    break
                del self._until[task]
                self._over.add(task)
                task.cancel()


class Gone(Exception):
    """The client hung up before its body was complete: there is nobody to answer."""


def _route(endpoint: Endpoint) -> Route:
    provider = PROVIDERS[endpoint.provider]
    names = ("content-type", "content-length", *provider.proof_headers, *provider.kept_headers)
    counts = [
        metrics.ACCEPTED.labels(endpoint.provider, endpoint.facility, status)
        for status in ("accepted", "quarantined", "held")
    ]
    sources = AllowedSources(allowed_networks(endpoint, provider))

    @lru_cache(maxsize=4096)
    def direct(peer: str | None) -> str:
        address = _NOBODY.client(peer, ())
        sources.require(address)
        return shown(address)

    proposed = None
    if endpoint.proposed_sources is not None:
        proposed = AllowedSources(networks(endpoint.proposed_sources, "proposed_sources"))
    outside = metrics.OUTSIDE_PROPOSED.labels(endpoint.provider, endpoint.facility)
    return Route(
        endpoint, provider, sources, direct, proposed, outside, {name.encode(): name for name in names}, *counts
    )


def _length(text: str | None) -> int:
    """What the sender says; more digits than that are as much too large."""
    return int(text[:18]) if text and text.isascii() and text.isdigit() else 0


def _without_cards(route: Route, message: Message) -> tuple[Message, Mapping[str, int]]:
    """What is kept of a message: no card number, wherever it stands. From here on nobody sees the bytes as sent, so a
    replay finds the same duplicate key and fingerprint as the first look, and neither can be tried out for a number.
    """
    if cards.may_hold(message.body) or route.provider.kept_headers or message.content_type not in _USUAL_TYPES:
        return cards.masked_message(message, route.provider, route.endpoint)
    return message, _NOTHING


def report_cards(provider: str, facility: str, place: str, numbers: int, notification_id: str = "") -> None:
    metrics.CARDS_MASKED.labels(provider, facility, place).inc(numbers)
    log.warning(
        "card_number_masked",
        provider=provider,
        facility=facility,
        place=place,
        numbers=numbers,
        id=notification_id or None,
    )


def _text(raw: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in raw[:200])


@lru_cache(maxsize=1024)
def _error(reason: Reason, detail: str) -> bytes:
    return msgspec.json.encode({"error": reason, "detail": detail})


async def _answer(send: Any, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, (b"content-length", b"%d" % len(body)), *headers],
            ENDS_UNREAD: True,
        }
    )
    await send({"type": "http.response.body", "body": body})
