"""Everything that can go wrong with an input, as one tree.

PostbackError
├── Refused                 the request is answered with an error status; only a refusal record is kept
├── Quarantined             authentic, but unreadable or contradictory: kept raw, answered 200
├── NotStored               neither Redis nor the spool took it: the sender must send it again
├── BatchError              a message from the queue that this worker cannot open
│   ├── SealBroken          its seal fits none of the seal keys
│   └── NewerEnvelope       it was written by a newer version
├── LedgerAway              the ledger's database does not answer; the same work succeeds later
├── NotDone                 what an operator asked for cannot be done as asked; nothing was changed
└── BodyError               a stored raw body cannot be had
    ├── BodyLocked          none of the configured body keys opens it
    └── BodyPurged          its time was over

ConfigurationError          stands outside: it stops the process and nothing may swallow it
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Fixed slugs. Answers, refusal records, metrics and the runbook use them; they never change their meaning."""

    UNKNOWN_ENDPOINT = "unknown_endpoint"
    METHOD_REFUSED = "method_refused"
    SOURCE_REFUSED = "source_refused"
    CREDENTIALS_MISSING = "credentials_missing"
    CREDENTIALS_REFUSED = "credentials_refused"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_REFUSED = "signature_refused"
    TOKEN_MISSING = "token_missing"  # noqa: S105
    TOKEN_REFUSED = "token_refused"  # noqa: S105
    BODY_EMPTY = "body_empty"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TOO_SLOW = "body_too_slow"
    HELD_FULL = "held_full"
    NOT_STORED = "not_stored"
    REQUEST_MALFORMED = "request_malformed"
    QUERY_TOO_LONG = "query_too_long"
    RETURNS_FULL = "returns_full"
    ATTEMPTS_FULL = "attempts_full"
    CONNECTIONS_FULL = "connections_full"

    UNREADABLE_BODY = "unreadable_body"
    UNKNOWN_DOCUMENT = "unknown_document"
    MISSING_FIELD = "missing_field"
    CONTRADICTORY_FIELDS = "contradictory_fields"
    OTHER_BUSINESS = "other_business"
    WEAK_PROOF = "weak_proof"

    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105
    INTERPRETATION_FAILED = "interpretation_failed"

    CURSOR_MALFORMED = "cursor_malformed"
    TOO_MANY_FOUND = "too_many_found"
    UNKNOWN_ID = "unknown_id"
    REASON_MISSING = "reason_missing"
    NOTHING_CHOSEN = "nothing_chosen"
    ALREADY_IN_REPLAY = "already_in_replay"
    SECOND_OPERATOR_NEEDED = "second_operator_needed"
    STATE_CHANGED = "state_changed"

    UNKNOWN_PAGE = "unknown_page"
    PARAMETER_REFUSED = "parameter_refused"
    MEDIA_TYPE_REFUSED = "media_type_refused"
    ROLE_REFUSED = "role_refused"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    FILE_REFUSED = "file_refused"
    ALREADY_RECONCILING = "already_reconciling"
    UPLOADS_FULL = "uploads_full"
    DISK_FULL = "disk_full"
    STOPPING = "stopping"
    LEDGER_AWAY = "ledger_away"
    REDIS_AWAY = "redis_away"
    FAULT = "fault"


STATUS_OF: dict[Reason, int] = {
    Reason.UNKNOWN_ENDPOINT: 404,
    Reason.METHOD_REFUSED: 405,
    Reason.SOURCE_REFUSED: 403,
    Reason.CREDENTIALS_MISSING: 401,
    Reason.CREDENTIALS_REFUSED: 403,
    Reason.SIGNATURE_MISSING: 403,
    Reason.SIGNATURE_REFUSED: 403,
    Reason.TOKEN_MISSING: 403,
    Reason.TOKEN_REFUSED: 403,
    Reason.BODY_EMPTY: 400,
    Reason.BODY_TOO_LARGE: 413,
    Reason.BODY_TOO_SLOW: 408,
    Reason.HELD_FULL: 429,
    Reason.REQUEST_MALFORMED: 400,
    Reason.CURSOR_MALFORMED: 400,
    Reason.TOO_MANY_FOUND: 400,
    Reason.UNKNOWN_ID: 404,
    Reason.REASON_MISSING: 400,
    Reason.NOTHING_CHOSEN: 400,
    Reason.ALREADY_IN_REPLAY: 409,
    Reason.SECOND_OPERATOR_NEEDED: 409,
    Reason.STATE_CHANGED: 409,
    Reason.UNKNOWN_PAGE: 404,
    Reason.PARAMETER_REFUSED: 400,
    Reason.MEDIA_TYPE_REFUSED: 415,
    Reason.ROLE_REFUSED: 403,
    Reason.IDEMPOTENCY_KEY_REUSED: 422,
    Reason.FILE_REFUSED: 422,
    Reason.ALREADY_RECONCILING: 409,
    Reason.UPLOADS_FULL: 429,
    Reason.DISK_FULL: 507,
    Reason.STOPPING: 503,
    Reason.LEDGER_AWAY: 503,
    Reason.REDIS_AWAY: 503,
    Reason.FAULT: 500,
    Reason.QUERY_TOO_LONG: 414,
    Reason.RETURNS_FULL: 429,
    Reason.ATTEMPTS_FULL: 429,
    Reason.CONNECTIONS_FULL: 503,
}


class PostbackError(Exception):
    """`reason` is a fixed slug, `detail` one sentence that holds no secret and nothing of the body's values."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Refused(PostbackError):
    """The request is not accepted. `status` is the HTTP status that the status table gives to `reason`."""

    @property
    def status(self) -> int:
        return STATUS_OF[self.reason]


class Quarantined(PostbackError):
    """The sender is proven, but what it says cannot be believed or read as it stands."""


class NotStored(PostbackError):
    """Nothing has taken the notification; the status depends on the sender (500 or 503)."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.NOT_STORED, detail)


class NotDone(PostbackError):
    """What an operator asked for cannot be done as asked; nothing was changed. `status` is what the API answers."""

    @property
    def status(self) -> int:
        return STATUS_OF[self.reason]


class BatchError(Exception):
    """A message from the queue that this worker cannot open."""


class SealBroken(BatchError):
    """The seal fits none of the keys in `security.seal_keys`: the message is not ours, or was altered."""


class NewerEnvelope(BatchError):
    """The message was written by a newer version of Postback and waits for a newer worker."""


class LedgerAway(Exception):
    """The ledger's database does not answer, or asks for the transaction to be repeated."""


class BodyError(Exception):
    """The raw body of a stored notification cannot be had. The text is one sentence that names the row."""


class BodyLocked(BodyError):
    """It is encrypted, and no key in `security.body_keys` opens it."""


class BodyPurged(BodyError):
    """Its time was over. What was read out of it is still in the ledger."""


class ConfigurationError(Exception):
    """The configuration cannot be used. The text names the key and never a value."""
