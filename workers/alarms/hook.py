"""Alarms by webhook, signed as https://www.standardwebhooks.com has it: with every secret of the configuration, so that
the receiver may change to a new one when it likes."""

from __future__ import annotations

import hmac
import socket
import ssl
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import urlsplit

import httpx

from receiver.settings import AlarmWebhook, webhook_key
from receiver.signing import Secret
from workers.alarms.messages import Message
from workers.alarms.sending import Undelivered

TIMEOUT = 5.0


class Hook:
    name = "webhook"

    def __init__(self, webhook: AlarmWebhook) -> None:
        self._webhook = webhook

    def send(self, message: Message, now: datetime) -> None:
        """Raises `Undelivered` unless it was answered 2xx. A redirect is no answer: it could lead anywhere."""
        body = message.content.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "Postback",
            **signed(message.id, int(now.timestamp()), body, self._webhook.secrets),
        }
        try:
            with (
                httpx.Client(
                    verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=TIMEOUT
                ) as client,
                client.stream("POST", self._webhook.url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except httpx.HTTPError as error:
            raise Undelivered(type(error).__name__) from None
        if not 200 <= status < 300:
            raise Undelivered(f"It was answered {status}.")

    def reach(self) -> None:
        """Its host takes a connection, over TLS where there is one. Raises `Undelivered`."""
        address = urlsplit(self._webhook.url)
        host, secure = address.hostname or "", address.scheme == "https"
        try:
            with socket.create_connection((host, address.port or (443 if secure else 80)), timeout=TIMEOUT) as plain:
                if secure:
                    ssl.create_default_context().wrap_socket(plain, server_hostname=host).close()
        except OSError as error:
            raise Undelivered(type(error).__name__) from None


def signed(id_: str, seconds: int, body: bytes, secrets: Sequence[Secret]) -> dict[str, str]:
    """The headers that prove a message; the newest secret's signature comes first."""
    content = f"{id_}.{seconds}.".encode() + body
    keys = [key for secret in reversed(secrets) if (key := webhook_key(secret)) is not None]
    proofs = [f"v1,{b64encode(hmac.digest(key, content, 'sha256')).decode()}" for key in keys]
    return {"webhook-id": id_, "webhook-timestamp": str(seconds), "webhook-signature": " ".join(proofs)}
