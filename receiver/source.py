"""Who sent a request: the peer, or what a trusted proxy says in X-Forwarded-For or Forwarded, walked from the right.

The PROXY protocol is the proxy's own business: here it is no HTTP and ends the connection.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

from receiver.errors import Reason, Refused
from receiver.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# As proxies write it: 203.0.113.7, 203.0.113.7:4711, [2001:db8::7], [2001:db8::7]:4711; a bare 2001:db8::7 as well.
_WITH_PORT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::\d{1,5})?", re.ASCII)
_LONGEST = 80

# RFC 7239, section 4. Outside of quotes also what some write there in spite of it: ports and brackets of addresses.
_PAIR = re.compile(
    r"""[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+)|"((?:[^"\\]|\\.)*)")[ \t]*([;,]|$)""",
    re.ASCII,
)
_LONGEST_FORWARDED = 2000


@lru_cache(maxsize=4096)
def parse(text: str) -> Address | None:
    """The address in `text`, with or without a port and brackets; an IPv4-mapped IPv6 address is the IPv4 one.
    None for anything else."""
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # Without its zone ("%eth0"), which may be any text.
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def neighbourhood(address: Address) -> str:
    """What counts as one address where there are limits: whoever has one IPv6 address has 2**64 of them."""
    return str(address) if address.version == 4 else f"{address.exploded[:19]}::/64"


# The text of an address, which each envelope has: made once for each sender, not for each request.
shown = lru_cache(maxsize=4096)(str)


class TrustedProxies:
    """Finds the client behind proxies that are trusted, and behind no others.

    The left end of X-Forwarded-For is written by whoever sends the request. Each proxy appends the address that it
    saw, so only the part to the right that our own proxies wrote can be believed.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def __bool__(self) -> bool:
        """Whether there are any: without them nobody's forwarded headers count."""
        return bool(self._networks)

    def client(self, peer: str | None, forwarded_for: Sequence[bytes], forwarded: Sequence[bytes] = ()) -> Address:
        """The client's address: the last one that no proxy of ours has, or the first of all when ours have them all.

        `forwarded_for` and `forwarded` are the values of the headers X-Forwarded-For and Forwarded. A proxy writes one
        of them and hands on the other as it came, so when there are both they must say the same.

        Raises `Refused` when the connection has none, and when a trusted proxy names something that is none.
        """
        address = parse(peer) if peer else None
        if address is None:
            raise Refused(Reason.SOURCE_REFUSED, "The request has no client address.")
        if not self._networks or not self._trusts(address):
            return address
        named = address
        if forwarded_for:
            hops = [hop.strip(" \t") for value in forwarded_for for hop in value.decode("latin-1").split(",")]
            named = self._last_foreign(hops, "X-Forwarded-For")
        if forwarded:
            hops = [hop for value in forwarded for hop in _elements(value.decode("latin-1"))]
            other = self._last_foreign(hops, "Forwarded")
            if forwarded_for and other != named:
                raise Refused(Reason.SOURCE_REFUSED, "Forwarded and X-Forwarded-For name different clients.")
            named = other
        return named

    def _last_foreign(self, hops: Sequence[str], header: str) -> Address:
        address: Address | None = None
        for hop in reversed(hops):
            address = parse(hop) if len(hop) <= _LONGEST else None
            if address is None or not self._trusts(address):
                break
        if address is None:
            raise Refused(Reason.SOURCE_REFUSED, f"{header} holds something that is not an address.")
        return address

    def trusts(self, peer: str) -> bool:
        """Whether the connection comes from one of them."""
        address = parse(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)


def _elements(value: str) -> list[str]:
    """What the elements of a Forwarded header say after ``for=``, "" where they do not. All of the header is read from
    its beginning, as an open quote of whoever sends the request could swallow what our proxy adds; one that does not
    end as it should has nothing in it that can be believed."""
    elements: list[str] = []
    said: str | None = None
    position = 0
    while len(value) <= _LONGEST_FORWARDED and (pair := _PAIR.match(value, position)):
        name, token, quoted, end = pair.groups()
        if name.lower() == "for":
            if said is not None:
                break
            said = token if token is not None else re.sub(r"\\(.)", r"\1", quoted)
        if end != ";":
            elements.append(said or "")
            said = None
        if not end:
            return elements
        position = pair.end()
    return [""]


class AllowedSources:
    """The networks that may send to one endpoint; none means every address."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        self._decide = lru_cache(maxsize=4096)(self._decide_now)

    def allow(self, address: Address) -> bool:
        return not self._networks or self._decide(address)

    def require(self, address: Address) -> None:
        """Raises `Refused` for an address outside the networks."""
        if self._networks and not self._decide(address):
            raise Refused(Reason.SOURCE_REFUSED, "The sender's address is not allowed for this endpoint.")

    def _decide_now(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)
