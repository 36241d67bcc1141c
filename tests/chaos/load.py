"""The senders: all four providers at a steady rate with bursts, duplicates, disorder and forgeries. Each sends again by
its documented rule, in compressed time."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import Any
from urllib.parse import parse_qs

from receiver.providers.base import Endpoint
from tests.chaos.client import NO_ANSWER, Client, request
from tests.chaos.journal import Journal
from tests.live.installation import API_KEY
from workers.simulator import SENDERS
from workers.simulator.base import Outgoing, RetryRule

# Payments of each endpoint in a hundred. One of QuickStream has one notification, the others up to four.
SHARES = {
    ("quickstream", "acme"): 47,
    ("quickstream", "octane"): 19,
    ("checkout", "main"): 22,
    ("paymentz", "eu"): 8,
    ("debitsuccess", "gym"): 4,
}
SPEED = 600.0
"""How many times faster than documented the senders try again."""
TWICE = 0.08
LATE = 0.02
FORGED = 0.01
SHUFFLED = 0.3
EARLY = 0.1
"""Of the Debitsuccess payments: notified before the merchant registered them."""
STAGGER = 2
"""Ticks from one delivery of a payment to the next, at most."""
BURST_EVERY, BURST, BURST_FACTOR = 10.0, 2.0, 2.5
CATCH_UP = 0.08
"""Share of the time that may be added to start what could not be started in time."""
MOST_UNDER_WAY = 4000
TICK = 0.2
"""Seconds between two moments at which deliveries begin, many at once, as gateways send what has gathered in their own
queues. It also keeps the batches large, so that much is at stake in each; the bench sends one by one."""

# What one notification says of its payment, in the words of the payment object.
_QUICKSTREAM = {"0": "captured", "1": "declined", "2": "pending", "3": "failed"}
_CHECKOUT = {
    "payment_pending": "pending",
    "payment_capture_pending": "pending",
    "payment_approved": "authorised",
    "payment_captured": "captured",
    "payment_declined": "declined",
    "payment_expired": "expired",
    "payment_refunded": "partially_refunded",
}
_PAYMENTZ = {
    "begun": "pending",
    "authstarted": "pending",
    "3D Authstarted": "pending",
    "capturesuccess": "captured",
    "authfailed": "declined",
}
_DEBITSUCCESS = {"Success": "captured", "Declined": "declined", "TokenExpired": "expired"}
_EXPONENT = {"JPY": 0, "KWD": 3}


@dataclass(slots=True)
class Counts:
    started: int = 0
    """Notifications, forged ones with them."""
    payments: int = 0
    notifications: int = 0
    sent: int = 0
    """Requests, every attempt and every duplicate."""
    acknowledged: int = 0
    """Answers 200."""
    by_status: Counter[str] = field(default_factory=Counter)
    gave_up: int = 0
    """Deliveries that no attempt brought through: the sender knows that they failed."""
    forged: int = 0
    forged_accepted: int = 0
    registered: int = 0
    longest_without_200: float = 0.0
    """Seconds, of a sender that sends again."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a sender knows of its own notification."""

    payment_id: str
    amount: str
    currency: str
    says: str
    """"" when it speaks of no payment."""
    refunded: str | None = None


@dataclass(slots=True)
class _Waiting:
    """Of a sender that sends again: how many deliveries are under way, and since when none was answered 200."""

    under_way: int = 0
    since: float = 0.0


class Load:
    def __init__(
        self, endpoints: Mapping[tuple[str, str], Endpoint], client: Client, journal: Journal, random: Random
    ) -> None:
        self._endpoints = endpoints
        self._client = client
        self._journal = journal
        self._random = random
        self._serials: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: deque[tuple[int, bytes, str]] = deque(maxlen=2000)
        self._waiting: dict[str, _Waiting] = {}
        self.calm = asyncio.Event()
        """Set when nothing fails any more: whoever waits to send again does it now."""
        self.counts = Counts()
        self.failure: BaseException | None = None

    async def run(self, rate: float, seconds: float) -> None:
        """Starts `rate` notifications a second for so long. What could not be started in time is caught up with, also
        a little after it."""
        loop = asyncio.get_running_loop()
        began = last = loop.time()
        due = 0.0
        wanted = rate * seconds
        # Bursts come on top of a base that keeps the average.
        base = rate / (1 + (BURST_FACTOR - 1) * BURST / BURST_EVERY)
        while self.failure is None:
            elapsed = (now := loop.time()) - began
            if elapsed >= seconds * (1 if self.counts.started >= wanted - rate else 1 + CATCH_UP):
                return
            burst = elapsed % BURST_EVERY < BURST
            due += base * (BURST_FACTOR if burst else 1) * (now - last)
            due = min(due, wanted - self.counts.started)
            last = now
            started = 0
            while due >= 1 and len(self._tasks) < MOST_UNDER_WAY and started < rate:
                begun = self._start_payment()
                due -= begun
                started += begun
                self.counts.started += begun
            self._journal.commit()
            await self._tick(1)

    async def finish(self) -> None:
        """Returns when every delivery was answered or given up."""
        self.calm.set()
        while self._tasks and self.failure is None:
            self._journal.commit()
            await asyncio.wait(self._tasks, timeout=0.5)
        self._journal.commit()
        if self.failure is not None:
            raise self.failure

    def _start_payment(self) -> int:
        """Starts the deliveries of one payment; gives the number of its notifications."""
        random = self._random
        (key,) = random.choices(list(SHARES), list(SHARES.values()))
        endpoint = self._endpoints[key]
        self._serials[key] += 1
        outgoings = SENDERS[key[0]].payment(endpoint, random, self._serials[key], None)
        if random.random() < FORGED:
            self._spawn(self._forge(endpoint, outgoings[0]))
            return 1
        facts = [facts_of(key[0], outgoing) for outgoing in outgoings]
        payment = self._journal.payment(*key, facts[0].payment_id, facts[0].amount, facts[0].currency)
        self.counts.payments += 1
        numbers = []
        for outgoing, fact in zip(outgoings, facts, strict=True):
            of_payment = payment if fact.says else None
            numbers.append(self._journal.notification(of_payment, outgoing.body, fact.says, fact.refunded, False))
            self.counts.notifications += 1
        order = list(range(len(outgoings)))
        if random.random() < SHUFFLED:
            random.shuffle(order)
        copies = [index for index in order if random.random() < TWICE]
        self._spawn(self._payment(key[0], outgoings, numbers, [*order, *copies], random.random() < EARLY))
        if self._late and random.random() < LATE:
            # Long after the first delivery, as some senders do.
            number, message, provider = self._late.popleft()
            self._spawn(self._deliver(provider, number, message))
        return len(outgoings)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = self.failure or error

    async def _payment(
        self, provider: str, outgoings: list[Outgoing], numbers: list[int], order: list[int], early: bool
    ) -> None:
        expectations = [outgoing for outgoing in outgoings if outgoing.expect is not None]
        for outgoing in expectations:
            if not early:
                await self._register(outgoing)
        deliveries = []
        for index in order:
            message = request(outgoings[index].path, outgoings[index].headers, outgoings[index].body)
            deliveries.append(asyncio.create_task(self._deliver(provider, numbers[index], message)))
            if len(self._late) < 2000 and self._random.random() < LATE:
                self._late.append((numbers[index], message, provider))
            await self._tick(self._random.randint(0, STAGGER))
        if early:
            for outgoing in expectations:
                await self._register(outgoing)
        if deliveries:
            await asyncio.gather(*deliveries)

    async def _register(self, outgoing: Outgoing) -> None:
        """The merchant registers until it is told that it is done: before that, it redirects no customer."""
        path = outgoing.path.replace("/notify/", "/expect/")
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        message = request(path, headers, json.dumps(outgoing.expect).encode())
        while True:
            status, body = await self._client.send(message)
            if status == 201:
                self.counts.registered += 1
                return
            if status not in (NO_ANSWER, 500, 503):
                raise AssertionError(f"an expectation was answered {status}: {body!r}")
            await self._pause(1.0)

    async def _deliver(self, provider: str, number: int, message: bytes) -> None:
        """One delivery, attempt by attempt, by its sender's rule."""
        rule = SENDERS[provider].retry
        waiting = self._waiting.setdefault(provider, _Waiting()) if rule.delays else None
        if waiting is not None:
            if not waiting.under_way:
                waiting.since = asyncio.get_running_loop().time()
            waiting.under_way += 1
        attempts = 0
        try:
            for delay in (None, *rule.delays):
                if delay is not None:
                    await self._pause(delay / SPEED)
                attempts += 1
                if await self._attempt(number, message, rule):
                    self._answered(waiting)
                    return
            self.counts.gave_up += 1
        finally:
            self._journal.attempted(number, attempts)
            if waiting is not None:
                waiting.under_way -= 1

    async def _attempt(self, number: int, message: bytes, rule: RetryRule) -> bool:
        status, body = await self._client.send(message)
        self.counts.sent += 1
        if status not in rule.successes:
            self.counts.by_status[str(status or "none")] += 1
            return False
        answer = json.loads(body)
        # Written down before it is counted.
        self._journal.answered(number, answer["id"], answer["status"])
        self.counts.acknowledged += 1
        self.counts.by_status[answer["status"]] += 1
        return True

    def _answered(self, waiting: _Waiting | None) -> None:
        if waiting is not None:
            now = asyncio.get_running_loop().time()
            self.counts.longest_without_200 = max(self.counts.longest_without_200, now - waiting.since)
            waiting.since = now

    async def _forge(self, endpoint: Endpoint, outgoing: Outgoing) -> None:
        """A request with a bad proof. It may be held where its token cannot be looked up; accepted it is never."""
        if outgoing.expect is not None:
            await self._register(outgoing)
        forged = forge(outgoing)
        number = self._journal.notification(None, forged.body, "", None, True)
        status, body = await self._client.send(request(forged.path, forged.headers, forged.body))
        self._journal.attempted(number, 1)
        self.counts.forged += 1
        if status == 200 and json.loads(body)["status"] != "held":
            self.counts.forged_accepted += 1

    async def _tick(self, further: int) -> None:
        """Until so many of the common moments have passed."""
        if further:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep((int(now / TICK) + further) * TICK - now)

    async def _pause(self, seconds: float) -> None:
        if self.calm.is_set():
            # Nothing fails any more; yet a process may still be starting.
            await asyncio.sleep(min(seconds, 0.5))
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self.calm.wait(), seconds)


def forge(outgoing: Outgoing) -> Outgoing:
    """The same request with a proof that is not its sender's."""
    if outgoing.path.startswith("/notify/quickstream/"):
        return replace(outgoing, headers={**outgoing.headers, "Authorization": "Basic YWNtZTpndWVzc2Vk"})
    if outgoing.path.startswith("/notify/checkout/"):
        return replace(outgoing, headers={**outgoing.headers, "Cko-Signature": "0" * 64})
    name = "checksum" if outgoing.path.startswith("/notify/paymentz/") else "WebhookToken"
    body = json.loads(outgoing.body)
    return replace(outgoing, body=json.dumps({**body, name: "0" * 32}).encode())


def facts_of(provider: str, outgoing: Outgoing) -> Facts:
    """Read out of the body as the sender wrote it, without the receiver's code."""
    if provider == "quickstream":
        fields = _quickstream_fields(outgoing.body)
        payment_id = f"{fields['communityCode']}:{fields['receiptNumber']}"
        return Facts(payment_id, fields["paymentAmount"], "AUD", _QUICKSTREAM[fields["summaryCode"]])
    body = json.loads(outgoing.body)
    if provider == "checkout":
        data = body["data"]
        refunded = None
        amount = data["amount"]
        if body["type"] == "payment_refunded":
            refunded, amount = _major(amount, data["currency"]), data["balances"]["total_captured"]
        return Facts(data["id"], _major(amount, data["currency"]), data["currency"], _CHECKOUT[body["type"]], refunded)
    if provider == "paymentz":
        return Facts(body["paymentId"], body["amount"], body["currency"], _PAYMENTZ[body["status"]])
    if outgoing.expect is None:
        return Facts("", "", "", "")
    expect = outgoing.expect
    return Facts(body["PaymentFormToken"], expect["amount"], expect["currency"], _DEBITSUCCESS[body["Status"]])


_ELEMENT = re.compile(r"<(\w+)>([^<]*)</\1>")


def _quickstream_fields(body: bytes) -> dict[str, str]:
    text = body.decode()
    if text.startswith("<?xml"):
        return dict(_ELEMENT.findall(text))
    return {name: values[0] for name, values in parse_qs(text).items()}


def _major(minor: int, currency: str) -> str:
    return str(Decimal(minor).scaleb(-_EXPONENT.get(currency, 2)))
