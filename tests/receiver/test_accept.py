"""The way of one notification: every row of the status table, the steps in their order, and hostile requests."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from receiver import cards
from receiver.accept import LOOKED_THROUGH
from receiver.connection import connect
from receiver.expected import held_key, register
from receiver.inbox import Inbox
from receiver.providers import PROVIDERS, debitsuccess
from receiver.providers.base import Identity
from receiver.providers.checkout import CheckoutEndpoint
from receiver.refusals import listed
from tests.asgi import Answer, Application, Body, End
from tests.receiver.serving import API_KEY, EXPECTATION_SEAL, PATIENCE, PROXY, SENDER, configured, kept, serving
from tests.servers import Valkey, eventually, running_valkey
from tests.support import EXPECTED_CASUAL, Recorded, recorded

SECRET = "hunter2-Recognisable"
CAP = 256 << 10
FORM = "application/x-www-form-urlencoded"

QUICKSTREAM = recorded("quickstream", "payment__form")
CHECKOUT = recorded("checkout", "payment_captured__no_reference")
CASUAL = recorded("debitsuccess", "casual_payment")
EVENT = recorded("debitsuccess", "Customer.Schedule.Suspension.Added")
PAYMENTZ = recorded("paymentz", "authsuccessful")
SENDERS = {"quickstream": QUICKSTREAM, "checkout": CHECKOUT, "event": EVENT, "paymentz": PAYMENTZ}
"""One proven request of each kind that needs nothing registered."""

STATIC = {"authorization": "cko-static-key"}
QUICKSTREAM_AUTH = {"authorization": "Basic " + b64encode("acme:new:pässword".encode()).decode()}


@pytest.fixture
def application(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> Iterator[Application]:
    with serving(configured(tmp_path, valkey_server.url, max_held=3, body_timeout=1)) as application:
        yield application


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A Valkey that the test may stop."""
    with running_valkey() as server:
        yield server


def headers_of(request: Recorded) -> dict[str, str]:
    """As recorded, with the static header that the tests' Checkout.com endpoint asks for."""
    given = {name: text for name, text in request.headers.items() if name not in ("host", "connection")}
    return given | (STATIC if request.path.startswith("/notify/checkout") else {})


def send(application: Application, request: Recorded, **changes: Any) -> Answer:
    """Sends `request`. `without` drops headers, `adding` adds them, `body` and `path` replace."""
    without, body = changes.pop("without", ()), changes.pop("body", request.body)
    headers = {name: text for name, text in headers_of(request).items() if name not in without}
    headers |= changes.pop("adding", {})
    if isinstance(body, bytes) and "content-length" in headers and body != request.body:
        headers["content-length"] = str(len(body))
    return application.post(changes.pop("path", request.path), headers, body, **changes)


def refused(redis: Redis, answer: Answer, status: int, reason: str) -> dict[str, Any]:
    """Checks the answer and that nothing was kept; gives the record."""
    assert (answer.status, answer.json["error"]) == (status, reason)
    assert set(answer.json) == {"error", "detail"}
    assert answer.headers["content-type"] == "application/json"
    return recorded_refusal(redis, status, reason, answer.json["detail"])


def recorded_refusal(redis: Redis, status: int, reason: str, detail: str) -> dict[str, Any]:
    def look() -> list[dict[str, Any]]:
        found = [row for row in listed(redis) if row["detail"] == detail]
        assert all((row["status"], row["reason"]) == (status, reason) for row in found)
        return found

    record = eventually(look, what="a refusal record")[0]
    assert kept(redis) == []
    return record


def accepted(answer: Answer, status: str = "accepted") -> str:
    assert (answer.status, set(answer.json), answer.json["status"]) == (200, {"id", "status"}, status)
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json["id"])


# The status table: what is kept.


@pytest.mark.parametrize("name", SENDERS)
def test_accepted(redis: Redis, application: Application, name: str) -> None:
    request = SENDERS[name]
    notification_id = accepted(send(application, request))
    (envelope,) = kept(redis)
    identity = request.provider.identify(
        request.message(), configured(Path("/x"), "redis://h").endpoints[request.provider.name, envelope.facility]
    )
    assert (envelope.id, envelope.provider, envelope.body) == (notification_id, request.provider.name, request.body)
    assert (envelope.dedupe_key, envelope.event_type, envelope.fingerprint) == (
        identity.dedupe_key,
        identity.event_type,
        identity.fingerprint,
    )
    assert (envelope.verified, envelope.quarantine, envelope.detail) == (True, "", "")
    assert (envelope.source, envelope.content_type) == (SENDER, request.headers["content-type"])
    assert envelope.headers == {
        key: text for key, text in request.headers.items() if key in request.provider.kept_headers
    }
    assert listed(redis) == []


def test_credentials_are_never_kept(redis: Redis, application: Application) -> None:
    for request in SENDERS.values():
        accepted(send(application, request))
    for envelope in kept(redis):
        assert not set(envelope.headers) & set(PROVIDERS[envelope.provider].proof_headers)
    assert kept(redis)[2].headers == {
        "x-eventname": "Customer.Schedule.Suspension.Added",
        "x-traceid": "7d1f0a52-0001",
    }


@pytest.mark.parametrize("name", SENDERS)
def test_a_duplicate_is_accepted_again(redis: Redis, application: Application, name: str) -> None:
    first, second = accepted(send(application, SENDERS[name])), accepted(send(application, SENDERS[name]))
    assert first != second
    one, other = kept(redis)
    assert (one.dedupe_key, one.fingerprint) == (other.dedupe_key, other.fingerprint)


def test_an_unknown_event_type_is_accepted(redis: Redis, application: Application) -> None:
    accepted(send(application, EVENT, adding={"x-eventname": "Customer.Moved.House"}))
    assert [envelope.event_type for envelope in kept(redis)] == ["Customer.Moved.House"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xfe not a form", "unreadable_body"),
        (b"receiptNumber=1", "missing_field"),
        (QUICKSTREAM.body.replace(b"ACME&", b"OTHER&", 1), "other_business"),
        (QUICKSTREAM.body + b"&summaryCode=1", "contradictory_fields"),
        (b"a=1", "unknown_document"),
    ],
)
def test_what_is_authentic_but_cannot_be_believed_is_quarantined(
    redis: Redis, application: Application, body: bytes, reason: str
) -> None:
    notification_id = accepted(send(application, QUICKSTREAM, body=body), "quarantined")
    (envelope,) = kept(redis)
    assert (envelope.id, envelope.body, envelope.quarantine) == (notification_id, body, reason)
    assert envelope.verified
    assert envelope.detail
    assert envelope.dedupe_key == f"body:{envelope.fingerprint}"


def test_a_quarantined_notification_is_no_repeat_of_a_readable_one(redis: Redis, application: Application) -> None:
    xml = {"content-type": "application/xml"}
    accepted(send(application, QUICKSTREAM, adding=xml), "quarantined")
    accepted(send(application, QUICKSTREAM))
    accepted(send(application, QUICKSTREAM, adding=xml), "quarantined")
    first, readable, again = kept(redis)
    assert first.dedupe_key == again.dedupe_key != readable.dedupe_key


def test_a_fault_of_ours_after_the_proof_is_quarantined(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(message: object, endpoint: object) -> Identity:
        raise KeyError(SECRET)

    monkeypatch.setitem(PROVIDERS, "paymentz", replace(PROVIDERS["paymentz"], identify=identify))
    with serving(configured(tmp_path, valkey_server.url)) as application:
        answer = send(application, PAYMENTZ)
    accepted(answer, "quarantined")
    assert SECRET.encode() not in answer.body
    (envelope,) = kept(redis)
    assert (envelope.quarantine, envelope.detail, envelope.event_type) == (
        "interpretation_failed",
        "the receiver failed to read the body",
        "unknown",
    )


# Held: Debitsuccess's casual payments.


def test_a_casual_payment_whose_token_is_registered(redis: Redis, application: Application) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)
    accepted(send(application, CASUAL))
    (envelope,) = kept(redis)
    assert (envelope.verified, envelope.event_type) == (True, debitsuccess.CASUAL)


def test_a_casual_payment_with_another_webhook_token(redis: Redis, application: Application) -> None:
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)
    answer = send(application, CASUAL, body=CASUAL.body.replace(b"HookTok1", b"HookTok2"))
    refused(redis, answer, 403, "token_refused")


def test_a_casual_payment_whose_token_is_not_known_is_held_within_limits(
    redis: Redis, application: Application
) -> None:
    ids = [accepted(send(application, CASUAL), "held") for _ in range(3)]
    assert [(envelope.id, envelope.verified, envelope.quarantine) for envelope in kept(redis)] == [
        (notification_id, False, "") for notification_id in ids
    ]
    over = send(application, CASUAL)
    assert (over.status, over.json["error"], over.headers["retry-after"]) == (429, "held_full", "60")
    assert len(kept(redis)) == 3
    record = eventually(lambda: listed(redis), what="a refusal record")[0]
    assert (record["reason"], record["status"], record["size"]) == ("held_full", 429, len(CASUAL.body))
    # What is proven is not limited.
    accepted(send(application, EVENT))
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)
    accepted(send(application, CASUAL))


def test_an_unproven_body_is_held_only_while_it_is_small(redis: Redis, application: Application) -> None:
    def body(size: int) -> bytes:
        start = CASUAL.body[:-1] + b', "Padding": "'
        return start + b"x" * (size - len(start) - 2) + b'"}'

    refused(redis, send(application, CASUAL, body=body((16 << 10) + 1)), 413, "body_too_large")
    assert redis.exists(held_key("debitsuccess", "gym")) == 0
    accepted(send(application, CASUAL, body=body(16 << 10)), "held")
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)
    accepted(send(application, CASUAL, body=body(100_000)))


def test_a_casual_body_that_proves_nothing_is_refused_and_not_held(redis: Redis, application: Application) -> None:
    for body in (b"{}", b"not JSON", b'{"PaymentFormToken": "x"}', b"\xff" * 20):
        refused(redis, send(application, CASUAL, body=body), 403, "token_missing")


# The status table: what is refused.


@pytest.mark.parametrize("client", ["198.51.100.9", "127.0.0.1", "::ffff:198.51.100.9", "2001:db9::1"])
def test_a_wrong_source(redis: Redis, application: Application, client: str) -> None:
    answer = send(application, QUICKSTREAM, client=client, body=[End.UNTOUCHED])
    record = refused(redis, answer, 403, "source_refused")
    assert record["source"] == client.removeprefix("::ffff:")
    assert client not in answer.json["detail"]
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("client", ["203.0.113.0", "::ffff:203.0.113.255", "2001:db8::9"])
def test_a_right_source(application: Application, client: str) -> None:
    accepted(send(application, QUICKSTREAM, client=client))


def test_without_a_proxy_it_is_the_peer_that_must_be_allowed(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    forged = {"x-forwarded-for": SENDER, "forwarded": f"for={SENDER}", "x-real-ip": SENDER}
    with serving(configured(tmp_path, valkey_server.url, trusted_proxies=[])) as application:
        for client in ("198.51.100.9", PROXY, "127.0.0.1", "::ffff:198.51.100.9", "2001:db9::1"):
            for _ in range(2):
                answer = send(application, QUICKSTREAM, client=client, adding=forged, body=[End.UNTOUCHED])
                assert (answer.status, answer.json["error"]) == (403, "source_refused")
        assert kept(redis) == []
        for client in ("203.0.113.0", "::ffff:203.0.113.255", "2001:db8::9"):
            accepted(send(application, QUICKSTREAM, client=client, adding={"x-forwarded-for": "198.51.100.9"}))
    assert [envelope.source for envelope in kept(redis)] == ["203.0.113.0", "203.0.113.255", "2001:db8::9"]


def test_a_forged_source_is_refused(redis: Redis, application: Application) -> None:
    for forged in ({"x-forwarded-for": SENDER}, {"forwarded": f"for={SENDER}"}, {"x-real-ip": SENDER}):
        answer = send(application, QUICKSTREAM, client="198.51.100.9", adding=forged)
        assert refused(redis, answer, 403, "source_refused")["source"] == "198.51.100.9"


def test_behind_our_proxy(redis: Redis, application: Application) -> None:
    accepted(send(application, QUICKSTREAM, client=PROXY, adding={"x-forwarded-for": f"198.51.100.9, {SENDER}"}))
    assert [envelope.source for envelope in kept(redis)] == [SENDER]
    redis.flushall()
    for header, seen in ((f"{SENDER}, 198.51.100.9", "198.51.100.9"), (f"{SENDER}, junk", PROXY), ("", PROXY)):
        answer = send(application, QUICKSTREAM, client=PROXY, adding={"x-forwarded-for": header})
        assert refused(redis, answer, 403, "source_refused")["source"] == seen
        redis.flushall()


def test_several_forwarded_headers_are_one_list(redis: Redis, application: Application) -> None:
    headers = [(name.encode(), text.encode()) for name, text in headers_of(QUICKSTREAM).items()]
    forged = [(b"x-forwarded-for", SENDER.encode()), (b"x-forwarded-for", b"198.51.100.9"), *headers]
    answer = application.post(QUICKSTREAM.path, forged, QUICKSTREAM.body, client=PROXY)
    assert refused(redis, answer, 403, "source_refused")["source"] == "198.51.100.9"


def test_which_of_two_forwarded_headers_counts(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    both = {"x-forwarded-for": SENDER, "forwarded": "for=198.51.100.9"}
    foreign = {"x-forwarded-for": "198.51.100.9", "forwarded": f"for={SENDER}"}
    cases: list[tuple[dict[str, Any], dict[str, str], dict[str, str]]] = [
        ({}, {"forwarded": f'for="{SENDER}:4711"'}, both),
        ({"forwarded_header": "X-Forwarded-For"}, both, foreign),
        ({"forwarded_header": "Forwarded"}, foreign, both),
    ]
    for believed, right, wrong in cases:
        redis.flushall()
        with serving(configured(tmp_path, valkey_server.url, **believed)) as application:
            accepted(send(application, QUICKSTREAM, adding=right, client=PROXY))
            answer = send(application, QUICKSTREAM, adding=wrong, client=PROXY)
            assert (answer.status, answer.json["error"]) == (403, "source_refused")


def test_a_list_on_trial_refuses_nothing_and_counts(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    def count(application: Application) -> float:
        figures = application.get("/metrics").body.decode()
        name = 'postback_outside_proposed_sources_total{facility="trial",provider="checkout"}'
        return next((float(line.split()[-1]) for line in figures.splitlines() if line.startswith(name)), 0.0)

    settings = configured(tmp_path, valkey_server.url)
    endpoint: CheckoutEndpoint = settings.endpoint[1]
    trial = msgspec.structs.replace(endpoint, facility="trial", proposed_sources=("198.51.100.0/24",))
    with serving(msgspec.structs.replace(settings, endpoint=(trial,))) as application:
        before = count(application)
        accepted(send(application, CHECKOUT, path="/notify/checkout/trial"))
        accepted(send(application, CHECKOUT, path="/notify/checkout/trial", client="198.51.100.9"))
        forged = send(application, CHECKOUT, path="/notify/checkout/trial", adding={"cko-signature": "0" * 64})
        assert forged.status == 403
        # What would be refused anyway says nothing of the list.
        assert count(application) - before == 1


def test_no_client_address_at_all(redis: Redis, application: Application) -> None:
    assert refused(redis, send(application, PAYMENTZ, client=None), 403, "source_refused")["source"] == ""


def test_no_basic_credentials(redis: Redis, application: Application) -> None:
    answer = send(application, QUICKSTREAM, without=("authorization",), body=[End.UNTOUCHED])
    refused(redis, answer, 401, "credentials_missing")
    assert answer.headers["www-authenticate"] == 'Basic realm="postback", charset="UTF-8"'


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic  =",
        "Bearer " + b64encode(b"acme:new").decode(),
        "Basic " + b64encode(b"acme").decode(),
        "Basic " + b64encode(b"acme:").decode(),
        "Basic " + b64encode(f"acme:{SECRET}".encode()).decode(),
        "Basic " + b64encode("other:new:pässword".encode()).decode(),
        "Basic " + b64encode("acme:new:pässword".encode()).decode() + "!",
        "Basic " + b64encode(b"\xff\xfe:\x00").decode(),
        "Basic äöü",
        "\xff\xfe",
        "x" * 20_000,
    ],
)
def test_wrong_basic_credentials(redis: Redis, application: Application, authorization: str) -> None:
    answer = send(application, QUICKSTREAM, adding={"authorization": authorization}, body=[End.UNTOUCHED])
    refused(redis, answer, 403, "credentials_refused")
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("password", ["old:pässword", "new:pässword"])
def test_both_of_two_passwords(application: Application, password: str) -> None:
    given = {"authorization": "basic " + b64encode(f"acme:{password}".encode()).decode()}
    accepted(send(application, QUICKSTREAM, adding=given))


@pytest.mark.parametrize(
    ("request_", "changes", "reason"),
    [
        (CHECKOUT, {"without": ("authorization",), "body": [End.UNTOUCHED]}, "credentials_refused"),
        (CHECKOUT, {"adding": {"authorization": SECRET}, "body": [End.UNTOUCHED]}, "credentials_refused"),
        (CHECKOUT, {"adding": {"authorization": "cko-static-key "}}, "credentials_refused"),
        (CHECKOUT, {"without": ("cko-signature",)}, "signature_missing"),
        (CHECKOUT, {"adding": {"cko-signature": ""}}, "signature_missing"),
        (CHECKOUT, {"adding": {"cko-signature": "0" * 64}}, "signature_refused"),
        (CHECKOUT, {"adding": {"cko-signature": "äöü\xff"}}, "signature_refused"),
        (CHECKOUT, {"body": CHECKOUT.body + b" "}, "signature_refused"),
        (EVENT, {"without": ("x-token",), "body": [End.UNTOUCHED]}, "token_missing"),
        (EVENT, {"adding": {"x-token": SECRET}, "body": [End.UNTOUCHED]}, "token_refused"),
        (EVENT, {"adding": {"x-token": "\xff\xfe"}}, "token_refused"),
        (PAYMENTZ, {"body": PAYMENTZ.body.replace(b"156.50", b"956.50")}, "signature_refused"),
        (PAYMENTZ, {"body": PAYMENTZ.body.replace(b'"checksum"', b'"chekcsum"')}, "signature_missing"),
        (PAYMENTZ, {"body": SECRET.encode()}, "signature_refused"),
    ],
)
def test_a_wrong_proof(
    redis: Redis, application: Application, request_: Recorded, changes: dict[str, Any], reason: str
) -> None:
    answer = send(application, request_, **changes)
    record = refused(redis, answer, 403, reason)
    assert SECRET not in json.dumps([answer.json, {**record, "at": ""}])


@pytest.mark.parametrize("name", SENDERS)
@pytest.mark.parametrize("body", [b"", [], [b"", b""]], ids=repr)
def test_an_empty_body(redis: Redis, application: Application, name: str, body: Body) -> None:
    answer = send(application, SENDERS[name], body=body, without=("content-length",))
    record = refused(redis, answer, 400, "body_empty")
    assert record["size"] == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "post"])
def test_a_wrong_method(redis: Redis, application: Application, method: str) -> None:
    answer = application.ask(method, QUICKSTREAM.path, headers_of(QUICKSTREAM), [End.UNTOUCHED])
    refused(redis, answer, 405, "method_refused")
    assert (answer.headers["allow"], answer.headers["connection"]) == ("POST", "close")


@pytest.mark.parametrize(
    "path",
    [
        "/notify/",
        "/notify/quickstream",
        "/notify/quickstream/",
        "/notify/quickstream/acme/",
        "/notify/quickstream//acme",
        "/notify//quickstream/acme",
        "/notify/quickstream/acme/x",
        "/notify/quickstream/other",
        "/notify/Quickstream/acme",
        "/notify/quickstream/ACME",
        "/notify/quickstre%61m/acme",
        "/notify/quickstream%2Facme",
        "/notify/quickstream/acme%00",
        "/notify/quickstream/./acme",
        "/notify/x/../quickstream/acme",
        "/notify/quickstream/acme;x=1",
        "/notify/checkout/acme",
        "/notify/\xff\xfe",
    ],
)
def test_an_unknown_endpoint(redis: Redis, application: Application, path: str) -> None:
    answer = application.post(path, headers_of(QUICKSTREAM), [End.UNTOUCHED])
    record = refused(redis, answer, 404, "unknown_endpoint")
    assert record["facility"] == ""
    assert record["source"] == SENDER
    assert answer.json["detail"] == "There is no such endpoint."


def test_a_query_is_no_part_of_the_path(application: Application) -> None:
    accepted(send(application, QUICKSTREAM, path=QUICKSTREAM.path + "?x=1"))


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b"x" * (CAP + 1), CAP + 1),
        ([b"x" * CAP, b"x"], CAP + 1),
        ([b"x" * 1000] * 400, 263_000),
        ([b"x"] * 5 + [b"x" * CAP, End.UNTOUCHED], CAP + 5),
    ],
    ids=["one piece", "one over", "many pieces", "not read further"],
)
def test_too_large(redis: Redis, application: Application, body: Body, read: int) -> None:
    answer = send(application, QUICKSTREAM, body=body, without=("content-length",))
    assert refused(redis, answer, 413, "body_too_large")["size"] == read


@pytest.mark.parametrize("length", [str(CAP + 1), "1" + "0" * 17, "9" * 30])
def test_a_claim_of_too_much_is_refused_unread(redis: Redis, application: Application, length: str) -> None:
    answer = send(application, QUICKSTREAM, adding={"content-length": length}, body=[End.UNTOUCHED])
    record = refused(redis, answer, 413, "body_too_large")
    assert record["size"] == int(length[:18])


@pytest.mark.parametrize(
    "length", ["5", "0", "-1", "+356", "3e2", "x", "", " 356", "\xb2", str(CAP)], ids=lambda text: repr(text)
)
def test_a_content_length_that_lies_changes_nothing(redis: Redis, application: Application, length: str) -> None:
    answer = application.post(QUICKSTREAM.path, headers_of(QUICKSTREAM) | {"content-length": length}, QUICKSTREAM.body)
    accepted(answer)
    assert kept(redis)[0].body == QUICKSTREAM.body


def padded(size: int) -> bytes:
    return QUICKSTREAM.body + b"&customPad=" + b"x" * (size - len(QUICKSTREAM.body) - 11)


@pytest.mark.parametrize("chunk", [CAP, CAP - 1, 4096, 100])
def test_exactly_as_much_as_is_allowed(redis: Redis, application: Application, chunk: int) -> None:
    whole = padded(CAP)
    pieces = [whole[start : start + chunk] for start in range(0, CAP, chunk)]
    accepted(send(application, QUICKSTREAM, body=pieces, without=("content-length",)))
    assert kept(redis)[0].body == whole


def test_too_slow(redis: Redis, application: Application) -> None:
    began = time.monotonic()
    answer = send(application, QUICKSTREAM, body=[QUICKSTREAM.body[:100], End.SILENCE])
    # The setting's second, and not the ten of its default.
    assert 0.9 < time.monotonic() - began < PATIENCE
    record = refused(redis, answer, 408, "body_too_slow")
    # What the sender said that it would send.
    assert record["size"] == int(QUICKSTREAM.headers["content-length"])
    assert answer.headers["connection"] == "close"


def test_a_client_that_hangs_up_gets_no_answer_and_leaves_nothing(redis: Redis, application: Application) -> None:
    bodies: list[Body] = [[End.HANGUP], [QUICKSTREAM.body[:100], End.HANGUP]]
    for body in bodies:
        assert application.begin("POST", QUICKSTREAM.path, headers_of(QUICKSTREAM), body).result(10) is None
    accepted(send(application, QUICKSTREAM))
    assert len(kept(redis)) == 1
    assert listed(redis) == []


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (QUICKSTREAM, "authorization"),
        (QUICKSTREAM, "content-type"),
        (QUICKSTREAM, "content-length"),
        (CHECKOUT, "cko-signature"),
        (CHECKOUT, "authorization"),
        (EVENT, "x-token"),
        (EVENT, "x-eventname"),
    ],
)
def test_a_header_that_occurs_twice(redis: Redis, application: Application, request_: Recorded, name: str) -> None:
    pairs = [(key.encode(), text.encode("latin-1")) for key, text in headers_of(request_).items()]
    value = dict(pairs)[name.encode()]
    for second in (value, SECRET.encode()):
        for headers in ([*pairs, (name.encode(), second)], [(name.encode(), second), *pairs]):
            answer = application.post(request_.path, headers, [End.UNTOUCHED])
            refused(redis, answer, 400, "request_malformed")
            assert answer.json["detail"] == f"The {name} header occurs twice."


def test_headers_that_nobody_reads_may_occur_twice(application: Application) -> None:
    pairs = [(key.encode(), text.encode("latin-1")) for key, text in headers_of(QUICKSTREAM).items()]
    accepted(application.post(QUICKSTREAM.path, [*pairs, (b"x-a", b"1"), (b"x-a", b"\xff")], QUICKSTREAM.body))


# The order of the steps: of two faults, the earlier step's is named, and the body is not read for it.


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"path": "/notify/quickstream/x", "method": "GET", "client": "198.51.100.9"}, 404, "unknown_endpoint"),
        ({"method": "GET", "client": "198.51.100.9"}, 405, "method_refused"),
        ({"client": "198.51.100.9", "headers": {}}, 403, "source_refused"),
        ({"client": "198.51.100.9", "headers": {"content-length": str(CAP + 1)}}, 403, "source_refused"),
        ({"headers": {"content-length": str(CAP + 1)}}, 401, "credentials_missing"),
        ({"headers": {"authorization": "Basic x", "content-length": "0"}}, 403, "credentials_refused"),
        ({"headers": QUICKSTREAM_AUTH | {"content-length": str(CAP + 1)}}, 413, "body_too_large"),
    ],
)
def test_the_order_of_the_steps(
    redis: Redis, application: Application, changes: dict[str, Any], status: int, reason: str
) -> None:
    asked: dict[str, Any] = {"method": "POST", "path": QUICKSTREAM.path, "headers": QUICKSTREAM_AUTH, **changes}
    answer = application.ask(**asked, body=[End.UNTOUCHED])
    refused(redis, answer, status, reason)


@pytest.mark.parametrize(
    ("body", "status", "reason"), [(b"x" * (CAP + 1), 413, "body_too_large"), (b"", 400, "body_empty")]
)
def test_the_body_is_complete_before_it_is_judged(
    redis: Redis, application: Application, body: bytes, status: int, reason: str
) -> None:
    answer = send(application, CHECKOUT, body=body, without=("content-length", "cko-signature"))
    refused(redis, answer, status, reason)


def test_a_signature_comes_before_the_reading(redis: Redis, application: Application) -> None:
    answer = send(application, CHECKOUT, body=b"not JSON")
    refused(redis, answer, 403, "signature_refused")


# Hostile requests.


def test_a_refusal_record_is_harmless(redis: Redis, application: Application) -> None:
    content_type = f"Text/\x1b[31m\x00\x85\u00a0<script>{'x' * 500}; charset={SECRET}"
    headers = {
        "content-type": content_type,
        "authorization": f"Basic {SECRET}",
        "user-agent": SECRET,
        "x-forwarded-for": SECRET,
        "content-length": "12",
    }
    path = "/notify/%00%1b%5b31m%0aquickstream%e2%80%ae%ff<script>/" + "y" * 1000
    for target in (path, QUICKSTREAM.path):
        application.post(target, headers, SECRET.encode())
    known, unknown = eventually(lambda: rows if len(rows := listed(redis)) == 2 else [], what="two records")
    assert known["content_type"] == "text/?[31m???<script>" + "x" * 179
    assert (known["provider"], known["facility"], known["size"]) == ("quickstream", "acme", 12)
    shown = "/notify/??[31m?quickstream?\N{REPLACEMENT CHARACTER}<script>/"
    assert unknown["provider"] == shown + "y" * (200 - len(shown))
    assert (unknown["content_type"], unknown["source"]) == ("", SENDER)
    for record in (known, unknown):
        assert set(record) == {
            *("at", "provider", "facility", "source", "reason", "detail", "status", "size", "content_type"),
        }
        assert SECRET not in str(record)
        assert all(text.isprintable() for text in record.values() if isinstance(text, str))


@given(
    headers=st.dictionaries(
        st.sampled_from(["authorization", "content-type", "content-length", "cko-signature", "x-token", "x-eventname"]),
        st.binary(max_size=30),
    ),
    body=st.one_of(st.binary(max_size=50), st.lists(st.binary(max_size=5), max_size=4)),
    path=st.sampled_from(sorted({request.path for request in [*SENDERS.values(), CASUAL]})),
    proven=st.booleans(),
)
@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_junk_is_refused_or_kept_and_never_a_fault(
    application: Application, headers: dict[str, bytes], body: Body, path: str, proven: bool
) -> None:
    pairs = [(name.encode(), value) for name, value in headers.items()]
    if proven and "authorization" not in headers:
        text = QUICKSTREAM_AUTH if "quickstream" in path else STATIC
        pairs += [(name.encode(), value.encode()) for name, value in text.items()]
    answer = application.post(path, pairs, body)
    assert answer.status in (200, 400, 401, 403, 413)
    assert (answer.json["status"] == "quarantined") if answer.status == 200 else answer.json["error"]


# How much the refused may cost.


@pytest.fixture
def narrow(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> Iterator[Application]:
    """An address may have 100 refused requests at one moment, and an endpoint 200."""
    with serving(configured(tmp_path, valkey_server.url, max_refused=2, max_refused_per_address=1)) as application:
        yield application


def refusals(application: Application, number: int, client: str = SENDER, path: str = PAYMENTZ.path) -> list[str]:
    """The reasons of so many unproven requests."""
    answers = [application.post(path, {}, b"{}", client=client) for _ in range(number)]
    return [answer.json["error"] for answer in answers]


def test_refused_requests_are_bounded_for_each_address_and_endpoint(redis: Redis, narrow: Application) -> None:
    reasons = refusals(narrow, 150)
    assert reasons[:100] == ["signature_missing"] * 100
    # Some tokens come back while the test runs.
    assert reasons.count("attempts_full") > 20
    assert refusals(narrow, 1, client="203.0.113.8") == ["signature_missing"]
    assert refusals(narrow, 1, path=CHECKOUT.path) == ["credentials_refused"]
    assert refusals(narrow, 1, path="/notify/nowhere") == ["unknown_endpoint"]
    for number in range(9, 60):
        refusals(narrow, 5, client=f"203.0.113.{number}")
    assert "attempts_full" in refusals(narrow, 20, client="198.51.100.9"), "the endpoint has no more"
    assert refusals(narrow, 1, path=CHECKOUT.path) == ["credentials_refused"]


def test_what_is_over_the_bound_is_short_and_only_counted(redis: Redis, narrow: Application) -> None:
    def counted() -> float:
        figures = narrow.get("/metrics").body.decode().splitlines()
        name = 'postback_refused_total{facility="eu",provider="paymentz",reason="attempts_full"}'
        return next((float(line.split()[-1]) for line in figures if line.startswith(name)), 0.0)

    before = counted()
    reasons = refusals(narrow, 200)
    over = reasons.count("attempts_full")
    assert over > 50
    assert counted() - before == over
    answer = narrow.post(PAYMENTZ.path, {}, b"{}")
    if answer.status == 429:
        assert answer.headers["retry-after"] == "60"
    eventually(lambda: len(listed(redis)) >= len(reasons) - over, what="the records")
    assert {row["reason"] for row in listed(redis)} == {"signature_missing"}
    assert len(listed(redis)) <= 201 - over


def test_what_is_proven_is_never_limited(redis: Redis, narrow: Application) -> None:
    for path in (PAYMENTZ.path, QUICKSTREAM.path, CHECKOUT.path, EVENT.path):
        assert "attempts_full" in refusals(narrow, 250, path=path)
    for _ in range(20):
        for request in SENDERS.values():
            accepted(send(narrow, request))


def test_attempts_are_bounded_while_redis_is_away(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url, max_refused_per_address=1)) as application:
        server.kill()
        assert "attempts_full" in refusals(application, 250)
        accepted(send(application, PAYMENTZ))


def test_other_routes_have_the_same_bound(redis: Redis, narrow: Application) -> None:
    answers = [narrow.post("/expect/debitsuccess/gym", {"authorization": "Bearer x"}, b"{}") for _ in range(150)]
    assert [answer.json["error"] for answer in answers[:100]] == ["credentials_refused"] * 100
    assert answers[-1].status in (403, 429)
    assert sum(answer.status == 429 for answer in answers) > 20
    key = {"authorization": f"Bearer {API_KEY}"}
    body = {"token": "t", "webhook_token": "w", "reference": "r", "amount": "1.00", "currency": "NZD"}
    assert narrow.post("/expect/debitsuccess/gym", key, json.dumps(body).encode()).status == 201


# Nothing takes it.


@contextmanager
def nothing_takes_it(server: Valkey, folder: Path) -> Iterator[Application]:
    """Redis is away and the spool is full."""
    with serving(configured(folder, server.url, max_spool="64KiB")) as application:
        server.kill()
        while send(application, QUICKSTREAM, body=padded(15_000)).status == 200:
            continue
        yield application


def test_not_stored(server: Valkey, tmp_path: Path) -> None:
    large = CHECKOUT.body[:-1] + b',"padding":"' + b"x" * 20_000 + b'"}'
    signature = hmac.digest(b"cko-new-key", large, "sha256").hex()
    with nothing_takes_it(server, tmp_path) as application:
        answers = {
            "quickstream": send(application, QUICKSTREAM, body=padded(15_000)),
            "checkout": send(application, CHECKOUT, body=large, adding={"cko-signature": signature}),
            "event": send(application, EVENT, body=b'{"x": "' + b"x" * 15_000 + b'"}'),
            "casual": send(application, CASUAL, body=CASUAL.body[:-1] + b', "P": "' + b"x" * 15_000 + b'"}'),
            "paymentz": send(application, PAYMENTZ, body=PAYMENTZ.body[:-1] + b', "p": "' + b"x" * 15_000 + b'"}'),
        }  # fmt: skip
    for name, answer in answers.items():
        assert answer.status == (500 if name == "quickstream" else 503), name
        assert answer.headers.get("retry-after") == (None if name == "quickstream" else "5")
        assert answer.json == {
            "error": "not_stored",
            "detail": "The notification could not be stored. Send it again.",
        }


@pytest.mark.parametrize(("name", "status"), [("quickstream", 500), ("paymentz", 503), ("checkout", 503)])
def test_a_fault_of_ours_asks_for_another_try(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    def authenticate(*arguments: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setitem(PROVIDERS, name, replace(PROVIDERS[name], authenticate=authenticate))
    with serving(configured(tmp_path, valkey_server.url)) as application:
        answer = send(application, SENDERS[name])
    assert (answer.status, answer.json["error"]) == (status, "not_stored")
    assert SECRET.encode() not in answer.body
    assert kept(redis) == []


# Redis away.


def test_while_redis_hangs_everybody_is_answered_in_time_and_nothing_is_lost(server: Valkey, tmp_path: Path) -> None:
    requests = [*SENDERS.values(), CASUAL] * 4
    with serving(configured(tmp_path, server.url)) as application:
        register(connect(configured(tmp_path, server.url)), EXPECTATION_SEAL, EXPECTED_CASUAL)
        accepted(send(application, CASUAL))
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                began = time.monotonic()
                pending = [
                    application.begin("POST", request.path, headers_of(request), request.body) for request in requests
                ]
                answers = [future.result(10) for future in pending]
                assert time.monotonic() - began < PATIENCE
                assert [answer.json["status"] for answer in answers if answer] == [*["accepted"] * 4, "held"] * 4
        finally:
            server.process.send_signal(signal.SIGCONT)
        eventually(lambda: application.get("/readyz").json["status"] == "ready", what="a drained spool")
        accepted(send(application, CASUAL))
    client = server.client()
    envelopes = kept(client)
    assert len(envelopes) == 1 + 3 * 20 + 1
    assert [envelope.verified for envelope in envelopes].count(False) == 12
    client.close()


def test_a_stop_answers_everybody_first(server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate, enqueued = threading.Event(), threading.Event(), Inbox._enqueued

    async def slowly(self: Inbox, batch: Any, link: Any) -> bool:
        entered.set()
        await asyncio.to_thread(gate.wait, 10)
        return await enqueued(self, batch, link)

    monkeypatch.setattr(Inbox, "_enqueued", slowly)
    with serving(configured(tmp_path, server.url)) as application:
        pending = [
            application.begin("POST", QUICKSTREAM.path, headers_of(QUICKSTREAM), QUICKSTREAM.body) for _ in range(50)
        ]
        assert entered.wait(10)
        threading.Timer(0.2, gate.set).start()
    answers = [future.result(10) for future in pending]
    assert [answer.status for answer in answers if answer] == [200] * 50
    client = server.client()
    assert len(kept(client)) == 50
    client.close()


# Figures.


def figure(application: Application, name: str) -> float:
    for line in application.get("/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_each_outcome_is_counted(redis: Redis, application: Application) -> None:
    names = {
        "accepted": 'postback_accepted_total{facility="acme",provider="quickstream",status="accepted"}',
        "quarantined": 'postback_accepted_total{facility="acme",provider="quickstream",status="quarantined"}',
        "held": 'postback_accepted_total{facility="gym",provider="debitsuccess",status="held"}',
        "refused": 'postback_refused_total{facility="acme",provider="quickstream",reason="credentials_missing"}',
        "unknown": 'postback_refused_total{facility="",provider="",reason="unknown_endpoint"}',
        "seconds": "postback_answer_seconds_count",
    }
    before = {key: figure(application, name) for key, name in names.items()}
    send(application, QUICKSTREAM)
    send(application, QUICKSTREAM, body=b"a=1")
    send(application, CASUAL)
    send(application, QUICKSTREAM, without=("authorization",))
    application.post("/notify/nobody/knows")
    assert {key: figure(application, name) - before[key] for key, name in names.items()} == {
        "accepted": 1,
        "quarantined": 1,
        "held": 1,
        "refused": 1,
        "unknown": 1,
        "seconds": 3,
    }


def test_concurrent_requests_each_get_their_own_answer(redis: Redis, application: Application) -> None:
    def body(number: int) -> bytes:
        return QUICKSTREAM.body.replace(b"7004100001", b"70042%05d" % number)

    pending = [
        application.begin(
            "POST", QUICKSTREAM.path, QUICKSTREAM_AUTH | {"content-type": FORM}, [body(number)[:50], body(number)[50:]]
        )
        for number in range(700)
    ]
    ids = {accepted(answer) for future in pending if (answer := future.result(30))}
    envelopes = kept(redis)
    assert {envelope.id for envelope in envelopes} == ids
    assert {envelope.body for envelope in envelopes} == {body(number) for number in range(700)}
    assert len(envelopes) == len(ids) == 700


def test_asyncio_debug_finds_nothing(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    """No coroutine is forgotten and no exception is left in a future."""
    with serving(configured(tmp_path, valkey_server.url)) as application:
        problems: list[dict[str, Any]] = []
        application.run(
            lambda: asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        )
        accepted(send(application, QUICKSTREAM))
        send(application, QUICKSTREAM, without=("authorization",))
        application.begin("POST", QUICKSTREAM.path, headers_of(QUICKSTREAM), [End.HANGUP]).result(10)
    assert problems == []


# Card numbers.

VISA, MASTERCARD = "4111111111111111", "5555 5555 5555 4444"


def with_cards(name: str) -> tuple[Recorded, dict[str, str]]:
    """A proven request with a published test number in a field, and the headers that prove it."""
    request = SENDERS[name]
    if name == "quickstream":
        return replace(request, body=request.body + f"&customNote={MASTERCARD.replace(' ', '+')}".encode()), {}
    if name == "event":
        return replace(request, body=request.body.replace(b"{", f'{{"Note": "{MASTERCARD}", '.encode(), 1)), {}
    body = request.body.rstrip()[:-1] + f', "note": "{MASTERCARD}", "number": {VISA}}}'.encode()
    signature = hmac.new(b"cko-new-key", body, "sha256").hexdigest()
    return replace(request, body=body), {"cko-signature": signature} if name == "checkout" else {}


@pytest.mark.parametrize("name", SENDERS)
def test_card_numbers_are_masked_after_the_proof_and_before_anything_is_kept(
    redis: Redis, application: Application, name: str
) -> None:
    request, proof = with_cards(name)
    for _ in range(2):
        accepted(send(application, SENDERS[name], body=request.body, adding=proof))
    first, second = kept(redis)
    assert b"4444" in first.body
    for number in (VISA, MASTERCARD, MASTERCARD.replace(" ", "+")):
        assert number.encode() not in first.body
    assert len(first.body) == len(request.body)
    assert (first.dedupe_key, first.fingerprint) == (second.dedupe_key, second.fingerprint)
    if name != "event":
        # An event without X-TraceId has its body's digest; all others have the key that they would have had.
        assert first.dedupe_key == proven_identity(request).dedupe_key
    stored = list(everything(redis))
    assert len(stored) > 1
    assert not any(VISA.encode() in value for value in stored)
    figures = application.get("/metrics").body.decode()
    endpoint = f'facility="{first.facility}",place="body",provider="{first.provider}"'
    assert f"postback_card_numbers_masked_total{{{endpoint}}}" in figures


def proven_identity(request: Recorded) -> Identity:
    endpoints = configured(Path("/x"), "redis://h").endpoints
    endpoint = next(each for (provider, _), each in endpoints.items() if provider == request.provider.name)
    return request.provider.identify(request.message(), endpoint)


def everything(redis: Redis) -> Iterator[bytes]:
    keys: Any = redis.keys("*")
    for key in keys:
        dumped: Any = redis.dump(key)
        yield dumped or b""


def test_what_is_held_is_masked_and_can_still_be_proven(redis: Redis, application: Application) -> None:
    body = CASUAL.body.replace(b'"Message": ""', f'"Message": "{VISA}"'.encode())
    assert body != CASUAL.body
    accepted(send(application, CASUAL, body=body), "held")
    (envelope,) = kept(redis)
    assert VISA.encode() not in envelope.body
    message = replace(CASUAL, body=envelope.body).message()
    endpoint: Any = configured(Path("/x"), "redis://h").endpoints["debitsuccess", "gym"]
    debitsuccess.authenticate(message, endpoint, EXPECTED_CASUAL)


def test_a_refusal_record_holds_no_card_number(redis: Redis, application: Application) -> None:
    send(application, QUICKSTREAM, path=f"/notify/quickstream/{VISA}")
    send(application, QUICKSTREAM, without=("authorization", "content-type"), adding={"content-type": f"a/{VISA}"})
    eventually(lambda: len(listed(redis)) == 2, what="two refusals")
    found = listed(redis)
    assert VISA not in str(found)
    assert "411111******1111" in found[0]["content_type"] + found[1]["content_type"]


def test_what_a_stranger_writes_is_cut_before_it_is_searched(
    redis: Redis, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    search = cards.masked_text

    def watched(text: str) -> str:
        searched.append(len(text))
        return search(text)

    monkeypatch.setattr(cards, "masked_text", watched)
    digits = "4-" * 20_000
    refused(redis, send(application, QUICKSTREAM, path=f"/notify/{digits}"), 404, "unknown_endpoint")
    send(application, QUICKSTREAM, without=("authorization",), adding={"content-type": digits})
    eventually(lambda: len(listed(redis)) == 2, what="two refusals")
    assert max(searched) == LOOKED_THROUGH


@pytest.mark.parametrize("name", ["quickstream", "checkout"])
def test_nothing_is_ever_decompressed(redis: Redis, application: Application, name: str) -> None:
    """What a sender compresses is kept as it came: a proven one is quarantined, and 10 KiB never become 10 MiB."""
    bomb = gzip.compress(SENDERS[name].body + bytes(10 << 20))
    adding = {"content-encoding": "gzip"}
    if name == "checkout":
        adding["cko-signature"] = hmac.new(b"cko-new-key", bomb, "sha256").hexdigest()
    accepted(send(application, SENDERS[name], body=bomb, adding=adding), "quarantined")
    (envelope,) = kept(redis)
    assert (envelope.body, envelope.quarantine) == (bomb, "unreadable_body")
