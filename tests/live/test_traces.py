"""One trace from the request to the ledger, as a collector of OpenTelemetry gets it from the shipped processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.live.installation import Installation, installed
from tests.live.test_installation import ACME, FORM, basic, notify, payments, quickstream
from tests.secrecy import RECORDER
from tests.servers import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, and keeps them with the name of the process that they come from."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"
        self.spans: list[tuple[str, Span]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, notification_id: str) -> dict[str, tuple[str, Span]]:
        """By name, the spans of the trace to which those of this notification belong."""
        ids = {span.trace_id for _, span in self.spans if said(span).get("postback.notification.id") == notification_id}
        assert len(ids) == 1, "one trace"
        return {span.name: (process, span) for process, span in self.spans if span.trace_id in ids}


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        RECORDER.look("the traces", body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(named["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def said(span: Span) -> dict[str, Any]:
    """The attributes of a span."""
    values = {each.key: each.value for each in span.attributes}
    return {key: value.string_value or value.int_value or value.double_value for key, value in values.items()}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector
        collector.shutdown()


@pytest.fixture(scope="module")
def running(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    tables = {"receive": "processes = 2", "store": f'[tracing]\nendpoint = "{collector.url}"'}
    environment = {**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "100", "NO_PROXY": "127.0.0.1"}
    with installed(tmp_path_factory.mktemp("traced"), **tables, environment=environment) as here:
        yield here


def test_one_trace_from_the_request_to_the_ledger(running: Installation, collector: Collector) -> None:
    headers = {"Content-Type": FORM, "Authorization": ACME, "traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = running.post("/notify/quickstream/acme", quickstream("9001"), headers)
    assert answer.status_code == 200

    def whole() -> dict[str, tuple[str, Span]]:
        spans = collector.of(answer.json()["id"])
        assert set(spans) == {"POST /notify/quickstream/acme", "commit", "record"}
        return spans

    spans = eventually(whole, what="the spans of both processes")
    (accepting, request), (recording, record) = spans["POST /notify/quickstream/acme"], spans["record"]
    commit = spans["commit"][1]
    assert (accepting, recording) == ("postback-serve", "postback-work")
    assert {span.trace_id.hex() for _, span in spans.values()} == {TRACE}, "the sender's own"
    assert request.parent_span_id.hex() == PARENT
    assert (commit.parent_span_id, record.parent_span_id) == (request.span_id, commit.span_id)
    assert (request.kind, commit.kind, record.kind) == (
        *(Span.SPAN_KIND_SERVER, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER),
    )
    assert request.start_time_unix_nano <= commit.start_time_unix_nano <= commit.end_time_unix_nano
    assert commit.end_time_unix_nano <= record.end_time_unix_nano
    assert said(request)["http.response.status_code"] == 200
    told = said(record)
    assert (told["postback.outcome"], told["postback.provider"], told["postback.facility"]) == (
        *("processed", "quickstream", "acme"),
    )
    assert told["postback.waited_seconds"] > 0


def test_a_request_without_a_trace_begins_one_and_a_repeat_another(running: Installation, collector: Collector) -> None:
    first, again = (notify(running, quickstream("9002")).json()["id"] for _ in range(2))

    def both() -> bool:
        traces = [collector.of(each) for each in (first, again)]
        assert all(len(spans) == 3 for spans in traces)
        assert sorted(said(spans["record"][1])["postback.outcome"] for spans in traces) == ["duplicate", "processed"]
        return True

    eventually(both, what="both traces")
    request, other = (collector.of(each)["POST /notify/quickstream/acme"][1] for each in (first, again))
    assert request.trace_id != other.trace_id
    assert not request.parent_span_id


def test_a_refused_request_has_its_reason_and_no_commit(running: Installation, collector: Collector) -> None:
    assert notify(running, quickstream("9003"), credentials=basic("acme", "x")).status_code == 403
    (span,) = eventually(
        lambda: [span for _, span in collector.spans if said(span).get("error.type") == "credentials_refused"],
        what="the span of a refusal",
    )
    assert said(span)["http.response.status_code"] == 403
    assert [other.name for _, other in collector.spans if other.trace_id == span.trace_id] == [span.name]


def test_nothing_of_it_is_loaded_where_it_is_not_asked_for() -> None:
    # redis-py itself loads those parts that it could use.
    look = "import sys, receiver.app, workers.runner; sys.exit('opentelemetry.exporter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0


def test_the_extra_is_named_where_it_is_not_installed(tmp_path: Path) -> None:
    here = Installation(tmp_path, store='[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"')
    # As on a machine without it.
    (tmp_path / "opentelemetry.py").write_text("raise ImportError")
    run = "from workers.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", run, "serve", "--config", str(here.config)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "tracing.endpoint: needs the extra: pip install 'postback-receiver[opentelemetry]'." in done.stderr
    here.close()


def test_doctor_says_what_is_kept(running: Installation) -> None:
    (found,) = [finding for finding in running.json("doctor") if finding["check"] == "tracing"]
    assert (found["verdict"], found["detail"]) == ("ok", "100% of the traces are kept")


def test_a_collector_that_is_away_holds_up_nothing(running: Installation, collector: Collector) -> None:
    collector.shutdown()
    collector.server_close()
    assert notify(running, quickstream("9004")).status_code == 200
    assert payments(running, "9004")
    assert running.stop() == 0
