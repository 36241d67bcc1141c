"""Alarms in the ledger: what is written at the same time, by another version, or while the ledger was away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Engine, insert

from tests.servers import eventually
from tests.support import secrets
from tests.workers.material import waits_for_a_lock
from workers.alarms import store
from workers.alarms.board import Alarm
from workers.alarms.desk import Desk
from workers.alarms.kinds import AlarmKind
from workers.audit import Actor, Audit
from workers.ledger import queries
from workers.ledger.tables import alarms

NOW = datetime.now(UTC).replace(microsecond=0)
ALARM = Alarm(
    kind=AlarmKind.CERTIFICATE_UNFIT,
    subject="pay.example.com:443",
    sentence="It ends.",
    level=1,
    times=1,
    raised_at=NOW - timedelta(hours=9),
    told_at=NOW - timedelta(hours=9),
)
KNOWN = msgspec.structs.replace(
    ALARM,
    acknowledged_by="anna",
    acknowledged_at=NOW - timedelta(hours=8),
    acknowledged_reason="known",
    acknowledged_level=1,
)


def test_one_that_is_acknowledged_while_it_changes(engine: Engine) -> None:
    desk = Desk(engine, Audit(secrets("seal")))
    with engine.begin() as connection:
        store.write(connection, [ALARM], ())
    with ThreadPoolExecutor(1) as other:
        with engine.begin() as connection:
            store.every_alarm(connection, lock=True)
            done = other.submit(desk.acknowledge, Actor("anna", "203.0.113.7"), ALARM.name, "known")
            if engine.dialect.name == "postgresql":
                eventually(lambda: waits_for_a_lock(engine), what="whoever acknowledges it waits")
            store.write(connection, [msgspec.structs.replace(ALARM, level=2)], ())
        assert done.result(10)["acknowledged_by"] == "anna"
    with queries.reading(engine) as connection:
        assert [alarm.acknowledged_level for alarm in store.open_alarms(connection)] == [2]


def test_kinds_of_a_newer_version_are_left_to_it(engine: Engine) -> None:
    with engine.begin() as connection:
        newer = msgspec.structs.asdict(ALARM) | {"kind": "moon_is_full"}
        connection.execute(insert(alarms).values(newer))
        store.write(connection, [ALARM], ())
    with queries.reading(engine) as connection:
        assert store.open_alarms(connection) == [ALARM]
        assert store.every_alarm(connection) == {ALARM.key: ALARM}


def test_what_was_acknowledged_before_the_ledger_went_away_stays_so(engine: Engine) -> None:
    worse = msgspec.structs.replace(ALARM, level=2)
    told = msgspec.structs.replace(worse, told_at=NOW)
    for meanwhile, acknowledged in ((ALARM, True), (worse, True), (told, False)):
        with engine.begin() as connection:
            store.write(connection, [KNOWN], ())
            store.catch_up(connection, [meanwhile], ())
            (found,) = store.open_alarms(connection)
        assert (found.level, found.acknowledged) == (meanwhile.level, acknowledged)
