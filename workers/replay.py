"""Replays: an operator chooses notifications and says why; a worker does them again, a second operator permitting when
they are many. History is never altered: a replay adds to it.

Here is the operators' side: it writes what was asked for into the ledger, in one transaction with the audit trail, and
wakes a worker. `workers.replay_runner` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
from redis.exceptions import RedisError
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from receiver import logs
from receiver.connection import connect
from receiver.errors import NotDone, Reason
from receiver.notification import new_id, now_us
from receiver.settings import Replay as Limits
from receiver.settings import Settings
from receiver.signing import Seal, digest
from workers.audit import Action, Actor, Audit, reason_given
from workers.ledger import idempotency, pages, queries
from workers.ledger.database import away_when_it_fails
from workers.ledger.queries import Filter
from workers.ledger.replays import State, locked, shown
from workers.ledger.replays import replay as find
from workers.ledger.revision import Revision, open_revision
from workers.ledger.rows import cleaned, storable
from workers.ledger.tables import notifications, repeats, replay_items, replays
from workers.pipeline import Pipeline
from workers.replay_runner import waker
from workers.rerun import CHUNK, Outcome, Result, counted, rerun

log = logs.get("workers.replay")

MOST = 100_000
"""Notifications of one replay; more are chosen by time, one part after the other."""
PREVIEWED = 200
_INSERTED_AT_ONCE = 1000
_JSON = msgspec.json.Encoder()


class Chosen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to replay: these ids, or all notifications that a filter finds."""

    ids: tuple[str, ...] = ()
    state: str | None = None
    provider: str | None = None
    facility: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would do now."""

    total: int
    outcomes: dict[str, int]
    """How many of `results` there are of each outcome."""
    results: list[Result]
    """Of the first notifications, in the order of arrival."""
    needs_approval: bool


def open_replays(settings: Settings) -> Replays:
    """What operators do, for a configuration. Connects only when it is used. Raises `ConfigurationError`."""
    keys = settings.security.seal_keys
    ledger = open_revision(settings)
    pipeline = Pipeline(settings.endpoints, ledger, Seal(keys, "batch"))
    return Replays(ledger, pipeline, Audit(keys), settings.replay, waker(connect(settings), Seal(keys, "replay")))


class Replays:
    """What operators do with replays. `open_replays` makes the one of a configuration.

    `wake` tells a worker; without it, it finds a replay itself within `STALLED_AFTER` seconds.
    """

    def __init__(
        self,
        ledger: Revision,
        pipeline: Pipeline,
        audit: Audit,
        limits: Limits,
        wake: Callable[[str], None] = lambda replay_id: None,
    ) -> None:
        self._ledger = ledger
        self._pipeline = pipeline
        self._audit = audit
        self._limits = limits
        self._wake = wake

    @property
    def approve_above(self) -> int:
        return self._limits.approve_above

    def close(self) -> None:
        self._ledger.engine.dispose()

    def show(self, replay_id: str) -> dict[str, Any]:
        """The replay object. Raises `NotDone` (`unknown_id`)."""
        with queries.reading(self._ledger.engine) as connection:
            found = find(connection, replay_id)
        if found is None:
            raise NotDone(Reason.UNKNOWN_ID, "There is no replay with this id.")
        return found

    def preview(self, chosen: Chosen, most: int = PREVIEWED) -> Preview:
        """What a replay of `chosen` would do to its first `most` notifications: done, and rolled back.

        Raises `NotDone` as `create` does, and `LedgerAway`.
        """
        ids = self.choose(chosen)
        results = list(self.previews(ids[:most]))
        return Preview(
            total=len(ids),
            outcomes=counted(results),
            results=results,
            needs_approval=len(ids) > self._limits.approve_above,
        )

    def previews(self, ids: Sequence[str]) -> Iterator[Result]:
        """The same for any number. Each chunk is by itself: what one before it would have changed, it does not see."""
        for start in range(0, len(ids), CHUNK):
            with away_when_it_fails(), self._ledger.engine.connect() as connection:
                results, _ = rerun(connection, self._ledger, self._pipeline, ids[start : start + CHUNK])
                connection.rollback()
            yield from results

    def choose(self, chosen: Chosen) -> list[str]:
        """The ids of the chosen notifications, in the order of arrival. Raises `NotDone`: `unknown_id`,
        `nothing_chosen`, `too_many_found`."""
        with queries.reading(self._ledger.engine) as connection:
            ids = _known(connection, chosen.ids) if chosen.ids else _found(connection, chosen)
        if not ids:
            raise NotDone(Reason.NOTHING_CHOSEN, "No notification matches.")
        if len(ids) > MOST:
            raise NotDone(
                Reason.TOO_MANY_FOUND, f"More than {MOST} notifications match; choose them by time, in parts."
            )
        return sorted(ids)

    def create(self, actor: Actor, chosen: Chosen, reason: str, key: str | None = None) -> dict[str, Any]:
        """Starts a replay, or has it wait for approval. Gives the replay object. With the same `key` of the same actor
        it gives the same replay, as it is by then.

        Raises `NotDone`: what `choose` says, `reason_missing`, `already_in_replay` when one of the notifications is to
        be done by another replay, and `idempotency_key_reused` when something else was asked for with `key`.
        """
        reason = reason_given(reason)
        asked = digest(_JSON.encode(chosen), reason.encode())
        if key is None:
            return self._create(actor, chosen, reason)
        if (found := self._made_by(actor, key, asked)) is not None:
            return found
        try:
            return self._create(actor, chosen, reason, (key, asked))
        except NotDone:
            # The same may have been asked twice at the same moment.
            if (found := self._made_by(actor, key, asked)) is not None:
                return found
            raise

    def _made_by(self, actor: Actor, key: str, asked: str) -> dict[str, Any] | None:
        with queries.reading(self._ledger.engine) as connection:
            made = idempotency.used(connection, actor.name, key, asked)
            return find(connection, made) if made is not None else None

    def _create(self, actor: Actor, chosen: Chosen, reason: str, once: tuple[str, str] | None = None) -> dict[str, Any]:
        ids = self.choose(chosen)
        replay_id = new_id(now_us())
        try:
            with away_when_it_fails(), self._ledger.engine.begin() as connection:
                if once is not None:
                    idempotency.use(connection, actor.name, *once, replay_id)
                _refuse_those_waiting(connection, ids)
                row = self._insert(connection, actor, chosen, reason, replay_id, ids)
        except IntegrityError:
            # Somebody else chose one of them in the same moment, and was first.
            with queries.reading(self._ledger.engine) as connection:
                _refuse_those_waiting(connection, ids)
            raise NotDone(Reason.ALREADY_IN_REPLAY, "One of them was in another replay just now; try again.") from None
        if row["state"] == State.RUNNING:
            self._tell(replay_id)
        return row

    def approve(self, actor: Actor, replay_id: str, reason: str) -> dict[str, Any]:
        """Lets a waiting replay run. Raises `NotDone`: `second_operator_needed` for whoever asked for it, `unknown_id`,
        `state_changed`, `reason_missing`."""

        def change(row: Any, now: datetime) -> dict[str, Any]:
            if actor.name.casefold() == row.created_by.casefold():
                sentence = f"{row.created_by} asked for this replay; a second operator must approve it."
                raise NotDone(Reason.SECOND_OPERATOR_NEEDED, sentence)
            return {"state": State.RUNNING, "approved_by": actor.name[:100], "approved_at": now}

        return self._change(actor, replay_id, (State.WAITING,), Action.REPLAY_APPROVED, reason, change)

    def pause(self, actor: Actor, replay_id: str, reason: str = "") -> dict[str, Any]:
        """Nothing more is done from the moment that this returns. Raises `NotDone`: `unknown_id`, `state_changed`."""
        paused = {"state": State.PAUSED}
        return self._change(
            actor, replay_id, (State.RUNNING,), Action.REPLAY_PAUSED, reason or "paused", lambda row, now: paused
        )

    def resume(self, actor: Actor, replay_id: str, reason: str = "") -> dict[str, Any]:
        """Raises `NotDone`: `unknown_id`, `state_changed`."""
        running = {"state": State.RUNNING}
        return self._change(
            actor, replay_id, (State.PAUSED,), Action.REPLAY_RESUMED, reason or "resumed", lambda row, now: running
        )

    def cancel(self, actor: Actor, replay_id: str, reason: str) -> dict[str, Any]:
        """What was not done yet is never done by it. Raises `NotDone`: `unknown_id`, `state_changed`,
        `reason_missing`."""
        open_ = (State.WAITING, State.RUNNING, State.PAUSED)
        return self._change(
            actor,
            replay_id,
            open_,
            Action.REPLAY_CANCELLED,
            reason,
            lambda row, now: {"state": State.CANCELLED, "ended_at": now},
        )

    def _insert(
        self, connection: Connection, actor: Actor, chosen: Chosen, reason: str, replay_id: str, ids: Sequence[str]
    ) -> dict[str, Any]:
        waits = len(ids) > self._limits.approve_above
        now = datetime.now(UTC)
        asked_for = cleaned(_JSON.encode(chosen).decode())
        values = {
            "id": replay_id,
            "state": (State.WAITING if waits else State.RUNNING).value,
            "created_at": now,
            "created_by": cleaned(actor.name)[:100],
            "origin": cleaned(actor.origin)[:200],
            "reason": reason,
            "chosen": asked_for,
            "total": len(ids),
            "done": 0,
            "outcomes": "{}",
            "changed_at": now,
            "started_at": None if waits else now,
        }
        connection.execute(insert(replays).values(values))
        for start in range(0, len(ids), _INSERTED_AT_ONCE):
            some = ids[start : start + _INSERTED_AT_ONCE]
            connection.execute(
                insert(replay_items), [{"replay_id": replay_id, "notification_id": each} for each in some]
            )
        facts = {"notifications": len(ids), "needs_approval": waits, "chosen": msgspec.json.decode(asked_for)}
        self._audit.add(connection, actor, Action.REPLAY_CREATED, replay_id, reason, facts)
        found = find(connection, replay_id)
        assert found is not None
        return found

    def _change(
        self,
        actor: Actor,
        replay_id: str,
        allowed: Sequence[State],
        action: Action,
        reason: str,
        change: Callable[[Any, datetime], dict[str, Any]],
    ) -> dict[str, Any]:
        reason = reason_given(reason)
        with away_when_it_fails(), self._ledger.engine.begin() as connection:
            row = locked(connection, replay_id)
            if row is None:
                raise NotDone(Reason.UNKNOWN_ID, "There is no replay with this id.")
            if row.state not in allowed:
                raise NotDone(Reason.STATE_CHANGED, f"The replay is {row.state}; this needs it {' or '.join(allowed)}.")
            now = datetime.now(UTC)
            values = {**change(row, now), "changed_at": now}
            if values["state"] == State.RUNNING and row.started_at is None:
                values["started_at"] = now
            if values["state"] == State.CANCELLED:
                values["outcomes"] = _cancel_items(connection, row, now)
            connection.execute(update(replays).where(replays.c.id == replay_id).values(values))
            self._audit.add(connection, actor, action, replay_id, reason, {"done": row.done, "of": row.total})
            changed = shown(connection.execute(select(replays).where(replays.c.id == replay_id)).one())
        if changed["state"] == State.RUNNING:
            self._tell(replay_id)
        return changed

    def _tell(self, replay_id: str) -> None:
        try:
            self._wake(replay_id)
        except (RedisError, OSError) as error:
            # What was asked for is in the ledger; a worker finds it there when Redis is back.
            log.warning("replay_not_told", replay=replay_id, error=type(error).__name__)


def _known(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Ids of the notifications of which these are deliveries."""
    known: dict[str, str] = {}
    given = list(dict.fromkeys(ids))
    for start in range(0, len(given), _INSERTED_AT_ONCE):
        some = [each for each in given[start : start + _INSERTED_AT_ONCE] if storable(each)]
        known |= {
            row.id: row.id for row in connection.execute(select(notifications.c.id).where(notifications.c.id.in_(some)))
        }
        again = select(repeats.c.id, repeats.c.notification_id).where(repeats.c.id.in_(some))
        known |= {row.id: row.notification_id for row in connection.execute(again)}
    unknown = [each for each in given if each not in known]
    if unknown:
        raise NotDone(Reason.UNKNOWN_ID, f"There is no notification {cleaned(unknown[0])[:40]}.")
    return set(known.values())


def _found(connection: Connection, chosen: Chosen) -> set[str]:
    wanted = Filter(
        state=chosen.state,
        provider=chosen.provider,
        facility=chosen.facility,
        since=chosen.since,
        until=chosen.until,
        search=chosen.search,
    )
    return {row.id for row in islice(pages.notification_rows(connection, wanted), MOST + 1)}


def _refuse_those_waiting(connection: Connection, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), _INSERTED_AT_ONCE):
        some = ids[start : start + _INSERTED_AT_ONCE]
        row = connection.execute(
            select(replays.c.id, replays.c.created_by, replays.c.state, func.count().label("together"))
            .join(replay_items, replay_items.c.replay_id == replays.c.id)
            .where(replay_items.c.notification_id.in_(some), replay_items.c.outcome.is_(None))
            .group_by(replays.c.id, replays.c.created_by, replays.c.state)
            .limit(1)
        ).first()
        if row is not None:
            what = "is" if row.together == 1 else "are"
            raise NotDone(
                Reason.ALREADY_IN_REPLAY,
                f"{row.together} of them {what} in replay {row.id} of {row.created_by}, which is {row.state}.",
            )


def _cancel_items(connection: Connection, row: Any, now: datetime) -> str:
    of = (replay_items.c.replay_id == row.id, replay_items.c.outcome.is_(None))
    connection.execute(update(replay_items).where(*of).values(outcome=Outcome.CANCELLED.value, done_at=now))
    outcomes = msgspec.json.decode(row.outcomes, type=dict[str, int])
    if row.total > row.done:
        outcomes[Outcome.CANCELLED.value] = row.total - row.done
    return _JSON.encode(outcomes).decode()
