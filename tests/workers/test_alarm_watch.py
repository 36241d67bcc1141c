"""Who looks after the alarms, and that each is told exactly once, whatever is away or dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from receiver import settings as configuration
from receiver.errors import NotDone, Reason
from receiver.settings import Settings
from tests.mailbox import Hookbox, Mailbox
from tests.servers import Valkey, eventually, running_valkey
from tests.support import secrets
from tests.workers.material import rows, sign_of_life
from workers import health
from workers.alarms import desk
from workers.alarms.desk import Desk
from workers.alarms.store import GIVEN_BACK, TAKEN_OVER_AFTER
from workers.alarms.watch import Watch
from workers.audit import Actor, Audit
from workers.ledger import queries
from workers.ledger.tables import alarm_messages, alarm_watch, alarms, audit
from workers.supervisor import own_command

ANNA = Actor("anna", "203.0.113.7")
RAISED = "[Postback] Redis does not answer."
CLEARED = "[Postback] Cleared: Redis does not answer."
TABLES = ("alarms", "alarm_messages", "alarm_watch")
LEDGER = "[Postback] The ledger does not answer."


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """With a worker that gave a sign of life, so that all is well."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def redis(server: Valkey) -> Iterator[Redis]:
    with server.client() as client:
        client.flushall()
        sign_of_life(client)
        yield client


class Machine:
    """A machine of the installation: its data_dir, and the processes on it one after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.watch = Watch(settings)
        self.others: list[Watch] = []

    def again(self) -> None:
        """The process is killed, and another one starts."""
        assert self.watch._lock is not None
        os.close(self.watch._lock)
        self.watch._engine.dispose()
        self.watch = Watch(self.settings)

    def close(self) -> None:
        for watch in (self.watch, *self.others):
            watch.stop()


class Clock:
    """Looks of any machines, five seconds apart, at a time that the test makes."""

    def __init__(self) -> None:
        self.second = 0
        self.start = datetime.now(UTC)
        """Of this test: health asks its own clock."""

    def go(self, seconds: int, *machines: Machine) -> None:
        for _ in range(seconds // 5):
            self.second += 5
            for machine in machines:
                for watch in (machine.watch, *machine.others):
                    watch.look(self.start + timedelta(seconds=self.second), float(self.second))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def document(
    server: Valkey, redis: Redis, database_url: str, mailbox: Mailbox, hookbox: Hookbox, tmp_path: Path
) -> dict[str, Any]:
    return {
        "data_dir": str(tmp_path / "var"),
        "queue": {"redis_url": server.url},
        "store": {"database_url": database_url},
        "security": {"seal_keys": ["seal"]},
        "alarms": {
            "email": {"server": mailbox.address, "sender": "p@example.com", "to": ["o@example.com"], "tls": "none"},
            "webhook": {"url": hookbox.url, "secrets": ["whsec_bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctMQ=="]},
        },
    }


@contextmanager
def machine(document: dict[str, Any], folder: Path, name: str = "var") -> Iterator[Machine]:
    (folder / name).mkdir(exist_ok=True)
    made = Machine(configuration.read(document | {"data_dir": str(folder / name)}, folder))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def killed(server: Valkey) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()
        with server.client() as client:
            sign_of_life(client)


@contextmanager
def away(engine: Engine) -> Iterator[None]:
    """The ledger answers as one does that was not migrated, which is as good as away."""
    for table in TABLES:
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_elsewhere"))
    try:
        yield
    finally:
        for table in TABLES:
            with engine.begin() as connection:
                connection.execute(text(f"ALTER TABLE {table}_elsewhere RENAME TO {table}"))


def command(document: dict[str, Any], folder: Path, name: str = "var") -> tuple[int, list[str]]:
    """What `postback alarms list` of a machine says: its exit code and the names."""
    config = folder / f"{name}.toml"
    lines = [f'data_dir = "{folder / name}"']
    for table in ("queue", "store", "security"):
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in document[table].items())]
    config.write_text("\n".join(lines))
    asked = ["alarms", "list", "--json", "--config", str(config)]
    done = subprocess.run(own_command(*asked), capture_output=True, text=True, timeout=60)
    return done.returncode, [json.loads(line)["alarm"] for line in done.stdout.splitlines()]


def posted(box: Hookbox) -> list[str]:
    return [json.loads(each.body)["type"] for each in box.posted]


def test_a_killed_redis_is_told_once_by_each_channel_and_so_is_its_return(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox, hookbox: Hookbox,
    engine: Engine, logged: list[MutableMapping[str, Any]],
) -> None:  # fmt: skip
    with machine(document, tmp_path) as one:
        clock.go(20, one)
        assert mailbox.letters == []
        with killed(server):
            clock.go(60, one)
            assert mailbox.subjects == [RAISED]
            (alarm,) = health.examine(one.settings)["alarms"]
            assert (alarm["alarm"], alarm["acknowledged"]) == ("redis_away", False)
        clock.go(60, one)
    assert mailbox.subjects == [RAISED, CLEARED]
    assert posted(hookbox) == ["alarm.raised", "alarm.cleared"]
    assert health.examine(one.settings)["alarms"] == []
    (row,) = rows(engine, alarms)
    assert row.cleared_at - row.raised_at > timedelta(seconds=60)
    assert {(each.channel, each.tries, each.fault) for each in rows(engine, alarm_messages)} == {
        ("email", 1, None),
        ("webhook", 1, None),
    }
    assert [each["event"] for each in logged if each["event"].startswith("alarm")] == ["alarm_raised", "alarm_cleared"]


def test_of_several_processes_and_machines_one_does_it(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox
) -> None:
    with machine(document, tmp_path) as one, machine(document, tmp_path, "elsewhere") as two:
        one.others = [Watch(one.settings), Watch(one.settings)]
        clock.go(10, one, two)
        assert [watch._lock is not None for watch in (one.watch, *one.others)] == [True, False, False]
        with killed(server):
            clock.go(60, two, one)
        clock.go(60, two, one)
    assert mailbox.subjects == [RAISED, CLEARED]


def test_a_process_that_is_killed_is_followed_by_another_which_tells_nothing_twice(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox
) -> None:
    with machine(document, tmp_path) as one:
        with killed(server):
            clock.go(30, one)
            one.again()
            clock.go(30, one)
            assert mailbox.subjects == [RAISED]
        one.others = [Watch(one.settings)]
        os.close(one.watch._lock or -1)
        one.watch._lock = None
        one.watch._engine.dispose()
        one.watch, one.others = one.others[0], []
        clock.go(60, one)
    assert mailbox.subjects == [RAISED, CLEARED]


def test_a_machine_that_is_lost_is_followed_by_another(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox
) -> None:
    with machine(document, tmp_path) as one, machine(document, tmp_path, "elsewhere") as two:
        clock.go(20, one, two)
        with killed(server):
            clock.go(20, one, two)
            clock.go(int(TAKEN_OVER_AFTER) - 15, two)
            assert two.watch.lease.elsewhere is not None
            clock.go(20, two)
            assert two.watch.lease.elsewhere is None
            clock.go(10, one, two)
            assert one.watch.lease.elsewhere is not None, "what it knew is of before"
        clock.go(60, one, two)
    assert mailbox.subjects == [RAISED, CLEARED]


def test_while_the_ledger_is_away_it_is_told_as_well(
    document: dict[str, Any], tmp_path: Path, clock: Clock, mailbox: Mailbox, engine: Engine
) -> None:
    with machine(document, tmp_path) as one, machine(document, tmp_path, "elsewhere") as two:
        one.others = [Watch(one.settings)]
        clock.go(10, one, two)
        with away(engine):
            clock.go(60, one, two)
            assert mailbox.subjects == [LEDGER]
            one.again()
            two.again()
            clock.go(60, two, one)
            assert mailbox.subjects == [LEDGER]
            assert [each["alarm"] for each in health.examine(one.settings)["alarms"]] == ["ledger_away"]
            assert health.examine(two.settings)["alarms"] == []
            assert command(document, tmp_path) == (1, ["ledger_away"])
            assert command(document, tmp_path, "elsewhere")[1] == []
        clock.go(15, one, two)
        assert [row.kind for row in rows(engine, alarms)] == ["ledger_away"]
        clock.go(60, one, two)
    assert mailbox.subjects == [LEDGER, "[Postback] Cleared: The ledger does not answer."]
    assert all(row.done_at is not None for row in rows(engine, alarm_messages))


def test_what_a_machine_remembers_from_before_another_had_them_is_forgotten(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox, engine: Engine
) -> None:
    with machine(document, tmp_path) as one:
        with machine(document, tmp_path, "elsewhere") as two:
            clock.go(10, one)
            with away(engine):
                clock.go(60, one)
            assert mailbox.subjects == [LEDGER]
            clock.go(int(TAKEN_OVER_AFTER) + 10, two)
            with killed(server):
                clock.go(30, two)
            clock.go(60, two)
            assert mailbox.subjects == [LEDGER, RAISED, CLEARED]
        one.again()
        clock.go(60, one)
    assert [row.kind for row in rows(engine, alarms)] == ["redis_away"]
    assert mailbox.subjects == [LEDGER, RAISED, CLEARED]


def test_what_is_told_before_the_ledger_is_there_is_told_to_be_over(
    document: dict[str, Any], tmp_path: Path, clock: Clock, mailbox: Mailbox, engine: Engine
) -> None:
    """A machine is restarted, and the ledger answers later than the watch looks."""
    with machine(document, tmp_path) as one:
        clock.go(10, one)
        one.watch.stop()
        one.watch = Watch(one.settings)
        with away(engine):
            clock.go(30, one)
            assert mailbox.subjects == [LEDGER]
        clock.go(60, one)
    assert mailbox.subjects == [LEDGER, "[Postback] Cleared: The ledger does not answer."]


def test_what_was_sent_while_the_ledger_went_away_is_not_sent_again(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox, hookbox: Hookbox,
    engine: Engine,
) -> None:  # fmt: skip
    """It goes away between the sending of a message and the note of it, and the process dies."""
    with machine(document, tmp_path) as one, contextlib.ExitStack() as gone:
        clock.go(5, one)
        mailbox.on_letter = lambda: gone.enter_context(away(engine))
        with killed(server):
            clock.go(15, one)
            assert mailbox.subjects == [RAISED]
            mailbox.on_letter = None
            one.again()
            clock.go(5, one)
            gone.close()
            clock.go(15, one)
        clock.go(60, one)
    assert mailbox.subjects.count(RAISED) == mailbox.subjects.count(CLEARED) == 1
    assert posted(hookbox).count("alarm.raised") == posted(hookbox).count("alarm.cleared")
    assert all(row.done_at is not None for row in rows(engine, alarm_messages))


def test_a_mail_server_that_is_away_gets_it_later(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox, hookbox: Hookbox
) -> None:
    mailbox.refuses = True
    with machine(document, tmp_path) as one:
        with killed(server):
            clock.go(30, one)
            assert posted(hookbox) == ["alarm.raised"], "the other channel does not wait for it"
            mailbox.refuses = False
            clock.go(60, one)
        clock.go(60, one)
    assert mailbox.subjects == [RAISED, CLEARED]


def test_what_is_acknowledged_is_told_again_only_when_it_is_over(
    document: dict[str, Any], tmp_path: Path, server: Valkey, clock: Clock, mailbox: Mailbox, engine: Engine
) -> None:
    document["alarms"]["quiet"] = "1h"
    at = Desk(engine, Audit(secrets("seal")))
    with machine(document, tmp_path) as one:
        with killed(server):
            clock.go(30, one)
            said = at.acknowledge(ANNA, "redis_away", " the disk is being changed ")
            assert (said["acknowledged_by"], said["acknowledged_reason"]) == ("anna", "the disk is being changed")
            clock.second += 2 * 3600
            clock.go(10, one)
            assert mailbox.subjects == [RAISED]
            for name, reason in (("redis_away", Reason.STATE_CHANGED), ("ledger_away", Reason.UNKNOWN_ID)):
                with pytest.raises(NotDone) as refused:
                    at.acknowledge(ANNA, name, "x")
                assert refused.value.reason is reason
            for name in ("", "none\x00", "redis_away:x"):
                with pytest.raises(NotDone):
                    at.acknowledge(ANNA, name, "x")
        clock.go(60, one)
        assert mailbox.subjects == [RAISED, CLEARED]
        with killed(server):
            clock.go(30, one)
            clock.second += 2 * 3600
            clock.go(10, one)
    assert mailbox.subjects[2:] == [RAISED, "[Postback] Still: Redis does not answer."]
    (entry,) = rows(engine, audit)
    assert (entry.action, entry.operator, entry.subject) == ("acknowledged", "anna", "redis_away")
    with queries.reading(engine) as connection:
        (shown,) = desk.listed(connection)
        assert (shown["alarm"], shown["times"], shown["acknowledged_by"]) == ("redis_away", 2, None)
        assert desk.listed(connection, cleared=True) == []


def test_health_says_when_nobody_looks_after_them(
    document: dict[str, Any], tmp_path: Path, clock: Clock, engine: Engine
) -> None:
    with machine(document, tmp_path) as one:
        assert health.examine(one.settings)["problems"] == []
        clock.go(10, one)
        assert health.examine(one.settings)["problems"] == []
        with engine.begin() as connection:
            long_ago = alarm_watch.update().values(beaten_at=datetime.now(UTC) - timedelta(minutes=10))
            connection.execute(long_ago)
        (said,) = health.examine(one.settings)["problems"]
        assert said.startswith("Nobody has looked after the alarms since ")


def test_a_spool_that_cannot_be_read_is_a_problem_and_hides_no_other(
    document: dict[str, Any], tmp_path: Path, clock: Clock, mailbox: Mailbox
) -> None:
    with machine(document, tmp_path) as one:
        (tmp_path / "var" / "spool").mkdir()
        (tmp_path / "var" / "spool" / "spool.sqlite3").write_bytes(b"no database at all" * 100)
        clock.go(20, one)
    assert mailbox.subjects == ["[Postback] The spool cannot be read."]


def test_the_thread_looks_by_itself_and_stops(document: dict[str, Any], tmp_path: Path, engine: Engine) -> None:
    with machine(document, tmp_path) as one:
        one.watch.start()
        eventually(lambda: rows(engine, alarm_watch), what="a first look")
    assert [row.beat for row in rows(engine, alarm_watch)] == [GIVEN_BACK]


def test_a_folder_that_cannot_be_written(
    document: dict[str, Any], tmp_path: Path, clock: Clock, logged: list[MutableMapping[str, Any]]
) -> None:
    with machine(document, tmp_path) as one:
        (tmp_path / "var").rmdir()
        clock.go(20, one)
        (tmp_path / "var").mkdir()
    assert [each["event"] for each in logged] == ["alarms_not_watched"]
