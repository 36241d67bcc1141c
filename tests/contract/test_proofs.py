"""Nothing without a valid proof is ever kept as verified, whatever is done to a request that had one.

Each request starts proven, is changed in one to three places, and is written byte for byte to a socket of the real
server; what then lies in the queue is held against a second, independent judgement of what was sent.
"""

from __future__ import annotations

import ast
import gzip
import os
import re
import socket
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import msgspec
import pytest
import uvicorn
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from receiver import app
from receiver import settings as configuration
from receiver.door import Door
from receiver.expected import register
from receiver.notification import Envelope
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint
from receiver.returns import PREFIX
from receiver.server import configured as configured_server
from tests.asgi import running
from tests.contract.proofs import FORM_TOKEN, PASSWORDS, STATIC_KEY, WEBHOOK_TOKEN, Wire, proven
from tests.live.installation import installed
from tests.receiver.serving import API_KEY, EXPECTATION_SEAL, SEAL_KEY, configured, kept
from tests.servers import Valkey, eventually
from tests.support import EXPECTED_CASUAL, Recorded, recorded, secrets

BASIC = {f"Basic {b64encode(f'acme:{password}'.encode()).decode()}" for password in PASSWORDS}


def wire(request: Recorded) -> Wire:
    headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
    headers.pop("connection", None)
    if request.path.startswith("/notify/checkout"):
        headers["authorization"] = STATIC_KEY
    return Wire("POST", request.path, tuple(headers.items()), request.body)


PROVEN = {
    "quickstream form": wire(recorded("quickstream", "payment__form")),
    "quickstream xml": wire(recorded("quickstream", "payment__xml")),
    "checkout": wire(recorded("checkout", "payment_captured__no_reference")),
    "debitsuccess casual": wire(recorded("debitsuccess", "casual_payment")),
    "debitsuccess event": wire(recorded("debitsuccess", "Customer.Schedule.Suspension.Added")),
    "paymentz json": wire(recorded("paymentz", "capturesuccess")),
    "paymentz form": wire(recorded("paymentz", "capturesuccess__form")),
}
TARGETS = sorted({request.target for request in PROVEN.values()})


def test_every_sender_is_changed_below() -> None:
    assert {request.target.split("/")[2] for request in PROVEN.values()} == set(PROVIDERS)


@pytest.fixture(scope="module")
def port(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The application behind the server as it is shipped, in a thread."""
    limits: dict[str, Any] = {"trusted_proxies": [], "max_refused": 100_000, "max_refused_per_address": 100_000}
    settings = configured(tmp_path_factory.mktemp("proofs"), valkey_server.url, **limits)
    quickstream: Endpoint = settings.endpoint[0]
    endpoints = (msgspec.structs.replace(quickstream, allowed_sources=("127.0.0.1/32",)), *settings.endpoint[1:])
    built = app.build(msgspec.structs.replace(settings, endpoint=endpoints))
    server = uvicorn.Server(configured_server(built, Door(1000, 1000)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        try:
            eventually(lambda: server.started, what="a server")
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def said(port: int, request: Wire) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(request.source, 0)) as connection:
        answer = b""
        with suppress(ConnectionError):
            connection.sendall(request.written())
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def verified_of(redis: Redis, answers: bytes) -> list[Envelope]:
    """What is verified of all that was taken. On a busy machine it may come by the spool, after its answer."""
    taken = answers.count(b'{"id":"')

    def look() -> list[list[Envelope]]:
        return [envelopes] if len(envelopes := kept(redis)) >= taken else []

    (envelopes,) = eventually(look, what="what was taken")
    return [envelope for envelope in envelopes if envelope.verified]


def fresh(redis: Redis) -> None:
    redis.flushall()
    register(redis, EXPECTATION_SEAL, EXPECTED_CASUAL)


@pytest.mark.parametrize("name", PROVEN)
def test_what_is_changed_below_is_proven_and_kept(redis: Redis, port: int, name: str) -> None:
    fresh(redis)
    assert proven(PROVEN[name])
    answer = said(port, PROVEN[name])
    assert statuses(answer) == [200]
    assert [envelope.quarantine for envelope in verified_of(redis, answer)] == [""]


Change = Callable[[Wire], Wire]


def changes() -> st.SearchStrategy[Change]:
    return st.one_of(_of_method(), _of_target(), _of_headers(), _of_proof(), _of_encoding(), _of_body(), _of_source())


METHODS = [
    *("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "LINK", "PURGE", "QUERY", "SUBSCRIBE"),
    *("post", "Post", "POSTS", "POST\t", "POST\0", "\tPOST", "PO ST", ""),
]


def _of_method() -> st.SearchStrategy[Change]:
    return st.sampled_from(METHODS).map(lambda method: lambda request: replace(request, method=method))


def spelled(target: str) -> list[str]:
    """What some program or other takes for the same path, and none of it is."""
    start, provider, facility = target.rsplit("/", 2)
    return [
        *(
            target.upper(),
            target.title(),
            f"{start}/{provider.title()}/{facility}",
            f"{start}/{provider}/{facility.upper()}",
        ),
        *(
            target + "/",
            target + "//",
            "/" + target,
            f"{start}//{provider}/{facility}",
            f"{start}/{provider}//{facility}",
        ),
        *(f"{start}/./{provider}/{facility}", f"{start}/x/../{provider}/{facility}", f"{target}/.", f"{target}/x/.."),
        *(f"/..{target}", f"{start}/%2e/{provider}/{facility}", f"{start}/x/%2E%2e/{provider}/{facility}"),
        *(f"{start}/{provider}%2f{facility}", f"{start}/{provider}%2F{facility}", f"{start}/{provider}%252f{facility}"),
        *(f"{start}/{provider}%c0%af{facility}", f"{start}/{provider}\\{facility}", f"{start}/{provider}%5c{facility}"),
        *("/%6eotify" + target[7:], f"{start}/{provider}/%{ord(facility[0]):02x}{facility[1:]}"),
        *(
            f"{start}/{provider}/%25{ord(facility[0]):02x}{facility[1:]}",
            f"{start}/{provider}/{facility[:-1]}%{ord(facility[-1]):02X}",
        ),
        *(
            f"{start};a=1/{provider}/{facility}",
            f"{target};a=1",
            f"{target};",
            f"{target}%3b",
            f"{target}%3Fx",
            f"{target}%23",
        ),
        *(
            f"{target}%00",
            f"{target}%20",
            f"{target}%09",
            f"{target}%0d%0a",
            f"{target}.json",
            f"{target}.",
            f"{target}&x=1",
        ),
        *(f"{start}/{provider}+/{facility}", f"http://h/x{target}", f"http://h{target}/", f"//h{target}"),
    ]


QUERIES = [
    "?",
    "?x=1",
    "?facility=other",
    "?provider=paymentz",
    "?debug=1",
    "?_method=GET",
    "??",
    "?/",
    "?/../x",
    "?%00",
]


def _of_target() -> st.SearchStrategy[Change]:
    def swap(at: int, request: Wire) -> str:
        at %= len(request.target)
        return request.target[:at] + request.target[at].swapcase() + request.target[at + 1 :]

    def encode(at: int, request: Wire) -> str:
        at %= len(request.target)
        return f"{request.target[:at]}%{ord(request.target[at]):02x}{request.target[at + 1 :]}"

    def double(at: int, request: Wire) -> str:
        parts = request.target.split("/")
        at = at % (len(parts) - 1) + 1
        return "/".join([*parts[:at], ["", ".", "..", "x/..", "%2e", "%2e%2e", ";x"][at % 7], *parts[at:]])

    behind = [
        "/",
        "//",
        "/x",
        "?x=1",
        "?",
        "#x",
        ";x=1",
        "%00",
        "%20",
        "%2f",
        "/.",
        "/..",
        ".json",
        "\\",
        "&",
        "=",
        " ",
    ]
    return st.one_of(
        st.tuples(st.sampled_from([swap, encode, double]), st.integers(0, 99)).map(
            lambda drawn: lambda request: replace(request, target=drawn[0](drawn[1], request))
        ),
        st.sampled_from(behind).map(lambda end: lambda request: replace(request, target=request.target + end)),
        st.sampled_from(["http://h", "http://u:p@h:1", "https://h", "//h", "h", "", "/notify/..", "/x/.."]).map(
            lambda start: lambda request: replace(request, target=start + request.target)
        ),
        st.sampled_from(TARGETS).map(lambda target: lambda request: replace(request, target=target)),
        st.integers(0, 99).map(
            lambda at: (
                lambda request: replace(
                    request,
                    target=(every := spelled(request.target))[at % len(every)] if request.target in TARGETS else "/",
                )
            )
        ),
        st.sampled_from(QUERIES).map(lambda query: lambda request: replace(request, target=request.target + query)),
    )


HOSTILE = [
    ("X-HTTP-Method-Override", "GET"),
    ("X-Original-URL", "/notify/paymentz/eu"),
    ("X-Rewrite-URL", "/notify/paymentz/eu"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("Forwarded", "for=127.0.0.1"),
    ("X-Real-IP", "127.0.0.1"),
    ("X-Client-IP", "127.0.0.1"),
    ("True-Client-IP", "127.0.0.1"),
    ("CF-Connecting-IP", "127.0.0.1"),
    ("X-Forwarded-Prefix", "/notify"),
    ("X-Forwarded-Host", "127.0.0.1"),
    ("X-Original-Method", "POST"),
    ("X-Method-Override", "POST"),
    ("X-Debug", "1"),
    ("Debug", "true"),
    ("X-Test", "1"),
    ("X-Environment", "test"),
    ("Cookie", "debug=1; verified=true"),
    ("Host", "localhost"),
    ("User-Agent", "Postback-Simulator"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("X-Webhook-Secret", "x"),
    ("X-DJStripe-Webhook-Secret", "x"),
    ("X-Verified", "true"),
    ("Content-Encoding", "gzip"),
    ("Transfer-Encoding", "chunked"),
    ("Content-Length", "5"),
    ("Expect", "100-continue"),
    ("Upgrade", "h2c"),
    ("Content-Type", "application/json; charset=utf-7"),
    ("Content-Type", "application/xml; charset=utf-16"),
    ("Content-Type", "multipart/form-data; boundary=x"),
    ("Authorization", "Basic YWNtZTo="),
    ("Authorization", "Bearer " + API_KEY),
    ("Cko-Signature", "0" * 64),
    ("X-Token", ""),
    ("X-EventName", "Customer.Schedule.Suspension.Added"),
]


def _of_headers() -> st.SearchStrategy[Change]:
    def at(index: int, change: Callable[[str, str], list[tuple[str, str]]]) -> Change:
        def changed(request: Wire) -> Wire:
            headers = list(request.headers)
            if headers:
                place = index % len(headers)
                headers[place : place + 1] = change(*headers[place])
            return replace(request, headers=tuple(headers))

        return changed

    kinds: list[Callable[[str, str], list[tuple[str, str]]]] = [
        lambda name, value: [],
        lambda name, value: [(name.swapcase(), value)],
        lambda name, value: [(name, value), (name, value)],
        lambda name, value: [(name, value), (name.upper(), "other")],
        lambda name, value: [(name, "other"), (name, value)],
        lambda name, value: [(name, f" \t{value}\t ")],
        lambda name, value: [(name + " ", value)],
        lambda name, value: [(" " + name, value)],
        lambda name, value: [(name, value[: len(value) // 2] + "\r\n " + value[len(value) // 2 :])],
        lambda name, value: [(name, "\r\n\t" + value)],
        lambda name, value: [(name, value + ", " + value)],
        lambda name, value: [(name, "")],
        lambda name, value: [(name.replace("-", "_"), value)],
        lambda name, value: [(name, value.swapcase())],
    ]
    return st.one_of(
        st.builds(at, st.integers(0, 9), st.sampled_from(kinds)),
        st.sampled_from(HOSTILE).map(lambda one: lambda request: replace(request, headers=(*request.headers, one))),
        st.sampled_from(HOSTILE).map(lambda one: lambda request: replace(request, headers=(one, *request.headers))),
    )


PROOFS = ("authorization", "cko-signature", "x-token")


def _of_proof() -> st.SearchStrategy[Change]:
    """Another proof in the same place: shorter, longer, of another endpoint, in another spelling."""

    def of(change: Callable[[str], str]) -> Change:
        return lambda request: replace(
            request,
            headers=tuple(
                (name, change(value) if name.lower() in PROOFS else value) for name, value in request.headers
            ),
        )

    kinds: list[Callable[[str], str]] = [
        lambda value: value[:-1],
        lambda value: value[: len(value) // 2],
        lambda value: value[1:],
        lambda value: value + "0",
        lambda value: value + "=",
        lambda value: value.upper(),
        lambda value: value.replace("Basic", "basic"),
        lambda value: value.replace("Basic ", "Basic  "),
        lambda value: value.replace("Basic", "Bearer"),
        lambda value: "",
        lambda value: "null",
        lambda value: "é" * len(value),
        lambda value: "sha256=" + value,
        lambda value: "Basic " + b64encode(b"acme:").decode(),
        lambda value: "Basic " + b64encode(b":").decode(),
        lambda value: sorted(BASIC)[0],
        lambda value: STATIC_KEY,
    ]
    one_letter = st.tuples(st.integers(0, 99), st.sampled_from("0aA+/= ")).map(
        lambda drawn: (
            lambda value: value[: drawn[0] % (len(value) + 1)] + drawn[1] + value[drawn[0] % (len(value) + 1) + 1 :]
        )
    )
    return st.one_of(st.sampled_from(kinds), one_letter).map(of)


def _of_encoding() -> st.SearchStrategy[Change]:
    """The same bytes on another way: in chunks, with the proof behind them; compressed, or in other letters."""

    def chunked(piece: int, moved: bool) -> Change:
        def changed(request: Wire) -> Wire:
            behind = tuple(pair for pair in request.headers if moved and pair[0].lower() in PROOFS)
            above = tuple(pair for pair in request.headers if pair not in behind)
            return replace(request, headers=above, piece=piece, trailers=(*request.trailers, *behind))

        return changed

    def encoded(named: bool, kind: tuple[str, Callable[[bytes], bytes]]) -> Change:
        name, encode = kind
        return lambda request: replace(
            request,
            headers=(*request.headers, ("Content-Encoding", name)) if named else request.headers,
            body=encode(request.body),
        )

    return st.one_of(
        st.builds(chunked, st.sampled_from([1, 7, 100, 10_000]), st.booleans()),
        st.builds(encoded, st.booleans(), st.sampled_from(ENCODINGS)),
    )


ENCODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("identity", lambda body: body),
    ("base64", b64encode),
    ("percent", lambda body: quote_from_bytes(body, safe="").encode()),
    ("twice in UTF-8", lambda body: body.decode("latin-1").encode()),
    ("UTF-16", lambda body: body.decode("latin-1").encode("utf-16")),
    ("UTF-32", lambda body: body.decode("latin-1").encode("utf-32")),
    ("escapes of JSON", lambda body: re.sub(rb"[A-Za-z]", lambda letter: rb"\u%04x" % ord(letter[0]), body)),
    ("entities of XML", lambda body: re.sub(rb"[0-9]", lambda digit: rb"&#%d;" % ord(digit[0]), body)),
]


def _of_body() -> st.SearchStrategy[Change]:
    def of(change: Callable[[bytes], bytes]) -> Change:
        return lambda request: replace(request, body=change(request.body))

    kinds: list[Callable[[bytes], bytes]] = [
        lambda body: b"",
        lambda body: body[:-1],
        lambda body: body + b"\n",
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.decode("latin-1").encode("utf-16"),
        lambda body: body.decode("latin-1").encode("utf-7"),
        lambda body: body + body,
        lambda body: body.replace(b"1", b"9", 1),
        lambda body: body.replace(b"0", b"00", 1),
        lambda body: body.replace(b'"', b"'"),
        lambda body: body.replace(b"Success", b"Declined"),
        lambda body: body.replace(b"checksum", b"Checksum"),
        lambda body: body.replace(b"HookTok1", b"hooktok1"),
        lambda body: body.replace(b"HookTok1", b"HookTok"),
        lambda body: body.replace(b"FormTok1", b"FormTok2"),
        lambda body: body.swapcase(),
    ]
    one_byte = st.tuples(st.integers(0, 9999), st.binary(max_size=2)).map(
        lambda drawn: (
            lambda body: body[: drawn[0] % (len(body) + 1)] + drawn[1] + body[drawn[0] % (len(body) + 1) + 1 :]
        )
    )
    cut = st.integers(0, 2000).map(
        lambda drawn: lambda request: replace(request, length=drawn % (len(request.body) + 2))
    )
    return st.one_of(st.one_of(st.sampled_from(kinds), one_byte).map(of), cut)


def _of_source() -> st.SearchStrategy[Change]:
    return st.sampled_from(["127.0.0.2", "127.0.1.1"]).map(
        lambda source: lambda request: replace(request, source=source)
    )


@pytest.mark.parametrize("name", PROVEN)
@given(changed=st.lists(changes(), min_size=1, max_size=3))
@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_without_a_proof_is_kept_as_verified(redis: Redis, port: int, name: str, changed: list[Change]) -> None:
    request = PROVEN[name]
    for change in changed:
        request = change(request)
    fresh(redis)
    answer = said(port, request)
    assert set(statuses(answer)) <= {100, 200, 400, 401, 403, 404, 405, 408, 413, 429}, answer
    verified = verified_of(redis, answer)
    assert len(verified) <= 1
    assert not verified or proven(request), (request, verified)
    event(f"proven {proven(request)}, kept {bool(verified)}")


UNPROVEN = {
    name: replace(request, headers=tuple(pair for pair in request.headers if pair[0].lower() not in PROOFS))
    for name, request in PROVEN.items()
} | {name: replace(PROVEN[name], body=PROVEN[name].body.replace(b"checksum", b"x")) for name in PROVEN if "pay" in name}
UNPROVEN["debitsuccess casual"] = replace(
    PROVEN["debitsuccess casual"], body=PROVEN["debitsuccess casual"].body.replace(b"HookTok1", b"HookTok2")
)


def kept_of(redis: Redis, port: int, requests: Iterator[Wire]) -> list[Wire]:
    """Those of `requests` after which something verified lay in the queue."""
    fresh(redis)
    sent = list(requests)
    assert sent
    answers = b"".join(said(port, request) for request in sent)
    assert max(statuses(answers)) < 500
    if not verified_of(redis, answers):
        return []
    found = []
    for request in sent:
        fresh(redis)
        found += [request] if verified_of(redis, said(port, request)) else []
    return found


def test_no_method_but_post_brings_a_notification(redis: Redis, port: int) -> None:
    asked = (replace(request, method=method) for request in PROVEN.values() for method in METHODS)
    assert kept_of(redis, port, asked) == []


def test_no_other_spelling_of_a_path_is_that_path(redis: Redis, port: int) -> None:
    """What is routed is what was sent: neither letters, slashes and dots nor escapes are made equal before or after."""
    asked = (replace(request, target=path) for request in PROVEN.values() for path in spelled(request.target))
    assert kept_of(redis, port, asked) == []


@pytest.mark.parametrize("name", PROVEN)
def test_a_query_is_no_part_of_the_path_and_proves_nothing(redis: Redis, port: int, name: str) -> None:
    request, unproven = PROVEN[name], UNPROVEN[name]
    proofs = [f"?{header}={value}" for header, value in request.headers if header.lower() in PROOFS]
    proofs += ["?checksum=0", f"?PaymentFormToken={FORM_TOKEN}&WebhookToken={WEBHOOK_TOKEN}"]
    asked = (replace(unproven, target=request.target + query.replace(" ", "%20")) for query in [*QUERIES, *proofs])
    assert kept_of(redis, port, asked) == []
    for query in QUERIES:
        fresh(redis)
        assert statuses(said(port, replace(request, target=request.target + query))) == [200], query


def test_no_header_makes_up_for_a_proof(redis: Redis, port: int) -> None:
    asked = (
        replace(request, headers=headers)
        for request in UNPROVEN.values()
        for one in HOSTILE
        for headers in (
            (*request.headers, one),
            (one, *(pair for pair in request.headers if pair[0] != one[0].lower())),
        )
    )
    assert kept_of(redis, port, asked) == []


def test_no_other_route_brings_a_notification(redis: Redis, port: int) -> None:
    routes = {
        str(call.args[0].value)
        for call in ast.walk(ast.parse(Path(app.__file__).read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Route"
        if isinstance(call.args[0], ast.Constant)
    } | {f"{PREFIX.decode()}{{provider}}/{{facility}}"}
    assert {"/livez", "/expect/{provider}/{facility}", "/return/{provider}/{facility}"} <= routes
    paths = [*routes, "/", "/notify", "/notify/", "/notify/{provider}", "/notify/{facility}", "/{provider}/{facility}"]
    asked = []
    for request in PROVEN.values():
        provider, facility = request.target.split("/")[2:]
        for path in paths:
            filled = path.replace("{provider}", provider).replace("{facility}", facility)
            asked += [replace(request, method=method, target=filled) for method in ("POST", "GET", "PUT")]
            asked.append(
                replace(request, target=filled, headers=(*request.headers, ("Authorization", f"Bearer {API_KEY}")))
            )
    assert kept_of(redis, port, iter(asked)) == []


OTHER_VALUES: dict[str, dict[str, Any]] = {
    "receive": {
        "bind": "127.0.0.1:0",
        "processes": 4,
        "trusted_proxies": ["127.0.0.0/8"],
        "forwarded_header": "Forwarded",
        "max_body": "4MiB",
        "body_timeout": 300,
        "max_spool": "1MiB",
        "max_connections": 10,
        "max_connections_per_address": 1,
        "max_held": 0,
        "max_held_per_address": 0,
        "max_refused": 1,
        "max_refused_per_address": 1,
    },
    "queue": {"redis_url": None, "durability": "relaxed", "replicas": 0},
    "endpoint": {
        "facility": None,
        "environment": "test",
        "allowed_sources": ["0.0.0.0/0"],
        "proposed_sources": ["0.0.0.0/0"],
        "own_numbers": ["checksum"],
    },
    "quickstream": {
        "return_url": "https://shop.example/paid",
        "result_keys": secrets("k" * 32),
        "username": None,
        "passwords": None,
        "hmac_passwords": secrets("token-password"),
        "supplier_business_codes": ["OTHER"],
        "community_code": "OTHER",
        "currency": "NZD",
        "settlement_folder": Path(),
        "settlement_headings": {"Receipt No.": "Receipt Number"},
        "settlement_split": True,
    },
    "checkout": {"signature_keys": None, "authorization_keys": []},
    "debitsuccess": {
        "return_url": "https://shop.example/paid",
        "result_keys": secrets("k" * 32),
        "event_tokens": [],
    },
    "paymentz": {"secure_keys": None},
    "tracing": {"endpoint": "http://127.0.0.1:9/v1/traces", "sample": 0.5},
    "security": {
        "seal_keys": None,
        "body_keys": secrets("b" * 32),
        "operators": [configuration.Operator(name="ops")],
        "api_keys": [],
        "api_clients": [configuration.ApiClient(name="shop", key=secrets("c" * 32)[0])],
    },
}
"""Another value of each setting that the accept side has; None where the test itself sets it, and for a proof."""


def test_every_setting_of_the_accept_side_is_looked_at() -> None:
    kinds: dict[str, Any] = {
        "receive": configuration.Receive,
        "queue": configuration.Queue,
        "endpoint": Endpoint,
        "tracing": configuration.Tracing,
        "security": configuration.Security,
    }
    known = {name: set(kind.__struct_fields__) for name, kind in kinds.items()}
    of_all = known["endpoint"]
    known |= {name: set(provider.endpoint.__struct_fields__) - of_all for name, provider in PROVIDERS.items()}
    assert {name: set(values) for name, values in OTHER_VALUES.items()} == known


def test_the_accept_side_has_no_other_settings() -> None:
    """What it reads of them beside the tables above is where its files are."""
    read = {
        node.attr
        for path in Path(app.__file__).parent.rglob("*.py")
        if path.name != "settings.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("settings", "_settings")
    }
    tables = set(configuration.Settings.__struct_fields__)
    assert read & tables == {"receive", "queue", "security", "tracing", "endpoint", "data_dir"}


@pytest.mark.parametrize(
    ("table", "key"),
    [(table, key) for table, values in OTHER_VALUES.items() for key in values if values[key] is not None],
)
def test_no_setting_changes_what_is_checked(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, table: str, key: str
) -> None:
    fresh(redis)
    value = OTHER_VALUES[table][key]
    settings = configured(tmp_path, valkey_server.url)
    given = tuple(value) if isinstance(value, list) else value
    if table == "endpoint" or table in PROVIDERS:
        endpoints = [
            msgspec.structs.replace(each, **{key: given}) if table in ("endpoint", each.provider) else each
            for each in settings.endpoint
        ]
        settings = msgspec.structs.replace(settings, endpoint=tuple(endpoints))
    elif table == "security":
        changed = msgspec.structs.replace(settings.security, **{key: given})
        settings = msgspec.structs.replace(settings, security=changed)
    elif table == "tracing":
        traced = configuration.Tracing(**{**OTHER_VALUES["tracing"], "sample": 1.0, key: value})
        settings = msgspec.structs.replace(settings, tracing=traced)
    else:
        document = {"data_dir": str(tmp_path), "queue": {"redis_url": valkey_server.url}, table: {key: value}}
        document["queue"] = {"redis_url": valkey_server.url, **({key: value} if table == "queue" else {})}
        read = configuration.read({**document, "security": {"seal_keys": [SEAL_KEY]}}, tmp_path)
        settings = msgspec.structs.replace(read, endpoint=settings.endpoint)
    with running(app.build(settings)) as application:
        for name, request in UNPROVEN.items():
            client = "127.0.0.1" if key == "trusted_proxies" else "203.0.113.7"
            adding = {"x-forwarded-for": "203.0.113.7"} if key == "trusted_proxies" else {}
            answer = application.post(request.target, {**dict(request.headers), **adding}, request.body, client=client)
            assert answer.status in (401, 403), (name, answer)
    assert kept(redis) == []


def test_no_debug_mode_changes_what_is_checked(tmp_path: Path) -> None:
    """Neither Python's own, in which assertions do not count, nor what frameworks read from the environment."""
    debug = {
        "PYTHONOPTIMIZE": "2",
        "DEBUG": "1",
        "POSTBACK_DEBUG": "1",
        "STARLETTE_DEBUG": "1",
        "FORWARDED_ALLOW_IPS": "*",
        "WEB_CONCURRENCY": "2",
        "ENV": "development",
        "PYTHONASYNCIODEBUG": "1",
    }
    with installed(tmp_path, environment={**os.environ, **debug}) as installation:
        for request in UNPROVEN.values():
            headers = {**dict(request.headers), "X-Forwarded-For": "127.0.0.1", "X-Debug": "1"}
            answer = installation.post(request.target, request.body, headers)
            # This installation knows no token, so that a casual payment is held.
            assert answer.status_code in (401, 403) or answer.json()["status"] == "held"
        assert installation.json("notifications", "list", "--state", "processed") == []
