"""The audit trail: who did what, when, from where and why. Every action of an operator is added here, in the same
transaction, by `Audit.add`.

Each entry's hash covers its content and the hash before it, so that a changed, removed or moved entry breaks the chain.
A plain chain could be written anew by whoever may write the database; so each hash is sealed as well, with a key
derived from `security.seal_keys`, which the database does not know. A seal vouches for all entries before it. Seal keys
come and go: an entry whose key is configured no longer is still held by the chain and by the seals after it. As those
would vouch for a forged past too, an entry says for ever when the seal before it could not be checked.

What no chain can show is that its newest entries were cut off: the log names number and hash of each (`audit_entry`).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, event, insert, select, text

from receiver import logs
from receiver.errors import NotDone, Reason
from receiver.notification import microseconds
from receiver.signing import Secret, digest
from workers.ledger.rows import cleaned
from workers.ledger.tables import audit

log = logs.get("workers.audit")

_LOCK = 5_076_782_273_301
"""Of PostgreSQL's advisory locks: one entry is added at a time, as each needs the hash before it."""
_PAGE = 1000
LONGEST_REASON = 1000
NOBODY_BEFORE = "0" * 64
_UNCHECKED = "seal_before_unchecked"
_JSON = msgspec.json.Encoder(order="deterministic")


class Action(StrEnum):
    """What can be done; fixed words."""

    SIGNED_IN = "signed_in"
    SIGN_IN_REFUSED = "sign_in_refused"
    SIGNED_OUT = "signed_out"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 (a word, no password)
    SECOND_FACTOR_SET = "second_factor_set"
    SECOND_FACTOR_REFUSED = "second_factor_refused"
    SECOND_FACTOR_TAKEN_OFF = "second_factor_taken_off"
    RECOVERY_CODE_USED = "recovery_code_used"
    REPLAY_CREATED = "replay_created"
    REPLAY_APPROVED = "replay_approved"
    REPLAY_PAUSED = "replay_paused"
    REPLAY_RESUMED = "replay_resumed"
    REPLAY_CANCELLED = "replay_cancelled"
    REPLAY_ENDED = "replay_ended"
    RESOLVED = "resolved"
    IGNORED = "ignored"
    REOPENED = "reopened"
    ACKNOWLEDGED = "acknowledged"
    EXPORTED = "exported"
    PURGED = "purged"
    RECONCILIATION_BEGUN = "reconciliation_begun"
    RECONCILED = "reconciled"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. `origin` says from where: an address, or the machine and the user of a command."""

    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry that does not hold."""

    number: int
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    entries: int
    head: str
    """The hash of the newest entry: the same as in the log, or entries were cut off."""
    faults: list[Fault]


class Audit:
    """Adds and verifies entries. `keys` are `security.seal_keys`, oldest first: the newest seals."""

    def __init__(self, keys: Sequence[Secret]) -> None:
        self._keys = {_derived(key, b".id").hex()[:16]: _derived(key, b"") for key in keys}
        self._newest = next(reversed(self._keys))

    def add(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        subject: str = "",
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> int:
        """Adds an entry to the transaction of `connection`, as the last that it does; gives its number."""
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        last = connection.execute(select(audit).order_by(audit.c.number.desc()).limit(1)).first()
        said = dict(facts or {})
        if last is not None and not self._sealed(last):
            log.error("audit_seal_unfit", number=last.number)
            said[_UNCHECKED] = True
        entry: dict[str, Any] = {
            "number": last.number + 1 if last else 1,
            "at": datetime.now(UTC),
            "operator": cleaned(actor.name)[:100],
            "origin": cleaned(actor.origin)[:200],
            "action": action.value,
            "subject": cleaned(subject)[:300],
            "reason": cleaned(reason)[:LONGEST_REASON],
            "facts": cleaned(_JSON.encode(said).decode()),
            "previous": last.hash if last else NOBODY_BEFORE,
            "key": self._newest,
        }
        entry["hash"] = _hash(entry)
        entry["seal"] = _seal(self._keys[self._newest], entry["hash"])
        connection.execute(insert(audit).values(entry))
        _log_when_committed(connection, entry)
        return int(entry["number"])

    def verify(self, connection: Connection) -> Verdict:
        """Walks the whole chain."""
        faults: list[Fault] = []
        number, before = 0, NOBODY_BEFORE
        unsealed: int | None = None
        for row in _rows(connection):
            faults += [Fault(missing, "is missing") for missing in range(number + 1, min(row.number, number + 11))]
            if row.previous != before:
                faults.append(Fault(row.number, "does not follow the entry before it"))
            if row.hash != _hash(row._asdict()):
                faults.append(Fault(row.number, "was changed"))
            if _facts(row).get(_UNCHECKED):
                faults.append(Fault(row.number, "was added when the seal before it could not be checked"))
            if self._sealed(row):
                unsealed = None
            elif row.key in self._keys:
                faults.append(Fault(row.number, "has a seal that does not fit"))
            else:
                unsealed = unsealed or row.number
            number, before = row.number, row.hash
        if unsealed is not None:
            what = "and those after it are sealed with a key that is not in security.seal_keys"
            faults.append(Fault(unsealed, what))
        return Verdict(number, before, faults)

    def _sealed(self, row: Any) -> bool:
        key = self._keys.get(row.key)
        return key is not None and hmac.compare_digest(row.seal.encode(), _seal(key, row.hash).encode())


def listed(
    connection: Connection, before: int | None = None, limit: int = 50, operator: str | None = None, subject: str = ""
) -> list[dict[str, Any]]:
    """The newest entries with a number below `before`, newest first: of one operator, or of one subject."""
    query = select(audit)
    if before is not None:
        query = query.where(audit.c.number < before)
    if operator is not None:
        query = query.where(audit.c.operator == cleaned(operator))
    if subject:
        query = query.where(audit.c.subject == cleaned(subject))
    return [entry(row) for row in connection.execute(query.order_by(audit.c.number.desc()).limit(limit))]


def every(
    connection: Connection, limit: int | None = None, operator: str | None = None, subject: str = ""
) -> Iterator[dict[str, Any]]:
    """All of them, newest first, `limit` at most."""
    before, left = None, limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        found = listed(connection, before, size, operator, subject)
        yield from found
        if len(found) < size:
            return
        before = found[-1]["number"]
        left = None if left is None else left - len(found)


def entry(row: Any) -> dict[str, Any]:
    """The audit object of the API."""
    return {
        "number": row.number,
        "at": row.at,
        "operator": row.operator,
        "origin": row.origin,
        "action": row.action,
        "subject": row.subject or None,
        "reason": row.reason or None,
        "facts": _facts(row),
        "hash": row.hash,
    }


def reason_given(reason: str) -> str:
    """`reason` without white space around it. Raises `NotDone` when none is given, or too long a one."""
    reason = reason.strip()
    if not reason:
        raise NotDone(Reason.REASON_MISSING, "A reason is needed; it stays in the audit trail.")
    if len(reason) > LONGEST_REASON:
        raise NotDone(Reason.REASON_MISSING, f"The reason may have {LONGEST_REASON} characters.")
    return cleaned(reason)


def _rows(connection: Connection) -> Iterator[Row[Any]]:
    number = 0
    while rows := connection.execute(
        select(audit).where(audit.c.number > number).order_by(audit.c.number).limit(_PAGE)
    ).all():
        yield from rows
        number = rows[-1].number


def _facts(row: Any) -> dict[str, Any]:
    """Empty where somebody put in what we never wrote: the entry is shown all the same; `verify` says what it is."""
    try:
        return msgspec.json.decode(row.facts, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        return {}


def _derived(key: Secret, use: bytes) -> bytes:
    return hmac.digest(key.reveal(), b"postback.audit" + use, "sha256")


def _hash(entry: Mapping[str, Any]) -> str:
    content = (
        *(entry["number"], microseconds(entry["at"]), entry["operator"], entry["origin"], entry["action"]),
        *(entry["subject"], entry["reason"], entry["facts"], entry["previous"], entry["key"]),
    )
    return digest(*(str(part).encode() for part in content))


def _seal(key: bytes, hash_: str) -> str:
    return hmac.digest(key, hash_.encode(), "sha256").hex()


def _log_when_committed(connection: Connection, entry: Mapping[str, Any]) -> None:
    """An entry that is rolled back was never there."""

    def say(_: Connection) -> None:
        log.info(
            "audit_entry",
            number=entry["number"],
            operator=entry["operator"],
            action=entry["action"],
            subject=entry["subject"],
            hash=entry["hash"],
        )

    event.listen(connection, "commit", say, once=True)
