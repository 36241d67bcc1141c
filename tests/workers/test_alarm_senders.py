"""What is known of single senders: Debitsuccess that gives up, Checkout.com that tries again; and a certificate."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter

from receiver import metrics
from receiver.errors import ConfigurationError, Reason, Refused
from receiver.notification import microseconds, new_id
from receiver.providers import debitsuccess as provider
from receiver.providers.base import Message
from receiver.refusals import Refusal
from tests.live.apart import make_authority, make_certificate
from tests.servers import free_port
from tests.support import CHECKOUT, DEBITSUCCESS
from tests.workers.material import envelope, event, processed
from workers.alarms import certificate, checkout, debitsuccess, figures
from workers.alarms.conditions import holidays_of, one_of_each
from workers.alarms.figures import MASKED, NOT_STORED, Risen
from workers.alarms.kinds import AlarmKind, Problem
from workers.ledger import queries
from workers.ledger.ledger import Interpreted, Ledger

NOW = datetime(2026, 11, 27, 9, tzinfo=UTC)
THEIRS, STRANGER = "203.0.113.7", "198.51.100.9"
MINUTE = timedelta(minutes=1)
X_TOKEN = "The X-Token header does not match this endpoint."


# Debitsuccess


def refused(minutes: float, source: str = THEIRS, reason: Reason = Reason.TOKEN_REFUSED, **changed: Any) -> Refusal:
    """A refusal so many minutes ago."""
    values: dict[str, Any] = {
        "at": microseconds(NOW - minutes * MINUTE),
        "provider": "debitsuccess",
        "facility": "gym",
        "source": source,
        "reason": reason,
        "detail": X_TOKEN,
        "status": 403,
        "size": 100,
        "content_type": "application/json",
    }
    return Refusal(**(values | changed))


def disabling(*refusals: Refusal, proven: tuple[str, ...] = (THEIRS,), accepted: float | None = None) -> Problem | None:
    at = NOW - accepted * MINUTE if accepted is not None else None
    return debitsuccess.disabling(DEBITSUCCESS, refusals, set(proven), at)


def test_the_first_refusal_of_the_sender_is_an_alarm() -> None:
    problem = disabling(refused(2))
    assert problem is not None
    assert (problem.kind, problem.subject) == (AlarmKind.WEBHOOK_DISABLING, "debitsuccess/gym")
    assert "(token_refused), first at 2026-11-27 08:58 UTC" in problem.sentence
    assert THEIRS not in problem.sentence


def test_it_stays_until_an_event_is_accepted() -> None:
    tries = [refused(minutes) for minutes in (60, 57, 54, 51)]
    assert disabling(*tries) is not None, "long after the nine minutes: it is disabled now"
    assert disabling(*tries, accepted=61) is not None
    assert disabling(*tries, accepted=50) is None


def test_somebody_else_who_tries_is_no_alarm_and_the_sender_at_a_new_address_is() -> None:
    assert disabling(*(refused(5 - number / 4, STRANGER) for number in range(20))) is None
    assert disabling(refused(4, STRANGER), refused(1, STRANGER)) is not None
    assert disabling(refused(4, STRANGER), refused(1, "192.0.2.1")) is None
    moved = [refused(minutes, STRANGER, Reason.SOURCE_REFUSED, detail="not allowed") for minutes in (6.1, 3)]
    assert disabling(*moved) is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"detail": "The WebhookToken does not belong to this PaymentFormToken."},
        {"reason": Reason.TOKEN_MISSING, "detail": "The body has no PaymentFormToken or no WebhookToken."},
        {"detail": "X-Token does not prove a casual payment."},
        {"reason": Reason.METHOD_REFUSED, "detail": ""},
        {"reason": Reason.HELD_FULL, "detail": ""},
        {"provider": "paymentz"},
        {"facility": "other"},
    ],
)
def test_what_is_no_refused_event_of_the_endpoint(changed: dict[str, Any]) -> None:
    assert disabling(refused(1, **changed)) is None


@pytest.mark.parametrize("given", [{}, {"x-token": "wrong"}])
def test_what_the_endpoint_says_of_a_refused_event_is_known(given: dict[str, str]) -> None:
    """A refusal has no word for which product it was; its sentence tells."""
    with pytest.raises(Refused) as caught:
        provider.check_headers(
            Message("application/json", {"x-eventname": "Customer.Added", **given}, b"{}"), DEBITSUCCESS
        )
    assert disabling(refused(1, reason=caught.value.reason, detail=caught.value.detail)) is not None


def test_what_the_ledger_knows_of_its_addresses_and_its_last_event(ledger: Ledger) -> None:
    ours: dict[str, Any] = {"provider": "debitsuccess", "facility": "gym"}

    def came(key: str, minutes: int, **more: Any) -> Interpreted:
        return Interpreted(envelope(key, id=new_id(microseconds(NOW - minutes * MINUTE)), **ours | more), "processed")

    at = microseconds(NOW - 30 * MINUTE)
    ledger.record(
        [
            came("event", 30, event_type="Customer.Schedule.Suspension.Added", received_at=at, source="203.0.113.8"),
            came("casual", 5, event_type="casual_payment", source=THEIRS),
            came("held", 2, event_type="casual_payment", source=STRANGER, verified=False),
            came("elsewhere", 1, facility="other", source="192.0.2.1"),
        ]
    )
    with queries.reading(ledger.engine) as connection:
        assert debitsuccess.proven_sources(connection, DEBITSUCCESS) == {THEIRS, "203.0.113.8"}
        assert debitsuccess.last_event(connection, DEBITSUCCESS, NOW) == NOW - 30 * MINUTE
        assert debitsuccess.last_event(connection, DEBITSUCCESS, NOW + timedelta(days=2)) is None


# Checkout.com


def lost(ledger: Ledger, now: datetime = NOW) -> Problem | None:
    with queries.reading(ledger.engine) as connection:
        return checkout.answers_lost(connection, CHECKOUT, now)


def deliver(ledger: Ledger, key: str, minutes: float, **fields: Any) -> None:
    at = microseconds(NOW - minutes * MINUTE)
    ledger.record([processed(key, event(payment_id=key), id=new_id(at), received_at=at, **fields)])


def test_retries_of_what_was_answered(ledger: Ledger) -> None:
    deliver(ledger, "a", 20)
    deliver(ledger, "a", 15)
    assert lost(ledger) is None, "one answer may be lost on the way"
    deliver(ledger, "a", 5)
    problem = lost(ledger)
    assert problem is not None
    assert problem.sentence == ("Checkout.com repeats to checkout/main what was answered 200: 2 times within 2 hours.")
    assert lost(ledger, NOW + timedelta(hours=3)) is None


def test_repeats_that_are_no_retries(ledger: Ledger) -> None:
    for number in range(3):
        deliver(ledger, f"twice{number}", 10)
        deliver(ledger, f"twice{number}", 9.9)
        deliver(ledger, f"by hand{number}", 40 * 24 * 60)
        deliver(ledger, f"by hand{number}", 5)
        deliver(ledger, f"conflict{number}", 30)
        deliver(ledger, f"conflict{number}", 20, fingerprint="f2")
        deliver(ledger, f"other{number}", 30, facility="other")
        deliver(ledger, f"other{number}", 20, facility="other")
    assert lost(ledger) is None


# The certificate of the public name


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A TLS server on loopback; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("", free_port())) as listening:

        def answer() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    plain.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_certificate_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path, make_authority(tmp_path, "ca"))
    now = datetime.now(UTC)
    with serving(tmp_path) as port:
        (unknown,) = certificate.problems("localhost", port, now)
        assert (unknown.kind, "does not prove it" in unknown.sentence) == (AlarmKind.CERTIFICATE_UNFIT, True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        ends = certificate.valid_until("localhost", port)
        assert timedelta(hours=23) < ends - now < timedelta(hours=25)
        for days, level in ((31, None), (29, 1), (13, 2), (2, 3)):
            found = certificate.problems("localhost", port, ends - timedelta(days=days))
            assert [problem.level for problem in found] == ([] if level is None else [level])
        (other,) = certificate.problems("127.0.0.2", port, now)
        assert (other.kind, other.level) == (AlarmKind.CERTIFICATE_UNFIT, 4)
    (gone,) = certificate.problems("localhost", port, now)
    assert gone.kind is AlarmKind.PUBLIC_NAME_AWAY


# The figures of this machine


def test_the_figures_of_the_accept_processes() -> None:
    before = figures.counted()[NOT_STORED].get(("debitsuccess", "figures"), 0.0)
    metrics.NOT_STORED.labels("debitsuccess", "figures").inc()
    metrics.CARDS_MASKED.labels("debitsuccess", "figures", "body").inc(2)
    metrics.CARDS_MASKED.labels("debitsuccess", "figures", "header").inc(1)
    counts = figures.counted()
    assert counts[NOT_STORED]["debitsuccess", "figures"] == before + 1
    assert counts[MASKED]["debitsuccess", "figures"] >= 3
    assert isinstance(metrics.NOT_STORED, Counter)


def test_what_rises_counts_for_a_while_and_what_was_there_before_does_not() -> None:
    risen = Risen(MASKED)

    def see(minutes: int, number: float) -> None:
        counts: Mapping[tuple[str, str], float] = {("checkout", "main"): number}
        risen.see({MASKED: counts, NOT_STORED: {}}, NOW + minutes * MINUTE, 10 * MINUTE)

    see(0, 5)
    assert figures.masked(risen) == []
    see(1, 6)
    see(3, 7)
    see(4, 7)
    (problem,) = figures.masked(risen)
    assert (problem.subject, "the last at 2026-11-27 09:03 UTC" in problem.sentence) == ("checkout/main", True)
    assert risen.first["checkout", "main"] == NOW + MINUTE
    see(13, 7)
    assert figures.masked(risen)
    # The processes began anew.
    see(14, 0)
    assert figures.masked(risen) == []
    see(15, 1)
    assert figures.masked(risen)


# What they are put together of


def test_problems_of_the_same_kind_and_subject_are_one() -> None:
    days = [
        Problem(AlarmKind.SETTLEMENT_FILE_MISSING, f"No file for {day}.", "quickstream/acme", day) for day in (1, 2)
    ]
    other = Problem(AlarmKind.SETTLEMENT_FILE_MISSING, "No file.", "quickstream/other")
    both, alone = one_of_each([*days, other])
    assert (both.sentence, both.level) == ("No file for 1. No file for 2.", 2)
    assert alone == other


@pytest.mark.parametrize("region", ["XX", "AU-XXX"])
def test_holidays_that_nobody_knows(region: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^alarms\.holidays: {region} is no country"):
        holidays_of(["NZ", region])
