"""Prometheus metrics of every process.

With several processes the figures live in files of a folder, which `receiver.counted` must join before this module is
imported; `workers.cli` does that when it starts a process.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from receiver import counted
from receiver.providers.base import Endpoint

if (_name := counted.name) is not None:
    values.ValueClass = values.MultiProcessValue(lambda: _name)  # type: ignore[no-untyped-call]

_ENDPOINT = ("provider", "facility")

ACCEPTED = Counter("postback_accepted", "Notifications answered 200 and kept.", (*_ENDPOINT, "status"))
REFUSED = Counter("postback_refused", "Requests that were refused, by reason.", (*_ENDPOINT, "reason"))
CONNECTIONS_CLOSED = Counter(
    "postback_connections_closed", "Connections that were closed because too many were open, or stuck.", ("why",)
)
OUTSIDE_PROPOSED = Counter(
    "postback_outside_proposed_sources",
    "Notifications that were kept and that proposed_sources would refuse.",
    _ENDPOINT,
)
NOT_STORED = Counter("postback_not_stored", "Requests that neither Redis nor the spool took.", _ENDPOINT)
SECRET_MATCHED = Counter(
    "postback_secret_matched",
    "What was proven, by the place of the secret in the configuration.",
    (*_ENDPOINT, "secret"),
)
CARDS_MASKED = Counter(
    "postback_card_numbers_masked", "Card numbers that were masked before they were kept.", (*_ENDPOINT, "place")
)
ANSWER_SECONDS = Histogram(
    "postback_answer_seconds",
    "Time from the headers to the answer, of accepted notifications.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)
COMMIT_SECONDS = Histogram(
    "postback_commit_seconds",
    "Time of one durable commit of a batch.",
    ("to",),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
)
BATCH_SIZE = Histogram(
    "postback_batch_size", "Notifications in one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
RETURNS = Counter(
    "postback_returns", "Browser returns that were shown or sent on, by outcome.", (*_ENDPOINT, "outcome")
)
RETURNS_DROPPED = Counter("postback_returns_dropped", "Browser returns that were shown and could not be noted.")

SPOOL_BATCHES = Gauge(
    "postback_spool_batches", "Batches in the local spool, waiting for Redis.", multiprocess_mode="mostrecent"
)
QUEUE_BATCHES = Gauge("postback_queue_batches", "Batches in the queue.", multiprocess_mode="mostrecent")
QUEUE_OLDEST_SECONDS = Gauge(
    "postback_queue_oldest_seconds", "Age of the oldest batch in the queue.", multiprocess_mode="mostrecent"
)
QUEUE_SET_ASIDE = Gauge(
    "postback_queue_set_aside",
    "Batches that could not be opened and wait for a person.",
    multiprocess_mode="mostrecent",
)
QUEUE_ANSWERS = Gauge(
    "postback_queue_answers",
    "1 when Redis told the figures of the queue; when 0 they are not known.",
    multiprocess_mode="mostrecent",
)
LEDGER_UP = Gauge("postback_ledger_up", "0 while a worker waits for the ledger.", multiprocess_mode="mostrecent")
REDIS_UP = Gauge("postback_redis_up", "1 when Redis answers.", multiprocess_mode="mostrecent")
REPLICAS_AWAY = Gauge(
    "postback_replicas_away",
    "1 while fewer replicas confirm than queue.replicas asks for.",
    multiprocess_mode="mostrecent",
)
WORKERS = Gauge("postback_workers", "Workers that gave a sign of life.", multiprocess_mode="mostrecent")

RECORDED = Counter("postback_recorded", "Notifications that the worker put into the ledger.", (*_ENDPOINT, "state"))
REPEATED = Counter("postback_repeated", "Repeats by kind: duplicate or conflict.", (*_ENDPOINT, "kind"))
RELEASED = Counter("postback_released", "Held notifications whose token became known.", _ENDPOINT)
MISMATCHES = Counter("postback_mismatches", "Payments that were found to differ from what was expected.", _ENDPOINT)
REPLAYED = Counter("postback_replayed", "Notifications that were replayed, by outcome.", (*_ENDPOINT, "outcome"))
PURGED = Counter("postback_purged", "What was purged because its time was over.", ("what",))
SET_ASIDE = Counter("postback_batches_set_aside", "Batches that could not be opened.", ("why",))
RECORD_SECONDS = Histogram(
    "postback_record_seconds", "Time of one ledger transaction.", buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
)

SETTLEMENT_FILES = Counter(
    "postback_settlement_files", "Settlement files by outcome: agrees, differs or refused.", (*_ENDPOINT, "outcome")
)
SETTLEMENT_FINDINGS = Counter(
    "postback_settlement_findings", "Differences between settlement files and the ledger.", (*_ENDPOINT, "kind")
)


@lru_cache(maxsize=4096)
def refused(provider: str, facility: str, reason: str) -> Counter:
    """The figure of `REFUSED` with these labels, as looking it up costs more than counting."""
    return REFUSED.labels(provider, facility, reason)


class Tally:
    """Counts what every request does in plain integers, and hands the sums on now and then: with several processes a
    shared figure is a write into a mapped file, and three of them cost a tenth of a request."""

    def __init__(self) -> None:
        self._counts: dict[Counter, int] = {}
        self._bounds: list[float] = ANSWER_SECONDS._upper_bounds
        self._answers = [0] * len(self._bounds)
        self._seconds = 0.0

    def count(self, counter: Counter) -> None:
        self._counts[counter] = self._counts.get(counter, 0) + 1

    def answered(self, seconds: float) -> None:
        self._answers[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def hand_on(self) -> None:
        """Adds the sums to the shared figures."""
        counts, self._counts = self._counts, {}
        for counter, number in counts.items():
            counter.inc(number)
        answers, self._answers = self._answers, [0] * len(self._bounds)
        seconds, self._seconds = self._seconds, 0.0
        # The library observes one value at a time; these are the two fields that it adds to.
        for bucket, number in zip(ANSWER_SECONDS._buckets, answers, strict=True):
            if number:
                bucket.inc(number)
        if seconds:
            ANSWER_SECONDS._sum.inc(seconds)


def begin(endpoints: Iterable[Endpoint]) -> None:
    """Shows what alarms look at from the start, as 0: Prometheus sees no rise in a figure that was not there before."""
    for endpoint in endpoints:
        at = (endpoint.provider, endpoint.facility)
        NOT_STORED.labels(*at)
        MISMATCHES.labels(*at)
        for state in ("processed", "failed", "quarantined", "held"):
            RECORDED.labels(*at, state)
        for kind in ("duplicate", "conflict"):
            REPEATED.labels(*at, kind)
        REPLAYED.labels(*at, "not_recorded")
        for place in ("body", "header", "return", "settlement file"):
            CARDS_MASKED.labels(*at, place)
    CARDS_MASKED.labels("", "", "refusal")
    for why in ("seal_broken", "newer_envelope"):
        SET_ASIDE.labels(why)


def expose() -> bytes:
    """All figures in the Prometheus text format, of all processes where several share a folder."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        with counted.undisturbed(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
            return generate_latest(registry)
    return generate_latest()
