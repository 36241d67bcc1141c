"""Where alarms arrive in the tests: a mail server and a web server on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from tests.secrecy import RECORDER
from tests.servers import free_port

USERNAME, PASSWORD = "postback", "mail-password-of-the-tests"


class Mailbox:
    """A mail server that keeps what it takes; with a certificate it wants TLS and a password first."""

    def __init__(self, certificates: Path | None = None) -> None:
        self.port = free_port()
        self.letters: list[EmailMessage] = []
        self.refuses = False
        self.on_letter: Callable[[], object] | None = None
        self._certificates = certificates

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def subjects(self) -> list[str]:
        return [str(letter["Subject"]) for letter in self.letters]

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("nobody@"):
            return "550 There is no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 Taken"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # its name in aiosmtpd
        if self.refuses:
            return "451 Try again later"
        RECORDER.look("a mail", envelope.content)
        letter = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        if self.on_letter is not None:
            self.on_letter()
        return "250 Taken"

    @contextmanager
    def running(self) -> Iterator[Mailbox]:
        secured: dict[str, Any] = {}
        if self._certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificates / "server.pem", self._certificates / "server.key")
            secured = {"tls_context": context, "require_starttls": True}
            secured |= {"authenticator": _authenticated, "auth_required": True}
        controller = Controller(self, hostname="127.0.0.1", port=self.port, **secured)
        controller.start()
        try:
            yield self
        finally:
            controller.stop()


def _authenticated(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
    right = (given.login, given.password) == (USERNAME.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


@dataclass
class Posted:
    headers: dict[str, str]
    body: bytes


@dataclass
class Hookbox:
    """A web server that keeps what is posted, and answers `status`."""

    port: int = field(default_factory=free_port)
    status: int = 204
    posted: list[Posted] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/alarms"

    @contextmanager
    def running(self) -> Iterator[Hookbox]:
        box = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # its name in http.server
                body = self.rfile.read(int(self.headers["content-length"]))
                RECORDER.look("what a webhook was sent", body)
                box.posted.append(Posted({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(box.status)
                if 300 <= box.status < 400:
                    self.send_header("location", box.url)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
