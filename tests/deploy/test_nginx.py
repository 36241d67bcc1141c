"""Postback behind nginx as ``deploy/nginx`` has it: what the outside reaches, who it seems to be, and what a restart
costs."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from receiver.server import CLIENTS_LEAVE_WITHIN
from receiver.settings import Receive
from tests.deploy.nginx import CONFIGURATION, Nginx
from tests.deploy.service import HEADERS, Service, under_load
from tests.live.apart import certified
from tests.live.installation import API_KEY
from tests.live.test_installation import basic, quickstream
from tests.servers import eventually, free_port, running_valkey

ALLOWED, OTHER = "127.0.0.5", "127.0.0.6"
PATH = "/notify/quickstream/acme"
NARROW = "/notify/quickstream/octane"
NARROW_HEADERS = {**HEADERS, "Authorization": basic("octane", "octane-password")}
LARGEST = Receive().max_body
AWAY = {"error": "not_stored", "detail": "The notification could not be stored. Send it again."}
SLOW = {"client_body_timeout 10s": "client_body_timeout 1s"}
# Without `forwarded_header`, so that both headers count and must say the same.
BEHIND = 'trusted_proxies = ["127.0.0.1/32"]'


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    with certified() as folder:
        yield folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_valkey() as queue:
        here = Service(tmp_path_factory.mktemp("served"), queue=f'redis_url = "{queue.url}"', receive=BEHIND)
        text = here.config.read_text()
        octane = 'facility = "octane"\nenvironment = "test"\nallowed_sources = '
        assert octane in text
        here.config.write_text(text.replace(f'{octane}["127.0.0.0/8"]', f'{octane}["{ALLOWED}/32"]'))
        try:
            here.start()
            yield here
        finally:
            here.close()


@contextmanager
def in_front_of(folder: Path, certificates: Path, upstreams: dict[str, str]) -> Iterator[Nginx]:
    nginx = Nginx(folder, certificates, upstreams)
    nginx.start()
    try:
        yield nginx
    finally:
        nginx.stop()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, certificates: Path, served: Service) -> Iterator[Nginx]:
    upstream = {"127.0.0.1:8080": f"127.0.0.1:{served.port}"} | SLOW
    with in_front_of(tmp_path_factory.mktemp("nginx"), certificates, upstream) as nginx:
        yield nginx


def asked(
    nginx: Nginx, method: str, path: str, body: bytes | Iterator[bytes] = b"", *, source: str = "127.0.0.1", **more: Any
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of an answer."""
    with closing(nginx.connect(source)) as connection:
        connection.request(method, path, body, **more)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


# The file


def test_nginx_takes_it(tmp_path: Path, certificates: Path) -> None:
    done = Nginx(tmp_path, certificates, {}).check()
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    assert "[emerg]" not in done.stderr


def value(name: str) -> str:
    (found,) = re.findall(rf"^ +{name} ([^;]+);", CONFIGURATION, re.MULTILINE)
    return str(found)


def test_its_limits_are_ours() -> None:
    ours = Receive()
    assert value("client_max_body_size") == value("client_body_buffer_size") == f"{ours.max_body >> 10}k"
    assert value("client_body_timeout") == f"{ours.body_timeout}s"
    # A connection to us that is not used has gone before a restart would close it.
    (idle,) = re.findall(r"keepalive_timeout (\d+)s;", CONFIGURATION.split("limit_conn_zone")[0])
    assert int(idle) < CLIENTS_LEAVE_WITHIN


# Who it is


def test_the_address_is_the_true_one(front: Nginx, served: Service) -> None:
    good = quickstream("1", business="OCTANE")
    status, answer = asked(front, "POST", NARROW, good, source=ALLOWED, headers=NARROW_HEADERS)
    assert (status, answer["status"]) == (200, "accepted")
    status, answer = asked(front, "POST", NARROW, good, source=OTHER, headers=NARROW_HEADERS)
    assert (status, answer["error"]) == (403, "source_refused")


@pytest.mark.parametrize(
    "claim",
    [
        {"X-Forwarded-For": ALLOWED},
        {"X-Forwarded-For": f"{ALLOWED}, 127.0.0.1"},
        {"x-forwarded-for": f"{ALLOWED}:443", "Forwarded": f"for={ALLOWED}"},
        {"Forwarded": f"for={ALLOWED}"},
        {"Forwarded": f'for="{ALLOWED}:443";proto=https, for=127.0.0.1'},
        {"X-Real-IP": ALLOWED, "True-Client-IP": ALLOWED, "CF-Connecting-IP": ALLOWED, "Client-IP": ALLOWED},
        {"X_Forwarded_For": ALLOWED},
    ],
    ids=lambda claim: ",".join(claim),
)
@pytest.mark.parametrize("source", [OTHER, "127.0.0.1"], ids=["a stranger", "one with the proxy's address"])
def test_nobody_says_who_they_are(front: Nginx, served: Service, claim: dict[str, str], source: str) -> None:
    status, answer = asked(front, "POST", NARROW, quickstream("3"), source=source, headers=NARROW_HEADERS | claim)
    assert (status, answer["error"]) == (403, "source_refused")
    # The true one is not harmed by it either.
    good = quickstream("4", business="OCTANE")
    claim = {name: text.replace(ALLOWED, OTHER) for name, text in claim.items()}
    assert asked(front, "POST", NARROW, good, source=ALLOWED, headers=NARROW_HEADERS | claim)[0] == 200


def test_refusals_name_the_true_one(front: Nginx, served: Service) -> None:
    claim = {"X-Forwarded-For": "203.0.113.99", "Forwarded": "for=203.0.113.99"}
    asked(front, "POST", NARROW, b"x", source="127.0.0.77", headers=NARROW_HEADERS | claim)

    def sources() -> set[str]:
        return {each["source"] for each in served.json("refusals", "list")}

    eventually(lambda: "127.0.0.77" in sources(), what="the refusal")
    assert "203.0.113.99" not in sources()


def test_it_is_believed_from_the_proxy_alone(served: Service) -> None:
    direct = HTTPConnection("127.0.0.1", served.port, timeout=30, source_address=(OTHER, 0))
    with closing(direct):
        direct.request("POST", NARROW, quickstream("5"), NARROW_HEADERS | {"X-Forwarded-For": ALLOWED})
        answer = direct.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]) == (403, "source_refused")


# What is reached


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics", "/readyz", "/livez", "/healthz", "/api/v1/payments", "/sign-in", "/expect/quickstream/acme"),
        *(
            "/notify/../metrics",
            "/notify/%2e%2e/metrics",
            "/notify/..%2fmetrics",
            "/metrics/../notify/quickstream/acme",
        ),
        *("//metrics", "/metrics?/notify/quickstream/acme", "/notify/;/../metrics"),
        *("/Notify/quickstream/acme", "/notify", "//notify/quickstream/acme", "/notify//quickstream/acme"),
        *("/notify/quickstream/%61cme", "/x/../notify/quickstream/acme", "/notify/quickstream/acme/", "/%6eotify/x"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_is_public(front: Nginx, served: Service, method: str, path: str) -> None:
    headers = {**HEADERS, "Authorization": f"Bearer {API_KEY}"} if "expect" in path else HEADERS
    status, answer = asked(front, method, path, quickstream("6") if method == "POST" else b"", headers=headers)
    assert (status, answer["error"]) == (404, "unknown_endpoint")


def test_browser_returns_are(front: Nginx, served: Service) -> None:
    secret = "one-that-no-log-should-have"
    with closing(front.connect()) as connection:
        connection.request("GET", f"/return/quickstream/acme?receiptNumber=7&hmac={secret}")
        answer = connection.getresponse()
        assert answer.getheader("content-type") == "text/html; charset=utf-8"
        assert b"</html>" in answer.read()
    assert asked_status(front, "/return/quickstream/acme?a=" + "1" * 9_000) == 414
    eventually(lambda: [line for line in log_of(front) if line["status"] == 414], what="its line")
    assert {line["path"] for line in log_of(front) if "return" in line["path"]} == {"/return/quickstream/acme"}
    assert secret not in front.read("postback.access.log") + front.read("postback.error.log")


def asked_status(front: Nginx, path: str) -> int:
    with closing(front.connect()) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_without_tls_nothing_is(front: Nginx, served: Service) -> None:
    with closing(HTTPConnection("127.0.0.1", front.plain, timeout=30)) as connection:
        connection.request("POST", PATH, quickstream("7"), {**HEADERS, "Host": "localhost"})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("location")) == (403, None)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(front: Nginx, served: Service, version: ssl.TLSVersion) -> None:
    with closing(front.connect(version=version)) as connection:
        connection.request("POST", PATH, quickstream("8"), HEADERS)
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.sock.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        answer = connection.getresponse()
        assert answer.status == 200
        assert "max-age" in (answer.getheader("strict-transport-security") or "")
        assert "/" not in (answer.getheader("server") or "")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1, "ALL"),
        (ssl.TLSVersion.TLSv1_1, "ALL"),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA"),
    ],
)
def test_weaker_tls_is_refused(front: Nginx, version: ssl.TLSVersion, ciphers: str) -> None:
    context = front.trusting(version)
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", front.port), 30) as plain, pytest.raises(ssl.SSLError, match="alert"):
        context.wrap_socket(plain, server_hostname="localhost")


def test_who_names_nobody_in_the_handshake_is_heard(front: Nginx, served: Service) -> None:
    context = front.trusting()
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", front.port), 30) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"GET /notify/quickstream/acme HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 405"


def test_the_simulator_sends_through_it(
    front: Nginx, served: Service, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    url = f"https://127.0.0.1:{front.port}"
    done = served.run("simulate", "quickstream", "--facility", "acme", "--count", "2", "--url", url)
    assert (done.returncode, "2 acknowledged" in done.stdout) == (0, True), done.stdout


# How much, and how slowly


def chunks(size: int) -> Iterator[bytes]:
    yield from (b"x" * 1024 for _ in range(size // 1024))
    yield b"x" * (size % 1024)


@pytest.mark.parametrize("chunked", [False, True])
def test_the_largest_body_and_one_byte_more(front: Nginx, served: Service, chunked: bool) -> None:
    for size, expected in ((LARGEST, (200, "quarantined")), (LARGEST + 1, (413, "body_too_large"))):
        body = chunks(size) if chunked else b"x" * size
        status, answer = asked(front, "POST", PATH, body, headers=HEADERS, encode_chunked=chunked)
        assert (status, answer.get("status", answer.get("error"))) == expected


def test_a_body_that_does_not_come_reaches_nobody(front: Nginx, served: Service) -> None:
    with closing(front.connect()) as connection:
        connection.putrequest("POST", PATH)
        for name, text in {**HEADERS, "Content-Length": "400"}.items():
            connection.putheader(name, text.encode("latin-1"))
        connection.endheaders(b"receiptNumber=1")
        # The end of the connection, after `client_body_timeout`.
        with pytest.raises(OSError, match=r"reset|without response"):
            connection.getresponse()
    (line,) = eventually(lambda: [line for line in log_of(front) if line["status"] == 408], what="its line")
    assert line["upstream_seconds"] == ""


def log_of(front: Nginx) -> list[dict[str, Any]]:
    return [json.loads(line) for line in front.read("postback.access.log").splitlines()]


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 40_000}, {f"X-{number}": "x" * 8_000 for number in range(12)}])
def test_heads_have_limits(front: Nginx, headers: dict[str, str]) -> None:
    with closing(front.connect()) as connection:
        connection.request("POST", PATH, b"", headers)
        assert connection.getresponse().status == 400


# What a restart, or a fault, costs


def test_a_restart_under_load_fails_no_request(front: Nginx, served: Service) -> None:
    with under_load(front.connect) as load:
        for _ in range(2):
            load.more()
            served.restart()
        load.more()
    assert set(load.answers) == {200}, f"{load.answers}\n{front.read('log')}"


class Careless:
    """Reads a whole request and hangs up without an answer, or answers when it is told to."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                read = b""
                while b"receiptNumber" not in read and b"GET" not in read:
                    read += connection.recv(65536)
                self.requests.append(read)

    def close(self) -> None:
        self._listening.close()


def test_a_post_that_may_have_been_taken_is_not_repeated(tmp_path: Path, certificates: Path) -> None:
    with closing(Careless()) as one, closing(Careless()) as other:
        servers = f"127.0.0.1:{one.port} max_fails=0; server 127.0.0.1:{other.port}"
        with in_front_of(tmp_path, certificates, {"127.0.0.1:8080": servers}) as nginx:
            assert asked(nginx, "POST", PATH, quickstream("1"), headers=HEADERS) == (500, AWAY)
            assert asked(nginx, "POST", "/notify/checkout/main", quickstream("2"), headers={}) == (503, AWAY)
        assert len(one.requests + other.requests) == 2


def test_one_that_nothing_was_sent_of_goes_to_another_server(
    tmp_path: Path, certificates: Path, served: Service
) -> None:
    servers = f"127.0.0.1:{free_port()} max_fails=0; server 127.0.0.1:{served.port}"
    with in_front_of(tmp_path, certificates, {"127.0.0.1:8080": servers}) as nginx:
        for number in range(4):
            assert asked(nginx, "POST", PATH, quickstream(f"10{number}"), headers=HEADERS)[0] == 200
