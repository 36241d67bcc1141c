"""What `postback serve` answers beside notifications: expectations over HTTP, and every path that does not exist."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis import Redis

from receiver.errors import ConfigurationError
from receiver.refusals import listed
from tests.asgi import Answer, Application, End
from tests.receiver.serving import API_KEY, PATIENCE, configured, jobs, serving
from tests.servers import Valkey, eventually, running_valkey
from tests.support import recorded

SECRET = "hunter2-Recognisable"
AUTH = {"authorization": f"Bearer {API_KEY}"}
CASUAL = {
    "token": "FormTok1",
    "webhook_token": "HookTok1",
    "reference": "MEMBER-1001",
    "amount": "12.50",
    "currency": "NZD",
    "valid_to": "2026-11-22T10:00:00Z",
}
GYM = "/expect/debitsuccess/gym"


@pytest.fixture
def application(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> Iterator[Application]:
    with serving(configured(tmp_path, valkey_server.url, body_timeout=1)) as application:
        yield application


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def expect(application: Application, path: str = GYM, body: Any = CASUAL, **headers: str) -> Answer:
    return application.post(path, AUTH | headers, json.dumps(body).encode())


def test_an_expectation_is_registered_before_the_customer_pays(redis: Redis, application: Application) -> None:
    answer = expect(application)
    assert (answer.status, answer.json) == (201, {"status": "registered", "reference": "MEMBER-1001"})
    assert [job.func_name for job in jobs(redis)] == ["workers.jobs.record_expectation"]
    casual = recorded("debitsuccess", "casual_payment")
    assert application.post(casual.path, casual.headers, casual.body).json["status"] == "accepted"
    assert (expect(application).status, len(jobs(redis))) == (201, 3)


@pytest.mark.parametrize("path", ["/expect/quickstream/acme", "/expect/checkout/main", "/expect/paymentz/eu"])
def test_other_senders(application: Application, path: str) -> None:
    assert expect(application, path, {"reference": "R", "amount": "1.00", "currency": "AUD"}).status == 201


def test_no_key(redis: Redis, application: Application) -> None:
    answer = application.post(GYM, {}, [End.UNTOUCHED])
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json == {"error": "credentials_missing", "detail": "The Authorization header is missing."}
    (record,) = eventually(lambda: listed(redis), what="a record")
    assert (record["provider"], record["reason"], record["source"]) == (GYM, "credentials_missing", "203.0.113.7")


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", f"Bearer {SECRET}", f"Basic {API_KEY}", API_KEY, f"Bearer{API_KEY}"),
        *(f"Bearer {API_KEY} x", f"Bearer {API_KEY[:-1]}", "Bearer \xff\xfe", f"Bearer,{API_KEY}", "x" * 10_000),
    ],
)
def test_a_wrong_key(redis: Redis, application: Application, authorization: str) -> None:
    answer = application.post(GYM, {"authorization": authorization}, [End.UNTOUCHED])
    assert (answer.status, answer.json["error"]) == (403, "credentials_refused")
    assert "www-authenticate" not in answer.headers
    (record,) = eventually(lambda: listed(redis), what="a record")
    assert (record["status"], record["reason"]) == (403, "credentials_refused")
    assert SECRET not in str(record) + answer.body.decode()


@pytest.mark.parametrize("key", ["old-api-key", API_KEY])
def test_every_key_of_the_list(application: Application, key: str) -> None:
    assert expect(application, authorization=f"bearer  {key}").status == 201


def test_without_api_keys_nothing_is_registered(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    settings = configured(tmp_path, valkey_server.url)
    with serving(replace(settings, security=replace(settings.security, api_keys=()))) as application:
        assert expect(application).status == 403


def test_two_keys_at_once(application: Application) -> None:
    pairs = [(b"authorization", f"Bearer {key}".encode()) for key in (API_KEY, SECRET)]
    answer = application.post(GYM, pairs, [End.UNTOUCHED])
    assert (answer.status, answer.json["error"]) == (400, "request_malformed")


@pytest.mark.parametrize("path", ["/expect/debitsuccess/other", "/expect/nobody/gym", "/expect/debitsuccess/g%79m"])
def test_an_unknown_endpoint(application: Application, path: str) -> None:
    answer = application.post(path, AUTH, [End.UNTOUCHED])
    assert (answer.status, answer.json) == (404, {"error": "unknown_endpoint", "detail": "There is no such endpoint."})
    assert application.post(path, {}, [End.UNTOUCHED]).status == 401, "who has no key learns of no endpoint"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "The body is not a JSON object."),
        (SECRET.encode(), "The body is not a JSON object."),
        (json.dumps(CASUAL | {"amount": "12,50"}).encode(),
         "amount must be a decimal text with at most 2 decimals, such as 12.50."),
        (json.dumps(CASUAL | {SECRET: SECRET}).encode(),
         "The expectation is not as documented: it has an unknown field."),
    ],
)  # fmt: skip
def test_an_unclear_expectation(redis: Redis, application: Application, body: bytes, detail: str) -> None:
    answer = application.post(GYM, AUTH, body)
    assert (answer.status, answer.json) == (400, {"error": "request_malformed", "detail": detail})
    assert jobs(redis) == []


def test_too_large(application: Application) -> None:
    answer = application.post(GYM, AUTH, [b"x" * (16 << 10), b"x", End.UNTOUCHED])
    assert (answer.status, answer.json["error"]) == (413, "body_too_large")
    assert answer.json["detail"] == "The body may have at most 16384 bytes."


def test_too_slow(application: Application) -> None:
    answer = application.post(GYM, AUTH, [b"{", End.SILENCE])
    assert (answer.status, answer.json["error"]) == (408, "body_too_slow")


def test_a_client_that_hangs_up(redis: Redis, application: Application) -> None:
    application.begin("POST", GYM, AUTH, [b"{", End.HANGUP]).result(10)
    assert expect(application).status == 201
    assert len(jobs(redis)) == 1


def test_redis_away(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url)) as application:
        assert expect(application).status == 201
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        answer = expect(application)
        assert time.monotonic() - began < PATIENCE
        server.process.send_signal(signal.SIGCONT)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.json == {
            "error": "not_stored",
            "detail": "The expectation could not be stored. Send it again.",
        }
        eventually(lambda: expect(application).status == 201, what="a registered expectation")


def test_a_redis_that_is_not_durable_registers_nothing(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url)) as application:
        server.client().config_set("appendfsync", "everysec")
        eventually(lambda: application.get("/readyz").status == 503, what="the look")
        assert expect(application).status == 503
        assert jobs(server.client()) == []


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/notify", "/notifyx/a/b", "//notify/quickstream/acme", "/Notify/quickstream/acme", "/docs", "*"),
        *("/%6eotify/quickstream/acme", "/livez/", "/metrics/x", "/expect/debitsuccess", "/expect/debitsuccess/gym/"),
        *("/%65xpect/debitsuccess/gym", "/expect%2Fdebitsuccess/gym", "/livez%2f", "/%6civez"),
    ],
)
def test_paths_that_do_not_exist(application: Application, path: str) -> None:
    for method in ("GET", "POST"):
        answer = application.ask(method, path, {"host": SECRET})
        assert (answer.status, answer.json) == (404, {"error": "unknown_endpoint", "detail": "There is no such page."})
        assert SECRET not in str(answer.headers)


@pytest.mark.parametrize(("method", "path", "allow"), [("POST", "/livez", "GET, HEAD"), ("GET", GYM, "POST")])
def test_wrong_methods(application: Application, method: str, path: str, allow: str) -> None:
    answer = application.ask(method, path)
    assert (answer.status, answer.json["error"]) == (405, "method_refused")
    assert sorted(answer.headers["allow"].split(", ")) == sorted(allow.split(", "))


def test_an_address_of_redis_that_cannot_be_one_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^queue\.redis_url: "), serving(configured(tmp_path, SECRET)):
        raise AssertionError
