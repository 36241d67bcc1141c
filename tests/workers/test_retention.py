"""Retention on both databases: what goes and what stays, beside workers, in pieces, and every day by itself."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, insert, make_url, select, text, update

from receiver import refusals, settings
from receiver.errors import BodyPurged, ConfigurationError, LedgerAway
from receiver.notification import Envelope, microseconds, new_id
from receiver.settings import Period, Retention, Settings
from tests.servers import Valkey, eventually
from tests.support import EXPECTED_CASUAL, recorded, secrets
from tests.workers import material
from tests.workers.material import counted, delivered, envelope, pipeline, processed, rows, sealed, states
from tests.workers.test_returns import seen
from workers import retention
from workers.audit import Actor, Audit
from workers.ledger import purging, queries
from workers.ledger.bodies import Bodies, keys_in_use
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.purging import Task, What, count, due, purge_piece
from workers.ledger.tables import audit, browser_returns, notifications, payments, repeats, resolutions

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BEFORE = NOW - timedelta(days=400)
DAY = timedelta(days=1)
ANNA = Actor("anna", "host")

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def came(key: str, at: datetime, **fields: Any) -> Envelope:
    received_at = microseconds(at)
    return envelope(key, id=new_id(received_at), received_at=received_at, **fields)


def keep(ledger: Ledger, *envelopes: Envelope, state: str = "processed") -> None:
    for each in envelopes:
        said = material.event(payment_id=each.dedupe_key) if state == "processed" else None
        reason = "" if state == "processed" else "missing_field"
        ledger.record([Interpreted(each, state, reason, event=said)])


def nobody(connection: Connection, purged: int) -> None:
    """Keeps no account."""


def purge_all(engine: Engine, what: What, before: datetime = BEFORE) -> int:
    task, purged = Task(what, before), 0
    while piece := purge_piece(engine, task, nobody, 2):
        purged += piece
    return purged


def gone(engine: Engine) -> set[str]:
    """Duplicate keys of the notifications without a body."""
    found = rows(engine, notifications)
    assert all((row.body == b"") is (row.purged_at is not None) for row in found)
    return {row.dedupe_key for row in found if row.purged_at is not None}


# -- what goes


def test_bodies_go_after_their_time_and_the_record_stays(ledger: Ledger, engine: Engine) -> None:
    old = [came(f"old{n}", BEFORE - n * DAY) for n in (1, 2, 3)]
    keep(ledger, *old, came("young", BEFORE + DAY), came("edge", BEFORE))
    before = {row.id: row for row in rows(engine, notifications)}
    money = rows(engine, payments)
    assert count(engine, Task(What.BODIES, BEFORE)) == 3
    assert purge_all(engine, What.BODIES) == 3
    assert gone(engine) == {"old1", "old2", "old3"}
    for row in rows(engine, notifications):
        same = row._asdict() | {name: before[row.id]._mapping[name] for name in ("body", "body_key", "purged_at")}
        assert same == before[row.id]._asdict()
    assert rows(engine, payments) == money
    assert purge_all(engine, What.BODIES) == 0


@pytest.mark.parametrize("state", ["failed", "quarantined", "held"])
def test_what_waits_for_a_person_is_not_purged_before_it_is_resolved(
    ledger: Ledger, engine: Engine, state: str
) -> None:
    waiting, decided = came("waiting", BEFORE - DAY), came("decided", BEFORE - DAY)
    keep(ledger, waiting, decided, state=state)
    resolve(engine, decided)
    assert count(engine, Task(What.UNRESOLVED, BEFORE)) == 1
    assert purge_all(engine, What.BODIES) == 1
    assert gone(engine) == {"decided"}
    assert purge_all(engine, What.UNRESOLVED) == 1
    assert gone(engine) == {"waiting", "decided"}
    assert set(states(engine).values()) == {state}


def resolve(engine: Engine, of: Envelope) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(resolutions).values(
                kind="notification",
                provider=of.provider,
                facility=of.facility,
                subject=of.id,
                verdict="ignored",
                seen=0,
                operator="anna",
                reason="a test",
                at=NOW,
            )
        )


def test_conflicting_bodies_go_with_the_bodies(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, came("k1", BEFORE - 9 * DAY, body=b"one"), came("k1", BEFORE - DAY, body=b"two", fingerprint="f2"))
    keep(ledger, came("k2", BEFORE - 9 * DAY), came("k2", BEFORE + DAY, body=b"young", fingerprint="f2"))
    keep(ledger, came("k3", BEFORE - 9 * DAY), state="quarantined")
    keep(ledger, came("k3", BEFORE - DAY, body=b"waits", fingerprint="f2"), state="quarantined")
    assert purge_all(engine, What.CONFLICTS) == 1
    assert sorted(row.body for row in rows(engine, repeats) if row.body) == [b"waits", b"young"]
    assert [row.conflict for row in rows(engine, repeats) if row.purged_at is not None] == [True]
    assert counted(engine) == [("k1", 2, 1), ("k2", 2, 1), ("k3", 2, 1)]


def test_records_of_equal_repeats_go_and_their_number_stays(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, came("k1", BEFORE - 9 * DAY), came("k1", BEFORE - DAY), came("k1", BEFORE + DAY))
    keep(ledger, came("k1", BEFORE - DAY, body=b"two", fingerprint="f2"))
    assert purge_all(engine, What.REPEATS) == 1
    assert [row.conflict for row in rows(engine, repeats)] == [True, False]
    assert counted(engine) == [("k1", 4, 1)]


def test_what_customers_saw_goes_after_its_time(ledger: Ledger, engine: Engine) -> None:
    old, young = (microseconds(at) for at in (BEFORE - DAY, BEFORE + DAY))
    ledger.note_returns([seen("d1", returned_at=old), seen("d2", returned_at=old), seen("d3", returned_at=young)])
    assert count(engine, Task(What.RETURNS, BEFORE)) == 2
    assert purge_all(engine, What.RETURNS) == 2
    assert [row.digest for row in rows(engine, browser_returns)] == ["d3"]


# -- what still works


def test_a_repeat_after_the_purge_is_still_told(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, came("k1", BEFORE - DAY, body=b"one"))
    purge_all(engine, What.BODIES)
    recorded_now = ledger.record([processed("k1", material.event(), body=b"one")])
    assert len(recorded_now.duplicates) == 1
    recorded_now = ledger.record([processed("k1", material.event(), body=b"two", fingerprint="f2")])
    assert len(recorded_now.conflicts) == 1
    assert counted(engine) == [("k1", 3, 1)]


def test_show_says_when(ledger: Ledger, engine: Engine) -> None:
    first = came("k1", BEFORE - DAY, body=b"one")
    keep(ledger, first, came("k1", BEFORE - DAY, body=b"two", fingerprint="f2"))
    for what in (What.BODIES, What.CONFLICTS):
        purge_all(engine, what)
    with queries.reading(engine) as connection:
        shown = queries.show_notification(connection, first.id, Bodies())
    assert shown is not None
    assert shown["body"] is None
    assert shown["body_note"].startswith(f"The raw body of {first.id} was purged at 20")
    assert "was purged at 20" in shown["repeats"][0]["body_note"]
    assert shown["event"]["payment_id"] == "k1"


def test_an_event_after_the_purge_folds_with_what_was_read_before(ledger: Ledger, engine: Engine) -> None:
    first = came("k1", BEFORE - DAY)
    ledger.record([Interpreted(first, "processed", event=material.event(amount=1000, currency="EUR", action_id="a"))])
    purge_all(engine, What.BODIES)
    ledger.record([processed("k2", material.event(amount=500, currency="EUR", action_id="b"))])
    assert material.only_payment(engine).amount == 1500


def test_interpreted_again_it_is_what_it_was(ledger: Ledger, engine: Engine) -> None:
    captured = delivered(recorded("checkout", "payment_captured"))
    pipeline(ledger).process(sealed(captured))
    with engine.begin() as connection:
        connection.execute(update(notifications).values(body=b"", purged_at=NOW))
    (row,) = rows(engine, notifications)
    again = pipeline(ledger).interpret_again(row)
    assert (again.state, again.payment_id) == ("processed", row.payment_id)
    with pytest.raises(BodyPurged):
        ledger.bodies.opened(row, row.provider, row.facility)


def test_a_held_one_whose_body_is_gone_is_never_believed(ledger: Ledger, engine: Engine) -> None:
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    pipeline(ledger).process(sealed(casual))
    assert purge_all(engine, What.UNRESOLVED, datetime.now(UTC) + DAY) == 1
    pipeline(ledger).expect(EXPECTED_CASUAL)
    assert states(engine) == {casual.dedupe_key: "held"}


# -- encrypted


def test_keys_in_use_are_those_of_bodies_that_are_there(engine: Engine) -> None:
    old, new = secrets("o" * 32, "n" * 32)
    keep(Ledger(engine, Bodies([old])), came("k1", BEFORE - DAY), came("k1", BEFORE - DAY, fingerprint="f2"))
    keep(Ledger(engine, Bodies([old, new])), came("k2", NOW))
    keep(Ledger(engine), came("plain", NOW))
    with queries.reading(engine) as connection:
        assert keys_in_use(connection) == set(Bodies([old, new]).key_ids)
    for what in (What.BODIES, What.CONFLICTS):
        purge_all(engine, what)
    with queries.reading(engine) as connection:
        assert keys_in_use(connection) == {Bodies([new]).key_ids[0]}


@on_sqlite
def test_nothing_of_it_is_left_in_the_file(ledger: Ledger, engine: Engine, database_url: str) -> None:
    keep(ledger, *(came(f"k{n}", BEFORE - DAY, body=b"recognisable-body-" * 30) for n in range(20)))
    purge_all(engine, What.BODIES)
    engine.dispose()
    path = Path(make_url(database_url).database or "")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert all(b"recognisable-body" not in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


# -- beside others


def test_what_is_due() -> None:
    wanted = Retention(bodies=Period(DAY.total_seconds()), repeats=Period(60))
    assert due(wanted, NOW) == [
        Task(What.BODIES, NOW - DAY),
        Task(What.CONFLICTS, NOW - DAY),
        Task(What.REPEATS, NOW - timedelta(seconds=60)),
    ]
    assert due(Retention(), NOW) == []


def test_workers_record_while_it_purges(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, *(came(f"old{n}", BEFORE - DAY) for n in range(40)))
    stop = threading.Event()

    def record() -> None:
        number = 0
        while not stop.is_set():
            # Repeats of what is being purged, and new ones: the worker locks the same rows.
            for key in (f"old{number % 40}", f"new{number}"):
                keep(ledger, came(key, NOW))
            number += 1

    worker = threading.Thread(target=record)
    worker.start()
    try:
        purged = 0
        while purged < 40:
            purged += purge_piece(engine, Task(What.BODIES, BEFORE), nobody, 3)
    finally:
        stop.set()
        worker.join(30)
    assert len(gone(engine)) == 40
    new = [row for row in rows(engine, notifications) if row.dedupe_key.startswith("new")]
    assert all(row.purged_at is None for row in new)


def test_two_purges_at_once_do_each_row_once(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, *(came(f"old{n}", BEFORE - DAY) for n in range(60)))
    done: list[int] = []
    both = [threading.Thread(target=lambda: done.append(purge_all(engine, What.BODIES))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert len(gone(engine)) == 60
    assert sum(done) >= 60 - 2  # One passes over the piece that the other holds, and may end before it.


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_a_worker_holds_is_passed_over(ledger: Ledger, engine: Engine) -> None:
    keep(ledger, came("held", BEFORE - 2 * DAY), came("free", BEFORE - DAY))
    with engine.begin() as worker:
        worker.execute(select(notifications).where(notifications.c.dedupe_key == "held").with_for_update())
        assert purge_piece(engine, Task(What.BODIES, BEFORE), nobody) == 1
    assert gone(engine) == {"free"}
    assert purge_piece(engine, Task(What.BODIES, BEFORE), nobody) == 1


def test_the_oldest_are_found_by_an_index(ledger: Ledger, engine: Engine) -> None:
    # Nearly all of a large history is purged already. Only then is another index so much longer that PostgreSQL chooses
    # by it, whatever was left in its statistics.
    keep(ledger, *(came(f"old{n}", BEFORE - DAY) for n in range(2000)))
    with engine.begin() as connection:
        connection.execute(update(notifications).values(purged_at=BEFORE))
    keep(ledger, *(came(f"old{n}", BEFORE - DAY) for n in range(1000)))  # They come again: repeats without a body.
    keep(ledger, *(came(f"new{n}", NOW) for n in range(5)))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE notifications, repeats"))
    with engine.connect() as connection:
        reading = connection.execution_options(reading=True)
        for what, index in ((What.BODIES, "ix_notifications_unpurged"), (What.CONFLICTS, "ix_repeats_with_body")):
            query = purging._overdue(Task(what, BEFORE)).order_by("id").limit(5)
            compiled = query.compile(engine, compile_kwargs={"literal_binds": True})
            explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
            plan = "\n".join(str(row) for row in reading.exec_driver_sql(f"{explain} {compiled}".replace("%", "%%")))
            assert index in plan, plan


# -- by the settings


def configured(folder: Path, redis_url: str, database_url: str, **periods: str) -> Settings:
    return settings.read(
        {
            "data_dir": str(folder),
            "queue": {"redis_url": redis_url},
            "store": {"database_url": database_url},
            "security": {"seal_keys": ["seal"]},
            "retention": periods,
        },
        folder,
    )


@pytest.mark.parametrize(
    ("periods", "sentence"),
    [
        ({"bodies": "400"}, "retention.bodies: must be a period such as 400d, in hours"),
        ({"bodies": 400}, "retention.bodies: must be a period"),
        ({"bodies": "0d"}, "retention.bodies: must be above zero"),
        ({"bodys": "1d"}, "retention.bodys: is not a known key"),
        ({"bodies": "30d", "unresolved": "29d"}, "retention.unresolved: must not be shorter than retention.bodies"),
        ({"repeats": "29d"}, "retention.repeats: must be 30d or more"),
    ],
)
def test_periods_that_cannot_be_meant(tmp_path: Path, periods: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        configured(tmp_path, "redis://h", "sqlite:///x", **periods)


@pytest.fixture
def asked(tmp_path: Path, valkey_server: Valkey, database_url: str) -> Settings:
    periods = {"bodies": "400d", "refusals": "1h", "repeats": "5w"}
    return configured(tmp_path, valkey_server.url, database_url, **periods)


def refused(redis: Redis, ms: int) -> None:
    redis.xadd(refusals.STREAM, {"r": b"x"}, id=f"{ms}-1")


def test_all_of_it_at_once(redis: Redis, ledger: Ledger, engine: Engine, asked: Settings) -> None:
    now = datetime.now(UTC)
    keep(ledger, came("k1", now - 401 * DAY), came("k1", now - 36 * DAY), came("k1", now - 34 * DAY))
    refused(redis, microseconds(now - 2 * timedelta(hours=1)) // 1000)
    refused(redis, microseconds(now) // 1000)
    counts = {"bodies": 1, "conflicts": 0, "repeats": 1, "refusals": 1}
    assert {step.what: step.purged for step in retention.overdue(asked, ledger, redis)} == counts
    assert gone(engine) == set()
    steps = list(retention.purge(asked, ledger, redis, ANNA))
    assert {step.what: step.purged for step in steps} == {"bodies": 1, "repeats": 1, "refusals": 1}
    assert all(step.purged == 0 for step in retention.overdue(asked, ledger, redis))
    assert len(redis.xrange(refusals.STREAM)) == 1  # type: ignore[arg-type]


@pytest.mark.usefixtures("small")
def test_each_piece_is_in_the_audit_trail_as_soon_as_it_is_gone(
    redis: Redis, ledger: Ledger, engine: Engine, asked: Settings
) -> None:
    """Whoever is killed between any two pieces leaves nothing out of it."""
    keep(ledger, *(came(f"k{n}", datetime.now(UTC) - 401 * DAY) for n in range(5)))
    refused(redis, microseconds(datetime.now(UTC) - 2 * timedelta(hours=1)) // 1000)
    wanted = ['{"bodies":2}', '{"bodies":2}', '{"bodies":1}', '{"refusals":1}']
    for number, _ in enumerate(retention.purge(asked, ledger, redis, ANNA), 1):
        entries = rows(engine, audit)
        assert [entry.facts for entry in entries] == wanted[:number]
        assert {(entry.operator, entry.action) for entry in entries} == {("anna", "purged")}
    with queries.reading(engine) as connection:
        assert Audit(asked.security.seal_keys).verify(connection).faults == []


def test_nothing_goes_without_the_audit_trail(
    redis: Redis, ledger: Ledger, engine: Engine, asked: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(ledger, came("k1", datetime.now(UTC) - 401 * DAY))
    refused(redis, microseconds(datetime.now(UTC) - 2 * timedelta(hours=1)) // 1000)

    def away(*arguments: Any, **facts: Any) -> int:
        raise LedgerAway("away")

    monkeypatch.setattr(Audit, "add", away)
    for periods in (asked.retention, Retention(refusals=Period(3600))):
        with pytest.raises(LedgerAway):
            list(retention.purge(msgspec.structs.replace(asked, retention=periods), ledger, redis, ANNA))
    assert gone(engine) == set()
    assert refusals.count(redis, datetime.now(UTC)) == 1


# -- every day by itself


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 0.0)
    monkeypatch.setattr(purging.purge_piece, "__defaults__", (2,))


@pytest.mark.usefixtures("small")
def test_one_worker_purges_in_slices_and_then_not_before_the_next_day(
    redis: Redis, ledger: Ledger, engine: Engine, asked: Settings, logged: list[Any]
) -> None:
    keep(ledger, *(came(f"k{n}", datetime.now(UTC) - 401 * DAY) for n in range(5)))
    first, second = retention.Daily(asked, ledger), retention.Daily(asked, ledger)
    for left in (3, 1, 0):
        first(redis, "first")
        second(redis, "second")
        assert 5 - len(gone(engine)) == left
        assert redis.get(retention.LOCK) == b"first"
        assert redis.ttl(retention.LOCK) <= retention.LEASE
    first(redis, "first")
    assert redis.ttl(retention.LOCK) > retention.LEASE
    keep(ledger, came("k9", datetime.now(UTC) - 401 * DAY))
    first(redis, "first")
    second(redis, "second")
    assert "k9" not in gone(engine)
    redis.delete(retention.LOCK)
    second(redis, "second")
    assert "k9" in gone(engine)
    assert {entry.operator for entry in rows(engine, audit)} == {"retention"}
    assert [entry.facts for entry in rows(engine, audit)] == [f'{{"bodies":{n}}}' for n in (2, 2, 1, 1)]
    assert [line["bodies"] for line in logged if line["event"] == "purged"] == [5], "at the end of a run"


def test_without_periods_it_does_nothing(redis: Redis, ledger: Ledger, tmp_path: Path, valkey_server: Valkey) -> None:
    plain = configured(tmp_path, valkey_server.url, "sqlite:///x")
    retention.Daily(plain, ledger)(redis, "w")
    assert redis.get(retention.LOCK) is None


@pytest.mark.parametrize("error", [LedgerAway("away"), ValueError("a fault of ours")])
def test_a_fault_ends_it_for_a_while_and_never_the_worker(
    redis: Redis, ledger: Ledger, asked: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, logged: list[Any]
) -> None:
    def fails(*arguments: Any) -> int:
        raise error

    monkeypatch.setattr(purging, "purge_piece", fails)
    daily = retention.Daily(asked, ledger)
    daily(redis, "w")
    assert retention.LEASE < redis.ttl(retention.LOCK) <= retention.AFTER_A_FAULT
    assert [line["event"] for line in logged] == (["purge_failed"] if isinstance(error, ValueError) else [])


def test_a_worker_purges(
    redis: Redis, ledger: Ledger, engine: Engine, asked: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.runner import BatchWorker

    keep(ledger, came("old", datetime.now(UTC) - 401 * DAY))
    worker = BatchWorker(redis, ledger, retention.Daily(asked, ledger))

    def watch() -> None:
        eventually(lambda: gone(engine) == {"old"}, what="the purge")
        worker.stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        worker.work(logging_level="WARNING")
    finally:
        watcher.join(30)
    assert gone(engine) == {"old"}
