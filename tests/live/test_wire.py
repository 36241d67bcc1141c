"""What a client may send that no HTTP library would: each shape, byte for byte, to the running command.

Every request here carries the right credentials, so that whatever is read as a request would be kept. In front of or
behind most of them stands a second, smuggled one, which must never be kept where one program could see one request and
another program two.
"""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from sqlalchemy import select

from tests.live.installation import Installation, installed
from tests.servers import eventually
from workers.ledger import database
from workers.ledger.tables import notifications

BASIC = b"Authorization: Basic " + b64encode("acme:qs-new:pässword".encode()) + b"\r\n"
PATH = b"/notify/quickstream/acme"
START = b"POST " + PATH + b" HTTP/1.1\r\n"
AROUND = b"Host: h\r\nContent-Type: application/x-www-form-urlencoded\r\n" + BASIC
HEAD = START + AROUND
FIELDS = b"supplierBusinessCode=ACME&paymentAmount=1.00&summaryCode=0&responseCode=00&receiptNumber="
BODY = FIELDS + b"7000000001"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
GOOD = HEAD + LENGTH + b"\r\n" + BODY
HIDDEN = b"6666666666"
SMUGGLED = HEAD + LENGTH + b"\r\n" + FIELDS + HIDDEN


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    receive = (
        'body_timeout = 1\nmax_connections = 30\nmax_connections_per_address = 12\ntrusted_proxies = ["127.0.0.2/32"]'
    )
    with installed(tmp_path_factory.mktemp("wire"), receive=receive) as running:
        yield running
        receipts = receipts_kept_after(running, b"7999999999")
        assert HIDDEN.decode() not in receipts


def receipts_kept_after(installation: Installation, receipt: bytes) -> set[str]:
    """All that is in the ledger once the notification of `receipt`, sent last, is there."""
    assert statuses(talk(installation, GOOD.replace(b"7000000001", receipt))) == [200]
    engine = database.open_engine(f"sqlite:///{installation.data_dir / 'ledger.sqlite3'}")

    def kept() -> set[str]:
        with engine.connect().execution_options(reading=True) as connection:
            keys = set(connection.scalars(select(notifications.c.dedupe_key)))
        return keys if receipt.decode() in keys else set()

    try:
        return eventually(kept, what=f"receipt {receipt.decode()}")
    finally:
        engine.dispose()


def connect(installation: Installation, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", installation.port), timeout=20, source_address=(source, 0))


def talk(installation: Installation, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """All that comes back to `sent` until the server closes, which it does at the end of ours."""
    with connect(installation, source) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def shape(name: str, *pieces: bytes) -> object:
    return pytest.param(b"".join(pieces), id=name)


@pytest.mark.parametrize(
    "sent",
    [
        # Two lengths, of which one program takes the first and another the second.
        shape("length and chunked", HEAD, LENGTH, CHUNKED, b"\r\n0\r\n\r\n", SMUGGLED),
        shape("chunked and length", HEAD, CHUNKED, LENGTH, b"\r\n0\r\n\r\n", SMUGGLED),
        shape("two lengths", HEAD, LENGTH, b"Content-Length: 0\r\n\r\n", BODY, SMUGGLED),
        shape("one length twice", HEAD, LENGTH, LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("a list of lengths", HEAD, b"Content-Length: 5, 5\r\n\r\nabcde", SMUGGLED),
        shape("length with a sign", HEAD, b"Content-Length: +5\r\n\r\nabcde", SMUGGLED),
        shape("length below zero", HEAD, b"Content-Length: -5\r\n\r\nabcde", SMUGGLED),
        shape("length in hex", HEAD, b"Content-Length: 0x5\r\n\r\nabcde", SMUGGLED),
        shape("length that overflows", HEAD, b"Content-Length: 18446744073709551621\r\n\r\nabcde", SMUGGLED),
        shape("length with a space inside", HEAD, b"Content-Length: 5 5\r\n\r\nabcde", SMUGGLED),
        shape("length without digits", HEAD, b"Content-Length: \r\n\r\n", SMUGGLED),
        # Names and lines that are read in two ways.
        shape("space before the colon of a length", HEAD, b"Content-Length : 5\r\n\r\nabcde", SMUGGLED),
        shape("space before the colon of an encoding", HEAD, b"Transfer-Encoding : chunked\r\n\r\n", CHUNKS, SMUGGLED),
        shape("folded header", HEAD, b"X-One: a\r\n b\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("folded length", HEAD, b"Content-Length:\r\n 5\r\n\r\nabcde", SMUGGLED),
        shape("folded encoding", HEAD, b"Transfer-Encoding:\r\n chunked\r\n\r\n", CHUNKS, SMUGGLED),
        shape("folded credentials", START, b"Authorization:\r\n Basic x\r\n\r\n", SMUGGLED),
        shape("first header begins with a space", START, b" X-One: a\r\n", AROUND, LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("bare LF all through", GOOD.replace(b"\r\n", b"\n"), SMUGGLED),
        shape("bare LF behind a header", HEAD, b"X-One: a\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("bare CR in a header", HEAD, b"X-One: a\rContent-Length: 0\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("bare CR behind a header", HEAD, b"X-One: a\r", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("NUL in a header", HEAD, b"X-One: a\0b\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("NUL in a name", HEAD, b"X\0One: a\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("header without a colon", HEAD, b"X-One\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("header without a name", HEAD, b": a\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        # Encodings that hide their last word.
        shape("encoding xchunked", HEAD, b"Transfer-Encoding: xchunked\r\n\r\n", CHUNKS, SMUGGLED),
        shape("encoding identity", HEAD, b"Transfer-Encoding: identity\r\n", LENGTH, b"\r\n", BODY, SMUGGLED),
        shape("encoding chunked, identity", HEAD, b"Transfer-Encoding: chunked, identity\r\n\r\n", CHUNKS, SMUGGLED),
        shape("encoding chunked, gzip", HEAD, b"Transfer-Encoding: chunked, gzip\r\n\r\n", CHUNKS, SMUGGLED),
        shape("encoding twice", HEAD, CHUNKED, CHUNKED, b"\r\n", CHUNKS, SMUGGLED),
        shape("encoding and identity", HEAD, CHUNKED, b"Transfer-Encoding: identity\r\n\r\n", CHUNKS, SMUGGLED),
        shape("encoding quoted", HEAD, b'Transfer-Encoding: "chunked"\r\n\r\n', CHUNKS, SMUGGLED),
        shape("encoding with a parameter", HEAD, b"Transfer-Encoding: chunked;q=1\r\n\r\n", CHUNKS, SMUGGLED),
        shape("encoding behind a vertical tab", HEAD, b"Transfer-Encoding: \x0bchunked\r\n\r\n", CHUNKS, SMUGGLED),
        # Sizes of chunks.
        shape("chunk with a sign", HEAD, CHUNKED, b"\r\n+1\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk below zero", HEAD, CHUNKED, b"\r\n-1\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk with 0x", HEAD, CHUNKED, b"\r\n0x1\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk that overflows", HEAD, CHUNKED, b"\r\n10000000000000001\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk size with a space", HEAD, CHUNKED, b"\r\n1 \r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk without a size", HEAD, CHUNKED, b"\r\n\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk shorter than it is", HEAD, CHUNKED, b"\r\n1\r\nabc\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk without its end", HEAD, CHUNKED, b"\r\n1\r\na0\r\n\r\n", SMUGGLED),
        shape("chunk longer than it is", HEAD, CHUNKED, b"\r\n3\r\na\r\n0\r\n\r\n", SMUGGLED),
        shape("chunk with bare LF", HEAD, CHUNKED, b"\r\n1\na\n0\n\n", SMUGGLED),
        shape("chunk with LF in its extension", HEAD, CHUNKED, b"\r\n1;x\ny\r\na\r\n0\r\n\r\n", SMUGGLED),
        # What is not HTTP/1.1 or HTTP/1.0.
        shape("HTTP/0.9", b"POST " + PATH + b"\r\n\r\n", BODY, SMUGGLED),
        shape("HTTP/0.9 by name", GOOD.replace(b"HTTP/1.1", b"HTTP/0.9"), SMUGGLED),
        shape("HTTP/2.0 by name", GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), SMUGGLED),
        shape("HTTP/1.2", GOOD.replace(b"HTTP/1.1", b"HTTP/1.2"), SMUGGLED),
        shape("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SMUGGLED),
        shape("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", SMUGGLED),
        shape("PROXY protocol 1", b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n", SMUGGLED),
        shape("PROXY protocol 2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", b"\x7f\0\0\1" * 3, SMUGGLED),
        shape("tunnel", b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\n", AROUND, b"\r\n", SMUGGLED),
        shape("tunnel that is none", b"CONNECT " + PATH + b" HTTP/1.1\r\n", AROUND, b"\r\n", SMUGGLED),
        # Targets.
        shape("target of bytes", GOOD.replace(PATH, PATH + b"\xff"), SMUGGLED),
        shape("target with NUL", GOOD.replace(PATH, PATH + b"\0"), SMUGGLED),
        shape("target with a space", GOOD.replace(PATH, PATH + b" x"), SMUGGLED),
        shape("target without a slash", GOOD.replace(PATH, PATH[1:]), SMUGGLED),
        shape("target without anything", GOOD.replace(PATH, b""), SMUGGLED),
        shape("target without a path", GOOD.replace(PATH, b"http://h"), SMUGGLED),
        shape("method in small letters", GOOD.replace(b"POST", b"post"), SMUGGLED),
        shape("method that nobody knows", GOOD.replace(b"POST", b"JUMP"), SMUGGLED),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection(
    installation: Installation, sent: bytes
) -> None:
    answer = talk(installation, sent)
    assert statuses(answer) == [400], answer
    assert b'{"error":"request_malformed","detail":"' in answer
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(GOOD, [200], id="as it should be"),
        pytest.param(HEAD + CHUNKED + b"\r\n" + CHUNKS, [200], id="chunked"),
        pytest.param(HEAD + b"Transfer-Encoding:\tcHuNked\r\n\r\n" + CHUNKS, [200], id="chunked in other letters"),
        pytest.param(HEAD + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b";x=y\r\n", 1), [200], id="chunk extension"),
        pytest.param(HEAD + b"Content-Length:\t%d \r\n\r\n" % len(BODY) + BODY, [200], id="length between tabs"),
        pytest.param(b"\r\n" + GOOD, [200], id="an empty line before"),
        pytest.param(GOOD * 3, [200, 200, 200], id="pipelined"),
        pytest.param(GOOD + b"JUNK\r\n\r\n" + SMUGGLED, [200], id="junk behind a whole request"),
        pytest.param(GOOD + HEAD + CHUNKED + b"\r\nx", [200], id="a broken second request"),
        pytest.param(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0") + SMUGGLED, [200], id="HTTP/1.0 has one request"),
        pytest.param(GOOD.replace(LENGTH, LENGTH + b"Connection: close\r\n") + SMUGGLED, [200], id="the last request"),
        pytest.param(GOOD.replace(PATH, b"http://elsewhere" + PATH), [200], id="absolute URL"),
        pytest.param(GOOD.replace(PATH, b"http://u:p@[::1]:1" + PATH), [200], id="absolute URL with a user"),
        pytest.param(
            GOOD.replace(PATH, b"http://h" + PATH + b"/") + SMUGGLED, [404, 200], id="absolute URL of nothing"
        ),
        pytest.param(GOOD.replace(b"acme HTTP", b"acm%65 HTTP") + SMUGGLED, [404, 200], id="percent-encoded letter"),
        pytest.param(GOOD.replace(b"/notify", b"/%6eotify") + SMUGGLED, [404, 200], id="percent-encoded route"),
        pytest.param(GOOD.replace(b"/acme", b"%2facme") + SMUGGLED, [404, 200], id="percent-encoded slash"),
        pytest.param(GOOD.replace(b"/acme", b"/x/..%2facme") + SMUGGLED, [404, 200], id="percent-encoded dots"),
        pytest.param(GOOD.replace(b"/acme", b"/x/../acme") + SMUGGLED, [404, 200], id="dot segments"),
        pytest.param(GOOD.replace(b"/acme", b"//acme") + SMUGGLED, [404, 200], id="two slashes"),
        pytest.param(GOOD.replace(b"POST " + PATH, b"OPTIONS *") + SMUGGLED, [404, 200], id="the server as a whole"),
    ],
)
def test_what_can_be_read_in_one_way_is_read_in_that(
    installation: Installation, sent: bytes, expected: list[int]
) -> None:
    # What may follow is then no smuggled request but one more of the same client.
    answer = talk(installation, sent.replace(HIDDEN, b"7000000002"))
    assert statuses(answer) == expected, answer


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(HEAD + UPGRADE + LENGTH + b"\r\n" + BODY, [200], id="h2c"),
        pytest.param(HEAD + UPGRADE + CHUNKED + b"\r\n" + CHUNKS, [200], id="h2c, chunked"),
        pytest.param((HEAD + UPGRADE + LENGTH + b"\r\n" + BODY) * 3, [200] * 3, id="h2c three times"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: h\r\n" + UPGRADE + b"\r\n" + GOOD, [200, 200], id="h2c and no body"
        ),
        pytest.param(HEAD + b"Connection: close, Upgrade\r\nUpgrade: x\r\n" + LENGTH + b"\r\n" + BODY + GOOD, [200]),
        pytest.param(HEAD + UPGRADE + LENGTH + CHUNKED + b"\r\n" + CHUNKS + SMUGGLED, [400], id="h2c and two lengths"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", [200], id="websocket"
        ),
    ],
)
def test_who_would_rather_speak_another_protocol_is_heard_in_this_one(
    installation: Installation, sent: bytes, expected: list[int]
) -> None:
    answer = talk(installation, sent)
    assert statuses(answer) == expected, answer
    assert b"upgrade" not in answer.lower()


def test_the_body_of_a_client_that_would_upgrade_comes_in_pieces(installation: Installation) -> None:
    with connect(installation) as connection:
        for piece in (HEAD + UPGRADE, LENGTH + b"\r", b"\n" + BODY[:10], BODY[10:]):
            connection.sendall(piece)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_what_comes_behind_the_body_is_no_header(installation: Installation) -> None:
    """Our proxy names a foreign address above the body, and its client one of ours below it."""
    foreign = HEAD + b"X-Forwarded-For: 198.51.100.9\r\n" + CHUNKED + b"\r\n"
    trailers = CHUNKS[:-2] + b"X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n\r\n"
    assert statuses(talk(installation, foreign + trailers, "127.0.0.2")) == [403]
    without_credentials = HEAD.replace(BASIC, b"") + CHUNKED + b"\r\n" + CHUNKS[:-2] + BASIC + b"\r\n"
    assert statuses(talk(installation, without_credentials)) == [401]
    ours = HEAD + b"X-Forwarded-For: 127.0.0.1\r\n" + CHUNKED + b"\r\n" + trailers.replace(b"127.0.0.1", b"1.1.1.1")
    assert statuses(talk(installation, ours, "127.0.0.2")) == [200]


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(START + b"X-One: ", id="header"),
        pytest.param(b"POST /", id="target"),
        pytest.param(HEAD + CHUNKED + b"\r\n1;x=", id="chunk extension"),
        pytest.param(HEAD + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"X-One: ", id="trailer"),
    ],
)
def test_huge_headers_end_the_connection(installation: Installation, beginning: bytes) -> None:
    with connect(installation) as connection:
        connection.sendall(beginning)
        with suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(b"a" * 10_000)
            pytest.fail("100 MB were taken")
        assert statuses(everything(connection)) in ([], [400])


def test_chunks_without_end_are_too_large(installation: Installation) -> None:
    with connect(installation) as connection:
        connection.sendall(HEAD + CHUNKED + b"\r\n")
        with suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
            pytest.fail("40 MB were taken")
        assert statuses(everything(connection)) in ([], [413])


@pytest.mark.parametrize("length", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_a_body_that_does_not_come_in_time(installation: Installation, length: bytes) -> None:
    with connect(installation) as connection:
        connection.sendall(HEAD + length + b"\r\n1")
        answer = everything(connection)
    assert statuses(answer) == [408]
    assert b'"error":"body_too_slow"' in answer


def test_what_the_headers_refuse_needs_no_body(installation: Installation) -> None:
    """The answer is there before the body is: no work is done for it, and none of it is waited for."""
    with connect(installation) as connection:
        connection.sendall(HEAD.replace(BASIC, b"") + b"Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n")
        answer = everything(connection)
    assert statuses(answer) == [401]
    with connect(installation) as connection:
        connection.sendall(HEAD + b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n")
        assert statuses(everything(connection)) == [413]


def test_what_came_whole_leaves_the_connection_open(installation: Installation) -> None:
    without_proof, elsewhere = GOOD.replace(BASIC, b""), GOOD.replace(PATH, b"/notify/x/y")
    answer = talk(installation, without_proof + elsewhere + b"GET " + PATH + b" HTTP/1.1\r\nHost: h\r\n\r\n" + GOOD)
    assert statuses(answer) == [401, 404, 405, 200]


# How many connections, of real sockets from several addresses.


def test_a_full_house_hangs_up_on_who_says_nothing_and_hears_who_does(installation: Installation) -> None:
    before = closed(installation, "all")
    with ExitStack() as stack:
        silent = open_from(installation, stack, *[f"127.0.0.{last}" for last in (11, 12)] * 10)
        slow = open_from(installation, stack, *[f"127.0.0.{last}" for last in (13, 14)] * 10)
        for connection in slow:
            with suppress(ConnectionError):
                connection.sendall(START)
        for _ in range(60):
            assert statuses(talk(installation, GOOD)) == [200]
        silent[0].settimeout(20)
        assert everything(silent[0]) == b""
    assert closed(installation, "all") - before >= 10


def test_an_address_that_opens_too_many_hangs_up_on_its_own(installation: Installation) -> None:
    before = closed(installation, "address")
    with ExitStack() as stack:
        (neighbour,) = open_from(installation, stack, "127.0.0.22")
        silent = open_from(installation, stack, *["127.0.0.21"] * 20)
        assert statuses(talk(installation, GOOD, "127.0.0.21")) == [200]
        # The first ones went, the last ones are still there, and so is the neighbour, who was there before all.
        assert everything(silent[0]) == b""
        assert alive(silent[-1])
        assert alive(neighbour)
    assert closed(installation, "address") - before >= 9


def test_a_proxy_of_ours_may_open_as_many_as_there_are(installation: Installation) -> None:
    before = closed(installation, "address")
    with ExitStack() as stack:
        of_proxy = open_from(installation, stack, *["127.0.0.2"] * 20)
        assert all(map(alive, of_proxy))
    assert closed(installation, "address") == before


def open_from(installation: Installation, stack: ExitStack, *sources: str) -> list[socket.socket]:
    return [stack.enter_context(connect(installation, source)) for source in sources]


def alive(connection: socket.socket) -> bool:
    """Whether it is heard."""
    with suppress(ConnectionError):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
        return connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    return False


def closed(installation: Installation, why: str) -> int:
    figures = installation.client.get("/metrics").text
    found = re.search(rf'postback_connections_closed_total\{{why="{why}"\}} (\d+)', figures)
    return int(found[1]) if found else 0
