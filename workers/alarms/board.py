"""Which problems are alarms, and what is to be said about them: decided here from what was seen, and nothing else.

A problem must last before it is an alarm, and be gone for a while before that is cleared, the longer the more often it
came back. While an alarm lasts it is said again after a quiet time, unless somebody acknowledged it; one that grows
worse than what was acknowledged is not acknowledged any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import msgspec

from workers.alarms import kinds
from workers.alarms.kinds import AlarmKind, Key, Problem


class What(StrEnum):
    """What a message says of its alarm."""

    RAISED = "raised"
    REPEATED = "repeated"
    CLEARED = "cleared"


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm of one subject; after it was cleared, the last one that there was."""

    kind: AlarmKind
    subject: str
    sentence: str
    level: int
    times: int
    """How often it was raised without having been calm for the quiet time."""
    raised_at: datetime
    told_at: datetime
    cleared_at: datetime | None = None
    acknowledged_by: str | None = None
    acknowledged_at: datetime | None = None
    acknowledged_reason: str | None = None
    acknowledged_level: int | None = None

    @property
    def key(self) -> Key:
        return self.kind, self.subject

    @property
    def name(self) -> str:
        return kinds.name(self.kind, self.subject)

    @property
    def open(self) -> bool:
        return self.cleared_at is None

    @property
    def acknowledged(self) -> bool:
        return self.acknowledged_level is not None


class Rules(NamedTuple):
    """In seconds, as `settings.Alarms` has them."""

    confirm: float
    calm: float
    quiet: float


class Change(NamedTuple):
    alarm: Alarm
    """As it is now."""
    what: What | None
    """What is to be said about it; None when nothing is."""


_CONFIRM = {AlarmKind.PUBLIC_NAME_AWAY: 300.0}
"""Seconds of those that need more: the restart of a proxy is no fault."""
ACKNOWLEDGEMENT = ("acknowledged_by", "acknowledged_at", "acknowledged_reason", "acknowledged_level")
_UNACKNOWLEDGED = dict.fromkeys(ACKNOWLEDGEMENT, None)
_MOST_DOUBLED = 10


class Board:
    """Remembers from look to look since when each problem is there, and since when each alarm has none."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._here: dict[Key, float] = {}
        self._gone: dict[Key, float] = {}

    def judge(
        self,
        alarms: Mapping[Key, Alarm],
        problems: Iterable[Problem],
        unknown: Set[AlarmKind],
        now: datetime,
        tick: float,
    ) -> list[Change]:
        """What changes. Alarms of an `unknown` kind stay as they are: it could not be seen this time. `tick` is a
        clock in seconds that nobody sets. To ask twice in one look is the same as once.
        """
        found = {(each.kind, each.subject): each for each in problems}
        self._here = {key: self._here.get(key, tick) for key in found}
        calm = {key for key, alarm in alarms.items() if alarm.open and key not in found and key[0] not in unknown}
        self._gone = {key: self._gone.get(key, tick) for key in calm}
        changes = [self._present(alarms.get(key), problem, now, tick) for key, problem in found.items()]
        changes += [self._absent(alarms[key], now, tick) for key in sorted(calm)]
        return [change for change in changes if change is not None]

    def _present(self, alarm: Alarm | None, problem: Problem, now: datetime, tick: float) -> Change | None:
        if alarm is not None and alarm.open:
            return self._lasting(alarm, problem, now)
        key = (problem.kind, problem.subject)
        if tick - self._here[key] < max(self._rules.confirm, _CONFIRM.get(problem.kind, 0.0)):
            return None
        again = alarm is not None and alarm.cleared_at is not None and self._within_quiet(alarm.cleared_at, now)
        raised = Alarm(
            kind=problem.kind,
            subject=problem.subject,
            sentence=problem.sentence,
            level=problem.level,
            times=alarm.times + 1 if alarm is not None and again else 1,
            raised_at=now,
            told_at=now,
        )
        return Change(raised, What.RAISED)

    def _lasting(self, alarm: Alarm, problem: Problem, now: datetime) -> Change | None:
        seen = msgspec.structs.replace(alarm, sentence=problem.sentence, level=problem.level)
        known = alarm.acknowledged_level
        if known is not None and problem.level > known:
            return Change(msgspec.structs.replace(seen, told_at=now, **_UNACKNOWLEDGED), What.REPEATED)
        if known is not None:
            # Less than what was acknowledged: should it grow again, that is news.
            seen = msgspec.structs.replace(seen, acknowledged_level=problem.level)
        elif not self._within_quiet(alarm.told_at, now):
            return Change(msgspec.structs.replace(seen, told_at=now), What.REPEATED)
        return Change(seen, None) if seen != alarm else None

    def _absent(self, alarm: Alarm, now: datetime, tick: float) -> Change | None:
        doubled = self._rules.calm * 2 ** min(alarm.times - 1, _MOST_DOUBLED)
        if tick - self._gone[alarm.key] < min(doubled, max(self._rules.quiet, self._rules.calm)):
            return None
        return Change(msgspec.structs.replace(alarm, cleared_at=now, told_at=now), What.CLEARED)

    def _within_quiet(self, moment: datetime, now: datetime) -> bool:
        """Also for a moment that is ahead, as the clock was set back: then it is better said too rarely."""
        return now - moment < timedelta(seconds=self._rules.quiet)
