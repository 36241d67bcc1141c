"""What is wrong, seen in a real Redis and a real ledger; and what cannot be seen while one of them is away."""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from receiver import metrics
from receiver import settings as configuration
from receiver.errors import Reason
from receiver.notification import microseconds, new_id
from receiver.refusals import Refusal, RefusalLog
from tests.servers import Valkey, free_port, running_valkey
from tests.workers.material import envelope, event, processed, sign_of_life
from workers.alarms.conditions import Conditions, Seen
from workers.alarms.kinds import AlarmKind
from workers.ledger.ledger import Interpreted, Ledger

NOW = datetime.now(UTC)
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
THEIRS = "203.0.113.7"


@pytest.fixture
def document(database_url: str, valkey_server: Valkey, redis: Redis, tmp_path: Path) -> dict[str, Any]:
    """All is well: a worker has given a sign of life."""
    sign_of_life(redis)
    return {
        "data_dir": str(tmp_path / "var"),
        "queue": {"redis_url": valkey_server.url},
        "store": {"database_url": database_url},
        "security": {"seal_keys": ["seal"]},
        "endpoint": [
            {"provider": "checkout", "facility": "main", "signature_keys": ["k"]},
            {"provider": "debitsuccess", "facility": "gym", "event_tokens": ["k"]},
        ],
    }


class Looking:
    """Looks a minute apart: every source is asked each time."""

    def __init__(self, document: dict[str, Any], folder: Path, engine: Engine) -> None:
        self.conditions = Conditions(configuration.read(document, folder), engine)
        self.minute = 0

    def look(self) -> Seen:
        self.minute += 1
        return self.conditions.look(NOW + timedelta(minutes=self.minute), self.minute * 60.0)

    def names(self) -> list[tuple[str, str]]:
        return [(problem.kind.value, problem.subject) for problem in self.look().problems]


@pytest.fixture
def looking(document: dict[str, Any], engine: Engine, tmp_path: Path) -> Looking:
    return Looking(document, tmp_path, engine)


def refuse(redis: Redis, at: datetime, detail: str = "The X-Token header does not match this endpoint.") -> None:
    told = Refusal(
        at=microseconds(at),
        provider="debitsuccess",
        facility="gym",
        source=THEIRS,
        reason=Reason.TOKEN_REFUSED,
        detail=detail,
        status=403,
        size=10,
        content_type="application/json",
    )
    RefusalLog(redis)._write([told])


def came(ledger: Ledger, at: datetime) -> None:
    """An event of Debitsuccess that was accepted."""
    fields: dict[str, Any] = {"provider": "debitsuccess", "facility": "gym", "event_type": "Schedule", "source": THEIRS}
    one = envelope(f"e{at}", id=new_id(microseconds(at)), received_at=microseconds(at), **fields)
    ledger.record([Interpreted(one, "processed")])


def test_all_is_well(looking: Looking) -> None:
    assert looking.look() == Seen([], frozenset())


def test_events_of_debitsuccess_that_are_refused(looking: Looking, redis: Redis, ledger: Ledger) -> None:
    came(ledger, NOW - timedelta(days=3))
    refuse(redis, NOW, "The WebhookToken does not belong to this PaymentFormToken.")
    assert looking.names() == []
    refuse(redis, NOW + timedelta(seconds=1))
    assert looking.names() == [("webhook_disabling", "debitsuccess/gym")]
    came(ledger, NOW + timedelta(seconds=180))
    assert looking.names() == []


def test_events_of_debitsuccess_that_nothing_could_store(
    document: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    """That is when Redis is away as well, and no refusal can be read."""
    with running_valkey() as server:
        document["queue"]["redis_url"] = server.url
        looking = Looking(document, tmp_path, engine)
        looking.look()
        server.kill()
        metrics.NOT_STORED.labels("debitsuccess", "gym").inc()
        seen = looking.look()
        names = [problem.kind for problem in seen.problems]
        assert names == [AlarmKind.REDIS_AWAY, AlarmKind.WEBHOOK_DISABLING]
        assert "could not be stored" in seen.problems[1].sentence
        assert seen.unknown >= {AlarmKind.NO_WORKER, AlarmKind.ENDPOINT_SILENT}
        looking.minute += 10
        assert AlarmKind.WEBHOOK_DISABLING in looking.look().unknown


def test_what_waits_for_a_person_has_its_number(looking: Looking, ledger: Ledger) -> None:
    for number in range(2):
        ledger.record([processed(f"twice{number}", event(payment_id="p"))])
        ledger.record([processed(f"twice{number}", event(payment_id="p"), fingerprint="f2")])
    ledger.record([processed("part", event(payment_id="part", partial=True))])
    ledger.record([Interpreted(envelope("bad"), "failed", "interpretation_failed", "x")])
    found = {problem.kind: problem.level for problem in looking.look().problems}
    assert found == {AlarmKind.NOTIFICATIONS_FAILED: 1, AlarmKind.CONFLICTS: 2, AlarmKind.MISMATCHES: 1}


def test_retries_of_checkout_and_masked_cards_and_a_name_that_is_away(
    document: dict[str, Any], engine: Engine, tmp_path: Path, ledger: Ledger
) -> None:
    name = f"localhost:{free_port()}"
    document["alarms"] = {"public_name": name}
    looking = Looking(document, tmp_path, engine)
    assert looking.names() == [("public_name_away", name)]
    for minutes in (40, 35, 25):
        at = microseconds(NOW - timedelta(minutes=minutes))
        ledger.record([processed("again", event(), id=new_id(at), received_at=at)])
    metrics.CARDS_MASKED.labels("checkout", "main", "body").inc()
    assert sorted(looking.names()) == [
        ("answers_lost", "checkout/main"),
        ("card_numbers_masked", "checkout/main"),
        ("public_name_away", name),
    ]


def test_while_the_ledger_is_away_what_it_knows_is_unknown(looking: Looking, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE notifications RENAME TO elsewhere"))
    seen = looking.look()
    assert [problem.kind for problem in seen.problems] == [AlarmKind.LEDGER_AWAY]
    assert seen.unknown == {
        *(AlarmKind.NOTIFICATIONS_FAILED, AlarmKind.CONFLICTS, AlarmKind.MISMATCHES),
        *(AlarmKind.SETTLEMENT_FILE_MISSING, AlarmKind.ANSWERS_LOST, AlarmKind.ENDPOINT_SILENT),
    }
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO notifications"))
    assert looking.look() == Seen([], frozenset())


def test_nobody_is_silent_while_nothing_is_recorded(looking: Looking, redis: Redis) -> None:
    redis.flushall()
    seen = looking.look()
    assert [problem.kind for problem in seen.problems] == [AlarmKind.NO_WORKER]
    assert seen.unknown == {AlarmKind.ENDPOINT_SILENT}


def test_a_fault_in_one_source_hides_no_other(
    looking: Looking, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    monkeypatch.setattr("workers.alarms.checkout.answers_lost", lambda *_: 1 / 0)
    ledger.record([Interpreted(envelope("bad"), "failed", "interpretation_failed", "x")])
    seen = looking.look()
    assert [problem.kind for problem in seen.problems] == [AlarmKind.NOTIFICATIONS_FAILED]
    assert seen.unknown == {AlarmKind.ANSWERS_LOST}
    assert [each["event"] for each in logged if each["log_level"] == "error"] == ["alarm_source_failed"]
