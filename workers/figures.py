"""Prometheus figures that the ledger itself gives: asked for with each scrape of the console, and counted by nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine

from receiver import metrics
from receiver.errors import LedgerAway
from receiver.providers.base import Endpoint
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings
from workers import attention
from workers.health import last_received
from workers.ledger import queries
from workers.reconcile.compare import Kind
from workers.reconcile.overdue import days_without_file

_ENDPOINT = ("provider", "facility")


class LedgerFigures(Collector):
    """While the ledger does not answer there is one figure, which says so."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def page(self) -> bytes:
        """All of them in the Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What there is, without a figure; RUNBOOK has a line for each."""
        yield from families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        answers, *others = families()
        try:
            with queries.reading(self._engine) as connection:
                self._ask(connection, *others)
        except LedgerAway:
            answers.add_metric((), 0)
            yield answers
            return
        answers.add_metric((), 1)
        yield from (answers, *others)

    def _ask(
        self,
        connection: Connection,
        needs_attention: GaugeMetricFamily,
        last: GaugeMetricFamily,
        missing: GaugeMetricFamily,
    ) -> None:
        for kind, number in attention.counts(connection).items():
            needs_attention.add_metric((kind,), number)
        for endpoint in self._settings.endpoint:
            at = (endpoint.provider, endpoint.facility)
            if (received := last_received(connection, endpoint)) is not None:
                last.add_metric(at, received.timestamp())
            if isinstance(endpoint, QuickStreamEndpoint) and endpoint.settlement_folder:
                missing.add_metric(at, len(days_without_file(connection, endpoint, datetime.now(UTC))))


def begin_settlement(endpoints: Iterable[Endpoint]) -> None:
    """As `metrics.begin`, for those that have settlement files."""
    for endpoint in endpoints:
        if isinstance(endpoint, QuickStreamEndpoint):
            at = (endpoint.provider, endpoint.facility)
            for outcome in ("agrees", "differs", "refused"):
                metrics.SETTLEMENT_FILES.labels(*at, outcome)
            for kind in Kind:
                metrics.SETTLEMENT_FINDINGS.labels(*at, kind.value)


def families() -> tuple[GaugeMetricFamily, ...]:
    return (
        GaugeMetricFamily("postback_ledger_answers", "1 when the ledger told the figures that come from it."),
        GaugeMetricFamily("postback_attention", "What needs a person and is not settled, by kind.", labels=("kind",)),
        GaugeMetricFamily(
            "postback_last_notification_timestamp_seconds",
            "When the newest notification came, in seconds since 1970.",
            labels=_ENDPOINT,
        ),
        GaugeMetricFamily(
            "postback_settlement_days_missing",
            "Banking days without a settlement file, of endpoints with a settlement_folder.",
            labels=_ENDPOINT,
        ),
    )
