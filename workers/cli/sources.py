"""What `postback doctor` says of the addresses that may send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date

from sqlalchemy import Connection, select

from receiver.errors import ConfigurationError, LedgerAway
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint
from receiver.providers.checkout_addresses import covers, differences, shown, touches
from receiver.providers.quickstream_settlement import EVENT_TYPE as SETTLEMENT_FILE
from receiver.settings import Network, Settings, networks
from receiver.source import AllowedSources, parse
from workers.cli.finding import Finding
from workers.cli.ledger import opened_with
from workers.ledger.tables import notifications

LOOKED_AT = 10_000
"""Of the newest notifications of an endpoint with a list on trial."""
NAMED = 5


def examine(settings: Settings, today: date) -> Iterator[Finding]:
    for endpoint in settings.endpoint:
        for name in ("allowed_sources", "proposed_sources"):
            given = networks(getattr(endpoint, name) or (), name)
            if all(network.is_loopback for network in given):
                continue  # there is none, or a first try on this machine
            if endpoint.provider == "checkout":
                yield from _checkout(endpoint, name, given, today)
            else:
                yield from _documented(endpoint, name, given)
    for endpoint in settings.endpoint:
        if endpoint.proposed_sources:
            proposed = AllowedSources(networks(endpoint.proposed_sources, "proposed_sources"))
            yield _on_trial(settings, endpoint, proposed)


def _checkout(endpoint: Endpoint, name: str, given: tuple[Network, ...], today: date) -> Iterator[Finding]:
    found = list(differences(given, today))
    for difference in found:
        refuses = difference.urgent and name == "allowed_sources"
        yield Finding(endpoint.path, "fault" if refuses else "note", f"{name}: {difference.detail}")
    if not found:
        yield Finding(endpoint.path, "ok", f"{name}: has all ranges that Checkout.com documents, and no others")


def _documented(endpoint: Endpoint, name: str, given: tuple[Network, ...]) -> Iterator[Finding]:
    """For senders whose addresses do not change: those that count without a list."""
    provider = PROVIDERS[endpoint.provider]
    documented = networks(provider.sources[endpoint.environment], provider.name)
    if not documented:
        return
    lacking = [each for each in documented if not any(covers(network, each) for network in given)]
    unknown = [network for network in given if not any(touches(network, each) for each in documented)]
    page = f"{provider.display} documents for {endpoint.environment}"
    if lacking:
        yield Finding(endpoint.path, "note", f"{name}: lacks {shown(lacking)}, which {page}")
    if unknown:
        yield Finding(endpoint.path, "note", f"{name}: has {shown(unknown)}, which is not what {page}")
    if not lacking and not unknown:
        yield Finding(endpoint.path, "ok", f"{name}: has what {page}, and no others")


def _on_trial(settings: Settings, endpoint: Endpoint, proposed: AllowedSources) -> Finding:
    try:
        with opened_with(settings) as connection:
            sources = _sources(connection, endpoint)
    except (LedgerAway, ConfigurationError) as error:
        return Finding(endpoint.path, "note", f"proposed_sources: nothing can be said: {error}")
    outside = Counter({source: number for source, number in sources.items() if not _allowed(source, proposed)})
    looked_at = f"the last {sources.total()} notifications"
    if not outside:
        return Finding(endpoint.path, "ok", f"proposed_sources: would have refused none of {looked_at}")
    named = ", ".join(f"{source} ({number})" for source, number in outside.most_common(NAMED))
    more = f" and {len(outside) - NAMED} other addresses" if len(outside) > NAMED else ""
    text = f"proposed_sources: would have refused {outside.total()} of {looked_at}: {named}{more}"
    return Finding(endpoint.path, "note", text)


def _sources(connection: Connection, endpoint: Endpoint) -> Counter[str]:
    columns = notifications.c
    of_endpoint = (columns.provider == endpoint.provider, columns.facility == endpoint.facility)
    query = select(columns.source).where(*of_endpoint, columns.event_type != SETTLEMENT_FILE)
    return Counter(connection.scalars(query.order_by(columns.id.desc()).limit(LOOKED_AT)))


def _allowed(source: str, sources: AllowedSources) -> bool:
    address = parse(source)
    return address is not None and sources.allow(address)
