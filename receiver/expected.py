"""Payments that the merchant announces before the customer pays, and notifications that wait for such a word.

A Debitsuccess notification is proven by a token that belongs to its payment alone. The merchant registers it with
``POST /expect/...`` before the customer is redirected; it then lies in Redis for the accept side and in the ledger for
ever. A notification whose token is not known is held: kept, unverified, within a limit.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError
from rq import Queue

from receiver import cards, logs, replicas
from receiver.buckets import ASK_AGAIN, Buckets, Limit
from receiver.connection import DEADLINE, QUEUE, Serializer, aof_confirms
from receiver.errors import NotStored, Quarantined, Reason, Refused
from receiver.job import RECORD_EXPECTATION, enqueue
from receiver.money import minor_from_text
from receiver.notification import Expectation, new_id, now_us
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint
from receiver.signing import Seal
from receiver.source import neighbourhood, parse

log = logs.get("receiver.expected")

KEEP_TOKEN = 7 * 86400
"""Seconds that the accept side knows a token. The ledger knows it for ever."""
HELD_WITHIN = 86400
"""Seconds over which held notifications are counted."""
FIND_DEADLINE = 0.4
COUNT_DEADLINE = 0.2
"""Seconds. A commit that finds Redis away takes one more, and the answer is promised within two."""

_LONGEST = {"reference": 255, "token": 100, "webhook_token": 255}
"""Characters; the accept side reads no longer token out of a notification."""

_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Expectation)


class ExpectationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /expect/{provider}/{facility}``; tokens belong to Debitsuccess only, the merchant to
    QuickStream: no other sender names it."""

    reference: str
    amount: str
    currency: str
    token: str | None = None
    webhook_token: str | None = None
    valid_to: str | None = None
    merchant: str | None = None


def expectation_from(body: bytes, endpoint: Endpoint) -> Expectation:
    """Raises `Refused` (400) with a sentence that names the field."""
    try:
        return expectation_of(msgspec.json.decode(body, type=ExpectationBody), endpoint)
    except msgspec.ValidationError as error:
        # An unknown name is not repeated: it could be a token that lost its place.
        what = "it has an unknown field" if "unknown field" in str(error) else str(error)
        raise Refused(Reason.REQUEST_MALFORMED, f"The expectation is not as documented: {what}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(Reason.REQUEST_MALFORMED, "The body is not a JSON object.") from None


def expectation_of(given: ExpectationBody, endpoint: Endpoint) -> Expectation:
    """Checks what types cannot say. Raises `Refused` (400)."""
    provider = PROVIDERS[endpoint.provider]

    def refuse(sentence: str) -> Refused:
        return Refused(Reason.REQUEST_MALFORMED, sentence)

    for name, longest in _LONGEST.items():
        text = getattr(given, name)
        if text is not None and not (0 < len(text) <= longest and text.isprintable() and text.strip() == text):
            raise refuse(f"{name} must have 1 to {longest} printable characters.")
    if cards.masked_text(given.reference) != given.reference and not endpoint.own_numbers:
        raise refuse("reference looks like a card number; own_numbers of the endpoint allows numbers of your own.")
    if not _CURRENCY.fullmatch(given.currency):
        raise refuse("currency must be three capital letters, such as NZD.")
    exponent = provider.exponent(given.currency)
    try:
        amount = minor_from_text(given.amount, exponent, "amount")
    except Quarantined:
        raise refuse(f"amount must be a decimal text with at most {exponent} decimals, such as 12.50.") from None
    if amount <= 0:
        raise refuse("amount must be above zero.")
    if (given.token is None) != (given.webhook_token is None):
        raise refuse("token and webhook_token belong together.")
    if endpoint.provider == "debitsuccess" and given.token is None:
        raise refuse("Debitsuccess needs token and webhook_token.")
    if endpoint.provider != "debitsuccess" and given.token is not None:
        raise refuse(f"{provider.display} has no tokens.")
    if given.merchant is not None:
        merchants: tuple[str, ...] | None = getattr(endpoint, "supplier_business_codes", None)
        if merchants is None:
            raise refuse(f"{provider.display} names no merchant.")
        if given.merchant not in merchants:
            raise refuse("merchant is not one of this endpoint's supplier_business_codes.")
    return Expectation(
        provider=endpoint.provider,
        facility=endpoint.facility,
        reference=given.reference,
        amount=amount,
        currency=given.currency,
        exponent=exponent,
        registered_at=now_us(),
        token=given.token,
        webhook_token=given.webhook_token,
        valid_to=_valid_to(given.valid_to),
        merchant=given.merchant,
    )


def _valid_to(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        # The vendor's own example has a doubled T (2021-01-12TT01:59:59.000Z).
        moment = datetime.fromisoformat(text.replace("TT", "T", 1))
        if moment.tzinfo is None:
            raise Refused(Reason.REQUEST_MALFORMED, "valid_to must have a zone, such as a final Z.")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(Reason.REQUEST_MALFORMED, "valid_to must be a time such as 2026-11-22T10:00:00Z.") from None


def token_key(provider: str, facility: str, token: str) -> str:
    return f"postback:token:{provider}:{facility}:{token}"


def held_key(provider: str, facility: str) -> str:
    return f"postback:held:{provider}:{facility}"


def register(redis: Redis, seal: Seal, expectation: Expectation, confirm: bool = False, copies: int = 0) -> None:
    """Makes `expectation` durable: for the accept side at once, for the ledger as a job. Raises `NotStored`.

    `confirm` is for a Redis whose configuration does not tell that an answer means "on the disk"; `copies` is how many
    replicas must have it as well.
    """
    message = _ENCODER.encode(expectation)
    description = f"expectation of {expectation.provider}/{expectation.facility}"
    try:
        pipeline = redis.pipeline(transaction=True)
        if expectation.token is not None:
            key = token_key(expectation.provider, expectation.facility, expectation.token)
            pipeline.set(key, message, ex=KEEP_TOKEN)
        queue = Queue(QUEUE, connection=redis, serializer=Serializer)
        enqueue(queue, pipeline, RECORD_EXPECTATION, new_id(now_us()), seal.seal(message), description)
        if copies:
            replicas.execute(redis, replicas.commands_of(pipeline), copies, DEADLINE)
        else:
            pipeline.execute()
        confirmed = not confirm or aof_confirms(redis)
    except (RedisError, OSError) as error:
        raise NotStored(f"Redis did not take the expectation: {type(error).__name__}.") from error
    if not confirmed:
        raise NotStored("Redis did not confirm that the expectation is on the disk.")


class Tokens:
    """The accept side's view of what was registered. What is looked up in one turn of the event loop is asked together:
    a question of its own is most of what an unknown token costs, and anybody may flood us with those."""

    def __init__(self, redis: redis_asyncio.Redis, up: Callable[[], bool]) -> None:
        """`up` tells whether Redis is worth asking: a request waits for a server that is away only once."""
        self._redis = redis
        self._up = up
        self._wanted: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def find(self, provider: str, facility: str, token: str) -> Expectation | None:
        """The expectation of `token`; None when it is not known, or while Redis does not answer: the notification is
        then held, as its sender will not post it again."""
        if not self._up():
            return None
        message = await self._look_up(token_key(provider, facility, token))
        try:
            return _DECODER.decode(message) if message else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.error("expectation_unreadable", provider=provider, facility=facility)
            return None

    def _look_up(self, key: str) -> asyncio.Future[bytes | None]:
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._ask)
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._wanted.append((key, answer))
        return answer

    def _ask(self) -> None:
        wanted, self._wanted = self._wanted, []
        task = asyncio.create_task(self._answer(wanted))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, wanted: list[tuple[str, asyncio.Future[bytes | None]]]) -> None:
        found: list[Any] = [None] * len(wanted)
        try:
            async with asyncio.timeout(FIND_DEADLINE):
                # Not MGET: users that may do nothing but GET are in use.
                pipeline: Any = self._redis.pipeline(transaction=False)
                for key, _ in wanted:
                    pipeline.get(key)
                found = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError):
            return
        finally:
            for (_, answer), message in zip(wanted, found, strict=True):
                if not answer.done():
                    answer.set_result(message if isinstance(message, bytes) else None)


class HeldLimit:
    """How many unverified notifications each endpoint may have waiting. Counted in Redis over a day; in this process
    alone while Redis does not answer."""

    def __init__(self, redis: redis_asyncio.Redis, up: Callable[[], bool], limit: int, of_address: int = 0) -> None:
        """`of_address` is for each address and endpoint, so that one address cannot use all; 0 is as many."""
        self._redis = redis
        self._up = up
        self._limit = limit
        self._of_address = Limit(of_address or limit, (of_address or limit) / HELD_WITHIN)
        self._buckets = Buckets(redis, up)
        self._here: dict[str, deque[float]] = {}
        self._full_until: dict[str, float] = {}
        """Of each endpoint: until then Redis, which said that there is no room, is not asked again."""

    async def take(self, provider: str, facility: str, source: str, notification_id: str) -> None:
        """Counts one more. Raises `Refused` (429) over the limit."""
        key = held_key(provider, facility)
        address = parse(source)
        of_address = f"held:{provider}/{facility}:{neighbourhood(address) if address else ''}"
        if self._buckets.is_shut(of_address):
            raise _address_full()
        if time.monotonic() < self._full_until.get(key, 0.0):
            raise _endpoint_full()
        room: bool | None = None
        if self._up():
            try:
                async with asyncio.timeout(COUNT_DEADLINE):
                    room = await self._take_in_redis(key, notification_id)
            except (RedisError, OSError):
                room = None
        in_redis = room is not None
        if room is None:
            room = self._take_here(key)
        if not room:
            self._full_until[key] = time.monotonic() + ASK_AGAIN
            raise _endpoint_full()
        # Only now: a bucket is kept for a day, and many addresses must not leave more of them than there is room for.
        if not await self._buckets.take(of_address, self._of_address):
            await self._give_back(key, notification_id, in_redis)
            raise _address_full()

    async def _give_back(self, key: str, notification_id: str, in_redis: bool) -> None:
        if not in_redis:
            if taken := self._here.get(key):
                taken.pop()
            return
        try:
            async with asyncio.timeout(COUNT_DEADLINE):
                await self._redis.zrem(key, notification_id)
        except (RedisError, OSError):
            # It counts for a day, although it is not there.
            return

    async def _take_in_redis(self, key: str, notification_id: str) -> bool:
        now = time.time()
        pipeline: Any = self._redis.pipeline(transaction=True)
        pipeline.zremrangebyscore(key, 0, now - HELD_WITHIN)
        # What was counted before the clock was set back would count for longer than a day.
        pipeline.zremrangebyscore(key, now + HELD_WITHIN, "+inf")
        pipeline.zadd(key, {notification_id: now})
        pipeline.zcard(key)
        taken = (await pipeline.execute())[-1]
        # Redis counts again; what was taken here meanwhile reached it with the spool, or will.
        self._here.clear()
        if taken <= self._limit:
            return True
        await self._redis.zrem(key, notification_id)
        return False

    def _take_here(self, key: str) -> bool:
        now = time.monotonic()
        taken = self._here.setdefault(key, deque())
        while taken and taken[0] < now - HELD_WITHIN:
            taken.popleft()
        if len(taken) >= self._limit:
            return False
        taken.append(now)
        return True


def _address_full() -> Refused:
    return Refused(Reason.HELD_FULL, "Too many notifications with unknown tokens came from this address.")


def _endpoint_full() -> Refused:
    return Refused(Reason.HELD_FULL, "Too many notifications with unknown tokens are waiting already.")


def forget_held(redis: Any, provider: str, facility: str, ids: list[str]) -> None:
    """Makes room again for what was released; nothing depends on it, so a Redis that is away is no error."""
    try:
        if ids:
            redis.zrem(held_key(provider, facility), *ids)
    except (RedisError, OSError):
        return
