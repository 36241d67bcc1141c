"""What can be wrong, and what each of it means. `deploy/RUNBOOK.md` has a row for every one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class AlarmKind(StrEnum):
    """Fixed words. Messages, commands and the runbook use them; they never change their meaning."""

    REDIS_AWAY = "redis_away"
    REPLICAS_AWAY = "replicas_away"
    NO_WORKER = "no_worker"
    QUEUE_STUCK = "queue_stuck"
    BATCHES_SET_ASIDE = "batches_set_aside"
    SPOOL_WAITS = "spool_waits"
    LEDGER_AWAY = "ledger_away"
    NOTIFICATIONS_FAILED = "notifications_failed"
    CONFLICTS = "conflicts"
    MISMATCHES = "mismatches"
    CARD_NUMBERS_MASKED = "card_numbers_masked"
    ENDPOINT_SILENT = "endpoint_silent"
    WEBHOOK_DISABLING = "webhook_disabling"
    ANSWERS_LOST = "answers_lost"
    SETTLEMENT_FILE_MISSING = "settlement_file_missing"
    CERTIFICATE_UNFIT = "certificate_unfit"
    PUBLIC_NAME_AWAY = "public_name_away"


class Problem(NamedTuple):
    """Something that is wrong at this moment."""

    kind: AlarmKind
    sentence: str
    """Names endpoints, counts and times; never a secret, a customer or anything of a body."""
    subject: str = ""
    """The endpoint or the name that has it; "" when it is the whole installation's."""
    level: int = 0
    """How bad, where that can grow: what is acknowledged is not acknowledged for a higher one."""


Key = tuple[AlarmKind, str]


@dataclass(frozen=True, slots=True)
class Meaning:
    """In words for whoever is woken by it."""

    means: str
    do: str


MEANINGS = {
    AlarmKind.REDIS_AWAY: Meaning(
        "Senders are still answered 200, from the spool on the disk. Payments are late until Redis is back.",
        "Start Redis: systemctl start redis-server. The spool then drains by itself.",
    ),
    AlarmKind.REPLICAS_AWAY: Meaning(
        "A batch would be lost with the master of Redis; the spool keeps a second copy of each meanwhile.",
        "Start the replica, then look at `redis-cli info replication` on the master.",
    ),
    AlarmKind.NO_WORKER: Meaning(
        "Notifications are kept in the queue, and no payment is recorded.",
        "systemctl start postback-work, and look into its log for why it stopped.",
    ),
    AlarmKind.QUEUE_STUCK: Meaning(
        "The workers are too slow, or wait for the database.",
        "`postback health` shows queue and workers; start another worker, or look at the database.",
    ),
    AlarmKind.BATCHES_SET_ASIDE: Meaning(
        "A batch fits none of the seal keys: a key was taken out too early, or somebody else writes into this Redis.",
        "The runbook says how to look at it: A batch was set aside.",
    ),
    AlarmKind.SPOOL_WAITS: Meaning(
        "What was answered 200 waits on this machine's disk for Redis.",
        "Nothing when Redis has just come back; else as for Redis is away.",
    ),
    AlarmKind.LEDGER_AWAY: Meaning(
        "Senders notice nothing. Batches wait in the queue; no payment is recorded until the database answers.",
        "Start the database: systemctl start postgresql.",
    ),
    AlarmKind.NOTIFICATIONS_FAILED: Meaning(
        "Genuine notifications could not be made into records: a fault of ours. They are kept raw.",
        "`postback attention list --kind failed`; mend the cause, then replay them.",
    ),
    AlarmKind.CONFLICTS: Meaning(
        "A sender used the same key for other content, or somebody forges with a stolen secret. Both are kept.",
        "`postback attention list --kind conflict`, then ask the sender.",
    ),
    AlarmKind.MISMATCHES: Meaning(
        "Amount, currency or merchant of a payment is not what was registered before.",
        "Deliver nothing. `postback attention list --kind mismatch` shows which.",
    ),
    AlarmKind.CARD_NUMBERS_MASKED: Meaning(
        "Somebody sends card numbers in a field that is not for them. They were masked before anything was kept.",
        "Look for `card_number_masked` in the log of the accept processes, and tell whoever fills the field.",
    ),
    AlarmKind.ENDPOINT_SILENT: Meaning(
        "The sender stopped, or its requests do not reach this machine.",
        "`postback refusals list`, then the proxy's log, then the sender's console.",
    ),
    AlarmKind.WEBHOOK_DISABLING: Meaning(
        "Debitsuccess tries an event four times within 9 minutes, then disables the webhook until its support enables"
        " it again.",
        "`postback refusals list` says which check refuses; mend it. After the 9 minutes: ask Debitsuccess' support"
        " whether the webhook is disabled, and for what was missed.",
    ),
    AlarmKind.ANSWERS_LOST: Meaning(
        "The sender repeats what was answered 200: the answers do not reach it, or come too late. Or somebody resends"
        " by hand.",
        "Look at the proxy's log and time limits. Nothing is lost or counted twice.",
    ),
    AlarmKind.SETTLEMENT_FILE_MISSING: Meaning(
        "Four hours after it is made, the file of a banking day had not come.",
        "Look into failed/ of the folder, then fetch the file from the portal.",
    ),
    AlarmKind.CERTIFICATE_UNFIT: Meaning(
        "Senders stop to deliver when the certificate of the public name has expired or does not prove it.",
        "Renew it where TLS ends: certbot renew, then reload the proxy.",
    ),
    AlarmKind.PUBLIC_NAME_AWAY: Meaning(
        "The public name cannot be reached from here, and perhaps not by the senders.",
        "Is the proxy up, and the name's address right? Where this network cannot reach its own public name, leave"
        " alarms.public_name out.",
    ),
}


def name(kind: AlarmKind, subject: str) -> str:
    """As people write it: ``redis_away``, or ``endpoint_silent:checkout/main``."""
    return f"{kind}:{subject}" if subject else str(kind)


def named(text: str) -> Key | None:
    """The key that this name is of; None for what is no name of an alarm."""
    kind, _, subject = text.partition(":")
    return (AlarmKind(kind), subject) if kind in list(AlarmKind) else None
