"""The page that a customer sees after paying: one small HTML document without scripts and without anything from
elsewhere. All text goes through `_text`, and only words of ours and proven values are shown."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape as _text

from receiver.errors import Reason
from receiver.money import text_from_minor
from receiver.notification import BrowserReturn, ReturnOutcome

_STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--text:#1b2230;--quiet:#566072;--line:#d9dde4;
--good:#14713d;--bad:#b3261e;--wait:#8a5300}
@media(prefers-color-scheme:dark){:root{--page:#12151b;--card:#1b2029;--text:#e8ebf0;--quiet:#a4adbb;--line:#343c4a;
--good:#5fd08d;--bad:#ff8f86;--wait:#f0b45a}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1rem;background:var(--page);color:var(--text);
font:1.0625rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{width:100%;max-width:34rem;padding:clamp(1.25rem,5vw,2.25rem);background:var(--card);
border:1px solid var(--line);border-top:.3rem solid var(--tone,var(--quiet));border-radius:.6rem}
.good{--tone:var(--good)}.bad{--tone:var(--bad)}.wait{--tone:var(--wait)}
h1{margin:0 0 .5rem;font-size:1.5rem;line-height:1.25;color:var(--tone,inherit)}
p{margin:.5rem 0 0}
dl{margin:1.25rem 0 0;border-top:1px solid var(--line)}
dl div{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;padding:.55rem 0;
border-bottom:1px solid var(--line)}
dt{color:var(--quiet)}
dd{margin:0;font-weight:600;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.note{margin-top:1.25rem;font-size:.9rem;color:var(--quiet)}
"""
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    # The address of a return holds a name and a masked card number: it goes to nobody and stays nowhere.
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "x-robots-tag": "noindex, nofollow",
}

_NOTHING_TAKEN = "No money was taken."
_DECIDED_LATER = "The merchant is told by the bank, not by this page: you may close it."

_SAID: dict[ReturnOutcome, tuple[str, str, str]] = {
    ReturnOutcome.APPROVED: ("good", "Your payment was approved", "Thank you. Please keep the receipt number."),
    ReturnOutcome.DECLINED: (
        "bad",
        "Your payment was declined",
        f"{_NOTHING_TAKEN} Please go back to the merchant and try another card or account, or ask your bank.",
    ),
    ReturnOutcome.FAILED: (
        "bad",
        "Your payment did not go through",
        f"{_NOTHING_TAKEN} Please go back to the merchant and try again.",
    ),
    ReturnOutcome.PENDING: (
        "wait",
        "Your payment is being processed",
        "The bank has not given a final answer yet. Please do not pay again before the merchant has told you.",
    ),
    ReturnOutcome.ERROR: (
        "bad",
        "Your payment was not made",
        "Something on the payment page was missing or not right. Please go back to the merchant and try again.",
    ),
    ReturnOutcome.CONFIRM: ("wait", "Your payment was not made yet", "It needs your confirmation first."),
    ReturnOutcome.UNCONFIRMED: (
        "wait",
        "Your payment is not confirmed yet",
        "The merchant waits for word from the payment provider. Please do not pay again before the merchant has told"
        " you.",
    ),
}
_CONFIRM = {
    "acceptSurcharge": "A surcharge applies to this card or account. Please go back to the merchant to accept it.",
    "ignoreDuplicate": "The same card or account paid the same amount a short time ago. Please go back to the merchant,"
    " and confirm there only if you mean to pay twice.",
}
_WRONG = {
    "cardholderName": "the name on the card",
    "creditCardNumber": "the card number",
    "expiryDateMonth": "the expiry date",
    "expiryDateYear": "the expiry date",
    "cvn": "the security number",
    "bsb": "the BSB",
    "accountNumber": "the account number",
    "accountName": "the account name",
    "acceptDDR": "the agreement to the direct debit",
}
_REPORTED = {
    "Success": "The payment page reported success, which counts only when the merchant has confirmed it.",
    "Declined": "The payment page reported that it was declined.",
    "TokenExpired": "The payment page reported that its time was over.",
}


def of_return(returned: BrowserReturn) -> str:
    """The page for what a return says."""
    tone, title, sentence = _SAID[returned.outcome]
    sentences = [sentence, *(_CONFIRM[name] for name in returned.error_fields if name in _CONFIRM)]
    if wrong := dict.fromkeys(_WRONG[name] for name in returned.error_fields if name in _WRONG):
        sentences.append(f"Please check {', '.join(wrong)}.")
    if returned.reported:
        sentences.append(_REPORTED.get(returned.reported, "The payment page reported a problem."))
    return _page(tone, title, sentences, _facts(returned), _DECIDED_LATER)


def neutral() -> str:
    """The page of an endpoint that cannot prove a return: it shows the same whatever came."""
    return _page("", "Thank you", ["The merchant will tell you the result of your payment."], (), _DECIDED_LATER)


def of_refusal(reason: Reason) -> str:
    """The page for what cannot be shown. The reason is a fixed word, for whoever is asked for help."""
    sentences = ["It does not depend on this page. Please ask the merchant before you pay again."]
    if reason is Reason.RETURNS_FULL:
        sentences = ["Very many people come here at the moment. Please load this page again in a few seconds."]
    title = "The result cannot be shown here"
    if reason in (Reason.UNKNOWN_ENDPOINT, Reason.METHOD_REFUSED):
        title, sentences = "There is nothing here", ["Please go back to where you came from."]
    return _page("", title, sentences, (), f"For support: {reason}")


def _facts(returned: BrowserReturn) -> list[tuple[str, str]]:
    """Proven values; of what is not proven the two amounts alone, which the customer has to agree to."""
    facts = []
    if returned.verified and returned.receipt_number:
        facts.append(("Receipt number", returned.receipt_number))
    if returned.verified and returned.reference:
        facts.append(("Reference", returned.reference))
    if returned.verified or returned.outcome is ReturnOutcome.CONFIRM:
        facts += [
            (name, f"{returned.currency or ''} {text_from_minor(amount, 2)}".strip())
            for name, amount in (("Amount", returned.amount), ("Surcharge included", returned.surcharge or None))
            if amount is not None
        ]
    return facts


def _page(tone: str, title: str, sentences: Sequence[str], facts: Sequence[tuple[str, str]], note: str) -> str:
    listed = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts)
    paragraphs = "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{_STYLE}</style></head>'
        f'<body><main class="{tone}"><h1>{_text(title)}</h1>{paragraphs}'
        f"{f'<dl>{listed}</dl>' if listed else ''}"
        f'<p class="note">{_text(note)}</p></main></body></html>\n'
    )
