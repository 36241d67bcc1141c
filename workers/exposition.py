"""``GET /metrics`` of a machine that has workers only; elsewhere others show their figures."""

from __future__ import annotations

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from receiver import logs, metrics
from receiver.connection import connect
from receiver.errors import ConfigurationError
from receiver.health import measure_queue
from receiver.settings import Settings, host_and_port

log = logs.get("workers.exposition")

_PLACE = "work.metrics_bind"


def show_figures(settings: Settings) -> None:
    """In a thread, until the process ends. Raises `ConfigurationError` where it cannot listen."""
    if settings.work.metrics_bind is None:
        return
    try:
        server = Figures(settings)
    except OSError as error:
        raise ConfigurationError(f"{_PLACE}: cannot listen there: {error.strerror}.") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class Figures(ThreadingTCPServer):
    """Any worker of the machine may answer: they share the port as they share the figures.

    No `HTTPServer`: it asks DNS for its own name first, which nothing here shows, and a start would wait for it.
    """

    allow_reuse_address = True
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, settings: Settings) -> None:
        host, port = host_and_port(settings.work.metrics_bind or "", _PLACE)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.redis = connect(settings)
        super().__init__((host, port), _Answer)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up needs no answer, and no line in the log; anything else is a fault of ours."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("figures_not_shown", exc_info=error)


class _Answer(BaseHTTPRequestHandler):
    server: Figures
    timeout = 5
    server_version = "postback"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path != "/metrics":
            self.send_error(404)
            return
        measure_queue(self.server.redis)
        page = metrics.expose()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A scrape is no event."""
