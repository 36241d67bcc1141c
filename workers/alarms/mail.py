"""Alarms by mail, as plain text, through the installation's own mail server."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime

from receiver import logs
from receiver.settings import AlarmEmail, host_and_port
from workers.alarms.messages import Message, Said, content
from workers.alarms.sending import Undelivered

log = logs.get("workers.alarms")

TIMEOUT = 5.0
LONGEST_SUBJECT = 150
# A folded subject is shown with its blanks by some.
_POLICY = policy.SMTP.clone(max_line_length=900)
_SUBJECTS = {"alarm.repeated": "Still: ", "alarm.cleared": "Cleared: ", "alarm.test": "Test: "}


class Mail:
    name = "email"

    def __init__(self, email: AlarmEmail) -> None:
        self._email = email

    def send(self, message: Message, now: datetime) -> None:
        """Raises `Undelivered` unless the server took it for somebody: sent again, those would get it twice."""
        letter = self._letter(message)
        with said_of_failures(), connected(self._email) as server:
            refused = server.send_message(letter, self._email.sender, list(self._email.to))
            if refused:
                codes = sorted({code for code, _ in refused.values()})
                log.warning("alarm_recipients_refused", id=message.id, recipients=len(refused), codes=codes)

    def reach(self) -> None:
        """The server answers, over TLS and to the credentials. Raises `Undelivered`."""
        with said_of_failures(), connected(self._email):
            pass

    def _letter(self, message: Message) -> EmailMessage:
        told = content(message)
        letter = EmailMessage(policy=_POLICY)
        letter["Subject"] = f"[Postback] {_SUBJECTS.get(told.type, '')}{_cut(told.data.sentence)}"
        letter["From"] = self._email.sender
        letter["To"] = ", ".join(self._email.to)
        letter["Date"] = format_datetime(told.timestamp)
        # The same at every try, so that a mailbox shows a letter that came twice once.
        letter["Message-ID"] = f"<{message.id}@{self._email.sender.rpartition('@')[2]}>"
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content("\n".join(_lines(told.type, told.data)) + "\n")
        return letter


def _cut(sentence: str) -> str:
    return sentence if len(sentence) <= LONGEST_SUBJECT else sentence[: LONGEST_SUBJECT - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _lines(type_: str, said: Said) -> Iterator[str]:
    yield said.sentence
    yield ""
    if said.cleared_at is not None:
        yield f"It is over since {said.cleared_at:%Y-%m-%d %H:%M:%S} UTC."
    else:
        yield f"What it means: {said.means}"
        yield f"What to do: {said.do}"
    yield ""
    yield f"Alarm: {said.alarm}"
    yield f"Raised: {said.raised_at:%Y-%m-%d %H:%M:%S} UTC" + (
        f", for the {said.times}. time" if said.times > 1 else ""
    )
    yield f"Host: {said.host}"
    if said.console is not None:
        yield f"Console: {said.console}"
    if type_ in ("alarm.raised", "alarm.repeated"):
        yield f"Acknowledge: postback alarms acknowledge {said.alarm} --reason ..."


@contextmanager
def connected(email: AlarmEmail) -> Iterator[smtplib.SMTP]:
    """The mail server, behind TLS and signed in. Raises `OSError` and `smtplib.SMTPException`, which is one."""
    host, port = host_and_port(email.server, "alarms.email.server")
    server = (
        smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
        if email.tls == "implicit"
        else smtplib.SMTP(host, port, timeout=TIMEOUT)
    )
    try:
        if email.tls == "starttls":
            server.starttls(context=ssl.create_default_context())
        if email.username is not None and email.password is not None:
            server.login(email.username, email.password.reveal().decode())
        yield server
    finally:
        with suppress(OSError):
            server.quit()
        server.close()


@contextmanager
def said_of_failures() -> Iterator[None]:
    """Turns them into `Undelivered`: kind and code only, as a server may repeat what it was given."""
    try:
        yield
    except smtplib.SMTPResponseException as error:
        raise Undelivered(f"{type(error).__name__} {error.smtp_code}") from None
    except (OSError, UnicodeError) as error:
        raise Undelivered(type(error).__name__) from None
