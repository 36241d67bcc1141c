"""Expected payments: what may be registered, how a token is found, and how many notifications may wait for one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis import asyncio as redis_asyncio

from receiver import buckets, expected
from receiver.connection import DEADLINE, connect
from receiver.errors import NotStored, Reason, Refused
from receiver.expected import (
    HeldLimit,
    Tokens,
    expectation_from,
    forget_held,
    held_key,
    register,
    token_key,
)
from receiver.notification import Expectation, now_us
from tests.receiver.serving import (
    EXPECTATION_SEAL,
    SENDER,
    away,
    be_patient,
    configured,
    jobs,
    up,
    with_client,
)
from tests.servers import Valkey, running_valkey
from tests.support import CHECKOUT, DEBITSUCCESS, EXPECTED_CASUAL, PAYMENTZ, QUICKSTREAM

SECRET = "hunter2Recognisable"
CASUAL: dict[str, Any] = {
    "token": "FormTok1",
    "webhook_token": "HookTok1",
    "reference": "MEMBER-1001",
    "amount": "12.50",
    "currency": "NZD",
    "valid_to": "2026-11-22T10:00:00Z",
}
PLAIN: dict[str, Any] = {"reference": "ORDER-1", "amount": "12.50", "currency": "AUD"}


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


@contextmanager
def paused(server: Valkey) -> Iterator[None]:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_debitsuccess_token() -> None:
    before = now_us()
    expectation = expectation_from(msgspec.json.encode(CASUAL), DEBITSUCCESS)
    assert before <= expectation.registered_at <= now_us()
    assert msgspec.structs.replace(expectation, registered_at=0) == Expectation(
        provider="debitsuccess",
        facility="gym",
        reference="MEMBER-1001",
        amount=1250,
        currency="NZD",
        exponent=2,
        registered_at=0,
        token="FormTok1",
        webhook_token="HookTok1",
        valid_to=datetime(2026, 11, 22, 10, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("endpoint", "amount", "currency", "minor", "exponent"),
    [
        (QUICKSTREAM, "12.50", "AUD", 1250, 2),
        (CHECKOUT, "1250", "JPY", 1250, 0),
        (CHECKOUT, "1.250", "KWD", 1250, 3),
        (PAYMENTZ, "0.01", "EUR", 1, 2),
    ],
)
def test_other_senders_and_their_currencies(
    endpoint: Any, amount: str, currency: str, minor: int, exponent: int
) -> None:
    body = msgspec.json.encode({"reference": "R", "amount": amount, "currency": currency})
    expectation = expectation_from(body, endpoint)
    assert (expectation.amount, expectation.exponent, expectation.token) == (minor, exponent, None)
    assert expectation.provider == endpoint.provider


def test_a_number_of_the_merchants_own_that_looks_like_a_card_number() -> None:
    own = msgspec.structs.replace(QUICKSTREAM, own_numbers=("paymentReference",))
    body = msgspec.json.encode(PLAIN | {"reference": "4111111111111111"})
    assert expectation_from(body, own).reference == "4111111111111111"


def test_a_merchant_of_the_endpoint() -> None:
    assert expectation_from(msgspec.json.encode(PLAIN | {"merchant": "ACME"}), QUICKSTREAM).merchant == "ACME"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T10:00:00+13:00", datetime(2026, 11, 21, 21, tzinfo=UTC)),
        ("2021-01-12TT01:59:59.000Z", datetime(2021, 1, 12, 1, 59, 59, tzinfo=UTC)),
    ],
)
def test_valid_to(text: str, moment: datetime) -> None:
    assert expectation_from(msgspec.json.encode(CASUAL | {"valid_to": text}), DEBITSUCCESS).valid_to == moment


UNDOCUMENTED = "The expectation is not as documented: "
CARD = "reference looks like a card number; own_numbers of the endpoint allows numbers of your own."
NO_TIME = "valid_to must be a time such as 2026-11-22T10:00:00Z."
LONG = f"{SECRET}{'x' * 255}"


@pytest.mark.parametrize(
    ("endpoint", "body", "detail"),
    [
        (DEBITSUCCESS, b"", "The body is not a JSON object."),
        (DEBITSUCCESS, SECRET.encode(), "The body is not a JSON object."),
        (DEBITSUCCESS, b'{"reference": "\xff"}', "The body is not a JSON object."),
        (DEBITSUCCESS, b'{"reference": "\\ud800"}', "The body is not a JSON object."),
        (DEBITSUCCESS, b"[" * 10_000, UNDOCUMENTED + "Expected `object`, got `array`."),
        (DEBITSUCCESS, b'{"x":' * 2000, UNDOCUMENTED + "it has an unknown field."),
        (DEBITSUCCESS, b"null", UNDOCUMENTED + "Expected `object`, got `null`."),
        (DEBITSUCCESS, {SECRET: 1, **CASUAL}, UNDOCUMENTED + "it has an unknown field."),
        (DEBITSUCCESS, {"amount": "1"}, UNDOCUMENTED + "Object missing required field `reference`."),
        (DEBITSUCCESS, CASUAL | {"amount": 12.5}, UNDOCUMENTED + "Expected `str`, got `float` - at `$.amount`."),
        (DEBITSUCCESS, CASUAL | {"token": [SECRET]},
         UNDOCUMENTED + "Expected `str | null`, got `array` - at `$.token`."),
        (DEBITSUCCESS, CASUAL | {"reference": "4111 1111 1111 1111"}, CARD),
        (DEBITSUCCESS, CASUAL | {"reference": ""}, "reference must have 1 to 255 printable characters."),
        (DEBITSUCCESS, CASUAL | {"reference": f" {SECRET}"}, "reference must have 1 to 255 printable characters."),
        (DEBITSUCCESS, CASUAL | {"reference": LONG}, "reference must have 1 to 255 printable characters."),
        (DEBITSUCCESS, CASUAL | {"token": f"{SECRET}\n"}, "token must have 1 to 100 printable characters."),
        (DEBITSUCCESS, CASUAL | {"token": "x" * 101}, "token must have 1 to 100 printable characters."),
        (DEBITSUCCESS, CASUAL | {"webhook_token": LONG}, "webhook_token must have 1 to 255 printable characters."),
        (DEBITSUCCESS, CASUAL | {"webhook_token": ""}, "webhook_token must have 1 to 255 printable characters."),
        (DEBITSUCCESS, CASUAL | {"webhook_token": None}, "token and webhook_token belong together."),
        (DEBITSUCCESS, CASUAL | {"token": None}, "token and webhook_token belong together."),
        (DEBITSUCCESS, PLAIN, "Debitsuccess needs token and webhook_token."),
        (QUICKSTREAM, CASUAL, "Westpac QuickStream has no tokens."),
        (QUICKSTREAM, PLAIN | {"merchant": SECRET},
         "merchant is not one of this endpoint's supplier_business_codes."),
        (CHECKOUT, PLAIN | {"merchant": SECRET}, "Checkout.com names no merchant."),
        (CHECKOUT, CASUAL, "Checkout.com has no tokens."),
        (QUICKSTREAM, PLAIN | {"currency": "aud"}, "currency must be three capital letters, such as NZD."),
        (QUICKSTREAM, PLAIN | {"currency": "AU1"}, "currency must be three capital letters, such as NZD."),
        (QUICKSTREAM, PLAIN | {"currency": SECRET}, "currency must be three capital letters, such as NZD."),
        (QUICKSTREAM, PLAIN | {"amount": SECRET},
         "amount must be a decimal text with at most 2 decimals, such as 12.50."),
        (QUICKSTREAM, PLAIN | {"amount": "1,00"},
         "amount must be a decimal text with at most 2 decimals, such as 12.50."),
        (QUICKSTREAM, PLAIN | {"amount": "1.005"},
         "amount must be a decimal text with at most 2 decimals, such as 12.50."),
        (CHECKOUT, PLAIN | {"currency": "JPY"},
         "amount must be a decimal text with at most 0 decimals, such as 12.50."),
        (QUICKSTREAM, PLAIN | {"amount": "0.00"}, "amount must be above zero."),
        (QUICKSTREAM, PLAIN | {"amount": "-1.00"}, "amount must be above zero."),
        (QUICKSTREAM, PLAIN | {"valid_to": SECRET}, NO_TIME),
        (QUICKSTREAM, PLAIN | {"valid_to": "2026-13-01T00:00:00Z"}, NO_TIME),
        (QUICKSTREAM, PLAIN | {"valid_to": "0001-01-01T00:00:00+14:00"}, NO_TIME),
        (QUICKSTREAM, PLAIN | {"valid_to": "2026-11-22T10:00:00"}, "valid_to must have a zone, such as a final Z."),
        (QUICKSTREAM, PLAIN | {"valid_to": "2026-11-22"}, "valid_to must have a zone, such as a final Z."),
    ],
)  # fmt: skip
def test_what_may_not_be_registered(endpoint: Any, body: Any, detail: str) -> None:
    with pytest.raises(Refused) as refusal:
        expectation_from(body if isinstance(body, bytes) else msgspec.json.encode(body), endpoint)
    assert (refusal.value.reason, refusal.value.status) == (Reason.REQUEST_MALFORMED, 400)
    assert refusal.value.detail == detail
    assert SECRET not in str(refusal.value)


def test_a_registered_token_is_found_and_the_ledger_is_told(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)

    async def find(client: redis_asyncio.Redis) -> None:
        tokens = Tokens(client, up)
        assert await tokens.find("debitsuccess", "gym", "FormTok1") == EXPECTED_CASUAL
        assert await tokens.find("debitsuccess", "gym", "FormTok2") is None
        assert await tokens.find("debitsuccess", "other", "FormTok1") is None

    with_client(valkey_server, tmp_path, find)
    (job,) = jobs(redis)
    assert (job.func_name, job.description) == ("workers.jobs.record_expectation", "expectation of debitsuccess/gym")
    assert msgspec.msgpack.decode(EXPECTATION_SEAL.open(job.args[0]), type=Expectation) == EXPECTED_CASUAL
    ttl = redis.ttl(token_key("debitsuccess", "gym", "FormTok1"))
    assert isinstance(ttl, int)
    assert 0 <= 7 * 86400 - ttl < 60


def test_an_expectation_without_a_token_is_for_the_ledger_only(redis: Redis) -> None:
    register(redis, EXPECTATION_SEAL, expectation_from(msgspec.json.encode(PLAIN), QUICKSTREAM))
    assert len(jobs(redis)) == 1
    assert redis.keys("postback:token:*") == []


def test_an_expectation_that_redis_does_not_take_is_not_stored(server: Valkey, tmp_path: Path) -> None:
    client = connect(configured(tmp_path, server.url))
    server.client().config_set("maxmemory", "1")
    with pytest.raises(NotStored, match="Redis did not take the expectation: OutOfMemoryError"):
        register(client, EXPECTATION_SEAL, EXPECTED_CASUAL)
    server.client().config_set("maxmemory", "0")
    assert client.keys("*") == [], "neither the token nor the job"
    server.kill()
    with pytest.raises(NotStored, match="Redis did not take the expectation: "):
        register(client, EXPECTATION_SEAL, EXPECTED_CASUAL)
    client.close()


def test_an_expectation_that_is_not_confirmed_is_not_stored(server: Valkey, tmp_path: Path) -> None:
    client = connect(configured(tmp_path, server.url))
    register(client, EXPECTATION_SEAL, EXPECTED_CASUAL, confirm=True)
    server.client().config_set("appendonly", "no")
    with pytest.raises(NotStored, match="Redis did not confirm that the expectation is on the disk"):
        register(client, EXPECTATION_SEAL, EXPECTED_CASUAL, confirm=True)
    client.close()


def test_an_unreadable_expectation_is_as_good_as_none(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def find(client: redis_asyncio.Redis) -> None:
        for message in (b"\xc1", b"", b"\x80", msgspec.msgpack.encode({"provider": b"\xff"})):
            redis.set(token_key("debitsuccess", "gym", "t"), message)
            assert await Tokens(client, up).find("debitsuccess", "gym", "t") is None
        redis.delete(token_key("debitsuccess", "gym", "t"))
        redis.rpush(token_key("debitsuccess", "gym", "t"), "another type")
        assert await Tokens(client, up).find("debitsuccess", "gym", "t") is None

    with_client(valkey_server, tmp_path, find)


def test_a_redis_that_is_known_to_be_away_is_not_asked(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)

    async def find(client: redis_asyncio.Redis) -> None:
        assert await Tokens(client, away).find("debitsuccess", "gym", "FormTok1") is None
        await HeldLimit(client, away, 1).take("debitsuccess", "gym", SENDER, "id")

    with_client(valkey_server, tmp_path, find)
    assert redis.exists(held_key("debitsuccess", "gym")) == 0


def test_a_commit_after_every_wait_is_within_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert expected.FIND_DEADLINE + buckets.DEADLINE + expected.COUNT_DEADLINE + DEADLINE < 2


def test_a_redis_that_hangs_is_waited_for_within_the_deadlines(
    server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(expected, "FIND_DEADLINE", 1.0)
    register(server.client(), EXPECTATION_SEAL, EXPECTED_CASUAL)

    async def find(client: redis_asyncio.Redis) -> None:
        tokens, held = Tokens(client, up), HeldLimit(client, up, 1000)
        assert await tokens.find("debitsuccess", "gym", "FormTok1") == EXPECTED_CASUAL
        with paused(server):
            began = time.monotonic()
            assert (
                await asyncio.gather(*(tokens.find("debitsuccess", "gym", f"{n}") for n in range(100))) == [None] * 100
            )
            await asyncio.gather(*(held.take("debitsuccess", "gym", SENDER, f"{n}") for n in range(100)))
            # Each waits for its own deadline, not for those before it, who have all connections.
            assert time.monotonic() - began < 5
        # No late answer reaches another question.
        for _ in range(50):
            known, unknown = tokens.find("debitsuccess", "gym", "FormTok1"), tokens.find("debitsuccess", "gym", "7")
            assert list(await asyncio.gather(known, unknown)) == [EXPECTED_CASUAL, None]

    with_client(server, tmp_path, find)


def test_a_flood_waits_for_a_few_connections(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)

    async def find(client: redis_asyncio.Redis) -> None:
        tokens = Tokens(client, up)
        before = redis.info("clients")["connected_clients"]
        found = await asyncio.gather(*(tokens.find("debitsuccess", "gym", "FormTok1") for _ in range(200)))
        assert found == [EXPECTED_CASUAL] * 200
        assert redis.info("clients")["connected_clients"] <= before + 4

    with_client(valkey_server, tmp_path, find, connections=4)


def test_what_is_looked_up_together_is_one_question(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)
    redis.rpush(token_key("debitsuccess", "gym", "list"), "another type")

    async def find(client: redis_asyncio.Redis) -> None:
        tokens, questions = Tokens(client, up), asked_by(client)
        names = ["FormTok1", "unknown", "list"] * 100
        finding = [asyncio.create_task(tokens.find("debitsuccess", "gym", name)) for name in names]
        await asyncio.sleep(0)
        finding[0].cancel()
        async with asyncio.timeout(20):
            found = await asyncio.gather(*finding[1:])
        assert [EXPECTED_CASUAL, *found] == [EXPECTED_CASUAL, None, None] * 100
        assert len(questions) == 1
        assert await tokens.find("debitsuccess", "gym", "FormTok1") == EXPECTED_CASUAL
        assert len(questions) == 2

    with_client(valkey_server, tmp_path, find)


def asked_by(client: redis_asyncio.Redis) -> list[None]:
    """One for each pipeline that is sent from now on."""
    asked: list[None] = []
    make = client.pipeline

    def counting(*arguments: Any, **more: Any) -> Any:
        asked.append(None)
        return make(*arguments, **more)

    client.pipeline = counting  # type: ignore[method-assign]
    return asked


def test_an_endpoint_that_is_full_is_not_asked_about_for_a_while(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "ASK_AGAIN", 1000.0)

    async def hold(client: redis_asyncio.Redis) -> None:
        limit, questions = HeldLimit(client, up, 3, 1), asked_by(client)
        answers = [await full(limit, str(number), source=f"203.0.113.{number}") for number in range(50)]
        assert answers == [False] * 3 + [True] * 47
        assert len(questions) == 4
        assert not await full(limit, facility="other")

    with_client(valkey_server, tmp_path, hold)


async def full(
    limit: HeldLimit, notification_id: str = "one-more", facility: str = "gym", source: str = SENDER
) -> bool:
    try:
        await limit.take("debitsuccess", facility, source, notification_id)
    except Refused as refused:
        assert (refused.reason, refused.status) == (Reason.HELD_FULL, 429)  # noqa: PT017
        return True
    return False


def test_held_notifications_are_counted_in_redis(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "ASK_AGAIN", 0.0)

    async def hold(client: redis_asyncio.Redis) -> None:
        # More than enough for this one address.
        here, there = HeldLimit(client, up, 3, 100), HeldLimit(client, up, 3, 100)
        for number in range(3):
            assert not await full(here, str(number))
        assert await full(here)
        assert await full(there), "another process counts the same"
        assert not await full(here, facility="other"), "each endpoint has its own"
        assert redis.zcard(held_key("debitsuccess", "gym")) == 3
        forget_held(redis, "debitsuccess", "gym", ["0"])
        assert not await full(there, "3")
        assert await full(here)
        # A day later they count no more.
        for notification_id in ("1", "2", "3"):
            redis.zincrby(held_key("debitsuccess", "gym"), -86_401, notification_id)
        assert not await full(here)

    with_client(valkey_server, tmp_path, hold)


def test_without_redis_each_process_counts_for_itself(server: Valkey, tmp_path: Path) -> None:
    async def hold(client: redis_asyncio.Redis) -> None:
        server.kill()
        limit = HeldLimit(client, up, 3)
        assert [await full(limit, str(number)) for number in range(5)] == [False, False, False, True, True]
        assert not await full(limit, facility="other")

    with_client(server, tmp_path, hold)


def test_without_redis_the_endpoint_s_limit_is_for_all_addresses(server: Valkey, tmp_path: Path) -> None:
    async def hold(client: redis_asyncio.Redis) -> None:
        server.kill()
        limit = HeldLimit(client, up, 3)
        over = [await full(limit, str(number), source=f"203.0.113.{number}") for number in range(5)]
        assert over == [False, False, False, True, True]

    with_client(server, tmp_path, hold)


def test_many_addresses_leave_no_more_in_redis_than_there_is_room_for(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    """What is kept for a day for each address would fill Redis, were it kept for those that are refused."""

    async def hold(client: redis_asyncio.Redis) -> None:
        limit = HeldLimit(client, up, 3, 2)
        over = [await full(limit, str(number), source=f"2001:db8:{number:x}::1") for number in range(50)]
        assert over == [False] * 3 + [True] * 47
        assert len(redis.keys("postback:bucket:*")) == 3
        assert redis.zcard(held_key("debitsuccess", "gym")) == 3

    with_client(valkey_server, tmp_path, hold)


@pytest.mark.parametrize("redis_is", [up, away])
def test_what_one_address_has_too_much_takes_nothing_from_the_others(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, redis_is: Callable[[], bool]
) -> None:
    async def hold(client: redis_asyncio.Redis) -> None:
        limit = HeldLimit(client, redis_is, 3, 1)
        assert [await full(limit, str(number)) for number in range(9)] == [False] + [True] * 8
        assert not await full(limit, "another", source="203.0.113.8")
        assert not await full(limit, "a third", source="203.0.113.9")
        assert await full(limit, "a fourth", source="203.0.113.10")

    with_client(valkey_server, tmp_path, hold)


@pytest.mark.parametrize("redis_is", [up, away])
def test_one_address_cannot_use_all_the_room(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, redis_is: Callable[[], bool]
) -> None:
    async def hold(client: redis_asyncio.Redis) -> None:
        limit = HeldLimit(client, redis_is, 5, 2)
        same = ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"]
        assert [await full(limit, address, source=address) for address in same] == [False, False, True]
        assert not await full(limit, "another network", source="2001:db8:0:1::1")
        assert not await full(limit, "another address", source="203.0.113.8")

    with_client(valkey_server, tmp_path, hold)


def test_no_room_at_all(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def hold(client: redis_asyncio.Redis) -> None:
        assert await full(HeldLimit(client, up, 0))
        assert await full(HeldLimit(client, away, 0))

    with_client(valkey_server, tmp_path, hold)


def test_forgetting_is_harmless_while_redis_is_away(server: Valkey, tmp_path: Path) -> None:
    client = connect(configured(tmp_path, server.url))
    server.kill()
    forget_held(client, "debitsuccess", "gym", ["0"])
    forget_held(client, "debitsuccess", "gym", [])
    client.close()
