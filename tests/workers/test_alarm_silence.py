"""How long a pause is usual: learned from invented histories whose truth is known, and from both databases."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from receiver.notification import microseconds, new_id, utc
from receiver.providers.checkout import CheckoutEndpoint
from tests.support import CHECKOUT, QUICKSTREAM
from tests.workers.material import envelope, event, processed
from workers.alarms.conditions import holidays_of
from workers.alarms.kinds import AlarmKind
from workers.alarms.silence import (
    AROUND,
    LEAST_DAYS,
    SHORTEST,
    WEEKS,
    Silence,
    last_heard,
    like_moments,
    pauses,
    too_long,
    usual_pause,
)
from workers.ledger import queries
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.rows import notification_row
from workers.ledger.tables import notifications

SYDNEY = ZoneInfo("Australia/Sydney")
NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)
"""A Friday, two in the afternoon in Sydney."""
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def never(day: date) -> bool:
    return False


Rate = Callable[[datetime], float]
"""Notifications an hour at a local time."""


def business(moment: datetime) -> float:
    """Busy on weekdays from eight to six, a little in the evening, nothing at night."""
    if moment.weekday() == 6:
        return 2.0 if 9 <= moment.hour < 20 else 0.05
    if 8 <= moment.hour < 18:
        return 60.0
    return 6.0 if 18 <= moment.hour < 23 or moment.hour == 7 else 0.1


def steady(moment: datetime) -> float:
    return 20.0


def slow(moment: datetime) -> float:
    return 3.0


def nightly(moment: datetime) -> float:
    """A run of an hour in the night, and nothing else."""
    return 120.0 if moment.hour == 2 else 0.0


@cache
def history(rate: Rate, seed: int, until: datetime = NOW, days: int = WEEKS * 7 + 7) -> list[datetime]:
    """When notifications came, at random by that rate."""
    chance = random.Random(seed)
    moment, came = until - days * DAY, []
    while moment < until:
        expected = rate(moment.astimezone(SYDNEY)) / 12
        # Five minutes at a time: as many as a Poisson process has in them.
        left = chance.expovariate(1.0)
        while left < expected:
            came.append(moment + chance.random() * 5 * MINUTE)
            left += chance.expovariate(1.0)
        moment += 5 * MINUTE
    return sorted(came)


def alarming(came: Sequence[datetime], now: datetime, zone: ZoneInfo = SYDNEY) -> bool:
    """What `Silence` says of a list."""
    last = came[bisect_left(came, now) - 1]
    if now - last <= SHORTEST:
        return False
    asked = like_moments(now, zone, never)
    paused = [[moment - came[bisect_left(came, moment) - 1] for moment in day if moment > came[0]] for day in asked]
    usual = usual_pause(day for day in paused if len(day) == len(AROUND))
    return usual is not None and now - last > too_long(usual)


def looks(since: datetime, until: datetime, every: timedelta = 15 * MINUTE) -> Iterator[datetime]:
    while since < until:
        yield since
        since += every


@pytest.mark.parametrize("rate", [business, steady, nightly])
@pytest.mark.parametrize("seed", range(3))
def test_a_week_as_usual_raises_nothing(rate: Rate, seed: int) -> None:
    came = history(rate, seed)
    assert [now for now in looks(NOW - 7 * DAY, NOW, 20 * MINUTE) if alarming(came, now)] == []


@pytest.mark.parametrize(
    ("rate", "stops", "within"),
    [
        (business, datetime(2026, 11, 26, 10, tzinfo=SYDNEY), 45 * MINUTE),
        (business, datetime(2026, 11, 26, 19, tzinfo=SYDNEY), 15 * HOUR),
        (business, datetime(2026, 11, 22, 2, tzinfo=SYDNEY), 31 * HOUR),
        (steady, datetime(2026, 11, 22, 2, tzinfo=SYDNEY), 2 * HOUR),
        (nightly, datetime(2026, 11, 25, 12, tzinfo=SYDNEY), 16 * HOUR),
    ],
    ids=["by day", "in the evening", "at the weekend", "steady", "the nightly run"],
)
def test_a_sender_that_stops_is_missed(rate: Rate, stops: datetime, within: timedelta) -> None:
    for seed in range(3):
        came = [moment for moment in history(rate, seed) if moment < stops]
        first = next(
            now for now in looks(stops.astimezone(UTC), stops.astimezone(UTC) + 5 * DAY) if alarming(came, now)
        )
        assert first - stops <= within


@given(days_ago=st.integers(1, WEEKS * 7), seed=st.integers(0, 2))
@hypothesis(max_examples=8)
@example(days_ago=7, seed=1)
def test_an_outage_of_a_day_is_not_usual_afterwards(days_ago: int, seed: int) -> None:
    """What is usual at two in the afternoon is the same with and without it."""
    whole = history(steady, seed)
    began = NOW - days_ago * DAY - 12 * HOUR
    hurt = [moment for moment in whole if not began <= moment < began + DAY]
    stopped = [moment for moment in hurt if moment < NOW - 4 * HOUR]
    assert alarming(stopped, NOW)


@given(
    st.lists(
        st.lists(st.timedeltas(timedelta(0), 10 * DAY), min_size=1, max_size=5), min_size=LEAST_DAYS + 1, max_size=WEEKS
    ),
    st.timedeltas(timedelta(0), 400 * DAY),
)
def test_one_day_alone_decides_nothing(days: list[list[timedelta]], outage: timedelta) -> None:
    """However long its pause was, what is usual is no longer than the longest pause of the other days."""
    for number in range(len(days)):
        others = [day for place, day in enumerate(days) if place != number]
        usual = usual_pause([*others, [outage]])
        assert usual is not None
        assert usual <= max(max(day) for day in others)
        assert too_long(usual) >= SHORTEST


def test_nothing_is_usual_before_there_is_enough_of_it() -> None:
    assert usual_pause([]) is usual_pause([[HOUR]] * (LEAST_DAYS - 1)) is usual_pause([[], [], [], [HOUR]]) is None
    assert usual_pause([[HOUR]] * LEAST_DAYS) == HOUR
    young = [moment for moment in history(steady, 1, days=20) if moment < NOW - DAY]
    assert not alarming(young, NOW)


def test_like_moments_are_those_of_the_clock_on_the_wall() -> None:
    """Sydney put its clocks forward on 4 October."""
    days = like_moments(NOW, SYDNEY, never)
    assert len(days) == WEEKS
    for number, day in enumerate(days, 1):
        there = [moment.astimezone(SYDNEY) for moment in day]
        assert {moment.strftime("%A") for moment in there} == {"Friday"}
        assert [moment.strftime("%H:%M") for moment in there] == ["13:30", "13:45", "14:00", "14:15", "14:30"]
        assert day[2] == NOW - 7 * DAY * number + (HOUR if day[2] < datetime(2026, 10, 3, 16, tzinfo=UTC) else 0 * HOUR)


def test_a_holiday_is_like_sundays_and_no_measure_for_its_weekday() -> None:
    holiday = holidays_of(["AU-NSW"])
    christmas, friday_after = datetime(2026, 12, 25, 3, tzinfo=UTC), datetime(2027, 1, 8, 3, tzinfo=UTC)
    on_christmas = {day[2].astimezone(SYDNEY).strftime("%A") for day in like_moments(christmas, SYDNEY, holiday)}
    assert on_christmas == {"Sunday"}
    after = [day[2].astimezone(SYDNEY).date() for day in like_moments(friday_after, SYDNEY, holiday)]
    assert {day.strftime("%A") for day in after} == {"Friday"}
    assert not {date(2026, 12, 25), date(2027, 1, 1)} & set(after)
    assert len(after) == WEEKS - 2


def test_the_databases_say_what_the_list_says(engine: Engine) -> None:
    came = history(slow, 4, days=30)
    fill(engine, CHECKOUT.facility, came)
    at = [utc(microseconds(moment) // 1000 * 1000) for moment in came]
    for hours in (0, 1, 30, 200):
        days = like_moments(NOW - hours * HOUR, SYDNEY, never)
        with queries.reading(engine) as connection:
            found = pauses(connection, CHECKOUT, days)
        whole = [day for day in days if min(day) > at[0]]
        assert found == [[moment - at[bisect_left(at, moment) - 1] for moment in day] for day in whole]
        assert len(found) >= LEAST_DAYS


def test_an_endpoint_that_fell_silent(engine: Engine) -> None:
    endpoint = CheckoutEndpoint(facility="busy", signature_keys=CHECKOUT.signature_keys)
    fill(engine, "busy", [moment for moment in history(slow, 2, days=25) if moment < NOW - 20 * HOUR])
    fill(engine, "main", history(slow, 3, days=25))
    fill(engine, "new", [NOW - 10 * DAY])
    others = [CheckoutEndpoint(facility=name, signature_keys=CHECKOUT.signature_keys) for name in ("new", "never")]
    trial = CheckoutEndpoint(facility="busy", environment="test", signature_keys=CHECKOUT.signature_keys)
    silence = Silence([endpoint, CHECKOUT, *others], SYDNEY, never)
    with queries.reading(engine) as connection:
        (problem,) = silence.problems(connection, NOW)
        assert silence.problems(connection, NOW) == [problem], "and the second time"
        assert Silence([trial], SYDNEY, never).problems(connection, NOW) == []
    assert (problem.kind, problem.subject) == (AlarmKind.ENDPOINT_SILENT, "checkout/busy")
    assert "since 2026-11-2" in problem.sentence


def test_a_repeat_is_a_sign_of_life_and_the_rows_of_a_file_are_none(ledger: Ledger) -> None:
    at = microseconds(NOW)
    ledger.record([processed("k1", event(), id=new_id(at - 3_600_000_000))])
    ledger.record([processed("k1", event(), id=new_id(at - 60_000_000))])
    of_file = envelope("row", provider="quickstream", facility="acme", event_type="settlement_file", id=new_id(at))
    ledger.record([Interpreted(of_file, "processed")])
    with queries.reading(ledger.engine) as connection:
        assert last_heard(connection, CHECKOUT) == NOW - MINUTE
        assert last_heard(connection, QUICKSTREAM) is None
        assert pauses(connection, QUICKSTREAM, [[NOW]]) == []


def fill(engine: Engine, facility: str, came: Sequence[datetime]) -> None:
    """A history of an endpoint of Checkout.com, put in as it stands in the table."""
    values = notification_row(processed("k", event()), Bodies(()))
    rows = [
        values | {"id": new_id(microseconds(moment)), "facility": facility, "dedupe_key": f"{facility}-{number}"}
        for number, moment in enumerate(came)
    ]
    with engine.begin() as connection:
        connection.execute(insert(notifications), rows)
