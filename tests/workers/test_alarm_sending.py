"""What a mail server and a webhook get, and what happens when they do not take it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from receiver.settings import AlarmEmail, AlarmWebhook, webhook_key
from receiver.signing import Secret
from tests.live.apart import make_authority, make_certificate
from tests.mailbox import PASSWORD, USERNAME, Hookbox, Mailbox
from tests.servers import free_port
from workers.alarms import messages
from workers.alarms.board import Alarm, Change, What
from workers.alarms.hook import Hook, signed
from workers.alarms.kinds import AlarmKind
from workers.alarms.mail import Mail
from workers.alarms.messages import Message
from workers.alarms.sending import PAUSES, Undelivered, tried

NOW = datetime.now(UTC).replace(microsecond=0)
OLD, NEW = (
    Secret(f"whsec_{text}".encode())
    for text in ("b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtMQ==", "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctMQ==")
)
ALARM = Alarm(
    kind=AlarmKind.ENDPOINT_SILENT,
    subject="checkout/main",
    sentence="Nothing came from checkout/main since 2026-11-27 09:12 UTC.",
    level=0,
    times=1,
    raised_at=NOW - timedelta(minutes=5),
    told_at=NOW,
)


def told(what: What = What.RAISED, channel: str = "email") -> Message:
    alarm = msgspec.structs.replace(ALARM, cleared_at=NOW) if what is What.CLEARED else ALARM
    (message,) = messages.made([Change(alarm, what)], [channel], NOW, host="pay-1", console="https://console.example")
    return message


def mail(box: Mailbox, **changed: Any) -> Mail:
    plain: dict[str, Any] = {"server": box.address, "sender": "postback@example.com", "tls": "none"}
    return Mail(AlarmEmail(**(plain | {"to": ("ops@example.com", "oncall@example.com")} | changed)))


def hook(box: Hookbox) -> Hook:
    return Hook(AlarmWebhook(url=box.url, secrets=(OLD, NEW)))


def test_a_letter(mailbox: Mailbox) -> None:
    message = told()
    mail(mailbox).send(message, NOW)
    (letter,) = mailbox.letters
    assert letter["Subject"] == f"[Postback] {ALARM.sentence}"
    assert (letter["From"], letter["To"]) == ("postback@example.com", "ops@example.com, oncall@example.com")
    assert letter["Message-ID"] == f"<{message.id}@example.com>"
    text = letter.get_content()
    assert "What it means: The sender stopped" in text
    assert "postback alarms acknowledge endpoint_silent:checkout/main --reason" in text
    assert "Host: pay-1\nConsole: https://console.example\n" in text.replace("\r", "")
    mail(mailbox).send(told(What.REPEATED), NOW)
    mail(mailbox).send(told(What.CLEARED), NOW)
    assert [subject.partition("] ")[2].split(" ")[0] for subject in mailbox.subjects[1:]] == ["Still:", "Cleared:"]
    over = mailbox.letters[-1].get_content()
    assert "It is over since" in over
    assert "cknowledge" not in over


def test_a_letter_behind_tls_and_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path, make_authority(tmp_path, "ca"))
    right: dict[str, Any] = {"tls": "starttls", "username": USERNAME, "password": Secret(PASSWORD.encode())}
    with Mailbox(tmp_path).running() as box:
        with pytest.raises(Undelivered, match=r"^SSLCertVerificationError$"):
            mail(box, **right).send(told(), NOW)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with pytest.raises(Undelivered, match=r"^SMTP\w+ 530$"):
            mail(box).send(told(), NOW)
        with pytest.raises(Undelivered, match=r"^SMTPAuthenticationError 535$"):
            mail(box, **right | {"password": Secret(b"wrong")}).send(told(), NOW)
        with pytest.raises(Undelivered, match=r"^SMTPAuthenticationError 535$"):
            mail(box, **right | {"password": Secret(b"wrong")}).reach()
        mail(box, **right).reach()
        assert box.letters == []
        mail(box, **right).send(told(), NOW)
        assert len(box.letters) == 1


def test_a_message_of_a_webhook_is_proven_by_either_secret(hookbox: Hookbox) -> None:
    message = told(channel="webhook")
    hook(hookbox).send(message, datetime.now(UTC))  # The verifier asks its own clock.
    (posted,) = hookbox.posted
    for secret in (OLD, NEW):
        payload = Webhook(secret.reveal().decode()).verify(posted.body, posted.headers)
        assert payload["type"] == "alarm.raised"
        assert payload["data"]["alarm"] == "endpoint_silent:checkout/main"
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_c29tZWJvZHktZWxzZS1zb21lYm9keS1lbHNl").verify(posted.body, posted.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW.reveal().decode()).verify(posted.body + b" ", posted.headers)
    assert posted.headers["webhook-id"] == message.id
    assert posted.headers["webhook-signature"].count("v1,") == 2


def test_the_signature_of_the_documentation() -> None:
    """The example that https://www.standardwebhooks.com and Svix' own tests have."""
    secret = Secret(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}', [secret])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 410, 500, 503])
def test_only_2xx_is_taken_and_a_redirect_is_not_followed(hookbox: Hookbox, status: int) -> None:
    hookbox.status = status
    with pytest.raises(Undelivered, match=rf"^It was answered {status}\.$"):
        hook(hookbox).send(told(channel="webhook"), NOW)
    assert len(hookbox.posted) == 1


def test_nobody_there() -> None:
    nobody = Mail(AlarmEmail(server=f"127.0.0.1:{free_port()}", sender="a@b.c", to=("a@b.c",), tls="none"))
    silent = Hook(AlarmWebhook(url=f"http://127.0.0.1:{free_port()}/", secrets=(NEW,)))
    for channel in (nobody, silent):
        with pytest.raises(Undelivered, match="Conn"):
            channel.send(told(), NOW)
        with pytest.raises(Undelivered, match="ConnectionRefusedError"):
            channel.reach()


def test_a_recipient_that_is_refused_costs_the_others_nothing(mailbox: Mailbox, logged: list[Any]) -> None:
    mail(mailbox, to=("nobody@example.com", "oncall@example.com")).send(told(), NOW)
    assert len(mailbox.letters) == 1
    assert [(each["event"], each["recipients"], each["codes"]) for each in logged] == [
        ("alarm_recipients_refused", 1, [550])
    ]


def test_it_is_tried_for_a_day_and_then_given_up(mailbox: Mailbox, logged: list[Any]) -> None:
    mailbox.refuses = True
    message = told()
    for number in range(len(PAUSES)):
        message = tried(message, mail(mailbox), NOW)
        assert (message.tries, message.done_at) == (number + 1, None)
        assert message.fault == "SMTPDataError 451"
    message = tried(message, mail(mailbox), NOW)
    assert message.done_at == NOW
    assert [each["event"] for each in logged] == ["alarm_undelivered"] * len(PAUSES) + ["alarm_given_up"]
    assert timedelta(hours=24) < timedelta(seconds=sum(PAUSES)) < timedelta(hours=36)


def test_a_channel_that_is_gone_and_one_that_breaks(logged: list[Any]) -> None:
    class Broken:
        name = "email"

        def send(self, message: Message, now: datetime) -> None:
            raise ValueError("its text may say anything")

        def reach(self) -> None: ...

    assert tried(told(), None, NOW).done_at == NOW
    broken = tried(told(), Broken(), NOW)
    assert (broken.done_at, broken.fault) == (None, "ValueError")


@pytest.mark.parametrize(
    "text", ["whsec_", "whsec_short", "whsec_%%%", "b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQ=", "whsec_" + "A" * 96]
)
def test_what_is_no_secret_of_a_webhook(text: str) -> None:
    assert webhook_key(Secret(text.encode())) is None
