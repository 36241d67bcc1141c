"""Debitsuccess: the casual PayNow webhook (one payment, posted once) and the event webhooks (schedules, no payments).

Vendor: https://debitsuccess.atlassian.net/wiki/pages/viewpage.action?pageId=2367685305 [CASUAL]
        https://debitsuccess.atlassian.net/wiki/spaces/DDE/pages/1257473235/Webhooks [EVENTS]

Two products with opposite rules arrive at one URL, and each is verified by its own rule only: a request that brings
X-EventName or X-Token is an event and proves itself by X-Token; any other is casual and proves itself by the
WebhookToken that was registered together with its PaymentFormToken before the customer was redirected.
"""

from __future__ import annotations

import hmac
from datetime import timedelta

from receiver.errors import Quarantined, Reason, Refused
from receiver.notification import Effect, Expectation, PaymentEvent
from receiver.providers.base import Identity, Message, Provider, ReturnEndpoint
from receiver.reading import Json, json_object, json_pairs
from receiver.signing import Secret, digest, require_static

# Redirect statuses, which the casual webhook repeats [CASUAL], then the statuses of the payment API, should one of
# them appear: https://github.com/Debitsuccess/debitsuccess-api `PaymentsAPI.v1.json`,
# `docs/Widgets/Real-time-payment-widget.md`, and the SOAP page 1068925599. Lower case; letter case is not confirmed.
EFFECTS = {
    "success": Effect.CAPTURED,
    "declined": Effect.DECLINED,
    "error": Effect.FAILED,
    "failure": Effect.FAILED,
    "contractprefixinvalid": Effect.FAILED,
    "tokenexpired": Effect.EXPIRED,
    "cleared": Effect.CAPTURED,
    "settled": Effect.CAPTURED,
    "authorized": Effect.AUTHORISED,
    "authorised": Effect.AUTHORISED,
    "pending": Effect.PENDING,
    "processing": Effect.PENDING,
    "statusrequired": Effect.PENDING,
    "requires3ds": Effect.PENDING,
    "declined_insufficient_funds": Effect.DECLINED,
    "declined_card_expired": Effect.DECLINED,
    "declined_do_not_honour": Effect.DECLINED,
    "declined_refer_to_card_issuer": Effect.DECLINED,
    "failed": Effect.FAILED,
    "not_submitted": Effect.FAILED,
}

CASUAL = "casual_payment"
# Wiki pages 2610561048 and 2610462754. A page title spells them with a small c: compared without regard to case.
EVENTS = {name.lower(): name for name in ("Customer.Schedule.Suspension.Added", "Customer.Schedule.Suspension.Updated")}

SECRET_FIELDS = frozenset({"webhooktoken"})

# Tokens have 16 characters by the table of [CASUAL] and 8 in its examples: the length is only bounded.
_MAX_NAME = 100
_MAX_TEXT = 500
_MAX_CUSTOM = 50

# Text members of a casual body by lower-case name, each as (its spelling, its text or None), in their order.
_Members = dict[str, list[tuple[str, str | None]]]


class DebitsuccessEndpoint(ReturnEndpoint, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="debitsuccess"):
    event_tokens: tuple[Secret, ...] = ()
    """X-Token of the event webhooks. Without one every event is refused; casual payments bring their own proof."""


def check_headers(message: Message, endpoint: DebitsuccessEndpoint) -> None:
    if not _has_event_headers(message):
        return
    given = message.headers.get("x-token")
    if given is None:
        raise Refused(Reason.TOKEN_MISSING, "The X-Token header is missing.")
    try:
        require_static(given, endpoint.event_tokens, "X-Token")
    except Refused as refusal:
        raise Refused(Reason.TOKEN_REFUSED, refusal.detail) from None


def token_of(message: Message) -> str | None:
    """The PaymentFormToken of a casual payment. Raises `Refused` for a body in which nothing can ever be proven."""
    if _has_event_headers(message):
        return None
    form_token, _ = _casual_tokens(message)
    return form_token


def authenticate(message: Message, endpoint: DebitsuccessEndpoint, expected: Expectation | None) -> None:
    if _has_event_headers(message):
        if not message.headers.get("x-eventname") and _looks_casual(message):
            # X-Token is not kept, so that a replay would take this for a casual payment that was proven.
            raise Refused(Reason.TOKEN_REFUSED, "X-Token does not prove a casual payment.")
        return
    _, given = _casual_tokens(message)
    if expected is None or not expected.webhook_token:
        raise Refused(Reason.TOKEN_REFUSED, "The PaymentFormToken is not registered with a WebhookToken.")
    wanted, found = expected.webhook_token.encode(), False
    for webhook_token in given:
        # All that the body gives are compared: a body with two of them is authentic, and quarantined by `identify`.
        found |= hmac.compare_digest(webhook_token.encode(), wanted)
    if not found:
        raise Refused(Reason.TOKEN_REFUSED, "The WebhookToken does not belong to this PaymentFormToken.")


def identify(message: Message, endpoint: DebitsuccessEndpoint) -> Identity:
    if _is_event(message):
        json_object(message.body)  # raises for what cannot be read
        name, trace = _event_name(message), message.headers.get("x-traceid", "").strip()
        content = digest(name.encode(), message.body)
        # Whether a retry repeats its X-TraceId is not confirmed, nor that there always is one.
        return Identity(f"event:{trace if 0 < len(trace) <= _MAX_NAME else content}", name, content)
    members = _read(message.body)
    _believe(members)
    form_token, webhook_token = _text(members, "paymentformtoken"), _text(members, "webhooktoken")
    status, code = _text(members, "status").lower(), _text(members, "responsecode")
    # The WebhookToken is one payment and one post, but a secret: only its digest is shown.
    key = digest(form_token.encode(), webhook_token.encode())
    return Identity(f"casual:{key}", CASUAL, digest(status.encode(), code.encode()))


def identifiers(message: Message, endpoint: DebitsuccessEndpoint) -> list[str]:
    names = {"paymentformtoken", "webhooktoken", *(name.lower() for name in endpoint.own_numbers)}
    given = [text for name, texts in _read(message.body).items() if name in names for _, text in texts if text]
    return [*given, message.headers.get("x-traceid", "")]


def interpret(message: Message, endpoint: DebitsuccessEndpoint) -> PaymentEvent:
    if _is_event(message):
        return PaymentEvent(event_type=_event_name(message), custom=_custom(json_object(message.body)))
    members = _read(message.body)
    _believe(members)
    form_token, status = _text(members, "paymentformtoken"), _text(members, "status")
    word = status.lower()
    effect = EFFECTS.get(word, Effect.NONE)
    flags: tuple[str, ...] = () if word in EFFECTS else ("unknown_status",)
    if effect is Effect.CAPTURED or word == "error":
        # Success is also the word for "payment details loaded", and after Error the API has to be asked [CASUAL].
        flags = ("confirm_by_inquiry",)
    return PaymentEvent(
        event_type=CASUAL,
        effect=effect,
        # Amount, currency and reference are not sent: they come from what was registered under the token.
        payment_id=form_token,
        token=form_token,
        response_code=_text(members, "responsecode") or None,
        response_description=_text(members, "message") or None,
        custom={"status": status[:_MAX_NAME]},
        flags=flags,
    )


def _has_event_headers(message: Message) -> bool:
    return "x-eventname" in message.headers or "x-token" in message.headers


def _is_event(message: Message) -> bool:
    """For what was proven already: X-Token is not kept, so that an event without X-EventName shows by its body only."""
    return _has_event_headers(message) or not _looks_casual(message)


def _looks_casual(message: Message) -> bool:
    try:
        _casual_tokens(message)
    except Refused:
        return False
    return True


def _casual_tokens(message: Message) -> tuple[str, list[str]]:
    """The first PaymentFormToken, and every WebhookToken."""
    try:
        members = _read(message.body)
    except Quarantined:
        raise Refused(Reason.TOKEN_MISSING, "The body is not a JSON object with tokens.") from None
    form_tokens = [text for _, text in members.get("paymentformtoken", ()) if text and len(text) <= _MAX_NAME]
    webhook_tokens = [text for _, text in members.get("webhooktoken", ()) if text]
    if not form_tokens or not webhook_tokens:
        raise Refused(Reason.TOKEN_MISSING, "The body has no PaymentFormToken or no WebhookToken.")
    return form_tokens[0], webhook_tokens


def _read(body: bytes) -> _Members:
    try:
        pairs = json_pairs(body)
    except Quarantined:
        # Posted once: a Latin-1 letter in Message must not lose the payment. The tokens are ASCII in every example.
        pairs = json_pairs(body.decode("latin-1").encode())
    members: _Members = {}
    for name, value in pairs:
        members.setdefault(name.lower(), []).append((name, Json(value).text()))
    return members


def _believe(members: _Members) -> None:
    """Raises `Quarantined` for a name in two spellings or with two values, and for what is missing."""
    if any(len(set(given)) > 1 for given in members.values()):
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "a name occurs in two spellings or with two values")
    for name in ("PaymentFormToken", "WebhookToken", "Status"):
        if not _text(members, name.lower()):
            raise Quarantined(Reason.MISSING_FIELD, f"{name} is missing")


def _text(members: _Members, name: str) -> str:
    given = members.get(name)
    return given[0][1] or "" if given else ""


def _event_name(message: Message) -> str:
    name = message.headers.get("x-eventname", "").strip()
    return EVENTS.get(name.lower(), name[:_MAX_NAME]) or "unnamed_event"


def _custom(body: Json) -> dict[str, str]:
    """The event's own fields as text, within limits; the raw body is kept whole."""
    names = [name for name in body.value if name.lower() not in SECRET_FIELDS][:_MAX_CUSTOM]
    return {name[:_MAX_NAME]: text[:_MAX_TEXT] for name in names if (text := body.text(name))}


PROVIDER = Provider(
    name="debitsuccess",
    display="Debitsuccess",
    endpoint=DebitsuccessEndpoint,
    # Casual proofs are registered for each payment; events are refused as long as there is no event token.
    required_secrets=(),
    # The addresses are told at subscription only [EVENTS].
    sources={"test": (), "production": ()},
    proof_headers=("x-token",),
    kept_headers=("x-eventname", "x-traceid"),
    secret_fields=SECRET_FIELDS,
    identifiers=identifiers,
    # Events: anything but 200 is a failure [EVENTS]. Casual payments are never sent again, whatever the answer.
    not_stored_status=503,
    event_types=frozenset({CASUAL, *EVENTS.values()}),
    # A token ends after 10 minutes and its webhook is posted once: then only the API knows [CASUAL].
    answer_within=timedelta(minutes=15),
    # Amount decimal (10,2) in the token request, whatever the currency [CASUAL].
    exponent=lambda currency: 2,
    check_headers=check_headers,
    token_of=token_of,
    authenticate=authenticate,
    identify=identify,
    interpret=interpret,
)
