"""Looks after the alarms: a thread of every worker and every console, of which one does it at a time.

Neither RQ nor Redis is needed for it, as their being away is an alarm, nor a worker, as there may be none. On one
machine a lock on a file of `data_dir` decides who does it, which the system gives on when its holder dies; between
machines a row of the ledger does. While the ledger is away, whoever had the alarms keeps them, in memory and in a file,
and gives the ledger what it lacks when it is back. Should its machine be lost meanwhile as well, nobody takes over.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Connection

from receiver import logs
from receiver.errors import LedgerAway
from receiver.settings import Settings
from workers.alarms import messages, store
from workers.alarms.board import Alarm, Board, Change, Rules
from workers.alarms.conditions import Conditions, Seen
from workers.alarms.kinds import AlarmKind, Key, Problem
from workers.alarms.messages import Message
from workers.alarms.sending import PAUSES, channels, tried
from workers.ledger.database import away_when_it_fails, open_engine, url

log = logs.get("workers.alarms")

FORGET_EVERY = 3600.0
STOPS_WITHIN = 2.0


class Watch:
    """Raises `ConfigurationError` for a configuration that cannot be used."""

    def __init__(self, settings: Settings) -> None:
        alarms = settings.alarms
        self._settings = settings
        self._engine = open_engine(url(settings))
        self._conditions = Conditions(settings, self._engine)
        self._board = Board(Rules(alarms.confirm, alarms.calm, alarms.quiet))
        self._channels = channels(settings)
        self._file = store.File(settings.data_dir)
        self._lock: int | None = None
        self._lease: store.Lease | None = None
        self._alarms: dict[Key, Alarm] = {}
        self._messages: dict[str, Message] = {}
        self._again: dict[str, float] = {}
        """When a message is tried again, by a clock that nobody sets."""
        self._ahead = False
        self._forgotten: float | None = None
        self._lock_failed = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is under way ends with the process, if it takes long."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOPS_WITHIN)
            if self._thread.is_alive():
                return
        self._give_back()
        self._engine.dispose()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look(datetime.now(UTC), time.monotonic())
            except Exception:
                log.exception("alarm_watch_failed")
            self._stopping.wait(self._settings.alarms.look_every)

    def look(self, now: datetime, tick: float) -> None:
        """One look, if it is this process that does it: what is wrong, what is an alarm, and who is told."""
        if not self._first_here() or not self._ours(now, tick):
            return
        seen = self._conditions.look(now, tick)
        try:
            held = self._judge_in_the_ledger(seen, now, tick)
        except LedgerAway:
            self._judge_here(_with_the_ledger_away(seen), now, tick)
            held = True
        if held:
            self._send(now, tick)
            self._keep_copy()

    def _first_here(self) -> bool:
        """Whether this is the process of this machine that has the lock."""
        if self._lock is not None:
            return True
        try:
            file = os.open(self._settings.data_dir / "alarms.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            if not self._lock_failed:
                log.error("alarms_not_watched", error=type(error).__name__)
            self._lock_failed = True
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._lock = file
        self._remember()
        return True

    def _remember(self) -> None:
        """Goes on where the process before this one was."""
        holder = f"{socket.gethostname()[:100]}-{os.getpid()}-{secrets.token_hex(4)}"
        copy = self._file.read()
        self._lease = store.Lease(holder, copy.holder if copy is not None and copy.here else None)
        if copy is not None:
            self._alarms = {alarm.key: alarm for alarm in copy.alarms}
            self._messages = {message.id: message for message in copy.messages}
            self._ahead = copy.ahead
            if not copy.here:
                self._lease.known_elsewhere(copy.holder)

    @contextmanager
    def _ledger(self) -> Iterator[Connection]:
        """A transaction that is committed. Raises `LedgerAway`, also before the ledger was ever made."""
        if self._settings.store.database_url is None and not (self._settings.data_dir / "ledger.sqlite3").exists():
            raise LedgerAway("The ledger does not exist yet.")
        with away_when_it_fails(), self._engine.begin() as connection:
            yield connection

    @property
    def lease(self) -> store.Lease:
        assert self._lease is not None
        return self._lease

    def _ours(self, now: datetime, tick: float) -> bool:
        """Whether this machine looks after the alarms; asked before all that costs more."""
        try:
            with self._ledger() as connection:
                held = self.lease.take(connection, now, tick)
                if held and not self.lease.continued:
                    # What this machine remembers is of before somebody else had them.
                    self._alarms, self._messages, self._ahead = {}, {}, False
        except LedgerAway:
            return self.lease.elsewhere is None
        if not held:
            self._drop()
        return held

    def _judge_in_the_ledger(self, seen: Seen, now: datetime, tick: float) -> bool:
        """In one transaction, so that nobody acknowledges what is changed in between. Raises `LedgerAway`."""
        with self._ledger() as connection:
            if not self.lease.take(connection, now, tick):
                self._drop()
                return False
            if self._ahead:
                store.catch_up(connection, self._alarms.values(), self._messages.values())
            alarms, waiting = store.every_alarm(connection, lock=True), store.unsent(connection)
            changes = self._board.judge(alarms, seen.problems, seen.unknown, now, tick)
            new = self._made(changes, now)
            store.write(connection, (change.alarm for change in changes), new)
            if self._forgotten is None or tick - self._forgotten > FORGET_EVERY:
                store.forget(connection, now)
                self._forgotten = tick
        self._alarms, self._messages, self._ahead = alarms, waiting, False
        self._take_in(changes, new)
        return True

    def _judge_here(self, seen: Seen, now: datetime, tick: float) -> None:
        changes = self._board.judge(self._alarms, seen.problems, seen.unknown, now, tick)
        new = self._made(changes, now)
        self._take_in(changes, new)
        self._ahead = self._ahead or bool(changes)

    def _made(self, changes: list[Change], now: datetime) -> list[Message]:
        where = {"host": socket.gethostname(), "console": self._settings.console.public_url}
        return messages.made(changes, list(self._channels), now, **where)

    def _take_in(self, changes: list[Change], new: Iterable[Message]) -> None:
        for change in changes:
            self._alarms[change.alarm.key] = change.alarm
            if change.what is not None:
                _say(change)
        self._messages |= {message.id: message for message in new}

    def _send(self, now: datetime, tick: float) -> None:
        """All that is due, the oldest first. A channel that fails is not asked again in this look; one that works gets
        what waited for it in the next one."""
        failed: set[str] = set()
        worked: set[str] = set()
        for message in sorted(self._messages.values(), key=lambda each: each.id):
            if message.done_at is not None or message.channel in failed or self._again.get(message.id, tick) > tick:
                continue
            after = tried(message, self._channels.get(message.channel), now)
            if after.fault is None:
                worked.add(message.channel)
            else:
                failed.add(message.channel)
                self._again[message.id] = tick + PAUSES[min(after.tries, len(PAUSES)) - 1]
            self._messages[message.id] = after
            self._settle(after)
        self._messages = {id_: message for id_, message in self._messages.items() if self._still(message)}
        waiting = {id_ for id_, message in self._messages.items() if message.channel not in worked - failed}
        self._again = {id_: at for id_, at in self._again.items() if id_ in waiting}

    def _still(self, message: Message) -> bool:
        """Whether it must be remembered: it is to be sent yet, or the ledger does not know that it was."""
        return message.done_at is None or self._ahead

    def _settle(self, message: Message) -> None:
        """Writes down what became of a try, before the next one."""
        try:
            with self._ledger() as connection:
                store.write(connection, (), [message])
        except LedgerAway:
            self._ahead = True
            self._keep_copy()

    def _keep_copy(self) -> None:
        alarms = list(self._alarms.values())
        waiting = list(self._messages.values())
        copy = store.Copy(holder=self.lease.holder, here=True, ahead=self._ahead, alarms=alarms, messages=waiting)
        self._file.write(copy)

    def _drop(self) -> None:
        """Another machine has them."""
        self._alarms, self._messages, self._ahead = {}, {}, False
        self._file.write(store.Copy(holder=self.lease.elsewhere or "", here=False))

    def _give_back(self) -> None:
        if self._lock is None:
            return
        try:
            if not self._ahead:
                with self._ledger() as connection:
                    self.lease.release(connection)
        except LedgerAway:
            pass  # It is found by its file, or taken over after a minute.
        os.close(self._lock)
        self._lock = None


def _with_the_ledger_away(seen: Seen) -> Seen:
    """It answered a moment ago, perhaps, and does not take anything."""
    away = [problem for problem in seen.problems if problem.kind is AlarmKind.LEDGER_AWAY]
    said = away or [Problem(AlarmKind.LEDGER_AWAY, "The ledger does not answer.")]
    others = [problem for problem in seen.problems if problem.kind is not AlarmKind.LEDGER_AWAY]
    return Seen([*others, *said], seen.unknown)


def _say(change: Change) -> None:
    alarm = change.alarm
    said = {"alarm": alarm.name, "sentence": alarm.sentence}
    if not alarm.open:
        log.info("alarm_cleared", **said)
    elif change.what == "repeated":
        log.warning("alarm_repeated", **said)
    else:
        log.warning("alarm_raised", **said, times=alarm.times)
