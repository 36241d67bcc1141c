"""What every answer of the console carries, and which requests are not for it.

OWASP's secure headers (https://owasp.org/www-project-secure-headers/, read 2026-11-24). The pages have no script at all
and one style sheet, so the policy allows nothing else.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.settings import Console, host_and_port

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
_FEATURES = (
    "camera",
    "display-capture",
    "fullscreen",
    "geolocation",
    "microphone",
    "payment",
    "publickey-credentials-get",
    "usb",
)

HEADERS: dict[str, str] = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-permitted-cross-domain-policies": "none",
    "referrer-policy": "no-referrer",
    "permissions-policy": ", ".join(f"{feature}=()" for feature in _FEATURES),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
}
_FOR_MACHINES = ("/livez", "/readyz", "/metrics", "/healthz")


class Guard:
    """The outermost layer: headers on every answer, errors included, and no answer for names that are not ours."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app = app
        self._hosts = _hosts(console)
        headers = dict(HEADERS)
        if secure(console):
            headers["strict-transport-security"] = "max-age=63072000; includeSubDomains"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._names = {name for name, _ in self._headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message.get("headers", []) if pair[0].lower() not in self._names]
                message = {**message, "headers": own + self._headers}
            await send(message)

        if scope["path"] in _FOR_MACHINES or _host(scope) in self._hosts:
            await self._app(scope, receive, send_with_headers)
        else:
            # Another name that resolves to this address: a page elsewhere that wants to be taken for ours.
            refusal = PlainTextResponse("This name is not the console's; see console.public_url.\n", 421)
            await refusal(scope, receive, send_with_headers)


def secure(console: Console) -> bool:
    """Whether browsers reach the console over TLS, so that cookies may be sent over nothing else."""
    return console.public_url is not None and urlsplit(console.public_url).scheme == "https"


def _hosts(console: Console) -> frozenset[str]:
    host, _ = host_and_port(console.bind, "console.bind")
    hosts = {host.lower(), "localhost", "127.0.0.1", "::1"}
    if console.public_url is not None:
        hosts.add((urlsplit(console.public_url).hostname or "").lower())
    return frozenset(hosts)


def _host(scope: Scope) -> str | None:
    values: list[Any] = [value for name, value in scope["headers"] if name == b"host"]
    if len(values) != 1:
        return None
    try:
        return urlsplit(f"//{values[0].decode('ascii')}").hostname
    except ValueError:
        return None
