"""The certificate of the public name, looked at as a sender does: chain, name and how long it is valid yet."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta

from workers.alarms.kinds import AlarmKind, Problem

DAYS = (30, 14, 3)
"""Before its end: an alarm that is acknowledged comes again at each."""
TIMEOUT = 5.0


def problems(host: str, port: int, now: datetime) -> list[Problem]:
    """What is wrong with it; nothing when it is well."""
    subject = f"{host}:{port}"
    try:
        ends = valid_until(host, port)
    except ssl.SSLCertVerificationError as error:
        said = f"The certificate of {subject} does not prove it: {error.verify_message}."
        return [Problem(AlarmKind.CERTIFICATE_UNFIT, said, subject, len(DAYS) + 1)]
    except (OSError, ValueError) as error:
        said = f"{subject} cannot be reached over TLS ({type(error).__name__})."
        return [Problem(AlarmKind.PUBLIC_NAME_AWAY, said, subject)]
    level = sum(ends - now <= timedelta(days=days) for days in DAYS)
    if not level:
        return []
    said = f"The certificate of {subject} ends on {ends:%Y-%m-%d %H:%M} UTC."
    return [Problem(AlarmKind.CERTIFICATE_UNFIT, said, subject, level)]


def valid_until(host: str, port: int) -> datetime:
    """The end of a certificate that proves `host`. Raises `ssl.SSLCertVerificationError` for one that does not, and
    `OSError`. Other authorities than the system's are trusted by ``SSL_CERT_FILE``."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert()
    if not certificate:
        raise ssl.SSLError("no certificate")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
