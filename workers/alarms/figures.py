"""What only the metrics of this machine know: card numbers that were masked, and requests that nothing could store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from receiver import counted as shared
from workers.alarms.kinds import AlarmKind, Problem

MASKED = "postback_card_numbers_masked_total"
NOT_STORED = "postback_not_stored_total"
STAYS = timedelta(days=1)
"""How long an alarm of masked card numbers lasts after the last one."""

Counts = Mapping[tuple[str, str], float]
"""By endpoint."""


def counted() -> dict[str, Counts]:
    """The counters of all processes of this machine that share its metrics."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return _sums(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    with shared.undisturbed(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
        return _sums(registry)


def _sums(registry: CollectorRegistry) -> dict[str, Counts]:
    found: dict[str, dict[tuple[str, str], float]] = {MASKED: {}, NOT_STORED: {}}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name in found:
                endpoint = (sample.labels["provider"], sample.labels["facility"])
                found[sample.name][endpoint] = found[sample.name].get(endpoint, 0.0) + sample.value
    return dict(found)


class Risen:
    """When a counter of each endpoint rose first and last. What was counted before the first look is no news."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._before: Counts | None = None
        self.first: dict[tuple[str, str], datetime] = {}
        self.last: dict[tuple[str, str], datetime] = {}

    def see(self, counts: Mapping[str, Counts], now: datetime, within: timedelta) -> None:
        """`within` is how long a rise counts."""
        here = counts[self._name]
        if self._before is not None:
            for endpoint, number in here.items():
                if number > self._before.get(endpoint, 0.0):
                    self.first.setdefault(endpoint, now)
                    self.last[endpoint] = now
        self._before = dict(here)
        for endpoint in [endpoint for endpoint, at in self.last.items() if now - at > within]:
            del self.first[endpoint], self.last[endpoint]


def masked(risen: Risen) -> list[Problem]:
    return [
        Problem(
            AlarmKind.CARD_NUMBERS_MASKED,
            f"Card numbers came to {path} and were masked, the last at {at:%Y-%m-%d %H:%M} UTC.",
            path,
        )
        for (provider, facility), at in risen.last.items()
        for path in [f"{provider}/{facility}" if provider else "an unknown path"]
    ]
