"""From where Checkout.com says that it sends, and from when: a data file, each row with its page and its day.

Vendor: https://www.checkout.com/docs/developer-resources/ip-addresses (lists that change)
        https://www.checkout.com/zh-cn/support-articles/new-ip-addresses-for-webhooks-and-the-checkout-com-api

Nothing is refused by it: the vendor advises against limits by address. It is what `postback doctor` holds a list of the
user's own against.
"""

from __future__ import annotations

import csv
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cache
from importlib.resources import files
from typing import NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Documented(NamedTuple):
    network: Network
    allow_before: date | None
    """The day by which the vendor wants it to be allowed; None for what is in use."""
    read: date
    """When the page said so."""
    source: str


@cache
def documented() -> tuple[Documented, ...]:
    with files("receiver").joinpath("tables", "checkout_addresses.csv").open(encoding="utf-8") as table:
        return tuple(
            Documented(
                ipaddress.ip_network(row["range"]),
                date.fromisoformat(row["allow_before"]) if row["allow_before"] else None,
                date.fromisoformat(row["read"]),
                row["source"],
            )
            for row in csv.DictReader(table)
        )


class Difference(NamedTuple):
    urgent: bool
    """Whether notifications are refused by now that should not be."""
    detail: str


def differences(allowed: Sequence[Network], today: date) -> Iterator[Difference]:
    """In what a list of the user's own differs from what the vendor documents, as parts of a sentence."""
    lacking = [row for row in documented() if not any(covers(network, row.network) for network in allowed)]
    for due in sorted({row.allow_before for row in lacking if row.allow_before}):
        ranges = shown(row.network for row in lacking if row.allow_before == due)
        if today < due:
            yield Difference(False, f"lacks {ranges}; Checkout.com asks to allow them before {due}")
        else:
            yield Difference(True, f"lacks {ranges}, from which Checkout.com sends since {due}")
    if in_use := [row for row in lacking if row.allow_before is None]:
        read = max(row.read for row in in_use)
        yield Difference(False, f"lacks {shown(row.network for row in in_use)}, documented on {read}")
    unknown = [network for network in allowed if not any(touches(network, row.network) for row in documented())]
    if unknown:
        read = max(row.read for row in documented())
        yield Difference(False, f"has {shown(unknown)}, which is not in the documents known here (of {read})")


def covers(wide: Network, narrow: Network) -> bool:
    return wide.version == narrow.version and narrow.subnet_of(wide)  # type: ignore[arg-type]


def touches(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def shown(networks: Iterable[Network]) -> str:
    return ", ".join(map(str, networks))
