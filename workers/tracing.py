"""The end of a trace: what became of a notification in the ledger. Loaded only where `tracing.endpoint` is set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import trace

from receiver.notification import Envelope
from receiver.providers.base import Endpoint
from receiver.signing import Seal
from receiver.tracing import Tracing, attributes_of, parent_of
from workers.ledger.ledger import Ledger, Recorded
from workers.pipeline import Pipeline


class TracedPipeline(Pipeline):
    """A pipeline whose transactions leave a span in the trace of each of their notifications."""

    def __init__(
        self, endpoints: Mapping[tuple[str, str], Endpoint], ledger: Ledger, seal: Seal, tracing: Tracing
    ) -> None:
        super().__init__(endpoints, ledger, seal)
        self._tracer = tracing.tracer

    def record(self, envelopes: Sequence[Envelope]) -> Recorded:
        began = time.time_ns()
        try:
            recorded = super().record(envelopes)
        except Exception as error:
            for envelope in envelopes:
                self._say(envelope, began, len(envelopes), {"error.type": type(error).__name__})
            raise
        outcomes = dict(_outcomes(recorded))
        for envelope in envelopes:
            outcome = outcomes.get(envelope.id, "known")
            self._say(envelope, began, len(envelopes), {"postback.outcome": outcome})
        return recorded

    def _say(self, envelope: Envelope, began: int, together: int, more: Mapping[str, Any]) -> None:
        parent = parent_of(envelope.trace)
        if parent is None:
            return
        waited = max(0, began // 1000 - envelope.received_at) / 1_000_000
        attributes = {"postback.together": together, "postback.waited_seconds": waited, **more}
        span = self._tracer.start_span(
            "record", parent, trace.SpanKind.CONSUMER, {**attributes_of(envelope), **attributes}, start_time=began
        )
        if "error.type" in more:
            span.set_status(trace.StatusCode.ERROR)
        span.end()


def _outcomes(recorded: Recorded) -> Iterator[tuple[str, str]]:
    """(notification id, outcome). What is none of these was recorded before, by a worker that was killed then."""
    yield from ((item.envelope.id, item.state) for item in recorded.new)
    yield from ((envelope.id, "duplicate") for envelope in recorded.duplicates)
    yield from ((envelope.id, "conflict") for envelope in recorded.conflicts)
