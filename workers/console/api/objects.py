"""The objects that the API answers, as the contract has them: the schemas are made of these."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Any

import msgspec

from receiver.notification import PaymentState
from workers.alarms.kinds import AlarmKind
from workers.attention import Kind
from workers.ledger.replays import State


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    pass


class NotificationPage(_Object, frozen=True):
    items: list[Notification]
    next: str | None
    """The `cursor` of the next page; null when this is the last."""
    cut: bool


class Notification(_Object, frozen=True):
    id: str
    provider: str
    facility: str
    event_type: str
    dedupe_key: str
    state: str
    reason: str | None
    received_at: datetime
    processed_at: datetime | None
    source: str
    deliveries: int
    conflicts: int


class NotificationDetail(Notification, frozen=True):
    verified: bool
    detail: str | None
    content_type: str | None
    headers: Any
    body: str | None
    body_note: str | None
    payment_id: str | None
    event: dict[str, Any] | None
    repeats: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    attention: dict[str, dict[str, Any] | None]
    """Each kind for which it needs a person, with how that was settled, or null while it is open."""


class Payment(_Object, frozen=True):
    """Amounts are decimal strings."""

    provider: str
    facility: str
    payment_id: str
    receipt_number: str | None
    state: PaymentState
    amount: str | None
    currency: str | None
    surcharge: str | None
    amount_refunded: str | None
    reference: str | None
    customer_reference: str | None
    card_scheme: str | None
    response_code: str | None
    response_description: str | None
    summary_code: str | None
    soft_decline: bool | None
    settlement_date: date | None
    occurred_at: datetime | None
    updated_at: datetime
    custom: dict[str, Any]
    mismatch: bool


class PaymentDetail(Payment, frozen=True):
    response: dict[str, Any] | None
    expected: dict[str, Any] | None
    differs: list[str]
    returns: list[dict[str, Any]]
    events: list[dict[str, Any]]
    attention: dict[str, dict[str, Any] | None]
    """A mismatch, as of a notification."""


class PaymentPage(_Object, frozen=True):
    items: list[Payment]
    next: str | None
    cut: bool


class Refusal(_Object, frozen=True):
    at: datetime
    provider: str
    facility: str
    source: str
    reason: str
    detail: str
    status: int
    size: int
    content_type: str


class RefusalCount(_Object, frozen=True):
    reason: str
    provider: str
    facility: str
    refused: int


class RefusalPage(_Object, frozen=True):
    total: int
    """Of all that are kept, as `counts` is."""
    counts: list[RefusalCount]
    items: list[Refusal]
    """The newest first; the last 10,000 are kept."""
    next: str | None


class Needing(_Object, frozen=True):
    kind: Kind
    provider: str
    facility: str
    subject: str
    at: datetime
    reason: str | None
    resolution: dict[str, Any] | None
    notification: Notification | msgspec.UnsetType = msgspec.UNSET
    payment: Payment | msgspec.UnsetType = msgspec.UNSET


class AttentionPage(_Object, frozen=True):
    counts: dict[str, int]
    """Of every kind, how many need attention now."""
    means: str
    """What this kind means, and what to `do`, in words for people."""
    do: str
    items: list[Needing]
    next: str | None


class Replay(_Object, frozen=True):
    id: str
    state: State
    created_at: datetime
    created_by: str
    origin: str
    reason: str
    chosen: dict[str, Any]
    total: int
    done: int
    outcomes: dict[str, int]
    approved_by: str | None
    approved_at: datetime | None
    started_at: datetime | None
    changed_at: datetime
    ended_at: datetime | None


class ReplayPage(_Object, frozen=True):
    items: list[Replay]
    next: str | None


class ReplayDetail(Replay, frozen=True):
    results: list[dict[str, Any]]
    """What was done so far, in the order of arrival."""
    next: str | None


class AuditEntry(_Object, frozen=True):
    number: int
    at: datetime
    operator: str
    origin: str
    action: str
    subject: str | None
    reason: str | None
    facts: dict[str, Any]
    hash: str


class AuditPage(_Object, frozen=True):
    items: list[AuditEntry]
    next: str | None


class AuditFault(_Object, frozen=True):
    """An entry that was changed, removed or forged."""

    number: int
    what: str


class AuditVerdict(_Object, frozen=True):
    entries: int
    head: str
    """The hash of the newest entry: the same as in the log, or entries were cut off."""
    faults: list[AuditFault]
    """None when the trail is whole."""


class Hour(_Object, frozen=True):
    start: datetime
    accepted: int
    duplicates: int
    refused: int
    failed: int
    """Failed or quarantined."""


class EndpointActivity(_Object, frozen=True):
    provider: str
    facility: str
    hours: list[Hour]
    """The last 24, the oldest first; the last is the current one."""


class Activity(_Object, frozen=True):
    endpoints: list[EndpointActivity]


class Reconciliation(_Object, frozen=True):
    id: str
    provider: str
    facility: str
    file_name: str
    digest: str
    first_day: date | None
    last_day: date | None
    rows: int
    matched: int
    entered: int
    findings: int
    counts: dict[str, Any]
    began_at: datetime
    finished_at: datetime | None


class ReconciliationPage(_Object, frozen=True):
    items: list[Reconciliation]
    next: str | None


class ReconciliationDetail(Reconciliation, frozen=True):
    found: list[dict[str, Any]]


class UploadState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    UNFINISHED = "unfinished"


class Compared(_Object, frozen=True):
    """What came of a file."""

    digest: str
    first_day: date | None
    last_day: date | None
    rows: int
    matched: int
    entered: int
    findings: int
    counts: dict[str, int]
    """Findings by kind."""
    found: list[dict[str, Any]]
    """The first 500 findings; `/reconciliations/{id}` has more."""


class Upload(_Object, frozen=True):
    """A settlement file that was given. It is `unfinished` when another process compares it, or was interrupted."""

    id: str | None
    """By which this process knows it, until it is started again; null where only the ledger knows it."""
    reconciliation_id: str | None
    """Null for a dry run, and before it is begun."""
    provider: str
    facility: str
    file_name: str
    by: str
    dry_run: bool
    began_at: datetime
    state: UploadState
    share: float
    """Done of the whole, from 0 to 1."""
    reason: str | None
    """Why it was refused, as in a problem; `detail` is the sentence."""
    detail: str | None
    result: Compared | None


class Health(_Object, frozen=True):
    status: str
    redis: dict[str, Any]
    database: dict[str, Any]
    spool: dict[str, Any]
    alarms: list[dict[str, Any]]
    problems: list[str]


class Alarm(_Object, frozen=True):
    """Something that somebody was told of."""

    alarm: str
    """Its name, by which it is acknowledged: ``redis_away``, ``endpoint_silent:checkout/main``."""
    kind: AlarmKind
    subject: str | None
    sentence: str
    means: str
    do: str
    raised_at: datetime
    told_at: datetime
    cleared_at: datetime | None
    times: int
    acknowledged_by: str | None
    acknowledged_at: datetime | None
    acknowledged_reason: str | None


class AlarmList(_Object, frozen=True):
    items: list[Alarm]
    """Those now, the oldest first; with `cleared` the last one of each kind and subject, the latest first."""


class Settled(_Object, frozen=True):
    settled: int
    """How many: all that were named."""


class Reopened(_Object, frozen=True):
    reopened: int
    """How many: all that were named."""
