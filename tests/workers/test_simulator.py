"""The simulated senders: what they send is what their providers prove, and they send again by their own rule."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import msgspec
import pytest

from receiver.cards import masked_message
from receiver.errors import Quarantined, Refused
from receiver.expected import expectation_from
from receiver.notification import Expectation
from receiver.providers import PROVIDERS, quickstream
from receiver.providers.base import Endpoint, Identity, Message, headers_prove_all
from receiver.returned import read
from receiver.signing import Secret
from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM
from workers.simulator import SENDERS
from workers.simulator.base import Outgoing, RetryRule, Sender
from workers.simulator.run import CONCURRENT, NO_ANSWER, REGISTER_AGAIN, NotRegistered, Summary, run

ENDPOINTS: dict[str, Any] = {each.provider: each for each in (QUICKSTREAM, CHECKOUT, DEBITSUCCESS, PAYMENTZ)}
API_KEY = Secret(b"api-key")


def message_from(provider: str, headers: httpx.Headers, body: bytes) -> Message:
    wanted = PROVIDERS[provider].proof_headers + PROVIDERS[provider].kept_headers
    return Message(
        content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
        headers={name: headers[name] for name in wanted if name in headers},
        body=body,
    )


def proven(message: Message, endpoint: Endpoint, expected: Callable[[str], Expectation | None]) -> Identity:
    """What a receiver checks. Raises `Refused` or `Quarantined`."""
    provider = PROVIDERS[endpoint.provider]
    provider.check_headers(message, endpoint)
    token = provider.token_of(message)
    provider.authenticate(message, endpoint, None if token is None else expected(token))
    identity = provider.identify(message, endpoint)
    provider.interpret(message, endpoint)
    return identity


@dataclass
class Receiver:
    """A receiver without a queue, as an ASGI application: it proves what comes by the provider's own functions."""

    endpoint: Endpoint
    expected: dict[str, Expectation] = field(default_factory=dict)
    keys: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
            await asyncio.sleep(0)
        headers = httpx.Headers(scope["headers"])
        if scope["path"] == f"/expect/{self.endpoint.path}":
            status = self.register(headers, body)
        else:
            assert scope["path"] == f"/notify/{self.endpoint.path}"
            status = self.notify(headers, body)
        self.at_once -= 1
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def register(self, headers: httpx.Headers, body: bytes) -> int:
        if headers.get("authorization") != "Bearer api-key":
            return 401
        expectation = expectation_from(body, self.endpoint)
        assert expectation.token is not None
        self.expected[expectation.token] = expectation
        return 201

    def notify(self, headers: httpx.Headers, body: bytes) -> int:
        message = message_from(self.endpoint.provider, headers, body)
        try:
            self.keys[proven(message, self.endpoint, self.expected.get).dedupe_key] += 1
        except Refused as refused:
            return refused.status
        except Quarantined:
            self.quarantined += 1
        return 200


def simulate(
    sender: Sender, endpoint: Endpoint, transport: httpx.AsyncBaseTransport, **options: Any
) -> tuple[Summary, list[float]]:
    """A run that never waits, and the waits that it asked for."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    chosen: dict[str, Any] = {"count": 5, "seed": 1, "api_key": API_KEY, **options}
    whole = run(sender, endpoint, base_url="http://receiver.test", transport=transport, sleep=sleep, **chosen)
    return asyncio.run(whole), waits


def stub(*delays: float, successes: tuple[int, ...] = (200,), notifications: int = 1, expect: bool = False) -> Sender:
    """A sender whose bodies say which notification they are."""

    def payment(endpoint: Any, random: Random, serial: int, format: str | None) -> list[Outgoing]:
        expected = {"reference": f"R{serial}", "amount": "1.00", "currency": "AUD"} if expect else None
        return [
            Outgoing(
                path=f"/notify/{endpoint.path}",
                headers={"Content-Type": "text/plain", "X-Token": "clé"},
                body=f"{serial}/{step}/{random.random()}/{format}".encode(),
                expect=expected if step == 0 else None,
            )
            for step in range(notifications)
        ]

    return Sender("stub", RetryRule(delays, frozenset(successes), 10.0), payment)


def answering(*statuses: int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """Answers with each status in turn, the last for ever; 0 is no answer. And the requests that came."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        status = statuses[min(len(requests), len(statuses) - 1)]
        requests.append(request)
        if status == NO_ANSWER:
            raise httpx.ConnectError("nobody there", request=request)
        return httpx.Response(status)

    return httpx.MockTransport(answer), requests


# ---- the senders


def test_there_is_a_sender_for_each_provider() -> None:
    assert list(SENDERS) == list(PROVIDERS)
    assert len(SENDERS) == len(PROVIDERS)
    assert [SENDERS[name].name for name in SENDERS] == list(PROVIDERS)
    with pytest.raises(KeyError):
        SENDERS["octane"]
    with pytest.raises(KeyError):
        # A module of that name exists.
        SENDERS["base"]


@pytest.mark.parametrize("format", [None, "form", "xml"])
@pytest.mark.parametrize("name", PROVIDERS)
def test_what_a_sender_sends_is_proven_and_read(name: str, format: str | None) -> None:
    endpoint, random = ENDPOINTS[name], Random(7)
    keys: Counter[str] = Counter()
    for serial in range(120):
        sent = SENDERS[name].payment(endpoint, random, serial, format)
        assert sent
        expected: dict[str, Expectation] = {}
        for outgoing in sent:
            assert outgoing.path == f"/notify/{endpoint.path}"
            if outgoing.expect is not None:
                expectation = expectation_from(json.dumps(outgoing.expect).encode(), endpoint)
                expected[expectation.token or ""] = expectation
            message = message_from(name, httpx.Headers(dict(outgoing.headers)), outgoing.body)
            keys[proven(message, endpoint, expected.get).dedupe_key] += 1
    assert set(keys.values()) == {1}


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_status_for_not_stored_makes_a_sender_send_again(name: str) -> None:
    assert PROVIDERS[name].not_stored_status not in SENDERS[name].retry.successes
    assert 200 in SENDERS[name].retry.successes


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_same_chance_makes_the_same_payments(name: str) -> None:
    def payments(seed: int) -> list[list[str]]:
        random = Random(seed)
        made = [SENDERS[name].payment(ENDPOINTS[name], random, serial, None) for serial in range(20)]
        keys = []
        for sent in made:
            given = {each.expect["token"]: each.expect for each in sent if each.expect is not None}

            def expected(token: str, given: dict[str, Any] = given) -> Expectation:
                return expectation_from(json.dumps(given[token]).encode(), ENDPOINTS[name])

            messages = [message_from(name, httpx.Headers(dict(each.headers)), each.body) for each in sent]
            keys.append([proven(message, ENDPOINTS[name], expected).dedupe_key for message in messages])
        return keys

    assert payments(1) == payments(1)
    assert payments(1) != payments(2)


def test_quickstream_sends_what_a_facility_sends() -> None:
    random = Random(3)
    sent = [SENDERS["quickstream"].payment(QUICKSTREAM, random, serial, None) for serial in range(400)]
    assert all(len(notifications) == 1 for notifications in sent)
    outgoing = [notifications[0] for notifications in sent]
    assert Counter(each.headers["Content-Type"] for each in outgoing) == {
        "application/xml": 200,
        "application/x-www-form-urlencoded": 200,
    }
    events = [
        quickstream.interpret(message_from("quickstream", httpx.Headers(dict(each.headers)), each.body), QUICKSTREAM)
        for each in outgoing
    ]
    receipts = [event.receipt_number or "" for event in events]
    assert all(len(receipt) == 10 and receipt.isdigit() for receipt in receipts)
    assert [int(receipt[4:]) for receipt in receipts] == list(range(400))
    assert len({receipt[:4] for receipt in receipts}) > 100
    codes = Counter(event.response_code for event in events)
    assert codes.keys() == {"00", "08", "51", "05", "G"}
    assert codes["00"] + codes["08"] > 300
    assert all((event.card_scheme is None) == (event.response_code == "G") for event in events)
    assert all(event.occurred_at and event.settlement_date and not event.flags for event in events)
    assert any(event.custom for event in events)
    assert not all(event.custom for event in events)


def test_quickstream_sends_the_newest_password() -> None:
    [outgoing] = SENDERS["quickstream"].payment(QUICKSTREAM, Random(1), 0, None)
    _, _, credentials = outgoing.headers["Authorization"].partition(" ")
    assert b64decode(credentials).decode() == "acme:new:pässword"


@pytest.mark.parametrize(
    "endpoint",
    [msgspec.structs.replace(QUICKSTREAM, hmac_passwords=(Secret(b"old"), Secret(b"new"))), DEBITSUCCESS],
    ids=["quickstream", "debitsuccess"],
)
def test_customers_come_back_from_the_payment_that_is_notified(endpoint: Any) -> None:
    for serial in range(40):
        outgoing = SENDERS[endpoint.provider].payment(endpoint, Random(serial), serial, "form")[0]
        path, _, query = (outgoing.back or "").partition("?")
        assert path == f"/return/{endpoint.path}"
        returned = read(query.encode(), endpoint)
        assert returned is not None
        message = message_from(endpoint.provider, httpx.Headers(dict(outgoing.headers)), outgoing.body)
        event = PROVIDERS[endpoint.provider].interpret(message, endpoint)
        assert returned.payment_id == event.payment_id
        assert returned.verified == (endpoint.provider == "quickstream")
        assert (returned.amount, returned.summary_code) == (event.amount, event.summary_code)


def test_nobody_comes_back_where_nothing_could_be_proven() -> None:
    for name, endpoint in ENDPOINTS.items():
        [outgoing, *_] = SENDERS[name].payment(endpoint, Random(1), 0, None)
        assert (outgoing.back is not None) == (name == "debitsuccess")


def test_the_addresses_of_a_run_are_gathered_when_asked_for() -> None:
    receiver = Receiver(DEBITSUCCESS)
    transport = httpx.ASGITransport(receiver)
    here: dict[str, Any] = {"base_url": "http://here", "count": 3, "transport": transport, "seed": 1}
    summary = asyncio.run(run(SENDERS["debitsuccess"], DEBITSUCCESS, **here, back=True))
    assert [address.partition("?")[0] for address in summary.back] == ["http://here/return/debitsuccess/gym"] * 3
    assert asyncio.run(run(SENDERS["debitsuccess"], DEBITSUCCESS, **here)).back == []


def test_quickstream_keeps_to_the_documented_rule() -> None:
    assert SENDERS["quickstream"].retry == RetryRule((60, 600, 600, 600), frozenset({200}), 10)


# ---- the rule of sending again


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_rule_is_kept_to_its_end(name: str) -> None:
    rule = SENDERS[name].retry
    transport, requests = answering(500)
    summary, waits = simulate(stub(*rule.delays, successes=tuple(rule.successes)), QUICKSTREAM, transport, count=1)
    assert waits == list(rule.delays)
    assert len(requests) == summary.sent == len(rule.delays) + 1
    assert len({request.content for request in requests}) == 1
    assert (summary.acknowledged, summary.gave_up, summary.refused) == (0, 1, len(rule.delays) + 1)
    assert summary.by_status == {500: len(rule.delays) + 1}


def test_delays_are_divided_by_the_speed() -> None:
    _, waits = simulate(stub(60, 600, 600, 600), QUICKSTREAM, answering(503)[0], count=1, speed=600)
    assert waits == [0.1, 1, 1, 1]


def test_sending_again_ends_with_success() -> None:
    transport, requests = answering(503, NO_ANSWER, 200)
    summary, waits = simulate(stub(60, 600, 600), QUICKSTREAM, transport, count=1)
    assert waits == [60, 600]
    assert len(requests) == 3
    assert (summary.acknowledged, summary.gave_up, summary.refused) == (1, 0, 1)
    assert summary.by_status == {503: 1, NO_ANSWER: 1, 200: 1}


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 308, 400, 403, 429, 500])
def test_what_is_no_success_for_the_sender_is_sent_again(status: int) -> None:
    transport, requests = answering(status)
    summary, _ = simulate(stub(60), QUICKSTREAM, transport, count=1)
    assert len(requests) == 2
    assert summary.gave_up == 1


@pytest.mark.parametrize("status", [200, 201, 204])
def test_what_is_success_for_the_sender_is_not_sent_again(status: int) -> None:
    transport, requests = answering(status)
    summary, waits = simulate(stub(60, successes=(200, 201, 204)), QUICKSTREAM, transport, count=1)
    assert len(requests) == 1
    assert waits == []
    assert summary.acknowledged == 1


def test_a_sender_without_a_rule_sends_once() -> None:
    transport, requests = answering(NO_ANSWER)
    summary, waits = simulate(stub(), QUICKSTREAM, transport, count=3)
    assert (len(requests), waits) == (3, [])
    assert (summary.gave_up, summary.refused) == (3, 0)


def test_notifications_of_a_payment_keep_their_order() -> None:
    transport, requests = answering(500, 200)
    simulate(stub(60, notifications=3), QUICKSTREAM, transport, count=1)
    assert [request.content.split(b"/")[1] for request in requests] == [b"0", b"0", b"1", b"2"]


def test_requests_carry_what_the_sender_built() -> None:
    transport, requests = answering(200)
    simulate(stub(), QUICKSTREAM, transport, count=1, format="xml")
    [request] = requests
    assert str(request.url) == "http://receiver.test/notify/quickstream/acme"
    assert request.method == "POST"
    assert dict(request.headers.raw)[b"X-Token"] == "clé".encode("latin-1")
    assert request.content.endswith(b"/xml")


# ---- rate, progress, registration


def test_payments_start_at_the_rate() -> None:
    _, waits = simulate(stub(), QUICKSTREAM, answering(200)[0], count=4, rate=0.001)
    assert [round(wait, -1) for wait in waits] == [1000, 2000, 3000]


def test_a_slow_receiver_does_not_slow_a_rate_down() -> None:
    receiver = Receiver(QUICKSTREAM)
    sender = SENDERS["quickstream"]
    simulate(sender, QUICKSTREAM, httpx.ASGITransport(receiver), count=CONCURRENT * 3, rate=1e9)
    assert receiver.most_at_once == CONCURRENT * 3
    receiver = Receiver(QUICKSTREAM)
    simulate(sender, QUICKSTREAM, httpx.ASGITransport(receiver), count=CONCURRENT * 3)
    assert 1 < receiver.most_at_once <= CONCURRENT


def test_progress_is_reported_after_each_payment() -> None:
    seen: list[tuple[int, int]] = []
    summary, _ = simulate(
        stub(notifications=2),
        QUICKSTREAM,
        answering(200)[0],
        count=5,
        report=lambda so_far: seen.append((so_far.payments, so_far.acknowledged)),
    )
    assert [payments for payments, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[-1] == (5, 10)
    assert summary.seconds > 0


def test_no_payments_are_no_requests() -> None:
    transport, requests = answering(200)
    summary, _ = simulate(stub(), QUICKSTREAM, transport, count=0)
    assert requests == []
    assert (summary.payments, summary.sent, summary.by_status) == (0, 0, {})


def test_expectations_are_registered_first() -> None:
    transport, requests = answering(201, 200)
    summary, _ = simulate(stub(notifications=2, expect=True), QUICKSTREAM, transport, count=1)
    assert [request.url.path.split("/")[1] for request in requests] == ["expect", "notify", "notify"]
    assert requests[0].url.path == "/expect/quickstream/acme"
    assert requests[0].headers["authorization"] == "Bearer api-key"
    assert json.loads(requests[0].content) == {"reference": "R0", "amount": "1.00", "currency": "AUD"}
    assert summary.sent == 2


def test_nothing_is_registered_without_an_api_key() -> None:
    transport, requests = answering(200)
    simulate(stub(expect=True), QUICKSTREAM, transport, count=2, api_key=None)
    assert {request.url.path for request in requests} == {"/notify/quickstream/acme"}


def test_registration_is_tried_again_while_the_receiver_is_away() -> None:
    transport, requests = answering(NO_ANSWER, 503, 201, 200)
    summary, waits = simulate(stub(expect=True), QUICKSTREAM, transport, count=1, speed=2)
    assert waits == [seconds / 2 for seconds in REGISTER_AGAIN[:2]]
    assert len(requests) == 4
    assert summary.acknowledged == 1


@pytest.mark.parametrize(("status", "times"), [(401, 1), (400, 1), (302, 1), (503, 4), (NO_ANSWER, 4)])
def test_a_refused_registration_ends_the_run(status: int, times: int) -> None:
    transport, requests = answering(status)
    with pytest.raises(NotRegistered, match="POST /expect/quickstream/acme was answered") as caught:
        simulate(stub(expect=True), QUICKSTREAM, transport, count=1)
    assert len(requests) == times
    assert "api-key" not in str(caught.value)


def test_other_failures_are_not_swallowed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        simulate(stub(), QUICKSTREAM, httpx.MockTransport(answer), count=1)
    assert caught.group_contains(ZeroDivisionError)


# ---- chaos


def chaotic(seed: int, chaos: bool = True, slow: bool = False) -> tuple[list[bytes], Summary]:
    """The bodies that came, sorted, as the order of arrival is the receiver's matter."""
    bodies: list[bytes] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        for _ in range(len(request.content) % 7 if slow else 0):
            await asyncio.sleep(0)
        return httpx.Response(200 if len(request.content.split(b"/")) == 4 else 403)

    transport = httpx.MockTransport(answer)
    summary, _ = simulate(stub(60, notifications=3), QUICKSTREAM, transport, count=40, seed=seed, chaos=chaos)
    return sorted(bodies), summary


def test_chaos_depends_on_the_seed_alone() -> None:
    assert chaotic(1)[0] == chaotic(1, slow=True)[0]
    assert chaotic(1)[0] != chaotic(2)[0]


def test_chaos_sends_twice_and_cut_but_loses_nothing() -> None:
    calm, calm_summary = chaotic(1, chaos=False)
    wild, summary = chaotic(1)
    assert set(calm) <= set(wild)
    assert calm_summary.duplicates_sent == calm_summary.refused_as_meant == 0
    counts = Counter(wild)
    assert sum(counts[body] - 1 for body in calm) == summary.duplicates_sent > 0
    cut = [body for body in wild if body not in calm]
    assert all(any(whole.startswith(body) for whole in calm) for body in cut)
    assert len(cut) == summary.refused_as_meant > 0
    # A refusal that was meant is none, and is never sent again.
    assert (summary.refused, summary.gave_up) == (0, 0)
    assert summary.acknowledged == len(calm) + summary.duplicates_sent
    assert summary.sent == len(wild)


def test_chaos_reorders_some_payments() -> None:
    order: dict[bytes, list[int]] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        serial, _, step = request.content.partition(b"/")
        order.setdefault(serial, []).append(int(step.partition(b"/")[0] or -1))
        return httpx.Response(200)

    simulate(stub(notifications=3), QUICKSTREAM, httpx.MockTransport(answer), count=40, chaos=True)
    orders = [[step for step in steps if step >= 0] for steps in order.values() if len(steps) == 3]
    assert [0, 1, 2] in orders
    assert any(steps != [0, 1, 2] for steps in orders)


def test_a_whole_notification_that_is_refused_is_never_meant() -> None:
    summary, _ = simulate(stub(60), QUICKSTREAM, answering(403)[0], count=1)
    assert (summary.refused_as_meant, summary.refused, summary.gave_up) == (0, 2, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_cut_notification_that_was_not_judged_is_sent_again(status: int) -> None:
    summary, _ = simulate(stub(60), QUICKSTREAM, answering(status)[0], count=40, chaos=True)
    assert summary.refused_as_meant == 0
    assert summary.sent == summary.refused == 2 * summary.gave_up


@pytest.mark.parametrize("name", PROVIDERS)
def test_chaos_against_a_receiver(name: str) -> None:
    receiver = Receiver(ENDPOINTS[name])
    summary, waits = simulate(
        SENDERS[name], ENDPOINTS[name], httpx.ASGITransport(receiver), count=100, chaos=True, seed=5
    )
    assert summary.payments == 100
    assert (summary.refused, summary.gave_up, waits) == (0, 0, [])
    assert summary.sent == summary.acknowledged + summary.refused_as_meant
    assert summary.duplicates_sent > 0
    # Each payment came whole, whatever came beside it.
    calm = Receiver(ENDPOINTS[name])
    simulate(SENDERS[name], ENDPOINTS[name], httpx.ASGITransport(calm), count=100, seed=5)
    assert receiver.keys.keys() == calm.keys.keys()
    assert sum(receiver.keys.values()) == sum(calm.keys.values()) + summary.duplicates_sent
    assert calm.quarantined == 0
    # Headers prove a sender whatever became of the body; a proof in the body or over it is gone with the rest.
    if PROVIDERS[name].authenticate is headers_prove_all:
        assert receiver.quarantined > 0
        assert summary.refused_as_meant == 0
    else:
        assert summary.refused_as_meant > 0


@pytest.mark.parametrize("provider", sorted(SENDERS))
def test_nothing_in_it_looks_like_a_card_number(provider: str) -> None:
    """It would be masked, and what is stored would differ from what was sent."""
    endpoint, random = ENDPOINTS[provider], Random(1)
    for serial in range(2000):
        for outgoing in SENDERS[provider].payment(endpoint, random, 400_000 + serial, None):
            message = message_from(provider, httpx.Headers(dict(outgoing.headers)), outgoing.body)
            assert masked_message(message, PROVIDERS[provider], endpoint) == (message, {})
