"""What a list is asked for, read from the address; anything that cannot be meant is said on the page, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

import msgspec

from receiver.providers import PROVIDERS
from workers.console.site import Trouble, Visit
from workers.ledger.queries import Filter

LONGEST_SEARCH = 200


class Asked(msgspec.Struct, frozen=True):
    """The fields of a list's search form, as they were written."""

    search: str = ""
    state: str = ""
    endpoint: str = ""
    """``provider/facility``, or a provider alone."""
    since: str = ""
    until: str = ""
    mismatch: str = ""
    """Of payments: only those that are not as expected."""

    @property
    def anything(self) -> bool:
        return any(msgspec.structs.astuple(self))

    def fields(self) -> dict[str, str]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


def asked(visit: Visit, states: Sequence[str]) -> Asked:
    """What the address asks for. Raises `Trouble` for a state that does not exist and for a search that is too long."""
    return _checked(Asked(*(visit.asked(name) for name in Asked.__struct_fields__)), states)


def given(visit: Visit, states: Sequence[str]) -> Asked:
    """The same of a form."""
    return _checked(Asked(*(visit.given(name) for name in Asked.__struct_fields__)), states)


def _checked(found: Asked, states: Sequence[str]) -> Asked:
    if found.state and found.state not in states:
        raise Trouble(400, "There is no such state", f"It is one of {', '.join(states)}.")
    if len(found.search) > LONGEST_SEARCH:
        raise Trouble(400, "The search is too long", f"It may have {LONGEST_SEARCH} characters.")
    if found.endpoint and found.endpoint.partition("/")[0] not in PROVIDERS:
        raise Trouble(400, "There is no such provider", f"It is one of {', '.join(PROVIDERS)}.")
    return found


def wanted(asked: Asked, limit: int | None) -> Filter:
    """Raises `Trouble` for a time that cannot be read."""
    provider, _, facility = asked.endpoint.partition("/")
    return Filter(
        state=asked.state or None,
        provider=provider or None,
        facility=facility or None,
        since=_moment(asked.since, "From"),
        until=_moment(asked.until, "To", whole_day=True),
        search=asked.search or None,
        limit=limit,
        mismatch=bool(asked.mismatch),
    )


def _moment(text: str, name: str, whole_day: bool = False) -> datetime | None:
    """A day, or a time in UTC. The day that ends a span belongs to it."""
    if not text:
        return None
    try:
        if len(text) == len("2026-11-24"):
            day = datetime.combine(date.fromisoformat(text), time(), UTC)
            return day + timedelta(days=1) if whole_day else day
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Trouble(400, "This is no time", f"{name} is a day such as 2026-11-24, or 2026-11-24T10:00.") from None
