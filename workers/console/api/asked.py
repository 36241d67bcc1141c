"""What may be asked of each operation: parameters and bodies. The routes validate by these, and OpenAPI shows them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from receiver.errors import STATUS_OF, Reason
from receiver.providers import PROVIDERS
from workers.attention import MOST_AT_ONCE, Kind
from workers.audit import LONGEST_REASON
from workers.console.api.problems import Declined
from workers.ledger import queries
from workers.ledger.pages import LONGEST_PAGE, PAGE
from workers.ledger.queries import Filter
from workers.ledger.replays import State
from workers.rerun import Outcome

T = TypeVar("T")

LONGEST_SEARCH = 200


def _one_of(words: list[str]) -> Meta:
    return Meta(pattern=f"^({'|'.join(words)})$")


Provider = Annotated[str, _one_of(list(PROVIDERS))]
Facility = Annotated[str, Meta(min_length=1, max_length=64)]
NotificationState = Annotated[str, _one_of(queries.NOTIFICATION_STATES)]
PaymentState = Annotated[str, _one_of(queries.PAYMENT_STATES)]
Moment = Annotated[str, Meta(max_length=40, extra_json_schema={"format": "date-time"})]
Search = Annotated[str, Meta(min_length=1, max_length=LONGEST_SEARCH)]
Cursor = Annotated[str, Meta(min_length=1, max_length=2000, description="`next` of the page before.")]
Id = Annotated[str, Meta(min_length=1, max_length=64)]
Reasoned = Annotated[str, Meta(max_length=LONGEST_REASON)]
Limit = Annotated[int, Meta(ge=1, le=LONGEST_PAGE)]


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Span(_Asked, frozen=True):
    provider: Provider | msgspec.UnsetType = msgspec.UNSET
    facility: Facility | msgspec.UnsetType = msgspec.UNSET
    since: Moment | msgspec.UnsetType = msgspec.UNSET
    until: Moment | msgspec.UnsetType = msgspec.UNSET


class _List(_Span, frozen=True):
    limit: Limit = PAGE


class Notifications(_List, frozen=True):
    state: NotificationState | msgspec.UnsetType = msgspec.UNSET
    search: Search | msgspec.UnsetType = msgspec.UNSET
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET


class Export(_Span, frozen=True):
    """All that fits unless there is a `limit`, newest first."""

    format: Annotated[str, _one_of(["csv", "jsonl"])] = "csv"
    reason: Reasoned = ""
    """Why; it stays in the audit trail."""
    state: NotificationState | msgspec.UnsetType = msgspec.UNSET
    search: Search | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET


class Payments(_List, frozen=True):
    state: PaymentState | msgspec.UnsetType = msgspec.UNSET
    search: Search | msgspec.UnsetType = msgspec.UNSET
    mismatch: bool = False
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET


class Reconciliations(_List, frozen=True):
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET


class Refusals(_Asked, frozen=True):
    provider: Facility | msgspec.UnsetType = msgspec.UNSET
    facility: Facility | msgspec.UnsetType = msgspec.UNSET
    reason: Annotated[str, _one_of(list(STATUS_OF))] | msgspec.UnsetType = msgspec.UNSET
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, Meta(ge=1, le=10_000)] = PAGE


class Attention(_Asked, frozen=True):
    kind: Kind
    provider: Provider | msgspec.UnsetType = msgspec.UNSET
    facility: Facility | msgspec.UnsetType = msgspec.UNSET
    settled: bool = False
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET
    limit: Limit = PAGE


class Alarms(_Asked, frozen=True):
    cleared: bool = False


class Acknowledgement(_Asked, frozen=True):
    alarm: Annotated[str, Meta(min_length=1, max_length=300)]
    """Its name, as the list has it."""
    reason: Annotated[str, Meta(min_length=1, max_length=LONGEST_REASON)]


class Replays(_Asked, frozen=True):
    state: State | msgspec.UnsetType = msgspec.UNSET
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET
    limit: Limit = PAGE


class Results(_Asked, frozen=True):
    outcome: Outcome | msgspec.UnsetType = msgspec.UNSET
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET
    limit: Limit = PAGE


class Audit(_Asked, frozen=True):
    operator: Search | msgspec.UnsetType = msgspec.UNSET
    subject: Search | msgspec.UnsetType = msgspec.UNSET
    cursor: Cursor | msgspec.UnsetType = msgspec.UNSET
    limit: Limit = PAGE


class NewReplay(_Asked, frozen=True):
    """What to replay: these `ids`, or all notifications that a filter finds."""

    reason: Reasoned = ""
    """Why; it stays in the audit trail. Needed unless it is a dry run."""
    dry_run: bool = False
    """Only says what it would do."""
    ids: Annotated[list[Id], Meta(max_length=1000)] = []
    state: NotificationState | msgspec.UnsetType = msgspec.UNSET
    provider: Provider | msgspec.UnsetType = msgspec.UNSET
    facility: Facility | msgspec.UnsetType = msgspec.UNSET
    since: Moment | msgspec.UnsetType = msgspec.UNSET
    until: Moment | msgspec.UnsetType = msgspec.UNSET
    search: Search | msgspec.UnsetType = msgspec.UNSET


class Settlement(_Asked, frozen=True):
    """Whose file it is, and its name. The days, both included, where its rows do not say them."""

    provider: Provider
    facility: Facility
    file_name: Annotated[str, Meta(min_length=1, max_length=255)]
    first_day: date | msgspec.UnsetType = msgspec.UNSET
    last_day: date | msgspec.UnsetType = msgspec.UNSET
    dry_run: bool = False
    """Only looks: nothing is written, and an Idempotency-Key is not needed."""


class Why(_Asked, frozen=True):
    reason: Reasoned = ""


class Subject(_Asked, frozen=True):
    subject: Annotated[str, Meta(min_length=1, max_length=300)]
    """A notification's id, or the `payment_id` of a mismatch."""
    provider: Facility | msgspec.UnsetType = msgspec.UNSET
    facility: Facility | msgspec.UnsetType = msgspec.UNSET


class Resolution(_Asked, frozen=True):
    kind: Kind
    subjects: Annotated[list[Subject], Meta(min_length=1, max_length=MOST_AT_ONCE)]
    reason: Annotated[str, Meta(min_length=1, max_length=LONGEST_REASON)]


def given(value: T | msgspec.UnsetType) -> T | None:
    return None if isinstance(value, msgspec.UnsetType) else value


def moment(value: str | msgspec.UnsetType, name: str) -> datetime | None:
    """Raises `Declined` (`parameter_refused`) for what is no time with a zone."""
    if isinstance(value, msgspec.UnsetType):
        return None
    try:
        # Of the many forms of ISO 8601 only that of RFC 3339, which the answers have too.
        found = msgspec.convert(value, datetime)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        pass
    raise Declined(Reason.PARAMETER_REFUSED, f"{name} must be a time such as 2026-11-24T10:00:00Z.")


def wanted(query: Notifications | Export | Payments | Reconciliations) -> Filter:
    return Filter(
        state=given(getattr(query, "state", msgspec.UNSET)),
        provider=given(query.provider),
        facility=given(query.facility),
        since=moment(query.since, "since"),
        until=moment(query.until, "until"),
        search=given(getattr(query, "search", msgspec.UNSET)),
        limit=given(query.limit),
        mismatch=getattr(query, "mismatch", False),
    )
