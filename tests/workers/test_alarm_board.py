"""When a problem is an alarm, when it is said again, and when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from workers.alarms import kinds
from workers.alarms.board import Alarm, Board, Change, Rules, What
from workers.alarms.kinds import MEANINGS, AlarmKind, Key, Problem

START = datetime(2026, 11, 27, 9, tzinfo=UTC)
RULES = Rules(confirm=10, calm=30, quiet=3600)
REDIS = Problem(AlarmKind.REDIS_AWAY, "Redis does not answer.")
CONFLICTS = AlarmKind.CONFLICTS


class Course:
    """A board over time: looks every five seconds, and what was said at which second."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.board = Board(rules)
        self.alarms: dict[Key, Alarm] = {}
        self.second = 0
        self.said: list[tuple[int, str, What]] = []

    def look(self, problems: Sequence[Problem] = (), unknown: frozenset[AlarmKind] = frozenset()) -> list[Change]:
        now = START + timedelta(seconds=self.second)
        changes = self.board.judge(self.alarms, problems, unknown, now, float(self.second))
        assert self.board.judge(self.alarms, problems, unknown, now, float(self.second)) == changes, "asked twice"
        for alarm, what in changes:
            self.alarms[alarm.key] = alarm
            if what is not None:
                self.said.append((self.second, alarm.name, what))
        return changes

    def last(self, seconds: int, *problems: Problem, unknown: frozenset[AlarmKind] = frozenset()) -> Course:
        for _ in range(seconds // 5):
            self.look(problems, unknown)
            self.second += 5
        return self

    def acknowledge(self, key: Key) -> None:
        alarm = self.alarms[key]
        now = START + timedelta(seconds=self.second)
        self.alarms[key] = msgspec.structs.replace(
            alarm, acknowledged_by="anna", acknowledged_at=now, acknowledged_reason="r", acknowledged_level=alarm.level
        )


def test_it_must_last_before_it_is_an_alarm_and_be_gone_before_it_is_over() -> None:
    course = Course().last(5, REDIS).last(5).last(60, REDIS).last(25).last(5, REDIS).last(60)
    assert course.said == [(20, "redis_away", What.RAISED), (130, "redis_away", What.CLEARED)]
    assert not course.alarms[REDIS.kind, ""].open


def test_what_lasts_is_said_again_after_the_quiet_time() -> None:
    course = Course().last(2 * 3600 + 60, REDIS)
    assert [second for second, _, _ in course.said] == [10, 3610, 7210]
    assert [what for *_, what in course.said] == [What.RAISED, What.REPEATED, What.REPEATED]


def test_what_is_acknowledged_is_not_said_again_until_it_is_over() -> None:
    course = Course().last(60, REDIS)
    course.acknowledge((REDIS.kind, ""))
    course.last(3 * 3600, REDIS).last(60)
    assert [what for *_, what in course.said] == [What.RAISED, What.CLEARED]
    course.last(15, REDIS)
    alarm = course.alarms[REDIS.kind, ""]
    assert course.said[-1][2] is What.RAISED
    assert (alarm.acknowledged, alarm.acknowledged_by) == (False, None)


def test_what_grows_worse_than_was_acknowledged_is_said_again() -> None:
    course = Course().last(15, Problem(CONFLICTS, "3", level=3))
    course.acknowledge((CONFLICTS, ""))
    course.last(60, Problem(CONFLICTS, "3", level=3)).last(60, Problem(CONFLICTS, "2", level=2))
    assert len(course.said) == 1
    course.last(60, Problem(CONFLICTS, "3", level=3))
    assert course.said[1:] == [(135, "conflicts", What.REPEATED)]
    assert not course.alarms[CONFLICTS, ""].acknowledged


def test_what_comes_and_goes_is_one_alarm_that_lasts_longer_each_time() -> None:
    course = Course()
    for _ in range(60):
        course.last(30, REDIS).last(60)
    raised = [second for second, _, what in course.said if what is What.RAISED]
    assert len(raised) == 2, "an hour and a half of it"
    assert course.alarms[REDIS.kind, ""].times == 2


def test_what_cannot_be_seen_is_neither_raised_nor_over() -> None:
    silent = Problem(AlarmKind.ENDPOINT_SILENT, "Nothing came.", "checkout/main")
    course = Course().last(60, silent)
    course.last(3000, REDIS, unknown=frozenset({AlarmKind.ENDPOINT_SILENT}))
    assert course.alarms[silent.kind, silent.subject].open
    course.last(30).last(30)
    assert [what for _, name, what in course.said if name.startswith("endpoint_silent:")][-1] is What.CLEARED


def test_a_sentence_that_changes_is_kept_and_not_said() -> None:
    course = Course().last(60, REDIS)
    (change,) = course.look([REDIS._replace(sentence="Still not.")])
    assert (change.what, change.alarm.sentence) == (None, "Still not.")
    assert course.look([REDIS._replace(sentence="Still not.")]) == []


def test_a_clock_that_is_set_back_makes_nothing_said_twice() -> None:
    course = Course().last(60, REDIS)
    before = START - timedelta(hours=5)
    assert course.board.judge(course.alarms, [REDIS], frozenset(), before, 70.0) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300))
def test_whatever_comes_each_raise_has_one_end(looks: list[tuple[bool, bool]]) -> None:
    course = Course(Rules(confirm=5, calm=5, quiet=100))
    for here, unseen in looks:
        course.last(5, *([REDIS] if here else []), unknown=frozenset({REDIS.kind} if unseen else ()))
    said = [what for *_, what in course.said if what is not What.REPEATED]
    assert said == [(What.RAISED, What.CLEARED)[number % 2] for number in range(len(said))]
    told = [second for second, _, what in course.said if what is not What.CLEARED]
    between = [later - earlier for earlier, later in pairwise(told)]
    assert all(gap >= 10 for gap in between)


def test_every_kind_says_what_it_means_and_what_to_do() -> None:
    assert set(MEANINGS) == set(AlarmKind)
    assert all(meaning.means.endswith(".") and meaning.do.endswith(".") for meaning in MEANINGS.values())


def test_names() -> None:
    for kind in AlarmKind:
        for subject in ("", "checkout/main", "pay.example.com:443"):
            assert kinds.named(kinds.name(kind, subject)) == (kind, subject)
    assert kinds.named("none") is kinds.named("") is kinds.named("none:x") is None
