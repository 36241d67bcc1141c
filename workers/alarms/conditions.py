"""All that is wrong at this moment, and what could not be seen. Each source is asked as often as it is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from redis.exceptions import RedisError
from sqlalchemy import Engine

from receiver import logs, refusals
from receiver.connection import connect
from receiver.errors import ConfigurationError, LedgerAway
from receiver.providers.base import Endpoint
from receiver.settings import Settings, public_address
from workers import health
from workers.alarms import certificate, checkout, debitsuccess, figures
from workers.alarms.kinds import AlarmKind, Key, Problem
from workers.alarms.silence import Holiday, Silence
from workers.ledger import queries

log = logs.get("workers.alarms")

_OURS = {AlarmKind.REDIS_AWAY, AlarmKind.NO_WORKER, AlarmKind.QUEUE_STUCK, AlarmKind.SPOOL_WAITS, AlarmKind.LEDGER_AWAY}
"""While one of these lasts, what came is not in the ledger yet, and no endpoint can be called silent."""


class Seen(NamedTuple):
    problems: list[Problem]
    """One of each kind and subject."""
    unknown: frozenset[AlarmKind]


@dataclass(slots=True)
class Source:
    """Something that is asked every so many seconds; in between it counts as it was."""

    kinds: frozenset[AlarmKind]
    every: float
    ask: Callable[[datetime], list[Problem]]
    asked: float | None = None
    found: list[Problem] = field(default_factory=list)

    def look(self, now: datetime, tick: float) -> bool:
        """Whether it could be seen."""
        if self.asked is not None and tick - self.asked < self.every:
            return True
        self.asked = None
        try:
            self.found = self.ask(now)
        except (LedgerAway, RedisError, OSError):
            return False
        except Exception:
            log.exception("alarm_source_failed", kinds=sorted(self.kinds))
            return False
        self.asked = tick
        return True


class Conditions:
    """Raises `ConfigurationError` for holidays that nobody knows."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        alarms = settings.alarms
        self._silence = Silence(settings.endpoint, ZoneInfo(alarms.time_zone), holidays_of(alarms.holidays))
        self._checkout = [each for each in settings.endpoint if each.provider == "checkout"]
        self._debitsuccess = [each for each in settings.endpoint if getattr(each, "event_tokens", ())]
        self._masked, self._not_stored = figures.Risen(figures.MASKED), figures.Risen(figures.NOT_STORED)
        of_silence = Source(frozenset({AlarmKind.ENDPOINT_SILENT}), 30, self._silent)
        self._silent_source = of_silence
        self._sources = [
            Source(frozenset({AlarmKind.CARD_NUMBERS_MASKED}), 10, self._figures),
            Source(frozenset({AlarmKind.ANSWERS_LOST}), 30, self._answers_lost),
            Source(frozenset({AlarmKind.WEBHOOK_DISABLING}), 10, self._disabling),
        ]
        if alarms.public_name is not None:
            of_name = frozenset({AlarmKind.CERTIFICATE_UNFIT, AlarmKind.PUBLIC_NAME_AWAY})
            self._sources.append(Source(of_name, 60, self._public_name))

    def look(self, now: datetime, tick: float) -> Seen:
        here = health.look(self._settings, self._engine)
        unknown = set(here.unknown)
        problems = [*here.problems, *_needing(here.state["database"], unknown)]
        sources = list(self._sources)
        if any(problem.kind in _OURS for problem in problems):
            unknown |= self._silent_source.kinds
        else:
            sources.append(self._silent_source)
        for source in sources:
            if source.look(now, tick):
                problems += source.found
            else:
                unknown |= source.kinds
        return Seen(one_of_each(problems), frozenset(unknown))

    def _silent(self, now: datetime) -> list[Problem]:
        with queries.reading(self._engine) as connection:
            return self._silence.problems(connection, now)

    def _answers_lost(self, now: datetime) -> list[Problem]:
        with queries.reading(self._engine) as connection:
            found = [checkout.answers_lost(connection, endpoint, now) for endpoint in self._checkout]
        return [problem for problem in found if problem is not None]

    def _figures(self, now: datetime) -> list[Problem]:
        counts = figures.counted()
        self._masked.see(counts, now, figures.STAYS)
        self._not_stored.see(counts, now, debitsuccess.BUDGET)
        return figures.masked(self._masked)

    def _disabling(self, now: datetime) -> list[Problem]:
        """What nothing could store is told also while Redis is away: that is when it happens."""
        if not self._debitsuccess:
            return []
        lost = [
            debitsuccess.not_stored(endpoint, since)
            for endpoint in self._debitsuccess
            if (since := self._not_stored.first.get((endpoint.provider, endpoint.facility))) is not None
        ]
        try:
            return lost + self._refused(now)
        except (RedisError, OSError):
            if lost:
                return lost
            raise

    def _refused(self, now: datetime) -> list[Problem]:
        redis = connect(self._settings)
        try:
            since = int((now - debitsuccess.LOOK_BACK).timestamp() * 1000)
            rows: Any = redis.xrange(refusals.STREAM, min=f"{since}-0")
        finally:
            redis.close()
        refused = [refusal for _, refusal in refusals.read(rows) if refusal.provider == "debitsuccess"]
        if not refused:
            return []
        found = [self._of_debitsuccess(endpoint, refused, now) for endpoint in self._debitsuccess]
        return [problem for problem in found if problem is not None]

    def _of_debitsuccess(self, endpoint: Endpoint, refused: list[refusals.Refusal], now: datetime) -> Problem | None:
        proven: set[str] = set()
        accepted: datetime | None = None
        with suppress(LedgerAway), queries.reading(self._engine) as connection:
            proven = debitsuccess.proven_sources(connection, endpoint)
            accepted = debitsuccess.last_event(connection, endpoint, now)
        return debitsuccess.disabling(endpoint, refused, proven, accepted)

    def _public_name(self, now: datetime) -> list[Problem]:
        return certificate.problems(*public_address(self._settings.alarms.public_name or ""), now)


def _needing(database: dict[str, Any], unknown: set[AlarmKind]) -> list[Problem]:
    """What waits for a person and is no fault of the installation, so that `health` only counts it."""
    if database["status"] != "up":
        unknown |= {AlarmKind.CONFLICTS, AlarmKind.MISMATCHES}
        return []
    found = []
    if conflicts := database["conflicts"]:
        say = "notification says" if conflicts == 1 else "notifications say"
        said = f"{conflicts} {say} something else than before under the same key."
        found.append(Problem(AlarmKind.CONFLICTS, said, level=conflicts))
    if mismatches := database["mismatches"]:
        are = "payment is" if mismatches == 1 else "payments are"
        found.append(Problem(AlarmKind.MISMATCHES, f"{mismatches} {are} not as expected.", level=mismatches))
    return found


def one_of_each(problems: Iterable[Problem]) -> list[Problem]:
    """Those of the same kind and subject as one."""
    found: dict[Key, Problem] = {}
    for problem in problems:
        key = (problem.kind, problem.subject)
        before = found.get(key)
        if before is not None:
            said = f"{before.sentence} {problem.sentence}"
            problem = problem._replace(sentence=said, level=max(before.level, problem.level))
        found[key] = problem
    return list(found.values())


def holidays_of(regions: Iterable[str]) -> Holiday:
    """Whether a day is a public holiday in any of them. Raises `ConfigurationError`."""
    asked = tuple(regions)
    if not asked:
        return lambda day: False
    for region in asked:
        try:
            _holidays(region, 2026)
        except NotImplementedError:
            raise ConfigurationError(f"alarms.holidays: {region} is no country or part of one that is known.") from None
    return lambda day: any(day in _holidays(region, day.year) for region in asked)


@lru_cache(64)
def _holidays(region: str, year: int) -> frozenset[date]:
    import holidays

    country, _, part = region.partition("-")
    return frozenset(holidays.country_holidays(country, subdiv=part or None, years=year))
