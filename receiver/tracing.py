"""Traces of notifications by OpenTelemetry: one from the request to the ledger. Loaded where `tracing.endpoint` is set.

A request begins a span, of the sender's own trace where it names one (W3C Trace Context), and its commit another; the
name of that one crosses the queue in the envelope, where the worker goes on with it. Spans name endpoints and
notifications; never a body, a header's value or an address.
"""

from __future__ import annotations

import os
import re
import threading

from receiver import __version__
from receiver.errors import ConfigurationError
from receiver.notification import Envelope
from receiver.settings import Settings

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
except ImportError:
    raise ConfigurationError(
        "tracing.endpoint: needs the extra: pip install 'postback-receiver[opentelemetry]'."
    ) from None

EXPORT_WITHIN = 5
"""Seconds that the collector has for each export, beside the work."""
STOP_WITHIN = 1.0
"""Seconds in which the last spans must be away when the process stops."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
ID = "postback.notification.id"


class Tracing:
    """Where the spans of this process go."""

    def __init__(self, settings: Settings, process: str) -> None:
        ratio = TraceIdRatioBased(settings.tracing.sample)
        # Whoever sends may keep a trace of theirs out, and cannot put one in: the flag is anybody's to write.
        sampler = ParentBased(ratio, remote_parent_sampled=ratio) if process == "serve" else ParentBased(ratio)
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"postback-{process}"}
        self._provider = TracerProvider(
            sampler=sampler,
            resource=Resource.create({**named, "service.version": __version__}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=settings.tracing.endpoint, timeout=EXPORT_WITHIN)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("postback", __version__)

    def stop(self) -> None:
        """Sends what there is, for as long as `STOP_WITHIN`: a collector that hangs holds up no end."""
        stopping = threading.Thread(target=self._provider.shutdown, daemon=True)
        stopping.start()
        stopping.join(STOP_WITHIN)


def attributes_of(envelope: Envelope) -> dict[str, str]:
    return {
        ID: envelope.id,
        "postback.provider": envelope.provider,
        "postback.facility": envelope.facility,
        "postback.event_type": envelope.event_type,
    }


def parent_of(traceparent: str) -> Context | None:
    """The context that a ``traceparent`` names; None for what is none, which then begins a trace of its own."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    named = trace.SpanContext(int(match[1], 16), int(match[2], 16), True, trace.TraceFlags(int(match[3], 16) & 1))
    return trace.set_span_in_context(trace.NonRecordingSpan(named)) if named.is_valid else None


def traceparent_of(span: trace.Span) -> str:
    named = span.get_span_context()
    return f"00-{named.trace_id:032x}-{named.span_id:016x}-{named.trace_flags:02x}"
