"""The accept side's spans: around a request, and around its commit."""

from __future__ import annotations

from typing import Any

import msgspec
from opentelemetry import context, trace

from receiver.accept import Accept
from receiver.errors import NotStored
from receiver.inbox import Commits
from receiver.notification import Envelope
from receiver.settings import Settings
from receiver.tracing import ID, attributes_of, parent_of, traceparent_of


class TracedAccept:
    """The notify endpoint with a span around each request."""

    def __init__(self, accept: Accept, tracer: trace.Tracer, settings: Settings) -> None:
        self._accept = accept
        self._tracer = tracer
        self._name(settings)

    def use(self, settings: Settings) -> None:
        """As `Accept.use`."""
        self._accept.use(settings)
        self._name(settings)

    def _name(self, settings: Settings) -> None:
        self._paths = {f"/notify/{endpoint.path}".encode(): endpoint for endpoint in settings.endpoint}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        span = self._begin(scope)
        if not span.is_recording():
            await self._accept(scope, receive, send)
            return

        async def noted(message: Any) -> None:
            _note(span, message)
            await send(message)

        entered = context.attach(trace.set_span_in_context(span))
        try:
            await self._accept(scope, receive, noted)
        finally:
            context.detach(entered)
            span.end()

    def _begin(self, scope: Any) -> trace.Span:
        endpoint = self._paths.get(scope["raw_path"])
        attributes: dict[str, str] = {"url.scheme": scope["scheme"]}
        name = "HTTP"
        if endpoint is not None and scope["method"] == "POST":
            name = f"POST /notify/{endpoint.path}"
            attributes |= {"http.request.method": "POST", "http.route": f"/notify/{endpoint.path}"}
            attributes |= {"postback.provider": endpoint.provider, "postback.facility": endpoint.facility}
        given = [value for header, value in scope["headers"] if header == b"traceparent"]
        parent = parent_of(given[0].decode("latin-1")) if len(given) == 1 else None
        return self._tracer.start_span(name, parent, trace.SpanKind.SERVER, attributes)


class TracedInbox:
    """An inbox with a span around each commit, whose name goes with the envelope."""

    def __init__(self, inbox: Commits, tracer: trace.Tracer) -> None:
        self._inbox = inbox
        self._tracer = tracer

    async def commit(self, envelope: Envelope) -> None:
        request = trace.get_current_span()
        if not request.is_recording():
            await self._inbox.commit(envelope)
            return
        request.set_attribute(ID, envelope.id)
        span = self._tracer.start_span("commit", kind=trace.SpanKind.PRODUCER, attributes=attributes_of(envelope))
        try:
            await self._inbox.commit(msgspec.structs.replace(envelope, trace=traceparent_of(span)))
        except NotStored as lost:
            span.set_attribute("error.type", lost.reason)
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.end()


def _note(span: trace.Span, message: Any) -> None:
    """The status of an answer; of a refusal also its reason, from the answer's body."""
    if message["type"] == "http.response.start":
        span.set_attribute("http.response.status_code", message["status"])
        if message["status"] >= 500:
            span.set_status(trace.StatusCode.ERROR)
    elif message.get("body", b"").startswith(b'{"error":'):
        span.set_attribute("error.type", msgspec.json.decode(message["body"])["error"])
