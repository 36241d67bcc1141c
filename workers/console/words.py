"""The console's words: what a state or a reason means, and what can be done about it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Tone = Literal["good", "wait", "bad", "note", "plain"]


class Word(NamedTuple):
    tone: Tone
    """Each tone has a colour and a sign of its own."""
    meaning: str


NOTIFICATION: dict[str, Word] = {
    "processed": Word("good", "It was understood and is part of its payment."),
    "failed": Word("bad", "A fault of ours: it could not be interpreted. It is kept raw and can be replayed."),
    "quarantined": Word("bad", "Its sender is proven, but it cannot be read or believed. It is kept raw."),
    "held": Word("wait", "Its token is not registered yet, so its sender is not proven. It waits."),
}

PAYMENT: dict[str, Word] = {
    "pending": Word("wait", "The outcome is not known yet."),
    "authorised": Word("wait", "The money is reserved and not taken yet."),
    "captured": Word("good", "The money was taken."),
    "declined": Word("bad", "The bank said no."),
    "failed": Word("bad", "It failed, or its money went back."),
    "expired": Word("plain", "The authorisation ran out before a capture."),
    "cancelled": Word("plain", "It was cancelled before any money moved."),
    "voided": Word("plain", "The authorisation was given back."),
    "partially_refunded": Word("note", "A part of the money was given back."),
    "refunded": Word("note", "All of the money was given back."),
    "disputed": Word("bad", "The cardholder disputes it."),
}

MENU = (
    ("/", "Overview"),
    ("/notifications", "Notifications"),
    ("/payments", "Payments"),
    ("/refused", "Refused"),
    ("/attention", "Needs attention"),
    ("/replays", "Replays"),
    ("/reconciliations", "Reconciliations"),
    ("/audit", "Audit"),
)

KINDS: dict[str, str] = {
    "failed": "Failed",
    "quarantined": "Quarantined",
    "held": "Held",
    "conflict": "Conflicts",
    "mismatch": "Not as expected",
}

REPLAY: dict[str, Word] = {
    "waiting": Word("wait", "A second operator must approve it before anything is done."),
    "running": Word("note", "A worker does it now, behind live notifications."),
    "paused": Word("wait", "Nothing more is done until somebody resumes it."),
    "done": Word("good", "Every notification had its turn."),
    "cancelled": Word("plain", "What was not done yet is never done by it."),
}

OUTCOMES: dict[str, Word] = {
    "unchanged": Word("plain", "It says the same as before."),
    "new_payment": Word("good", "It makes a payment that was not there."),
    "payment_changed": Word("note", "Its payment changes."),
    "reinterpreted": Word("good", "It is read anew; its payment, if it speaks of one, stays as it was."),
    "still_fails": Word("bad", "It cannot be read or believed now either."),
    "taken_back": Word("bad", "It was processed, and is not believed any more for what it says itself."),
    "kept": Word("plain", "It cannot be read today; what was read once stays."),
    "repeat": Word("plain", "Another notification has its duplicate key; it stays a repeat."),
    "not_recorded": Word("bad", "What was made of it could not be stored; it stays as it was."),
    "missing": Word("bad", "It is not in the ledger any more."),
    "cancelled": Word("plain", "The replay was cancelled before its turn."),
}

REASONS: dict[str, tuple[str, str]] = {
    "unreadable_body": ("The body is not what its type says.", "Look at the raw body, then ask the sender."),
    "unknown_document": ("Readable, but not a payment.", "Look at the raw body; ignore it when nothing is missing."),
    "missing_field": ("A field is missing without which nothing can be believed.", "Ask the sender."),
    "contradictory_fields": ("It contradicts itself.", "Look at what does not fit, then ask the sender."),
    "other_business": (
        "It is for another business than this endpoint's.",
        "Is the code yours? Add it to supplier_business_codes, then replay. Else tell the sender.",
    ),
    "weak_proof": ("Its checksum fits only in a variant.", "Confirm the payment by an inquiry at the sender."),
    "token_refused": ("It was held, and its proof turned out to be false.", "Somebody tries; nothing was believed."),
    "token_unknown": ("Its token is not registered yet.", "Register the payment; it is then released by itself."),
    "unknown_endpoint": (
        "The worker's configuration has no such endpoint.",
        "Give all processes the same configuration, then replay.",
    ),
    "interpretation_failed": ("A fault of ours.", "Report the traceback. After the mended version is in, replay."),
}


def of_notification(state: str) -> Word:
    return NOTIFICATION.get(state, Word("plain", ""))


def of_replay(state: str) -> Word:
    return REPLAY.get(state, Word("plain", ""))


def of_outcome(outcome: str) -> Word:
    return OUTCOMES.get(outcome, Word("plain", ""))


def of_payment(state: str) -> Word:
    return PAYMENT.get(state, Word("plain", ""))


def meaning(reason: str | None) -> str:
    return REASONS.get(reason or "", ("", ""))[0]


def remedy(reason: str | None) -> str:
    return REASONS.get(reason or "", ("", ""))[1]


FINDINGS: dict[str, str] = {
    "missing_here": "The file has a payment that the ledger does not have.",
    "refund_missing_here": "The file has a refund that the ledger does not have.",
    "missing_in_file": "The ledger has a captured payment that should be in the file.",
    "debit_returned": "A direct debit that was captured here is declined: the money went back.",
    "status_differs": "The file says another outcome.",
    "amount_differs": "The file says another amount.",
    "surcharge_differs": "The file says another surcharge.",
    "settlement_date_differs": "The file says another settlement date.",
    "row_repeated": "The file has the same receipt with the same outcome twice.",
    "row_malformed": "The row cannot be read.",
    "other_business": "The row is for another supplier business than the endpoint's.",
}

_REFUSALS = {
    "unknown_endpoint": "There is no such path. Compare the URL at the sender with [[endpoint]].",
    "method_refused": "Not a POST: somebody looks with a browser.",
    "source_refused": "The address is not one of the sender's. Behind a proxy: is receive.trusted_proxies right?",
    "credentials_missing": "No Authorization header. Set user and password at the sender.",
    "credentials_refused": "Other credentials than configured. Compare with passwords, authorization_keys or api_keys.",
    "signature_missing": "The signature or checksum is missing. Set the key at the sender.",
    "signature_refused": "The signature or checksum does not fit the body. Compare the key.",
    "token_missing": "No token in the body. Nothing to do, unless the sender sends many.",
    "token_refused": "The token belongs to no payment, or is not the event token.",
    "body_empty": "A body without bytes.",
    "body_too_large": "Over receive.max_body; unverified ones over 16 KiB.",
    "body_too_slow": "The body did not arrive in time. Look at the network between proxy and this machine.",
    "held_full": "Too many unverified notifications were held within a day. Does the shop register its tokens?",
    "request_malformed": "A header occurs twice, or an expectation is not as documented.",
}


def refusal(reason: str) -> str:
    return _REFUSALS.get(reason, "")


def advice(payment: dict[str, Any]) -> list[str]:
    """What the state of a payment means for whoever answers the customer."""
    state, response, told = payment["state"], payment["response"], []
    if state == "declined":
        told.append(
            "A soft decline: the same card or account may work later."
            if payment["soft_decline"]
            else "A hard decline: trying the same card or account again will not help."
        )
    elif state in PAYMENT and state != "captured":
        told.append(PAYMENT[state].meaning)
    if response is not None and response["advice"] and state not in ("captured", "authorised"):
        told.append(f"For the customer: {response['advice']}")
    if payment["mismatch"]:
        differs = " and ".join(payment["differs"]) or "something"
        told.append(f"Not as expected: {differs} differs, or only a part was approved. Compare before goods leave.")
    return told


_LONGEST_FACT = 60


def facts(of: dict[str, Any]) -> str:
    """What an entry of the audit trail says beside its reason, as one line."""
    return ", ".join(f"{spaced(name)} {_fact(value)}" for name, value in of.items() if value not in (None, {}, []))


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return f"({facts(value)})"
    if isinstance(value, list):
        more = f" and {len(value) - 1} more" if len(value) > 1 else ""
        return f"{value[0]}{more}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    # A digest; the command and the API have the whole of it.
    return text if len(text) <= _LONGEST_FACT else f"{text[:16]}…"


def changes(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """What is another in a payment after a replay: (field, before, after)."""
    if after is None:
        return []
    if before is None:
        return [(name, None, value) for name, value in after.items() if not _nothing(name, value)]
    return [
        (name, before.get(name), value) for name, value in after.items() if value not in (before.get(name), None, False)
    ]


def _nothing(name: str, value: Any) -> bool:
    """Whether a new payment is not described by it: also sums that nothing was added to yet."""
    return value in (None, False) or (name in ("surcharge", "amount_refunded") and not str(value).strip("0."))


def spaced(name: str) -> str:
    """``partially_refunded`` as people write it."""
    return name.replace("_", " ")
