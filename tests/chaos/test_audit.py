"""The audit finds what it is there to find: a ledger that lost, doubled or changed something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import text

from receiver.notification import Envelope, Expectation, new_id, now_us
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Message
from receiver.signing import Seal
from tests.chaos.audit import Findings, audit
from tests.chaos.journal import Journal
from tests.chaos.load import facts_of
from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM, secrets
from workers.ledger import database
from workers.ledger.ledger import Ledger
from workers.ledger.tables import notifications
from workers.pipeline import Pipeline
from workers.simulator import SENDERS
from workers.simulator.base import Outgoing

ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    (endpoint.provider, endpoint.facility): endpoint for endpoint in (QUICKSTREAM, CHECKOUT, DEBITSUCCESS, PAYMENTZ)
}

# What a second row of the same notification has, column by column.
ANOTHER = {"id": "'another'", "dedupe_key": "'another'", "deliveries": "1"}
NAMES = [column.name for column in notifications.columns]
COPY = "INSERT INTO notifications ({}) SELECT {} FROM notifications WHERE id = :one".format(  # noqa: S608
    ", ".join(NAMES), ", ".join(ANOTHER.get(name, name) for name in NAMES)
)


class Scene:
    """Payments of all four senders, sent, answered and recorded as they should be."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        database.migrate(self.url)
        self.engine = database.open_engine(self.url)
        self.pipeline = Pipeline(ENDPOINTS, Ledger(self.engine), Seal(secrets("key"), "batch"))
        self.journal = Journal(folder / "journal.sqlite3")
        for (provider, facility), endpoint in ENDPOINTS.items():
            for serial in range(8):
                outgoings = SENDERS[provider].payment(endpoint, Random("{provider} {serial}"), serial, None)
                first = facts_of(provider, outgoings[0])
                payment = self.journal.payment(provider, facility, first.payment_id, first.amount, first.currency)
                for outgoing in outgoings:
                    self.deliver(endpoint, outgoing, payment)

    def deliver(self, endpoint: Endpoint, outgoing: Outgoing, payment: int) -> None:
        facts = facts_of(endpoint.provider, outgoing)
        number = self.journal.notification(
            payment if facts.says else None, outgoing.body, facts.says, facts.refunded, False
        )
        self.expect(endpoint, outgoing)
        for _ in range(2):
            envelope = self.envelope(endpoint, outgoing)
            self.pipeline._record([self.pipeline.interpret(envelope)])
            self.journal.answered(number, envelope.id, "accepted")
        self.journal.attempted(number, 3)

    def expect(self, endpoint: Endpoint, outgoing: Outgoing) -> None:
        given = outgoing.expect
        if given is not None:
            expectation = Expectation(
                provider=endpoint.provider,
                facility=endpoint.facility,
                reference=given["reference"],
                amount=int(given["amount"].replace(".", "")),
                currency=given["currency"],
                exponent=2,
                registered_at=now_us(),
                token=given["token"],
                webhook_token=given["webhook_token"],
            )
            self.pipeline.expect(expectation)

    def envelope(self, endpoint: Endpoint, outgoing: Outgoing) -> Envelope:
        headers = {name.lower(): value for name, value in outgoing.headers.items()}
        provider = PROVIDERS[endpoint.provider]
        kept = {name: headers[name] for name in provider.kept_headers if name in headers}
        identity = provider.identify(Message(headers["content-type"], kept, outgoing.body), endpoint)
        return Envelope(
            id=new_id(now_us()),
            provider=endpoint.provider,
            facility=endpoint.facility,
            received_at=now_us(),
            source="127.0.0.1",
            content_type=headers["content-type"],
            headers=kept,
            body=outgoing.body,
            verified=True,
            dedupe_key=identity.dedupe_key,
            event_type=identity.event_type,
            fingerprint=identity.fingerprint,
            quarantine="",
            detail="",
        )

    def damage(self, statement: str) -> None:
        """`:one` is a notification, `:payment` is a payment."""
        with self.engine.begin() as connection:
            one = connection.scalar(text("SELECT min(id) FROM notifications WHERE provider = 'quickstream'"))
            payment = connection.scalar(text("SELECT min(payment_id) FROM payments WHERE state = 'captured'"))
            names = {"one": one, "payment": payment}
            wanted = {name: value for name, value in names.items() if f":{name}" in statement}
            assert connection.execute(text(statement), wanted).rowcount == 1

    def audit(self) -> Findings:
        return audit(self.journal, self.url)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    here = Scene(tmp_path)
    yield here
    here.engine.dispose()
    here.journal.close()


def test_a_ledger_that_is_right(scene: Scene) -> None:
    findings = scene.audit()
    assert (findings.lost, findings.doubled, findings.wrong) == ([], [], [])
    assert findings.stored == scene.journal.notifications
    assert findings.payments == scene.journal.payments


@pytest.mark.parametrize(
    ("statement", "lost", "doubled", "wrong"),
    [
        ("DELETE FROM notifications WHERE id = :one", True, False, True),
        ("DELETE FROM repeats WHERE notification_id = :one", True, True, False),
        (
            COPY,
            False,
            True,
            False,
        ),
        ("UPDATE notifications SET deliveries = 3 WHERE id = :one", False, True, False),
        ("UPDATE notifications SET state = 'failed' WHERE id = :one", False, False, True),
        ("UPDATE notifications SET conflicts = 1 WHERE id = :one", False, False, True),
        ("UPDATE notifications SET body = CAST('x' AS BLOB) WHERE id = :one", True, False, True),
        ("UPDATE payments SET amount = amount + 1 WHERE payment_id = :payment", False, False, True),
        ("UPDATE payments SET amount_refunded = 1 WHERE payment_id = :payment", False, False, True),
        ("UPDATE payments SET state = 'pending' WHERE payment_id = :payment", False, False, True),
        ("UPDATE payments SET currency = 'XXX' WHERE payment_id = :payment", False, False, True),
        ("DELETE FROM payments WHERE payment_id = :payment", False, False, True),
    ],
)
def test_a_damaged_ledger(scene: Scene, statement: str, lost: bool, doubled: bool, wrong: bool) -> None:
    scene.damage(statement)
    findings = scene.audit()
    assert (bool(findings.lost), bool(findings.doubled), bool(findings.wrong)) == (lost, doubled, wrong), findings


def test_a_forgery_that_was_believed(scene: Scene) -> None:
    scene.journal.db.execute("UPDATE notifications SET forged = 1 WHERE number = 1")
    assert any("forged" in what for what in scene.audit().wrong)
