"""Sends the invented payments of one sender to a receiver, again by that sender's rule, and counts the answers."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import httpx

from receiver.providers.base import Endpoint
from receiver.signing import Secret
from workers.simulator.base import Outgoing, Sender

CONCURRENT = 32
"""Payments under way at once, unless a rate is given: a rate that the receiver cannot keep up with must show."""

NO_ANSWER = 0
"""In `Summary.by_status`: no connection, or no answer within the sender's patience."""

REGISTER_AGAIN = (1.0, 5.0, 25.0)
"""Seconds before a merchant tries to register once more. Ours to choose, unlike the sender's rule."""

# Of the notifications of a run with chaos.
TWICE = 0.15
TRUNCATED = 0.1
# Of its payments.
REORDERED = 0.5

# A body that was cut may prove nothing any more. Senders whose proof is in the headers get their 200 all the same.
MEANT = frozenset({400, 401, 403})


class NotRegistered(Exception):
    """The receiver did not take an expectation, without which the payments would prove nothing."""


@dataclass(slots=True)
class Summary:
    """Counted up while the run goes on."""

    payments: int = 0
    sent: int = 0
    """Requests, repeats included; registrations apart."""
    acknowledged: int = 0
    """Notifications and copies that got a status which the sender takes for success."""
    duplicates_sent: int = 0
    """Second copies that chaos sent at the same time."""
    refused: int = 0
    """Answers that the sender takes for failure."""
    refused_as_meant: int = 0
    """Truncated bodies that were refused."""
    gave_up: int = 0
    """Notifications and copies that no attempt brought through."""
    by_status: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    back: list[str] = field(default_factory=list)
    """Addresses with which customers come back, in the order of their payments; only where they were asked for."""


@dataclass(frozen=True, slots=True)
class _Delivery:
    outgoing: Outgoing
    copies: int = 1
    cut: int | None = None
    """Only that many bytes of the body are sent."""


async def run(
    sender: Sender,
    endpoint: Endpoint,
    *,
    base_url: str,
    count: int,
    rate: float | None = None,
    format: str | None = None,
    chaos: bool = False,
    api_key: Secret | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    report: Callable[[Summary], None] | None = None,
    back: bool = False,
    transport: httpx.AsyncBaseTransport | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Summary:
    """Sends `count` payments: the notifications of each in their order, at most `rate` payments started a second.

    Expectations are registered first, where there is an `api_key`. Delays between attempts are divided by `speed`.
    `report` is called after each payment; `back` gathers the addresses with which customers come back. The same `seed`
    gives the same payments, with the same chaos. Raises `NotRegistered`.
    """
    summary, failures = Summary(), list[NotRegistered]()
    free = asyncio.Semaphore(CONCURRENT if rate is None else count)
    started = time.perf_counter()
    client = httpx.AsyncClient(
        base_url=base_url,
        timeout=sender.retry.timeout,
        # Shorter than any server's patience: a connection that is closed while we send would look like a failure.
        limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0),
        transport=transport,
        # The system's authorities, and with SSL_CERT_FILE others, as OpenSSL has it.
        verify=ssl.create_default_context() if base_url.startswith("https:") else True,
        # Nothing else of the environment: a proxy's answers would be counted as the receiver's.
        trust_env=False,
    )
    course = _Course(sender, endpoint, client, api_key, speed, sleep, summary)

    async def one(notifications: list[Outgoing], deliveries: list[_Delivery]) -> None:
        try:
            await course.payment(notifications, deliveries)
        finally:
            free.release()
        summary.payments += 1
        summary.seconds = time.perf_counter() - started
        if report is not None:
            report(summary)

    try:
        async with client, asyncio.TaskGroup() as group:
            for number, payment in enumerate(_payments(sender, endpoint, count, format, chaos, seed)):
                if back:
                    summary.back += [base_url + outgoing.back for outgoing in payment[0] if outgoing.back]
                await free.acquire()
                if rate is not None and (early := started + number / rate - time.perf_counter()) > 0:
                    await sleep(early)
                group.create_task(one(*payment))
    except* NotRegistered as group_of_failures:
        failures.extend(error for error in group_of_failures.exceptions if isinstance(error, NotRegistered))
    if failures:
        raise failures[0]
    summary.seconds = time.perf_counter() - started
    return summary


def _payments(
    sender: Sender, endpoint: Endpoint, count: int, format: str | None, chaos: bool, seed: int | None
) -> Iterator[tuple[list[Outgoing], list[_Delivery]]]:
    """Each payment's notifications, and what is sent of them. All chance is drawn here, in one order, so that what the
    receiver answers and when changes nothing; chaos has its own, so that the payments are the same without it."""
    random = Random(seed)
    disorder = Random(None if seed is None else f"chaos {seed}")
    for serial in range(count):
        notifications = sender.payment(endpoint, random, serial, format)
        if chaos:
            yield notifications, _disturbed(notifications, disorder)
        else:
            yield notifications, [_Delivery(outgoing) for outgoing in notifications]


def _disturbed(notifications: list[Outgoing], random: Random) -> list[_Delivery]:
    deliveries = []
    for outgoing in notifications:
        if random.random() < TRUNCATED:
            # Beside the whole one, as a sender would repeat it: chaos loses no payment.
            deliveries.append(_Delivery(outgoing, cut=random.randint(1, max(1, len(outgoing.body) // 2))))
        deliveries.append(_Delivery(outgoing, copies=2 if random.random() < TWICE else 1))
    if random.random() < REORDERED:
        random.shuffle(deliveries)
    return deliveries


@dataclass(frozen=True, slots=True)
class _Course:
    """How one payment goes, from its registration to the last attempt."""

    sender: Sender
    endpoint: Endpoint
    client: httpx.AsyncClient
    api_key: Secret | None
    speed: float
    sleep: Callable[[float], Awaitable[None]]
    summary: Summary

    async def payment(self, notifications: list[Outgoing], deliveries: list[_Delivery]) -> None:
        for outgoing in notifications:
            if outgoing.expect is not None and self.api_key is not None:
                await self._register(outgoing, self.api_key)
        for delivery in deliveries:
            self.summary.duplicates_sent += delivery.copies - 1
            await asyncio.gather(*(self._deliver(delivery) for _ in range(delivery.copies)))

    async def _register(self, outgoing: Outgoing, api_key: Secret) -> None:
        status = NO_ANSWER
        for delay in (None, *REGISTER_AGAIN):
            if delay is not None:
                await self.sleep(delay / self.speed)
            try:
                response = await self.client.post(
                    f"/expect/{self.endpoint.path}",
                    json=outgoing.expect,
                    headers={b"Authorization": b"Bearer " + api_key.reveal()},
                )
            except httpx.RequestError:
                continue
            if response.is_success:
                return
            status = response.status_code
            if status < 500:
                break
        raise NotRegistered(f"POST /expect/{self.endpoint.path} was answered {status or 'by nobody'}.")

    async def _deliver(self, delivery: _Delivery) -> None:
        """One notification or copy, attempt by attempt."""
        retry = self.sender.retry
        for delay in (None, *retry.delays):
            if delay is not None:
                await self.sleep(delay / self.speed)
            status = await self._send(delivery)
            if status in retry.successes:
                self.summary.acknowledged += 1
                return
            if delivery.cut is not None and status in MEANT:
                self.summary.refused_as_meant += 1
                return
            if status != NO_ANSWER:
                self.summary.refused += 1
        self.summary.gave_up += 1

    async def _send(self, delivery: _Delivery) -> int:
        outgoing = delivery.outgoing
        try:
            response = await self.client.post(
                outgoing.path,
                content=outgoing.body[: delivery.cut],
                # Latin-1, as servers read them.
                headers={name.encode("ascii"): value.encode("latin-1") for name, value in outgoing.headers.items()},
            )
            status = response.status_code
        except httpx.RequestError:
            status = NO_ANSWER
        self.summary.sent += 1
        self.summary.by_status[status] += 1
        return status
