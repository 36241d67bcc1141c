"""Paymentz: the checksum, its variants, and what the unsigned rest may say. Numbers are the traps of its page."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.errors import STATUS_OF, Quarantined, Reason, Refused
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Message
from receiver.providers.paymentz import EFFECTS, PROVIDER, PaymentzEndpoint
from receiver.signing import digest
from tests.support import PAYMENTZ, SAMPLES, all_recorded, recorded, secrets
from workers.simulator.paymentz import SENDER

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
CAPTURED = {
    "paymentId": "41000001",
    "status": "capturesuccess",
    "transactionStatus": "Y",
    "amount": "156.50",
    "currency": "EUR",
    "merchantTransactionId": "ORDER-2001",
}
SIGNED = ("paymentId", "merchantTransactionId", "amount", "transactionStatus")
SAMPLE_FILES = SAMPLES / "paymentz"
needs_samples = pytest.mark.skipif(not SAMPLE_FILES.is_dir(), reason="the sample files are not beside this repository")


def checksum(fields: Mapping[str, Any], key: str = "pz-new-key", charset: str = "utf-8") -> str:
    """The vendor's formula, written here a second time."""
    text = "|".join([*(str(fields.get(name, "")) for name in SIGNED), key])
    return hashlib.md5(text.encode(charset), usedforsecurity=False).hexdigest()


def signed(fields: Mapping[str, Any], as_if: Mapping[str, Any] | None = None, **how: str) -> dict[str, Any]:
    """`fields` with a checksum; `as_if` are the values under which it was made, where they differ."""
    return {**fields, "checksum": checksum({**fields, **(as_if or {})}, **how)}


def message(body: bytes | Mapping[str, Any], content_type: str = JSON) -> Message:
    return Message(content_type, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def sent(**changes: Any) -> Message:
    """A paid callback with `changes`, signed after them."""
    return message(signed({**CAPTURED, **changes}))


def refusal(sent: Message, endpoint: PaymentzEndpoint = PAYMENTZ) -> Reason | None:
    try:
        PROVIDER.check_headers(sent, endpoint)
        PROVIDER.authenticate(sent, endpoint, None)
    except Refused as refused:
        return refused.reason
    return None


def quarantine(sent: Message) -> Reason:
    """The reason for which `sent`, proven before, is quarantined on arrival and by the worker alike."""
    assert refusal(sent) is None
    with pytest.raises(Quarantined) as on_arrival:
        PROVIDER.identify(sent, PAYMENTZ)
    with pytest.raises(Quarantined) as by_worker:
        PROVIDER.interpret(sent, PAYMENTZ)
    assert by_worker.value.reason is on_arrival.value.reason
    return by_worker.value.reason


def interpreted(sent: Message) -> PaymentEvent:
    assert refusal(sent) is None
    return PROVIDER.interpret(sent, PAYMENTZ)


# Fixtures


@pytest.mark.parametrize("name", [request.name for request in all_recorded("paymentz")])
def test_every_fixture_is_proven_and_is_what_its_name_says(name: str) -> None:
    callback = recorded("paymentz", name).message()
    assert PROVIDER.token_of(callback) is None
    assert interpreted(callback).event_type == name.partition("__")[0]
    assert PROVIDER.identify(callback, PAYMENTZ).event_type == name.partition("__")[0]


def test_declared_handled_and_recorded_are_the_same() -> None:
    assert {request.name.partition("__")[0] for request in all_recorded("paymentz")} == PROVIDER.event_types
    assert frozenset(EFFECTS) == PROVIDER.event_types


# Reading


def test_a_captured_payment() -> None:
    callback = recorded("paymentz", "capturesuccess").message()
    identity = PROVIDER.identify(callback, PAYMENTZ)
    assert identity.dedupe_key == "41000001:Y:capturesuccess"
    assert identity.fingerprint == digest(b"156.50", b"EUR", b"ORDER-2001")
    assert interpreted(callback) == PaymentEvent(
        event_type="capturesuccess",
        effect=Effect.CAPTURED,
        payment_id="41000001",
        action_id="capture",
        amount=15650,
        currency="EUR",
        reference="ORDER-2001",
        card_scheme="VISA",
        response_code="00001",
        response_description="Transaction succeeded",
        custom={
            "timestamp": "2026-05-04 09:08:07",
            "paymentMode": "CC",
            "bankReferenceId": "620011",
            "terminalId": "3301",
        },
        flags=("confirm_by_inquiry",),
    )


def test_a_payout_is_never_the_state_of_an_order() -> None:
    for name in ("payoutsuccessful", "payoutsuccessful__bank", "payoutfailed", "payoutstarted"):
        found = interpreted(recorded("paymentz", name).message())
        assert (found.effect, found.payment_id, found.action_id) == (Effect.NONE, None, None)
        assert found.flags == ("payout",)
    bank = interpreted(recorded("paymentz", "payoutsuccessful__bank").message())
    assert (bank.amount, bank.currency, bank.exponent) == (25000065, "VND", 2)
    assert (bank.card_scheme, bank.custom["paymentMode"]) == ("Bank Transfer", "NB")


@pytest.mark.parametrize(
    ("status", "short", "effect"),
    [
        ("begun", "P", Effect.PENDING),
        ("authstarted", "P", Effect.PENDING),
        ("3D Authstarted", "3D", Effect.PENDING),
        ("capturestarted", "P", Effect.PENDING),
        ("cancelstarted", "P", Effect.NONE),
        ("markedforreversal", "Y", Effect.NONE),
        ("payoutstarted", "P", Effect.NONE),
        ("authsuccessful", "Y", Effect.AUTHORISED),
        ("capturesuccess", "Y", Effect.CAPTURED),
        ("settled", "Y", Effect.CAPTURED),
        ("payoutsuccessful", "Y", Effect.NONE),
        ("payoutfailed", "N", Effect.NONE),
        ("authfailed", "N", Effect.DECLINED),
        ("capturefailed", "N", Effect.FAILED),
        ("failed", "N", Effect.FAILED),
        ("authcancelled", "C", Effect.CANCELLED),
        ("cancelled", "C", Effect.CANCELLED),
        ("reversed", "Y", Effect.REFUNDED),
        ("chargeback", "Y", Effect.DISPUTED),
    ],
)
def test_long_statuses_count_in_any_letter_case(status: str, short: str, effect: Effect) -> None:
    for spelling in (status, status.upper(), f" {status} "):
        found = interpreted(sent(status=spelling, transactionStatus=short))
        assert (found.effect, found.event_type) == (effect, status.lower().replace(" ", "_"))


def test_an_unknown_status_is_kept_without_an_effect() -> None:
    found = interpreted(sent(status="Partly Refunded" * 20))
    assert (found.effect, found.flags, found.action_id) == (Effect.NONE, ("unknown_status",), None)
    assert found.event_type == ("partly_refunded" * 20)[:100]


def test_what_the_unsigned_parts_decide_waits_for_an_inquiry() -> None:
    flagged = {
        found.event_type
        for found in (interpreted(request.message()) for request in all_recorded("paymentz"))
        if "confirm_by_inquiry" in found.flags
    }
    assert flagged == {"authsuccessful", "capturesuccess", "settled", "reversed"}


def test_a_refund_has_the_amount_as_sent_and_counts_once() -> None:
    found = interpreted(recorded("paymentz", "reversed").message())
    assert (found.effect, found.action_id, found.amount, found.total_refunded) == (
        Effect.REFUNDED,
        "refund",
        15650,
        None,
    )


@pytest.mark.parametrize(
    ("amount", "currency", "minor", "exponent"),
    [
        ("156.50", "EUR", 15650, 2),
        ("156.5", "eur", 15650, 2),
        ("1500", "JPY", 150000, 2),
        ("1500.00", "JPY", 150000, 2),
        ("100000.65", "VND", 10000065, 2),
        ("12.345", "BHD", 12345, 3),
        ("12.345", "kwd", 12345, 3),
        ("0.00", "EUR", 0, 2),
    ],
)
def test_amounts(amount: str, currency: str, minor: int, exponent: int) -> None:
    found = interpreted(sent(amount=amount, currency=currency))
    assert (found.amount, found.currency, found.exponent) == (minor, currency.upper(), exponent)
    assert PROVIDER.exponent(currency) == exponent


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("amount", "", Reason.MISSING_FIELD),
        ("amount", None, Reason.MISSING_FIELD),
        ("amount", ["156.50"], Reason.MISSING_FIELD),
        ("amount", "156,50", Reason.UNREADABLE_BODY),
        ("amount", "1e2", Reason.UNREADABLE_BODY),
        ("amount", "NaN", Reason.UNREADABLE_BODY),
        ("amount", "1.005", Reason.UNREADABLE_BODY),
        ("amount", "-156.50", Reason.CONTRADICTORY_FIELDS),
        ("currency", "", Reason.MISSING_FIELD),
        ("currency", None, Reason.MISSING_FIELD),
        ("currency", "EURO", Reason.UNREADABLE_BODY),
        ("currency", "12", Reason.UNREADABLE_BODY),
        ("status", "", Reason.MISSING_FIELD),
        ("status", None, Reason.MISSING_FIELD),
        ("status", {}, Reason.MISSING_FIELD),
        ("paymentId", "", Reason.UNKNOWN_DOCUMENT),
        ("paymentId", "4100 0001", Reason.UNKNOWN_DOCUMENT),
        ("paymentId", "4" * 101, Reason.UNKNOWN_DOCUMENT),
    ],
)
def test_proven_but_not_believable(field: str, value: object, reason: Reason) -> None:
    as_if = {} if isinstance(value, str) else {field: ""}
    assert quarantine(message(signed({**CAPTURED, field: value}, as_if))) is reason


def test_a_body_without_payment_id_is_kept_for_a_person() -> None:
    fields = {name: value for name, value in CAPTURED.items() if name != "paymentId"}
    assert quarantine(message(signed(fields))) is Reason.UNKNOWN_DOCUMENT


@pytest.mark.parametrize(
    ("status", "short"),
    [
        *[(status, short) for status in ("capturesuccess", "settled") for short in ("N", "P", "3D", "C", "X", "")],
        *[(status, short) for status in ("authsuccessful", "payoutsuccessful") for short in ("N", "P", "3D", "C", "")],
        *[(status, "Y") for status in ("authfailed", "capturefailed", "failed", "payoutfailed")],
        *[(status, "Y") for status in ("authcancelled", "cancelled")],
    ],
)
def test_a_long_status_that_the_short_one_excludes_is_quarantined(status: str, short: str) -> None:
    assert quarantine(sent(status=status, transactionStatus=short)) is Reason.CONTRADICTORY_FIELDS


# The proof


@pytest.mark.parametrize("key", ["pz-old-key", "pz-new-key"])
def test_both_keys_prove(key: str) -> None:
    assert refusal(message(signed(CAPTURED, key=key))) is None


def test_other_keys_do_not() -> None:
    for key in ("", "null", "pz-new-key ", "PZ-NEW-KEY"):
        assert refusal(message(signed(CAPTURED, key=key))) is Reason.SIGNATURE_REFUSED
    assert refusal(sent(), PaymentzEndpoint(facility="eu")) is Reason.SIGNATURE_REFUSED
    assert PROVIDER.required_secrets == (("secure_keys",),)


def test_known_vectors() -> None:
    # printf '41000001|ORDER-2001|156.50|Y|pz-new-key' | md5sum
    assert refusal(message({**CAPTURED, "checksum": "e660a22dd7efe8e7241698b79a67bb88"})) is None
    # printf '41000001|ORDER-2001|156.50|N|pz-old-key' | md5sum
    declined = {
        **CAPTURED,
        "status": "failed",
        "transactionStatus": "N",
        "checksum": "f3f7296fc0154007037c8a886b2b6534",
    }
    assert refusal(message(declined)) is None


@pytest.mark.parametrize("field", ["paymentId", "merchantTransactionId", "amount"])
@pytest.mark.parametrize("value", ["", "1", None, [], {}, 1, 1.5, True])
def test_an_altered_signed_field_is_refused(field: str, value: object) -> None:
    assert refusal(message({**signed(CAPTURED), field: value})) is Reason.SIGNATURE_REFUSED


def test_what_was_proven_by_a_key_that_is_gone_needs_it_again() -> None:
    callback = message(signed(CAPTURED, key="pz-old-key"))
    with pytest.raises(Quarantined) as caught:
        PROVIDER.interpret(callback, PaymentzEndpoint(facility="eu", secure_keys=secrets("pz-new-key")))
    assert caught.value.reason is Reason.WEAK_PROOF


@pytest.mark.parametrize(("amount", "hashed"), [("100.00", "100"), ("100.0", "100")])
def test_a_yen_amount_that_was_hashed_as_an_integer_is_weak(amount: str, hashed: str) -> None:
    yen = {**CAPTURED, "amount": amount, "currency": "JPY"}
    assert quarantine(message(signed(yen, {"amount": hashed}))) is Reason.WEAK_PROOF
    euro = {**yen, "currency": "EUR"}
    assert refusal(message(signed(euro, {"amount": hashed}))) is Reason.SIGNATURE_REFUSED
    # Only where nothing is cut off.
    assert refusal(message(signed({**yen, "amount": "100.50"}, {"amount": "100"}))) is Reason.SIGNATURE_REFUSED


def test_a_text_that_was_hashed_in_latin_1_is_weak() -> None:
    fields = signed({**CAPTURED, "merchantTransactionId": "CAFÉ-1"}, charset="latin-1")
    assert quarantine(message(fields)) is Reason.WEAK_PROOF
    assert quarantine(message(json.dumps(fields, ensure_ascii=False).encode("latin-1"))) is Reason.WEAK_PROOF
    found = interpreted(sent(merchantTransactionId="CAFÉ-1"))
    assert found.reference == "CAFÉ-1"


def test_the_checksum_is_not_shown() -> None:
    assert "checksum" in PROVIDER.secret_fields
    fields = signed(CAPTURED)
    shown = repr((PROVIDER.identify(message(fields), PAYMENTZ), interpreted(message(fields))))
    assert fields["checksum"] not in shown


# The numbered traps


@pytest.mark.parametrize("name", ["capturesuccess__latin1", "capturesuccess__form_latin1"])
def test_trap_01_a_latin_1_letter_does_not_lose_the_callback(name: str) -> None:
    # That the raw bytes are kept: tests/workers.
    recording = recorded("paymentz", name)
    assert b"\xe9" in recording.body or b"%E9" in recording.body
    assert interpreted(recording.message()) == interpreted(recorded("paymentz", "capturesuccess").message())


def test_trap_01_a_byte_order_mark_does_neither() -> None:
    assert interpreted(message(b"\xef\xbb\xbf" + json.dumps(signed(CAPTURED)).encode())).effect is Effect.CAPTURED


@pytest.mark.parametrize("short", ["Y", "N", "P", "C"])
def test_trap_02_refunds_and_chargebacks_may_carry_any_short_status(short: str) -> None:
    for status, effect in (("reversed", Effect.REFUNDED), ("chargeback", Effect.DISPUTED)):
        found = interpreted(sent(status=status, transactionStatus=short))
        assert (found.effect, found.action_id) == (effect, "refund" if status == "reversed" else None)


def test_trap_02_y_alone_credits_nothing() -> None:
    for status in ("markedforreversal", "begun", "payoutsuccessful", "something new"):
        assert interpreted(sent(status=status)).effect in (Effect.NONE, Effect.PENDING)


@pytest.mark.parametrize("hashed", ["N", "P", "3D", "C"])
def test_trap_03_a_checksum_under_another_short_status_is_weak(hashed: str) -> None:
    for status in ("capturesuccess", "chargeback", "begun"):
        fields = signed({**CAPTURED, "status": status}, {"transactionStatus": hashed})
        assert quarantine(message(fields)) is Reason.WEAK_PROOF


@pytest.mark.parametrize("came", ["N", "P", "3D", "C", "y", "X", "", None, [], True])
def test_trap_03_a_success_that_came_as_something_else_is_weak(came: object) -> None:
    for status in ("capturesuccess", "failed", "begun"):
        fields = signed({**CAPTURED, "status": status, "transactionStatus": came}, {"transactionStatus": "Y"})
        assert quarantine(message(fields)) is Reason.WEAK_PROOF


def test_trap_03_a_checksum_under_no_known_short_status_is_refused() -> None:
    assert refusal(message(signed(CAPTURED, {"transactionStatus": "X"}))) is Reason.SIGNATURE_REFUSED
    assert refusal(message(signed(CAPTURED, {"transactionStatus": "capturesuccess"}))) is Reason.SIGNATURE_REFUSED


def test_trap_04_an_altered_long_status_verifies_and_names_the_same_capture() -> None:
    # That the second capture adds no money, in any order: tests/workers.
    chargeback = signed({**CAPTURED, "status": "chargeback"})
    forged = message({**chargeback, "status": "capturesuccess"})
    found = interpreted(forged)
    assert (found.payment_id, found.action_id, found.flags) == ("41000001", "capture", ("confirm_by_inquiry",))
    assert interpreted(sent(status="settled")).action_id == "capture"
    assert PROVIDER.identify(forged, PAYMENTZ) == PROVIDER.identify(sent(), PAYMENTZ)


def test_trap_05_an_altered_currency_verifies_and_is_handed_on_for_comparison() -> None:
    # That it is compared with the order: tests/workers. Without one it would be taken from the order, so it is needed.
    found = interpreted(message({**signed(CAPTURED), "currency": "IDR"}))
    assert (found.currency, found.flags) == ("IDR", ("confirm_by_inquiry",))
    for currency in ("EUR", "IDR"):
        repeat = message({**signed(CAPTURED), "currency": currency})
        assert (PROVIDER.identify(repeat, PAYMENTZ) == PROVIDER.identify(sent(), PAYMENTZ)) is (currency == "EUR")
    assert quarantine(message({**signed(CAPTURED), "currency": None})) is Reason.MISSING_FIELD


@pytest.mark.parametrize("field", SIGNED)
def test_trap_06_a_separator_in_a_signed_field_is_weak(field: str) -> None:
    assert quarantine(sent(**{field: f"{CAPTURED[field]}|1"})) is Reason.WEAK_PROOF


def test_trap_06_the_same_text_cut_elsewhere_is_weak() -> None:
    genuine = signed({**CAPTURED, "merchantTransactionId": "ORDER-2001|1.00|Y", "transactionStatus": "N"})
    forged = {**genuine, "merchantTransactionId": "ORDER-2001", "amount": "1.00", "transactionStatus": "Y|156.50|N"}
    assert quarantine(message(forged)) is Reason.WEAK_PROOF


@pytest.mark.parametrize("number", ["156.0", "156.00", "156", "1.560E2"])
def test_trap_07_a_json_number_is_hashed_as_its_source_text(number: str) -> None:
    raw = json.dumps(signed(CAPTURED, {"amount": number})).replace('"156.50"', number).encode()
    assert refusal(message(raw)) is None
    for formatted in ("156.0", "156.00", "156", "1.560E2"):
        raw = json.dumps(signed(CAPTURED, {"amount": number})).replace('"156.50"', formatted).encode()
        assert (refusal(message(raw)) is None) is (formatted == number)


def test_trap_07_a_payment_id_may_be_a_number_too() -> None:
    found = interpreted(message(signed({**CAPTURED, "paymentId": 41000001})))
    assert found.payment_id == "41000001"
    long = "9" * 30
    raw = json.dumps(signed(CAPTURED, {"paymentId": long})).replace('"41000001"', long).encode()
    assert interpreted(message(raw)).payment_id == long


def test_trap_07_white_space_is_hashed_as_sent() -> None:
    assert interpreted(sent(merchantTransactionId=" ORDER-2001 ")).reference == "ORDER-2001"
    altered = {**signed(CAPTURED), "merchantTransactionId": " ORDER-2001"}
    assert refusal(message(altered)) is Reason.SIGNATURE_REFUSED


def test_trap_08_the_word_null_is_no_key() -> None:
    # That a redirect never changes anything: it has no route, tests/contract.
    forged = signed({**CAPTURED, "paymentId": "null", "transactionStatus": "C", "status": "cancelled"}, key="null")
    assert refusal(message(forged)) is Reason.SIGNATURE_REFUSED
    forged = signed({**CAPTURED, "paymentId": None, "transactionStatus": "C"}, {"paymentId": "null"}, key="null")
    assert refusal(message(forged)) is Reason.SIGNATURE_REFUSED


def test_trap_09_digests_are_compared_as_text_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # In PHP 0e1... == 0e2... is true: both read as zero.
    assert refusal(message({**CAPTURED, "checksum": "0e" + "1" * 30})) is Reason.SIGNATURE_REFUSED
    compared: list[bytes] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    fields = signed(CAPTURED, key="pz-old-key")
    assert refusal(message(fields)) is None
    assert compared == [checksum(CAPTURED, key="pz-old-key").encode(), checksum(CAPTURED).encode()]


def test_trap_09_a_checksum_has_all_its_32_digits() -> None:
    fields = next(
        fields
        for fields in (signed({**CAPTURED, "paymentId": f"{number}"}) for number in range(1, 1000))
        if fields["checksum"].startswith("0")
    )
    assert refusal(message(fields)) is None
    assert refusal(message({**fields, "checksum": fields["checksum"].upper()})) is None
    assert refusal(message({**fields, "checksum": fields["checksum"].lstrip("0")})) is Reason.SIGNATURE_REFUSED


def test_trap_10_p_is_not_success() -> None:
    for status in ("capturesuccess", "settled", "authsuccessful"):
        assert quarantine(sent(status=status, transactionStatus="P")) is Reason.CONTRADICTORY_FIELDS
    assert interpreted(sent(status="authstarted", transactionStatus="P")).effect is Effect.PENDING


@pytest.mark.parametrize("amount", [156, 0])
def test_trap_11_unknown_payments_and_numeric_amounts_are_taken(amount: int) -> None:
    # That an unknown payment is stored and answered 200: tests/contract.
    found = interpreted(sent(paymentId="99999999", merchantTransactionId="NEVER-ISSUED", amount=amount))
    assert (found.payment_id, found.amount) == ("99999999", amount * 100)


@pytest.mark.parametrize("junk", ["7OsiGNIhrJVPHPhzk49E6WcjE6tFJYOE", "é" * 32, "0", 0, 1.5, True, "\u2028x"])
def test_trap_12_a_checksum_that_is_no_hex_fails(junk: object) -> None:
    redirect = {**CAPTURED, "status": "authsuccessful", "checksum": junk}
    assert refusal(message(redirect)) is Reason.SIGNATURE_REFUSED
    del redirect["transactionStatus"]
    assert refusal(message(redirect)) is Reason.SIGNATURE_REFUSED


def test_trap_13_json_and_form_are_both_read() -> None:
    fields = signed(CAPTURED)
    as_json, as_form = json.dumps(fields).encode(), urlencode(fields).encode()
    wanted = interpreted(message(as_json))
    # JSON first, whatever the type says; a form unless the type says JSON.
    for content_type in (JSON, FORM, "text/plain", ""):
        assert interpreted(message(as_json, content_type)) == wanted
    for content_type in (FORM, "text/plain", ""):
        assert interpreted(message(as_form, content_type)) == wanted
    assert refusal(message(as_form, JSON)) is Reason.SIGNATURE_REFUSED


def test_trap_13_a_form_has_the_result_in_flat_names() -> None:
    found = interpreted(recorded("paymentz", "capturesuccess__form").message())
    assert found == interpreted(recorded("paymentz", "capturesuccess").message())
    assert (found.response_code, found.response_description) == ("00001", "Transaction succeeded")


def test_trap_13_a_form_with_two_values_proves_nothing() -> None:
    form = urlencode(signed(CAPTURED)).encode()
    assert refusal(message(form + b"&amount=1.00", FORM)) is Reason.SIGNATURE_REFUSED
    assert refusal(message(form + b"&amount=156.50", FORM)) is None


@pytest.mark.parametrize("name", sorted({*CAPTURED, "checksum", "additional"}))
def test_trap_14_missing_and_additional_keys_do_not_fail_the_reader(name: str) -> None:
    fields = signed({**CAPTURED, "additional": {"deep": [1, None]}})
    del fields[name]
    callback = message(fields)
    if name in ("additional", "currency", "status", "transactionStatus"):
        assert refusal(callback) is None
    else:
        assert refusal(callback) is (Reason.SIGNATURE_MISSING if name == "checksum" else Reason.SIGNATURE_REFUSED)


def test_trap_14_only_six_fields_and_the_checksum_are_needed() -> None:
    found = interpreted(recorded("paymentz", "capturesuccess__minimal").message())
    assert (found.effect, found.card_scheme, found.response_code, found.custom) == (Effect.CAPTURED, None, None, {})


@pytest.mark.parametrize("absent", [None, "", "  ", [], {}])
def test_trap_14_without_a_checksum_nothing_is_proven(absent: object) -> None:
    assert refusal(message({**CAPTURED, "checksum": absent})) is Reason.SIGNATURE_MISSING
    assert refusal(message({"notificationRequest": {"orderId": "ORDER-2001"}})) is Reason.SIGNATURE_MISSING
    assert refusal(message(b"status=capturesuccess", FORM)) is Reason.SIGNATURE_MISSING


@pytest.mark.parametrize("body", [b"not json", b"[]", b"null", b"{", b'{"checksum": "\\ud800"}', b'{"a": "\\u0000"}'])
def test_trap_14_an_unreadable_body_proves_nothing(body: bytes) -> None:
    assert refusal(message(body)) is Reason.SIGNATURE_REFUSED
    assert {STATUS_OF[reason] for reason in (Reason.SIGNATURE_MISSING, Reason.SIGNATURE_REFUSED)} == {403}


# The simulated sender


def test_the_simulated_gateway_is_proven_and_plans_for_one_attempt() -> None:
    random = Random(1)
    seen: set[str] = set()
    effects: set[Effect] = set()
    for serial in range(200):
        callbacks = SENDER.payment(PAYMENTZ, random, serial, None)
        found = [interpreted(message(callback.body, callback.headers["Content-Type"])) for callback in callbacks]
        assert {callback.path for callback in callbacks} == {"/notify/paymentz/eu"}
        assert len({event.payment_id for event in found}) == 1
        seen.add(f"{found[0].payment_id}")
        effects.add(found[-1].effect)
        assert {event.effect for event in found[:-1]} == {Effect.PENDING}
    assert len(seen) == 200
    assert effects == {Effect.CAPTURED, Effect.DECLINED}
    newest = PaymentzEndpoint(facility="eu", secure_keys=PAYMENTZ.secure_keys[-1:])
    assert refusal(message(SENDER.payment(PAYMENTZ, random, 1, None)[0].body), newest) is None
    assert SENDER.retry.delays == ()
    assert SENDER.retry.successes == {200}


# Anything at all

names = st.sampled_from([*CAPTURED, "checksum", "result", "paymentBrand", "timestamp"])
values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*CAPTURED.values(), "JPY"])
)
anything = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
readable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
content_types = st.sampled_from([JSON, FORM, "text/plain", ""])


def walk(callback: Message) -> None:
    """The whole way of a message; only `Refused`, then only `Quarantined` may leave it."""
    with suppress(Refused):
        PROVIDER.authenticate(callback, PAYMENTZ, None)
    try:
        identity = PROVIDER.identify(callback, PAYMENTZ)
        found = PROVIDER.interpret(callback, PAYMENTZ)
    except Quarantined:
        return
    assert identity.event_type == found.event_type
    assert 0 < len(found.event_type) <= 100
    assert len(identity.dedupe_key) <= 302
    msgspec.msgpack.encode(found)


@settings(deadline=None)
@given(st.binary(max_size=300), content_types)
def test_arbitrary_bytes_end_in_the_error_tree(body: bytes, content_type: str) -> None:
    walk(message(body, content_type))


@settings(deadline=None)
@given(st.dictionaries(names | st.text(), anything, max_size=8) | anything, content_types)
def test_arbitrary_json_ends_in_the_error_tree(value: object, content_type: str) -> None:
    walk(message(json.dumps(value).encode(), content_type))


@settings(deadline=None)
@given(st.dictionaries(names, readable, max_size=8))
def test_arbitrary_signed_fields_are_read_or_quarantined(changes: dict[str, Any]) -> None:
    callback = message(signed({**CAPTURED, **changes}))
    if all(isinstance(changes.get(name, ""), str) for name in SIGNED):
        assert refusal(callback) is None
    walk(callback)


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.sampled_from(["Y", "N", "P", "3D", "C"]))
def test_other_signed_values_never_verify(payment_id: str, reference: str, amount: str, short: str) -> None:
    fields = {"paymentId": payment_id, "merchantTransactionId": reference, "amount": amount}
    altered = {**signed(CAPTURED), **fields, "transactionStatus": short}
    if fields != {name: CAPTURED[name] for name in fields}:
        assert refusal(message(altered)) is Reason.SIGNATURE_REFUSED


# The recorded and the constructed samples


@needs_samples
def test_the_constructed_vectors() -> None:
    endpoint = PaymentzEndpoint(facility="eu", secure_keys=secrets("test-secret"))
    vectors = json.loads((SAMPLE_FILES / "md5_vectors.SELF-GENERATED.json").read_bytes())["vectors"]
    outcomes = []
    for vector in vectors:
        payment_id, reference, amount, short, _ = vector["input"].split("|")
        fields = dict(zip(SIGNED, (payment_id, reference, amount, short), strict=True))
        outcomes.append(refusal(message({**fields, "checksum": vector["md5"]}), endpoint))
    # The last is a redirect with the key replaced by the word null.
    assert outcomes == [None, None, None, Reason.SIGNATURE_REFUSED]


@needs_samples
@pytest.mark.parametrize("name", ["noti_card.json", "noti_banktrans.json"])
def test_the_recorded_payouts_are_read_when_signed_with_our_key(name: str) -> None:
    fields = json.loads((SAMPLE_FILES / name).read_bytes())
    # Their own key is not known.
    assert refusal(message(fields)) is Reason.SIGNATURE_REFUSED
    found = interpreted(message(signed(fields)))
    assert (found.event_type, found.effect, found.payment_id) == ("payoutsuccessful", Effect.NONE, None)
    assert (found.flags, found.exponent) == (("payout",), 2)
    assert (found.amount, found.currency) == {
        "noti_card.json": (10000, "JPY"),
        "noti_banktrans.json": (10000065, "VND"),
    }[name]


@needs_samples
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("standard_checkout_response.json", Reason.SIGNATURE_REFUSED),
        ("transactworld_docs_2025_notification_UNSIGNED.json", Reason.SIGNATURE_MISSING),
        ("inquiry_response_partial.json", Reason.SIGNATURE_MISSING),
    ],
)
def test_samples_that_prove_nothing_are_refused(name: str, reason: Reason) -> None:
    assert refusal(message((SAMPLE_FILES / name).read_bytes())) is reason
