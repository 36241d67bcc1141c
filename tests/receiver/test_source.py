"""Who sent a request: forged and broken addresses, and proxies that are trusted or not."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Reason, Refused
from receiver.settings import networks
from receiver.source import AllowedSources, TrustedProxies, parse

PROXIES = TrustedProxies(networks(["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"], "trusted_proxies"))
NO_PROXIES = TrustedProxies(())


def allowed(*cidrs: str) -> AllowedSources:
    return AllowedSources(networks(cidrs, "allowed_sources"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:4711", "203.0.113.7"),
        ("::ffff:cb00:7107", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%\x01<b>", "fe80::1"),
        ("::ffff:203.0.113.7%eth0", "203.0.113.7"),
    ],
)
def test_an_address_in_every_spelling_that_proxies_use(text: str, address: str) -> None:
    assert str(parse(text)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "unknown", "_hidden", "localhost", "203.0.113", "203.0.113.256", "203.0.113.07", "0x7f.1", "1"),
        *("203.0.113.7:", "203.0.113.7:http", "203.0.113.7:123456", "203.0.113.7/32", "203.0.113.7 203.0.113.8"),
        *("[2001:db8::7", "2001:db8::7]", "[2001:db8::7]x", "[2001:db8::7]:", "[]", "[]:1", "x[::1]", "[::1]:1:2"),
        *("203.0.113.7\n", "\u0662\u0660\u0663.0.113.7", "\xb2.0.0.1", "2001:db8::7::", "for=203.0.113.7"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert parse(text) is None


def test_without_trusted_proxies_the_header_says_nothing() -> None:
    assert str(NO_PROXIES.client("203.0.113.7", [b"198.51.100.9"])) == "203.0.113.7"


def test_a_client_that_is_no_proxy_of_ours_cannot_write_its_address() -> None:
    assert str(PROXIES.client("203.0.113.7", [b"198.51.100.9", b"10.0.0.1"])) == "203.0.113.7"


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([b"198.51.100.9"], "198.51.100.9"),
        ([b"192.170.86.153, 198.51.100.9"], "198.51.100.9"),
        ([b"192.170.86.153", b"198.51.100.9"], "198.51.100.9"),
        ([b"192.170.86.153", b"198.51.100.9, 192.0.2.1", b"10.2.3.4"], "198.51.100.9"),
        ([b"192.170.86.153,junk,,198.51.100.9,\t10.2.3.4 "], "198.51.100.9"),
        ([b"198.51.100.9:4711"], "198.51.100.9"),
        ([b"::ffff:198.51.100.9"], "198.51.100.9"),
        ([b"[2001:db8::9]:4711, fd00::1"], "2001:db8::9"),
        ([b"10.9.9.9, 10.2.3.4"], "10.9.9.9"),
        ([], "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_the_last_foreign_address_counts(headers: list[bytes], client: str) -> None:
    assert str(PROXIES.client("10.0.0.1", headers)) == client


def test_an_ipv4_proxy_on_an_ipv6_socket() -> None:
    assert str(PROXIES.client("::ffff:10.0.0.1", [b"198.51.100.9"])) == "198.51.100.9"


@pytest.mark.parametrize(
    "headers",
    [
        [b""],
        [b"198.51.100.9, "],
        [b"198.51.100.9", b""],
        [b"unknown"],
        [b"198.51.100.9, unknown"],
        [b"198.51.100.9, 10.0.0.1x"],
        [b"\xff\xfe\x00"],
        [b"1" * 100_000],
        [b"fe80::1%" + b"x" * 100],
    ],
)
def test_a_trusted_proxy_that_names_no_address_is_refused(headers: list[bytes]) -> None:
    with pytest.raises(Refused) as refusal:
        PROXIES.client("10.0.0.1", headers)
    assert refusal.value.reason is Reason.SOURCE_REFUSED
    assert refusal.value.detail == "X-Forwarded-For holds something that is not an address."


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([b"for=198.51.100.9"], "198.51.100.9"),
        ([b"For=198.51.100.9;proto=https;by=10.0.0.1"], "198.51.100.9"),
        ([b"proto=https; for=198.51.100.9"], "198.51.100.9"),
        ([b"for=192.170.86.153, for=198.51.100.9"], "198.51.100.9"),
        ([b"for=192.170.86.153", b"for=198.51.100.9,for=10.2.3.4"], "198.51.100.9"),
        ([b"for=unknown, for=_hidden, proto=http, for=198.51.100.9"], "198.51.100.9"),
        ([b'for="198.51.100.9:4711"'], "198.51.100.9"),
        ([b"for=198.51.100.9:4711"], "198.51.100.9"),
        ([b'for="[2001:db8::9]:4711", for="[fd00::1]"'], "2001:db8::9"),
        ([b'for="::ffff:198.51.100.9"'], "198.51.100.9"),
        ([b'for="198.51.1\\00.9"'], "198.51.100.9"),
        ([b'for=192.170.86.153;x="a, for=192.170.86.153", for=198.51.100.9'], "198.51.100.9"),
        ([b"for=10.9.9.9, for=10.2.3.4"], "10.9.9.9"),
        ([], "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_that_write_forwarded(headers: list[bytes], client: str) -> None:
    assert str(PROXIES.client("10.0.0.1", [], headers)) == client
    assert str(PROXIES.client("203.0.113.7", [], headers)) == "203.0.113.7"
    assert str(NO_PROXIES.client("10.0.0.1", [], headers)) == "10.0.0.1"


@pytest.mark.parametrize(
    "headers",
    [
        [b""],
        [b"198.51.100.9"],
        [b"for="],
        [b"for=unknown"],
        [b"for=_hidden"],
        [b"proto=https"],
        [b"for=198.51.100.9, proto=https"],
        [b"for=198.51.100.9,"],
        [b"for=198.51.100.9;"],
        [b"for = 198.51.100.9"],
        [b"for=192.170.86.153;for=198.51.100.9"],
        [b"for=198.51.100.9 for=198.51.100.9"],
        # A quote that a client leaves open for what the proxy adds.
        [b'for=192.170.86.153;x=", for=198.51.100.9'],
        [b'for=192.170.86.153;x=", for="198.51.100.9"'],
        [b'for="192.170.86.153, for=198.51.100.9'],
        [b'for=192.170.86.153;x="\\", for="198.51.100.9"'],
        [b"for=\xff\xfe"],
        [b"for=198.51.100.9;x=" + b"y" * 100_000],
    ],
)
def test_a_trusted_proxy_that_forwards_no_address_is_refused(headers: list[bytes]) -> None:
    with pytest.raises(Refused, match=r"^source_refused: Forwarded holds something that is not an address\.$"):
        PROXIES.client("10.0.0.1", [], headers)


def test_both_headers_must_name_the_same_client() -> None:
    assert str(PROXIES.client("10.0.0.1", [b"198.51.100.9"], [b'for="198.51.100.9:1"'])) == "198.51.100.9"
    for forwarded_for, forwarded in (
        # The proxy writes one of them, and the client the other.
        ([b"198.51.100.9"], [b"for=192.170.86.153"]),
        ([b"192.170.86.153"], [b"for=198.51.100.9"]),
        ([b"192.170.86.153, 198.51.100.9"], [b"for=192.170.86.153, for=10.2.3.4"]),
    ):
        with pytest.raises(Refused, match=r"Forwarded and X-Forwarded-For name different clients\."):
            PROXIES.client("10.0.0.1", forwarded_for, forwarded)
    with pytest.raises(Refused):
        PROXIES.client("10.0.0.1", [b"198.51.100.9"], [b"junk"])
    with pytest.raises(Refused):
        PROXIES.client("10.0.0.1", [b"junk"], [b"for=198.51.100.9"])


OURS = [b"for=198.51.100.9", b'for="198.51.100.9"', b'by="x";for="198.51.100.9"']


@given(st.binary(max_size=60), st.sampled_from(OURS))
def test_what_the_client_forwards_never_counts(forged: bytes, ours: bytes) -> None:
    """Whatever stands before what our proxy writes, the client is the one that it wrote, or nobody."""
    for headers in ([forged + b", " + ours], [forged, ours]):
        with suppress(Refused):
            assert str(PROXIES.client("10.0.0.1", [], headers)) == "198.51.100.9"


@pytest.mark.parametrize("peer", [None, "", "unix:", "testclient"])
def test_a_request_without_a_client_address_is_refused(peer: str | None) -> None:
    with pytest.raises(Refused, match=r"^source_refused: The request has no client address\.$"):
        PROXIES.client(peer, [b"198.51.100.9"])


@given(st.binary(max_size=60))
def test_what_the_client_writes_never_counts(forged: bytes) -> None:
    assert str(PROXIES.client("10.0.0.1", [forged + b", 198.51.100.9, 10.2.3.4"])) == "198.51.100.9"


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_header_gives_an_address_or_a_refusal(headers: list[bytes]) -> None:
    with suppress(Refused):
        address = PROXIES.client("10.0.0.1", headers)
        assert ipaddress.ip_address(str(address)) == address


@pytest.mark.parametrize("address", ["203.0.113.0", "203.0.113.255", "2001:db8::7", "198.51.100.9"])
def test_allowed_sources(address: str) -> None:
    parsed = parse(address)
    assert parsed is not None
    allowed("203.0.113.0/24", "198.51.100.9/32", "2001:db8::/64").require(parsed)


@pytest.mark.parametrize("address", ["203.0.112.255", "203.0.114.0", "198.51.100.8", "2001:db8:0:1::", "::cb00:7107"])
def test_other_sources_are_refused(address: str) -> None:
    parsed = parse(address)
    assert parsed is not None
    sources = allowed("203.0.113.0/24", "198.51.100.9/32", "2001:db8::/64")
    for _ in range(2):
        with pytest.raises(Refused) as refusal:
            sources.require(parsed)
        assert (refusal.value.reason, refusal.value.status) == (Reason.SOURCE_REFUSED, 403)
        assert address not in refusal.value.detail


def test_no_networks_allow_every_address() -> None:
    address = parse("198.51.100.9")
    assert address is not None
    allowed().require(address)
