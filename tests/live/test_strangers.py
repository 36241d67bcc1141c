"""Nothing that a stranger can send gives a 5xx while the stores are up: every route of both servers, byte for byte. Nor
does anything that a sender can prove, and a worker makes something of all of it."""

from __future__ import annotations

import hmac
import json
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pytest

from receiver.providers import PROVIDERS
from tests.live.installation import API_KEY, Installation, installed
from tests.providers.test_paymentz import signed
from tests.servers import eventually
from tests.support import all_recorded, recorded

REQUESTS = 500
"""For each of two servers; a hunt with thirty times as many found nothing more."""

ENDPOINTS = ("quickstream/acme", "checkout/main", "debitsuccess/gym", "paymentz/eu", "nobody/here")
ROUTES = {
    "accept": [
        *(f"/{route}/{endpoint}" for route in ("notify", "notify", "expect", "return") for endpoint in ENDPOINTS),
        *("/livez", "/readyz", "/metrics", "/", "/notify/", "/return/", "/expect/", "*"),
    ],
    "console": [
        *(
            "/",
            "/notifications",
            "/notifications/x",
            "/payments",
            "/payments/quickstream/acme",
            "/refused",
            "/attention",
        ),
        *("/attention/settle", "/replays", "/replays/new", "/replays/x/approve", "/reconciliations", "/audit/verify"),
        *(
            "/reconciliations/uploads/x",
            "/sign-in",
            "/sign-in",
            "/sign-out",
            "/password",
            "/sign-in/code",
            "/second-factor",
            "/static/console.css",
            "/static/..",
            "/api",
        ),
        *(
            "/livez",
            "/readyz",
            "/metrics",
            "/healthz",
            "/api/openapi.json",
            "/api/v1/notifications",
            "/api/v1/payments",
        ),
        *("/api/v1/replays", "/api/v1/attention/resolve", "/api/v1/audit", "/api/v1/health", "/api/v1/x"),
    ],
}
METHODS = ["GET", "GET", "GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"]
NAMES = [
    *("state", "since", "until", "search", "cursor", "limit", "next", "token", "name", "password", "ids", "reason"),
    *("receiptNumber", "summaryCode", "hmac", "action", "errorField", "Token", "Status", "paymentAmount"),
]
VALUES = [
    *("", "0", "-1", "9" * 400, "1e400", "NaN", "\0", "é", "\U00010000", "\u202e", "2026-13-45", "true", "null", "[]"),
    *(
        "9999-12-31T23:59:59+14:00",
        "0001-01-01",
        "'",
        '"><script>',
        "../../etc/passwd",
        "%",
        "\\",
        "a" * 9000,
        "\r\nX: y",
    ),
]
HEADERS = [
    *(f"Content-Type: {kind}" for kind in ("application/json", "text/xml", "multipart/form-data", "a/b;c", "\xff", "")),
    *("Content-Type: application/x-www-form-urlencoded", "Content-Type: multipart/form-data; boundary=x"),
    *("Authorization: Bearer \xff", "Authorization: Basic \xff", "Authorization: Basic !", "Authorization:"),
    *(
        f"Authorization: Bearer {API_KEY}",
        "Cookie: postback-session=\xff; =; ;",
        "Range: bytes=5-1,a",
        'If-None-Match: "x',
    ),
    *("If-Modified-Since: x", "X-Forwarded-For: \xff,,", "Forwarded: for=", "Expect: 100-continue", "Expect: x"),
    *(
        "X-Token: \xff",
        "X-EventName: \xff",
        f"X-TraceId: {'y' * 5000}",
        "Cko-Signature: " + "\xe9" * 64,
        "Upgrade: h2c",
    ),
    *("Connection: Upgrade", "Content-Encoding: gzip", "Idempotency-Key: " + "x" * 300, "Sec-Fetch-Site: cross-site"),
    *("Origin: null", "TE: trailers", "Accept-Encoding: gzip;q=x"),
]
HOSTS = ["localhost"] * 20 + ["[", "localhost:x", "localhost/x?y", "a@localhost", "elsewhere", "\xff"]
BODIES = [
    *(b"", b"{}", b"[]", b"null", b'{"a":', b"\xff\xfe", b"a=b&c", b"a=%ff", b"<a/>", b"{" * 5000, b"\0" * 100),
    *(b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n", b"--x\r\n\r\n", b'{"a":"\\ud800"}'),
    b'{"reference":"x","amount":"1e5","currency":"NZD","valid_to":"0001-01-01T00:00:00+14:00"}',
    b'{"token":"t","webhook_token":"w","reference":"r","amount":"1.00","currency":"NZD"}',
    b'{"PaymentFormToken":"a","WebhookToken":"b","Status":1e999}',
    b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("strangers"), receive="body_timeout = 1") as running:
        # `up` is ready before its console is.
        eventually(lambda: _listens(running.console_port), what="the console")
        yield running


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        1e300,
        2**63,
        10**40,
        "",
        "0",
        "1.005",
        "1e5",
        "NaN",
        "9" * 400,
        "\0",
        "é",
        "\u202e",
        "a" * 5000,
    ),
    *(
        "4111 1111 1111 1111",
        "=cmd()",
        "٣",
        "31 Feb 2026 25:61:61",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00:00+14:00",
    ),
    *([], {}, [[]], {"a": {"": [None]}}, {"x" * 300: "y"}, "%", "&", "|", "\\u0000", "XXX", "ACME"),
]


def proven(draw: Random, number: int) -> bytes:
    """A request of a fixture whose values are odd here and there, proven as its sender would."""
    name = draw.choice(sorted(PROVIDERS))
    recording = draw.choice(all_recorded(name))
    kind, headers, body = recording.headers.get("content-type", ""), dict[str, str](), recording.body
    if name == "quickstream":
        pairs = [
            (field, str(_odd(draw, value))) for field, value in parse_qsl(recorded(name, "payment__form").body.decode())
        ]
        body, kind = urlencode([*pairs, ("customNote", str(number))]).encode(), "application/x-www-form-urlencoded"
        headers["Authorization"] = "Basic " + b64encode("acme:qs-new:pässword".encode()).decode()
    elif name == "paymentz":
        fields = {
            field: _odd(draw, value) for field, value in json.loads(recorded(name, "capturesuccess").body).items()
        }
        body, kind = json.dumps(signed(fields | {"paymentId": str(number)})).encode(), "application/json"
    else:
        with suppress(ValueError):
            read = json.loads(body)
            body = json.dumps(
                _odd(draw, read) if name == "checkout" else {f: _odd(draw, v) for f, v in read.items()}
            ).encode()
        headers["Cko-Signature"] = hmac.digest(b"cko-new-key", body, "sha256").hex()
        if name == "debitsuccess":
            headers = {
                "X-Token": "event-new-token",
                "X-EventName": "Customer.Schedule.Suspension.Added",
                "X-TraceId": str(number),
            }
    facility = {"quickstream": "acme", "checkout": "main", "debitsuccess": "gym", "paymentz": "eu"}[name]
    head = [f"POST /notify/{name}/{facility} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    head += [f"{header}: {value}" for header, value in headers.items()]
    head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def _odd(draw: Random, value: Any) -> Any:
    if draw.random() < 0.08:
        return draw.choice(ODD)
    if isinstance(value, dict):
        return {name: _odd(draw, child) for name, child in value.items()}
    return [_odd(draw, child) for child in value] if isinstance(value, list) else value


def test_nothing_that_is_proven_gives_a_5xx_and_a_worker_makes_something_of_all(installation: Installation) -> None:
    draw, kept = Random("proven"), 0
    for number in range(REQUESTS // 2):
        sent = proven(draw, number)
        status = answered(installation.port, sent)[9:12]
        assert status in (b"200", b"400", b"403"), (sent, status)
        kept += status == b"200"
    # Most are, as they are proven.
    assert kept > REQUESTS * 0.45
    eventually(lambda: '"batches":0' in installation.run("health").stdout, what="an empty queue")
    assert installation.json("notifications", "list", "--state", "failed") == []
    assert "Traceback" not in installation.log.read_text()


def answered(port: int, sent: bytes) -> bytes:
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        while part := connection.recv(65536):
            answer += part
    return answer


def request(draw: Random, routes: list[str]) -> bytes:
    path = draw.choice(routes)
    if draw.random() < 0.15:
        parts = path.split("/")
        parts[draw.randrange(len(parts))] = quote(draw.choice(VALUES))
        path = "/".join(parts)
    pairs = [(draw.choice(NAMES), draw.choice(VALUES)) for _ in range(draw.choice([0, 0, 1, 2, 5]))]
    query = "&".join(f"{name}={quote(value)}" for name, value in pairs)
    method, body = draw.choice(METHODS), draw.choice(BODIES)
    if draw.random() < 0.3:
        body = query.encode()
    head = [f"{method} {path}{'?' + query if query else ''} HTTP/1.1", f"Host: {draw.choice(HOSTS)}"]
    head += [draw.choice(HEADERS) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


@pytest.mark.parametrize("server", ROUTES)
def test_no_request_of_a_stranger_gives_a_5xx(installation: Installation, server: str) -> None:
    port = installation.port if server == "accept" else installation.console_port
    draw = Random(server)
    seen: set[int] = set()
    for _ in range(REQUESTS):
        sent = request(draw, ROUTES[server])
        answer = answered(port, sent)
        statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.MULTILINE)]
        assert all(status < 500 for status in statuses), (sent, answer)
        assert b"Traceback" not in answer
        seen.update(statuses)
    # They reach more than the first check.
    assert {200, 400, 404, 405} <= seen
    assert len(seen) >= 6
    assert '"level": "error"' not in installation.log.read_text()
