"""Checkout.com: the numbered traps of its page, its table of events, its signature, and bodies that nobody expects."""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from receiver.errors import Quarantined, Reason, Refused
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Identity, Message
from receiver.providers.checkout import PROVIDER as CHECKOUT_COM
from receiver.providers.checkout import CheckoutEndpoint, authenticate, check_headers, exponent, identify, interpret
from receiver.signing import digest
from tests.support import CHECKOUT, SAMPLES, all_recorded, recorded, secrets

FIXTURES = all_recorded("checkout")
BODIES = [fixture.body for fixture in FIXTURES]
SAMPLE_FILES = sorted((SAMPLES / "checkout").glob("*")) if (SAMPLES / "checkout").is_dir() else []
needs_samples = pytest.mark.skipif(not SAMPLE_FILES, reason="the shared samples are not on this machine")

# Written down a second time, so that no slip in the module's table goes unseen. All other types: Effect.NONE.
EFFECTS = {
    Effect.PENDING: "payment_pending payment_capture_pending",
    Effect.AUTHORISED: "payment_approved payment_authorization_incremented",
    Effect.CAPTURED: "payment_captured",
    Effect.CAPTURE_DECLINED: "payment_capture_declined",
    Effect.DECLINED: "payment_declined",
    Effect.EXPIRED: "payment_expired",
    Effect.CANCELLED: "payment_canceled",
    Effect.VOIDED: "payment_voided",
    Effect.REFUNDED: "payment_refunded",
    Effect.RETURNED: "payment_returned",
    Effect.DISPUTED: """payment_chargeback request_for_information_received dispute_received
        dispute_evidence_required dispute_evidence_submitted dispute_evidence_acknowledged_by_scheme dispute_accepted
        dispute_expired dispute_lost dispute_arbitration_evidence_submitted dispute_arbitration_sent_to_scheme
        dispute_arbitration_lost""",
    Effect.DISPUTE_ENDED: "dispute_canceled dispute_won dispute_arbitration_won dispute_resolved",
}
EFFECT_OF = {name: effect for effect, names in EFFECTS.items() for name in names.split()}
OTHER_EFFECT = {
    "dispute_resolved__rapid": Effect.DISPUTED,
    "payment_approved__payout": Effect.NONE,
    "payment_declined__payout": Effect.NONE,
    "payment_returned__payout": Effect.NONE,
}


def message(body: bytes, **headers: str) -> Message:
    return Message("application/json", {name.replace("_", "-"): value for name, value in headers.items()}, body)


def signed(body: bytes, key: bytes = b"cko-new-key") -> Message:
    return message(body, cko_signature=hmac.digest(key, body, "sha256").hex())


def event_of(body: Any) -> PaymentEvent:
    return interpret(message(json.dumps(body).encode()), CHECKOUT)


def payment(event_type: str = "payment_captured", **data: Any) -> dict[str, Any]:
    return {"id": "evt_1", "type": event_type, "data": {"id": "pay_1", **data}}


def fixture_event(name: str) -> PaymentEvent:
    return interpret(recorded("checkout", name).message(), CHECKOUT)


def fixture_identity(name: str) -> Identity:
    return identify(recorded("checkout", name).message(), CHECKOUT)


def refusal(call: Any, *arguments: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value


def quarantine(body: bytes) -> Reason:
    """The reason for which both `identify` and `interpret` quarantine `body`."""
    reasons = []
    for read in (identify, interpret):
        with pytest.raises(Quarantined) as caught:
            read(message(body), CHECKOUT)
        reasons.append(caught.value.reason)
    assert reasons[0] is reasons[1]
    return reasons[0]


# The 29 traps of the provider's page, by number.


def test_trap_01_hmac_over_a_body_that_was_parsed_and_written_again() -> None:
    sent = recorded("checkout", "payment_captured__unicode")
    parsed = json.loads(sent.body)
    authenticate(sent.message(), CHECKOUT, None)
    for changed in (
        json.dumps(parsed).encode(),
        json.dumps(parsed, separators=(",", ":"), ensure_ascii=False).encode(),
        sent.body.decode("ascii", "replace").encode(),
        sent.body + b"\n",
    ):
        assert changed != sent.body
        refused = refusal(authenticate, replace(sent.message(), body=changed), CHECKOUT, None)
        assert refused.reason is Reason.SIGNATURE_REFUSED


def test_trap_02_a_missing_header_does_not_pass() -> None:
    body = BODIES[0]
    assert refusal(authenticate, message(body), CHECKOUT, None).reason is Reason.SIGNATURE_MISSING
    assert refusal(authenticate, message(body, cko_signature=""), CHECKOUT, None).reason is Reason.SIGNATURE_MISSING
    # Settings refuse an endpoint without a key; should one come about, nothing passes it.
    keyless = CheckoutEndpoint(facility="main")
    assert refusal(authenticate, signed(body), keyless, None).reason is Reason.SIGNATURE_REFUSED
    assert refusal(authenticate, signed(body, b""), keyless, None).reason is Reason.SIGNATURE_REFUSED
    assert CHECKOUT_COM.required_secrets == (("signature_keys",),)


def test_trap_02_the_static_header_counts_beside_the_signature_and_never_instead() -> None:
    both = CheckoutEndpoint(
        facility="main", signature_keys=secrets("cko-new-key"), authorization_keys=secrets("old-static", "new-static")
    )
    check_headers(message(b"{}", authorization="old-static"), both)
    check_headers(message(b"{}", authorization="new-static"), both)
    for given_headers in ({}, {"authorization": "other"}, {"authorization": "Bearer new-static"}):
        refused = refusal(check_headers, message(b"{}", **given_headers), both)
        assert refused.reason is Reason.CREDENTIALS_REFUSED
        assert refused.status == 403
    unsigned = message(BODIES[0], authorization="new-static")
    assert refusal(authenticate, unsigned, both, None).reason is Reason.SIGNATURE_MISSING
    # Not configured, not asked for.
    check_headers(message(b"{}"), CHECKOUT)


@pytest.mark.parametrize("junk", ["ÿþ", "zz" * 32, "sha256=" + "0" * 64, "0" * 63, "八", "\x00", "K" * 64])
def test_trap_03_a_junk_signature_is_refused_and_no_error(junk: str) -> None:
    refused = refusal(authenticate, message(BODIES[0], cko_signature=junk), CHECKOUT, None)
    assert (refused.reason, refused.status) == (Reason.SIGNATURE_REFUSED, 403)


def test_trap_04_a_replay_has_the_same_key_and_content() -> None:
    # tests/workers proves that a repeat has no second effect.
    first, second = fixture_identity("payment_captured"), fixture_identity("payment_captured")
    assert first == second
    assert first.dedupe_key == json.loads(recorded("checkout", "payment_captured").body)["id"]
    assert first.fingerprint == digest(recorded("checkout", "payment_captured").body)


def test_trap_05_captured_before_approved() -> None:
    # The fold takes events in any order (tests/workers); here each is read by itself, without its forerunner.
    event = fixture_event("payment_captured")
    assert (event.effect, event.total_captured, event.flags) == (Effect.CAPTURED, 58210, ())


def test_trap_06_late_events_keep_their_own_effect_and_time() -> None:
    # That a late one does not undo a capture, and that refunds still count after it, is the fold's (tests/workers).
    late = payment("payment_approved", processed_on="2026-03-02T10:00:00Z")
    capture = payment("payment_captured", processed_on="2026-03-02T10:00:01Z")
    first, second = event_of(late), event_of(capture)
    assert first.occurred_at is not None
    assert second.occurred_at is not None
    assert first.occurred_at < second.occurred_at
    assert event_of(payment("payment_declined")).effect is Effect.DECLINED
    assert event_of(payment("payment_expired")).effect is Effect.EXPIRED
    refund = fixture_event("payment_refunded")
    assert (refund.effect, refund.total_captured, refund.total_refunded) == (Effect.REFUNDED, 8800, 8800)


def test_trap_07_captured_after_a_failure_is_captured() -> None:
    # The fold that lets it win is in tests/workers.
    for before in ("payment_declined", "payment_expired", "payment_canceled", "payment_capture_declined"):
        assert event_of(payment(before)).payment_id == event_of(payment("payment_captured")).payment_id
    assert event_of(payment("payment_captured")).effect is Effect.CAPTURED


def test_trap_08_no_action_id_is_no_error() -> None:
    for name in ("payment_pending", "payment_pending__octopus"):
        event = fixture_event(name)
        assert (event.effect, event.action_id, event.flags) == (Effect.PENDING, None, ())


def test_trap_09_no_reference_is_no_error() -> None:
    event = fixture_event("payment_captured__no_reference")
    assert (event.effect, event.amount, event.currency, event.reference) == (Effect.CAPTURED, 4450, "HKD", None)
    assert event.payment_id is not None


def test_trap_10_two_partial_refunds_of_one_payment_are_two() -> None:
    # The fold adds actions up by their ids (tests/workers).
    for name in ("payment_refunded", "payment_captured"):
        first, second = fixture_event(f"{name}__partial_first"), fixture_event(f"{name}__partial_second")
        assert (first.payment_id, first.amount) == (second.payment_id, second.amount)
        assert first.action_id != second.action_id
        keys = {fixture_identity(f"{name}__partial_{which}").dedupe_key for which in ("first", "second")}
        assert len(keys) == 2
    assert fixture_event("payment_refunded__partial_first").total_refunded == 2500
    assert fixture_event("payment_refunded__partial_second").total_refunded == 5000


def test_trap_11_one_short_text_is_the_whole_key() -> None:
    # The unique key over it is the ledger's (tests/workers).
    keys = [identify(fixture.message(), CHECKOUT).dedupe_key for fixture in FIXTURES]
    assert len(set(keys)) == len(FIXTURES)
    assert max(map(len, keys)) <= 100


def test_trap_12_canceled_has_one_l() -> None:
    assert fixture_event("payment_canceled").effect is Effect.CANCELLED
    assert event_of(payment("payment_cancelled")).effect is Effect.NONE


def test_trap_13_an_unknown_type_is_kept_without_effect() -> None:
    body = json.dumps(payment("payment_teleported", amount=100)).encode()
    assert identify(message(body), CHECKOUT) == Identity("evt_1", "payment_teleported", digest(body))
    event = interpret(message(body), CHECKOUT)
    assert (event.effect, event.event_type, event.payment_id) == (Effect.NONE, "payment_teleported", "pay_1")
    assert event_of({"type": "x" * 5000}).event_type == "x" * 100


def test_trap_14_an_odd_byte_is_authentic_and_parked() -> None:
    body = b'{"id":"evt_1","type":"authentication_failed",\n\xef\xbf\xbd\n{"payment_id":"pay_1"}}'
    authenticate(signed(body), CHECKOUT, None)
    assert quarantine(body) is Reason.UNREADABLE_BODY


def test_trap_15_a_bad_date_does_not_lose_the_event() -> None:
    event = fixture_event("payment_declined__bad_date")
    assert (event.effect, event.amount, event.response_code) == (Effect.DECLINED, 40000, "20005")
    assert event.flags == ("occurred_time_unreadable",)
    # The envelope's own time takes its place.
    assert event.occurred_at == datetime(2026, 3, 5, 21, 34, 29, 225289, UTC)
    # Where the vendor's example has it, nothing is read at all.
    assert fixture_event("payment_declined__bad_retry_date").flags == ()


@pytest.mark.parametrize(
    ("amount", "minor", "flags"),
    [
        (1250, 1250, ()),
        ("1250", 1250, ()),
        (0, 0, ()),
        (None, None, ()),
        (10**12, 10**12, ("amount_unusual",)),
        (10**12 + 1, None, ("amount_unreadable",)),
        (2**64, None, ("amount_unreadable",)),
        (10**40, None, ("amount_unreadable",)),
        ("9" * 30, None, ("amount_unreadable",)),
        (-1, None, ("amount_unreadable",)),
        ("-1", None, ("amount_unreadable",)),
        (12.5, None, ("amount_unreadable",)),
        (1e3, None, ("amount_unreadable",)),
        ("12.50", None, ("amount_unreadable",)),
        ("", None, ("amount_unreadable",)),
        (True, None, ("amount_unreadable",)),
        ([1250], None, ("amount_unreadable",)),
        ({}, None, ("amount_unreadable",)),
        ({"value": "29.990000"}, 2999, ()),
        ({"value": 29.99, "currency": "KWD"}, 29990, ()),
        ({"value": "2999", "currency": "JPY"}, 2999, ()),
        ({"value": "29.99", "currency": "JPY"}, None, ("amount_unreadable",)),
        ({"value": "-1"}, None, ("amount_unreadable",)),
        ({"value": "1e2"}, None, ("amount_unreadable",)),
        ({"value": "999999999999999"}, None, ("amount_unreadable",)),
        ({"currency": "GBP"}, None, ("amount_unreadable",)),
    ],
)
def test_trap_16_an_amount_of_any_shape(amount: Any, minor: int | None, flags: tuple[str, ...]) -> None:
    event = event_of(payment(amount=amount, currency="EUR"))
    assert (event.effect, event.amount, event.flags) == (Effect.CAPTURED, minor, flags)


def test_trap_16_amounts_that_are_text_objects_or_absent_as_they_are_sent() -> None:
    text = fixture_event("authentication_approved")
    assert (text.amount, text.currency) == (1250, "GBP")
    major = fixture_event("fraud_reported")
    assert (major.amount, major.currency, major.exponent) == (3995, "GBP", 2)
    # Major units of no known currency could be anything.
    unknown = event_of(payment("fraud_reported", fraud={"amount": {"value": "39.95"}}))
    assert (unknown.amount, unknown.flags) == (None, ("fraud_reported", "amount_unreadable"))
    absent = fixture_event("dispute_won__abc")
    assert (absent.amount, absent.currency, absent.flags) == (None, None, ())


def test_trap_17_approved_codes_of_refunds_voids_and_returns_are_not_payments() -> None:
    effects = {
        "payment_refunded": Effect.REFUNDED,
        "payment_voided": Effect.VOIDED,
        "payment_returned": Effect.RETURNED,
    }
    for name, effect in effects.items():
        event = fixture_event(name)
        assert (event.effect, event.response_code, event.response_description) == (effect, "10000", "Approved")


def test_trap_18_payouts_are_no_payments() -> None:
    for name in ("payment_approved__payout", "payment_declined__payout", "payment_paid"):
        event = fixture_event(name)
        assert (event.effect, event.payment_id, event.flags) == (Effect.NONE, None, ("payout",))
        assert event.amount is not None
        assert not event.soft_decline
    returned = fixture_event("payment_returned__payout")
    assert (returned.effect, returned.payment_id) == (Effect.NONE, None)
    assert returned.flags == ("payment_returned", "payout")
    # payment_paid is always one, and the event source alone tells a card payout; an empty destination tells nothing.
    assert event_of(payment("payment_paid")).flags == ("payout",)
    assert event_of(payment("payment_approved") | {"source": "card_payout"}).flags == ("payout",)
    for source in ("gateway", "mbccards"):
        assert event_of(payment("payment_approved") | {"source": source}).effect is Effect.AUTHORISED
    empties: tuple[Any, ...] = (None, {}, "")
    for empty in empties:
        assert event_of(payment("payment_approved", destination=empty)).effect is Effect.AUTHORISED


def test_trap_19_metadata_is_in_data() -> None:
    body = payment(metadata={"order_id": "A1", "shop": 7}) | {"metadata": {"order_id": "wrong"}}
    assert event_of(body).custom == {"order_id": "A1", "shop": 7}
    oddities: tuple[Any, ...] = (None, [], "text", 5)
    for odd in oddities:
        assert event_of(payment(metadata=odd)).custom == {}


def test_trap_20_the_body_is_never_form_decoded() -> None:
    sent = recorded("checkout", "payment_captured__unicode").message()
    for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain", ""):
        event = interpret(replace(sent, content_type=content_type), CHECKOUT)
        assert event.reference == "Café ©® 八達通"
        assert event.custom == {"note": "Café © 八達通 a&b=c+d.e", "rate": "0.9000"}


def test_trap_21_links_are_not_read() -> None:
    plain = payment("payment_captured", amount=100)
    linked = plain | {"_links": {"payment": {"href": "http://localhost:5000/payments/pay_other"}}}
    assert event_of(plain) == event_of(linked)
    assert fixture_event("dispute_won__abc").effect is Effect.DISPUTE_ENDED


def test_trap_22_an_order_need_not_exist_yet() -> None:
    # Nothing has to be registered beforehand; tests/workers matches references later.
    for fixture in FIXTURES:
        assert CHECKOUT_COM.token_of(fixture.message()) is None


def test_trap_23_two_payments_for_one_order_stay_two() -> None:
    # That the second is put up for review is the ledger's (tests/workers).
    one = event_of(payment(reference="ORDER-1"))
    other = event_of({"id": "evt_2", "type": "payment_captured", "data": {"id": "pay_2", "reference": "ORDER-1"}})
    assert one.reference == other.reference
    assert (one.payment_id, other.payment_id) == ("pay_1", "pay_2")


def test_trap_24_sandbox_and_live_have_their_own_keys() -> None:
    # Facility and environment are the endpoint's; settings refuse two endpoints of one name (tests/receiver).
    live = CheckoutEndpoint(facility="live", signature_keys=secrets("live-key"))
    sandbox = CheckoutEndpoint(facility="sandbox", environment="test", signature_keys=secrets("sandbox-key"))
    delivery = signed(BODIES[0], b"sandbox-key")
    authenticate(delivery, sandbox, None)
    assert refusal(authenticate, delivery, live, None).reason is Reason.SIGNATURE_REFUSED
    assert CHECKOUT_COM.sources == {"test": (), "production": ()}


def test_trap_25_refusals_and_quarantines_show_no_key_and_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    constant_time = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return constant_time(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    body = json.dumps({"type": "payment_captured", "data": {"reference": "secret-reference"}}).encode()
    refused = refusal(authenticate, message(body, cko_signature="0" * 64), CHECKOUT, None)
    # Every key, whatever the first gives, and in constant time.
    assert len(compared) == 2
    with pytest.raises(Quarantined) as parked:
        interpret(message(body), CHECKOUT)
    for shown in (str(refused), str(parked.value), repr(CHECKOUT)):
        assert "secret-reference" not in shown
        assert "cko-" not in shown.replace("cko-signature", "")


@pytest.mark.parametrize(
    ("currency", "decimals"),
    [
        *[(code, 0) for code in ("BIF", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VUV", "VND")],
        *[("XAF", 0), ("XOF", 0), ("XPF", 0)],
        *[(code, 3) for code in ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")],
        # Where the sender's own plugins or ISO 4217 say something else.
        *[("CLP", 2), ("CLF", 2), ("BYN", 2), ("HKD", 2), ("MRU", 2), ("jpy", 0), ("", 2)],
    ],
)
def test_trap_26_decimals_are_by_the_senders_own_table(currency: str, decimals: int) -> None:
    assert exponent(currency) == decimals
    assert event_of(payment(amount=100, currency=currency)).exponent == decimals
    assert CHECKOUT_COM.exponent is exponent


@pytest.mark.parametrize(
    ("amount", "currency", "source", "unusual"),
    [
        (1_250_000, "CLP", "card", False),
        (1_250_050, "CLP", "card", True),
        (12_340, "KWD", "card", False),
        (12_345, "KWD", "card", True),
        (12_340, "HKD", "octopus", False),
        (12_345, "HKD", "octopus", True),
        (12_345, "HKD", "card", False),
        (999_999_999, "EUR", "card", False),
        (1_000_000_000, "EUR", "card", True),
    ],
)
def test_trap_26_value_rules_only_raise_a_flag(amount: int, currency: str, source: str, unusual: bool) -> None:
    event = event_of(payment(amount=amount, currency=currency, source={"type": source}))
    assert (event.amount, event.effect) == (amount, Effect.CAPTURED)
    assert event.flags == (("amount_unusual",) if unusual else ())


def test_trap_27_copies_of_several_configurations_are_one_notification() -> None:
    body = recorded("checkout", "payment_captured").body
    copies = [signed(body, b"cko-old-key"), signed(body, b"cko-new-key")]
    for copy in copies:
        authenticate(copy, CHECKOUT, None)
    assert identify(copies[0], CHECKOUT) == identify(copies[1], CHECKOUT)


def test_trap_28_every_refusal_says_why() -> None:
    # tests/receiver proves that each leaves a refusal record.
    reasons = {
        refusal(authenticate, message(BODIES[0], **given_headers), CHECKOUT, None).detail: given_headers
        for given_headers in ({}, {"cko_signature": "0" * 64}, {"cko_signature": "1:2:3"})
    }
    assert set(reasons) == {
        "The Cko-Signature header is missing.",
        "The Cko-Signature header does not match the body.",
        "The Cko-Signature header is not that of a payment webhook.",
    }


def test_trap_29_one_event_id_for_two_types_is_a_conflict() -> None:
    # Equal keys with unequal content: both are kept and flagged (tests/workers).
    bodies = [json.dumps(payment(name)).encode() for name in ("payment_captured", "payment_voided")]
    one, other = (identify(message(body), CHECKOUT) for body in bodies)
    assert one.dedupe_key == other.dedupe_key
    assert one.fingerprint != other.fingerprint


# The signature.

VECTORS = [
    (
        "grebe?key%1",
        '{"id":"evt_a","type":"payment_captured","data":{"id":"pay_a","rate":0.9000,"note":"Café © 八"}}'.encode(),
        "a17cbe26dfd8c4a375baba1d8f43f71297dc20e492d3a1f467cf92cf1154706c",
    ),
    ("schlüssel", b'{"id":"evt_b"}', "427f9bd0b2c0d28056b814320fa301f7a0024b5288207f5f758d091f1cc9c8be"),
    ("grebe?key%1", b"\xff\xfe not text", "2b3357a05ecce25d8004122d18e29c3a00b6e361a101f91f033464633aec4b17"),
]


@pytest.mark.parametrize(("key", "body", "signature"), VECTORS)
def test_signature_vectors(key: str, body: bytes, signature: str) -> None:
    endpoint = CheckoutEndpoint(facility="main", signature_keys=secrets(key))
    for given_signature in (signature, signature.upper()):
        authenticate(message(body, cko_signature=given_signature), endpoint, None)
    for other in (body + b" ", body[1:], body.replace(b"evt", b"evT") + b"\0"):
        refused = refusal(authenticate, message(other, cko_signature=signature), endpoint, None)
        assert refused.reason is Reason.SIGNATURE_REFUSED


def test_the_signature_of_identity_verification_is_refused() -> None:
    body = BODIES[0]
    valid = signed(body).headers["cko-signature"]
    for scheme in ("1764000000:1:MEUCIQDx", f"{valid}:", f"1764000000:{valid}"):
        refused = refusal(authenticate, message(body, cko_signature=scheme), CHECKOUT, None)
        assert (refused.reason, refused.status) == (Reason.SIGNATURE_REFUSED, 403)


# Every declared event type.


def test_declared_types_are_those_with_a_fixture() -> None:
    assert {fixture.name.partition("__")[0] for fixture in FIXTURES} == CHECKOUT_COM.event_types
    assert set(EFFECT_OF) < CHECKOUT_COM.event_types


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: str(fixture.name))
def test_a_fixture_is_proven_identified_and_read(fixture: Any) -> None:
    assert (fixture.method, fixture.path) == ("POST", f"/notify/{CHECKOUT.path}")
    assert fixture.headers["content-length"] == str(len(fixture.body))
    name = fixture.name.partition("__")[0]
    delivery = fixture.message()
    check_headers(delivery, CHECKOUT)
    authenticate(delivery, CHECKOUT, None)
    assert identify(delivery, CHECKOUT).event_type == name
    event = interpret(delivery, CHECKOUT)
    assert event.event_type == name
    assert event.effect is OTHER_EFFECT.get(fixture.name, EFFECT_OF.get(name, Effect.NONE))
    assert_storable(event)


def test_all_that_a_captured_event_says() -> None:
    assert fixture_event("payment_approved") == PaymentEvent(
        event_type="payment_approved",
        effect=Effect.AUTHORISED,
        payment_id="pay_xelkyroj7tuaz5a2tr4hoaue2l",
        action_id="act_stnsmmtsy4m5ij6wn3sp7ooixf",
        occurred_at=datetime(2026, 3, 2, 11, 30, 55, 699940, UTC),
        amount=58210,
        currency="USD",
        total_authorised=58210,
        total_captured=0,
        total_refunded=0,
        total_voided=0,
        reference="TICKET-20503",
        card_scheme="VISA",
        response_code="10000",
        response_description="Approved",
        custom={"basket": "74fmzqngag2jafh3", "shop_id": "71"},
    )


def test_octopus_is_paid_without_an_approval() -> None:
    names = ("payment_pending", "payment_capture_pending", "payment_captured", "payment_refunded")
    variants = ("octopus", "octopus", "octopus", "octopus_partial")
    events = [fixture_event(f"{name}__{variant}") for name, variant in zip(names, variants, strict=True)]
    assert [event.effect for event in events] == [Effect.PENDING, Effect.PENDING, Effect.CAPTURED, Effect.REFUNDED]
    assert len({event.payment_id for event in events}) == 1
    assert {event.reference for event in events} == {None}
    assert [event.amount for event in events] == [12340, 12340, 12340, 2340]
    times = [event.occurred_at for event in events if event.occurred_at]
    assert times == sorted(times)
    assert len(times) == 4
    assert fixture_event("payment_capture_declined__octopus").effect is Effect.CAPTURE_DECLINED


@pytest.mark.parametrize(
    ("event_type", "code", "soft"),
    [
        ("payment_declined", "20051", True),
        ("payment_declined", 20051, True),
        ("payment_declined", "30004", False),
        ("payment_declined", "40101", False),
        ("payment_declined", None, False),
        ("payment_captured", "20051", False),
        ("payment_capture_declined", "20051", False),
    ],
)
def test_soft_declines(event_type: str, code: Any, soft: bool) -> None:
    event = event_of(payment(event_type, response_code=code))
    assert event.soft_decline is soft
    assert event.response_code == (None if code is None else str(code))


def test_disputes_are_told_apart_by_their_own_ids() -> None:
    for name in ("dispute_received", "dispute_won__abc", "request_for_information_received"):
        assert (fixture_event(name).action_id or "").startswith("dsp_")
    # Its action is no dispute, and no dispute event ever names it.
    assert fixture_event("payment_chargeback").action_id is None


def test_a_dispute_without_an_event_time_has_its_own() -> None:
    body = payment("dispute_won", payment_id="pay_1", date="2026-03-03T16:49:02.6960019+00:00")
    assert event_of(body).occurred_at == datetime(2026, 3, 3, 16, 49, 2, 696001, UTC)


def test_disputes_name_the_payment_and_its_reference() -> None:
    current, previous = fixture_event("dispute_lost"), fixture_event("dispute_won__abc")
    assert (current.payment_id or "").startswith("pay_")
    assert (current.reference or "").startswith("TICKET-")
    assert (previous.payment_id or "").startswith("pay_")
    assert (previous.reference or "").startswith("TICKET-")
    assert fixture_event("dispute_canceled__abc").reference is None


def test_two_disputes_of_one_payment_are_told_apart() -> None:
    first = event_of(payment("dispute_received", id="dsp_1", payment_id="pay_1"))
    second = event_of(payment("dispute_won", id="dsp_2", payment_id="pay_1"))
    assert (first.payment_id, first.action_id) == ("pay_1", "dsp_1")
    assert (second.payment_id, second.action_id) == ("pay_1", "dsp_2")


def test_a_resolved_dispute_ends_unless_the_scheme_paid_it_back() -> None:
    for reason in (None, "already_refunded", "negative_amount"):
        event = event_of(payment("dispute_resolved", payment_id="pay_1", resolved_reason=reason))
        assert event.effect is Effect.DISPUTE_ENDED
    assert fixture_event("dispute_resolved__rapid").effect is Effect.DISPUTED


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("fraud_reported", ("fraud_reported",)),
        ("payment_compliance_review", ("compliance_review",)),
        ("payment_returned", ("payment_returned",)),
        ("charge.captured", ("legacy_event",)),
        ("card.updated", ("legacy_event",)),
        ("invoice.cancelled", ("legacy_event",)),
    ],
)
def test_what_a_person_should_look_at(name: str, flags: tuple[str, ...]) -> None:
    assert fixture_event(name).flags == flags


@pytest.mark.parametrize(
    ("name", "names_payment"),
    [
        ("fraud_reported", True),
        ("authentication_failed", True),
        ("card_verified", True),
        ("payment_refund_pending", True),
        ("presentment_received", False),
        ("payout_paid", False),
        ("sub_entity_created", False),
        ("issuing_dispute_closed", False),
        ("charge.captured", False),
    ],
)
def test_events_without_effect_name_a_payment_only_where_there_is_one(name: str, names_payment: bool) -> None:
    assert (fixture_event(name).payment_id or "").startswith("pay_") is names_payment
    assert (fixture_event(name).payment_id is not None) is names_payment


def test_event_data_stands_in_for_data() -> None:
    event = event_of({"type": "issuing_dispute_closed", "event_data": {"payment_id": "pay_9", "amount": 5}})
    assert (event.effect, event.payment_id, event.amount) == (Effect.NONE, "pay_9", 5)


@pytest.mark.parametrize(
    ("processed_on", "created_on", "timestamp", "expected", "flagged"),
    [
        ("2026-05-01T10:00:00.1234567Z", "2026-05-02T10:00:00Z", None, "2026-05-01T10:00:00.123456", False),
        (None, "2026-05-02T10:00:00+02:00", None, "2026-05-02T08:00:00", False),
        (None, None, "2026-05-03T10:00:00.011+00:00", "2026-05-03T10:00:00.011000", False),
        ("2023-06-34T15:24:56.9871232Z", "2026-05-02T10:00:00Z", None, "2026-05-02T10:00:00", True),
        ("2026-05-01T10:00:00", None, "2026-05-03T10:00:00Z", "2026-05-03T10:00:00", True),
        ("yesterday", 5, "0001-01-01T00:00:00+14:00", None, True),
        ([], {}, None, None, False),
        (None, None, None, None, False),
    ],
)
def test_times(processed_on: Any, created_on: Any, timestamp: Any, expected: str | None, flagged: bool) -> None:
    body = payment(processed_on=processed_on) | {"created_on": created_on, "timestamp": timestamp}
    event = event_of(body)
    assert event.occurred_at == (datetime.fromisoformat(f"{expected}+00:00") if expected else None)
    assert event.flags == (("occurred_time_unreadable",) if flagged else ())


@pytest.mark.parametrize(
    ("balances", "captured", "flags"),
    [
        ({"total_captured": 800}, 800, ()),
        ({"total_captured": "800"}, 800, ()),
        ({"total_captured": None}, None, ()),
        ({"total_captured": -1}, None, ("balances_unreadable",)),
        ({"total_captured": [8]}, None, ("balances_unreadable",)),
        ({"total_captured": 10**20}, None, ("balances_unreadable",)),
        ({"available_to_refund": "odd"}, None, ()),
        ("odd", None, ()),
    ],
)
def test_balances(balances: Any, captured: int | None, flags: tuple[str, ...]) -> None:
    event = event_of(payment(balances=balances))
    assert (event.total_captured, event.flags) == (captured, flags)


def test_each_balance_has_its_place() -> None:
    event = event_of(
        payment(balances={"total_authorized": 4, "total_captured": 3, "total_refunded": 2, "total_voided": 1})
    )
    totals = (event.total_authorised, event.total_captured, event.total_refunded, event.total_voided)
    assert totals == (4, 3, 2, 1)


@pytest.mark.parametrize(
    ("sent", "currency"), [("eur", "EUR"), (None, None), ("EURO", None), (978, None), ("€€€", None)]
)
def test_currencies(sent: Any, currency: str | None) -> None:
    event = event_of(payment(amount=100, currency=sent))
    assert (event.amount, event.currency, event.exponent) == (100, currency, 2)
    assert event.flags == (() if currency or sent is None else ("currency_unreadable",))


# What cannot be read or believed.


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.UNREADABLE_BODY),
        (b"<payment/>", Reason.UNREADABLE_BODY),
        (b"type=payment_captured", Reason.UNREADABLE_BODY),
        (b"[]", Reason.UNREADABLE_BODY),
        (b'{"type":"payment_captured"', Reason.UNREADABLE_BODY),
        (b'{"type":"payment_captured","data":"\\ud800"}', Reason.UNREADABLE_BODY),
        (b'{"type":"x","data":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, Reason.UNREADABLE_BODY),
        (b"{}", Reason.MISSING_FIELD),
        (b'{"type":null}', Reason.MISSING_FIELD),
        (b'{"type":["payment_captured"]}', Reason.MISSING_FIELD),
        (b'{"type":"  "}', Reason.MISSING_FIELD),
        # Paid, but what?
        (b'{"type":"payment_captured"}', Reason.MISSING_FIELD),
        (b'{"type":"payment_captured","data":"pay_1"}', Reason.MISSING_FIELD),
        (b'{"type":"payment_captured","data":{"id":{"id":"pay_1"}}}', Reason.MISSING_FIELD),
        (b'{"type":"payment_captured","data":{"id":"pay 1"}}', Reason.MISSING_FIELD),
        (b'{"type":"payment_captured","data":{"id":"pay_' + b"1" * 97 + b'"}}', Reason.MISSING_FIELD),
        (b'{"type":"dispute_lost","data":{"id":"dsp_1"}}', Reason.MISSING_FIELD),
    ],
)
def test_quarantine(body: bytes, reason: Reason) -> None:
    assert quarantine(body) is reason


@pytest.mark.parametrize("event_id", [None, "", [], {}, "evt " * 2, "evt_" + "x" * 97, "evt_\u007f", "evt_é"])
def test_without_a_usable_id_the_body_is_the_key(event_id: Any) -> None:
    body = json.dumps(payment() | {"id": event_id}).encode()
    assert identify(message(body), CHECKOUT).dedupe_key == f"body:{digest(body)}"


def test_the_event_without_an_id() -> None:
    body = recorded("checkout", "payment_authentication_failed").body
    assert b'"evt_' not in body
    assert fixture_identity("payment_authentication_failed").dedupe_key == f"body:{digest(body)}"
    event = fixture_event("payment_authentication_failed")
    assert (event.effect, event.occurred_at, event.flags) == (Effect.NONE, None, ())


def test_metadata_has_names_that_can_be_shown() -> None:
    assert event_of(payment(metadata={"n" * 100_000: {"m" * 256: 1}})).custom == {"n" * 255: {"m" * 255: 1}}


def test_metadata_keeps_numbers_exactly() -> None:
    body = (
        b'{"type":"x","data":{"metadata":{"a":0.10,"b":[1e400,{"c":99999999999999999999}],"d":-5,"e":true,"f":null}}}'
    )
    custom = interpret(message(body), CHECKOUT).custom
    assert custom == {"a": "0.10", "b": ["1e400", {"c": "99999999999999999999"}], "d": -5, "e": True, "f": None}


def assert_storable(event: PaymentEvent) -> None:
    """What the ledger relies on, whatever was sent."""
    msgspec.json.encode(event)
    totals = (event.total_authorised, event.total_captured, event.total_refunded, event.total_voided)
    assert all(amount is None or 0 <= amount <= 10**12 for amount in (event.amount, *totals))
    assert event.occurred_at is None or event.occurred_at.tzinfo is UTC
    assert event.effect is Effect.NONE or event.payment_id
    assert len(event.event_type) <= 100
    assert len(set(event.flags)) == len(event.flags)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        ["2023-06-34T00:00:00Z", "2026-01-01", "9999-12-31T23:59:59-23:59", "pay_x", "-1", "1e5", "\ud800"]
    ),
)
JSON_VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def put(body: Any, path: list[int], value: Any) -> Any:
    """`body` with `value` where `path` leads: at each level to its n-th member, as far as there are any."""
    if not path or not isinstance(body, dict) or not body:
        return value
    name = sorted(body)[path[0] % len(body)]
    return {**body, name: put(body[name], path[1:], value)}


@settings(max_examples=400, deadline=None)
@given(
    body=st.sampled_from(BODIES),
    changes=st.lists(st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=4), JSON_VALUES), max_size=4),
)
def test_arbitrary_values_anywhere_never_raise_anything_but_quarantined(
    body: bytes, changes: list[tuple[list[int], Any]]
) -> None:
    changed = json.loads(body)
    for path, value in changes:
        changed = put(changed, path, value)
    delivery = message(json.dumps(changed).encode())
    try:
        identity, event = identify(delivery, CHECKOUT), interpret(delivery, CHECKOUT)
    except Quarantined:
        return
    assert identity.event_type == event.event_type
    assert identity.dedupe_key
    assert_storable(event)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(BODIES), st.integers(0, 3000))
def test_arbitrary_bytes_never_raise_anything_but_quarantined(noise: bytes, body: bytes, cut: int) -> None:
    for damaged in (noise, body[:cut] + noise + body[cut:], body[:cut]):
        try:
            identify(message(damaged), CHECKOUT)
            assert_storable(interpret(message(damaged), CHECKOUT))
        except Quarantined:
            continue


# The shared samples, which are not part of this repository.

SAMPLE_EFFECTS = EFFECT_OF | {
    "payment_returned__docs_nas": Effect.NONE,
    "payment_declined__docs_abc_card_payout": Effect.NONE,
    "dispute_resolved__docs_nas_v1.0.6": Effect.DISPUTED,
}
NOT_EVENTS = {
    "README.md",
    "signature_test_vectors.json",
    "octopus_payment_request__docs.json",
    "octopus_payment_response_202__docs.json",
    "authentication_failed__malformed_sdk_node_409.txt",
}


@needs_samples
def test_every_sample_is_read() -> None:
    read = 0
    for file in SAMPLE_FILES:
        if file.name in NOT_EVENTS:
            continue
        name = file.name.partition("__")[0]
        # Pretty-printed here, compact on the wire.
        event = event_of(json.loads(file.read_bytes()))
        assert event.event_type == name, file.name
        assert name in CHECKOUT_COM.event_types
        assert event.effect is SAMPLE_EFFECTS.get(file.stem, SAMPLE_EFFECTS.get(name, Effect.NONE)), file.name
        assert not set(event.flags) - {"payout", "payment_returned", "fraud_reported"}, file.name
        assert_storable(event)
        read += 1
    assert read == len(SAMPLE_FILES) - len(NOT_EVENTS)


@needs_samples
def test_samples_that_are_no_events_are_parked() -> None:
    samples = {file.name: file.read_bytes() for file in SAMPLE_FILES}
    assert quarantine(samples["authentication_failed__malformed_sdk_node_409.txt"]) is Reason.UNREADABLE_BODY
    assert quarantine(samples["octopus_payment_request__docs.json"]) is Reason.MISSING_FIELD
    assert quarantine(samples["octopus_payment_response_202__docs.json"]) is Reason.MISSING_FIELD


@needs_samples
def test_the_sample_vectors_verify_for_their_own_body_only() -> None:
    samples = {file.name: file.read_bytes() for file in SAMPLE_FILES}
    vectors = json.loads(samples["signature_test_vectors.json"])["vectors"]
    assert len(vectors) == 5
    for vector in vectors:
        endpoint = CheckoutEndpoint(facility="main", signature_keys=secrets(vector["key"]))
        for other in vectors:
            delivery = message(vector["body"].encode(), cko_signature=other["signature"])
            if other is vector:
                authenticate(delivery, endpoint, None)
            else:
                assert refusal(authenticate, delivery, endpoint, None).reason is Reason.SIGNATURE_REFUSED
