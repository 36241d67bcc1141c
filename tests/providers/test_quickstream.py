"""Westpac QuickStream. The numbers are those of the traps in the provider's page. Octane's facilities come last."""

from __future__ import annotations

import ast
import csv
import inspect
import locale
import re
from base64 import b64encode
from datetime import UTC, date, datetime
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Quarantined, Reason, Refused
from receiver.notification import Effect, PaymentEvent
from receiver.providers import PROVIDERS, quickstream
from receiver.providers.base import Identity, Message
from receiver.providers.quickstream import PROVIDER, QuickStreamEndpoint, check_headers, identify, interpret
from receiver.signing import canonical_return, require_return_hmac, return_digest
from tests.support import FIXTURES, QUICKSTREAM, SAMPLES, all_recorded, recorded, secrets
from workers.simulator import SENDERS

FORM, XML = "application/x-www-form-urlencoded", "application/xml"
CONTENT_TYPES = (FORM, XML, "text/xml", "application/json", "")
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not on this machine")

# Every fixture with what it must become: an effect, or the reason of its quarantine.
OUTCOMES: dict[str, Effect | Reason] = {
    "form": Effect.CAPTURED,
    "xml": Effect.CAPTURED,
    "text_xml": Effect.CAPTURED,
    "xml_declared_latin1": Effect.CAPTURED,
    "xml_comment_and_cdata": Effect.CAPTURED,
    "declined": Effect.DECLINED,
    "declined_hard": Effect.DECLINED,
    "error_card": Effect.PENDING,
    "incomplete_qi": Effect.PENDING,
    "processing_bank": Effect.PENDING,
    "rejected": Effect.FAILED,
    "rejected_bank": Effect.FAILED,
    "unknown_code": Effect.FAILED,
    "approved_08": Effect.CAPTURED,
    "partial_10": Effect.CAPTURED,
    "zero_value_qz": Effect.CAPTURED,
    "bank": Effect.CAPTURED,
    "bank_returned": Effect.DECLINED,
    "bank_declined_1": Effect.DECLINED,
    "card_declined_01": Effect.DECLINED,
    "custom_fields": Effect.CAPTURED,
    "custom_fields_xml": Effect.CAPTURED,
    "custom_repeated": Effect.CAPTURED,
    "blank_values": Effect.CAPTURED,
    "repeated_same": Effect.CAPTURED,
    "repeated_different": Reason.CONTRADICTORY_FIELDS,
    "repeated_different_scheme": Reason.CONTRADICTORY_FIELDS,
    "xml_not_well_formed": Reason.UNREADABLE_BODY,
    "xml_unknown_root": Reason.UNKNOWN_DOCUMENT,
    "registration": Reason.UNKNOWN_DOCUMENT,
    "xml_doctype": Reason.UNREADABLE_BODY,
    "xml_external_entity": Reason.UNREADABLE_BODY,
    "xml_billion_laughs": Reason.UNREADABLE_BODY,
    "xml_mixed_content": Reason.UNREADABLE_BODY,
    "success_flag_disagrees": Reason.CONTRADICTORY_FIELDS,
    "success_flag_true_declined": Reason.CONTRADICTORY_FIELDS,
    "success_flag_true_processing": Reason.CONTRADICTORY_FIELDS,
    "unknown_summary": Reason.CONTRADICTORY_FIELDS,
    "other_business": Reason.OTHER_BUSINESS,
    "spring_forward": Effect.CAPTURED,
    "autumn_back": Effect.CAPTURED,
    "bad_dates": Effect.CAPTURED,
    "first_year": Effect.CAPTURED,
    "long_month": Effect.CAPTURED,
    "invalid_utf8": Reason.UNREADABLE_BODY,
    "nul_character": Reason.UNREADABLE_BODY,
    "negative_amount": Reason.CONTRADICTORY_FIELDS,
    "amount_with_separator": Reason.UNREADABLE_BODY,
    "missing_amount": Reason.MISSING_FIELD,
    "long_receipt": Reason.UNREADABLE_BODY,
    "nzd": Effect.CAPTURED,
    "payto_json": Reason.UNREADABLE_BODY,
    "no_content_type": Reason.UNREADABLE_BODY,
    "octane_token_form": Reason.UNKNOWN_DOCUMENT,
}


def message_of(variant: str) -> Message:
    return recorded("quickstream", f"payment__{variant}").message()


def event_of(variant: str) -> PaymentEvent:
    return interpret(message_of(variant), QUICKSTREAM)


def identity_of(variant: str) -> Identity:
    return identify(message_of(variant), QUICKSTREAM)


def fields_with(**changes: str | None) -> dict[str, str]:
    """The fields of ``payment__form``, some changed and those with None left out."""
    fields = dict(parse_qsl(message_of("form").body.decode(), keep_blank_values=True, strict_parsing=True)) | changes
    return {name: value for name, value in fields.items() if value is not None}


CORE = tuple(fields_with())
"""``payment__form`` has every documented field."""


def form_with(**changes: str | None) -> Message:
    return Message(FORM, {}, urlencode(fields_with(**changes)).encode())


def xml_with(**changes: str | None) -> Message:
    elements = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields_with(**changes).items())
    return Message(XML, {}, f"<PaymentResponse>{elements}</PaymentResponse>".encode())


def event_with(**changes: str | None) -> PaymentEvent:
    return interpret(form_with(**changes), QUICKSTREAM)


def quarantine_of(message: Message, endpoint: QuickStreamEndpoint = QUICKSTREAM) -> Reason:
    """The reason that both steps give."""
    with pytest.raises(Quarantined) as at_accept:
        identify(message, endpoint)
    with pytest.raises(Quarantined) as at_work:
        interpret(message, endpoint)
    assert at_accept.value.reason is at_work.value.reason
    return at_accept.value.reason


def refusal_of(authorization: str | None, endpoint: QuickStreamEndpoint = QUICKSTREAM) -> Refused:
    headers = {} if authorization is None else {"authorization": authorization}
    with pytest.raises(Refused) as caught:
        check_headers(Message(FORM, headers, b""), endpoint)
    return caught.value


def basic(credentials: str, charset: str = "utf-8") -> str:
    return f"Basic {b64encode(credentials.encode(charset)).decode()}"


# ---- fixtures


def test_every_fixture_has_an_outcome() -> None:
    assert {fixture.name for fixture in all_recorded("quickstream")} == {f"payment__{name}" for name in OUTCOMES}


@pytest.mark.parametrize("variant", OUTCOMES)
def test_fixtures_become_what_they_must(variant: str) -> None:
    message, outcome = message_of(variant), OUTCOMES[variant]
    check_headers(message, QUICKSTREAM)
    PROVIDER.authenticate(message, QUICKSTREAM, None)
    if isinstance(outcome, Reason):
        assert quarantine_of(message) is outcome
    else:
        event = interpret(message, QUICKSTREAM)
        assert event.effect is outcome
        assert event.event_type == identify(message, QUICKSTREAM).event_type
        assert event.event_type in PROVIDER.event_types


@pytest.mark.parametrize("variant", OUTCOMES)
def test_fixtures_are_requests_byte_for_byte(variant: str) -> None:
    head, _, body = (FIXTURES / "quickstream" / f"payment__{variant}.http").read_bytes().partition(b"\r\n\r\n")
    assert head.count(b"\n") == head.count(b"\r\n")
    assert head.startswith(b"POST /notify/quickstream/acme HTTP/1.1\r\n")
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_a_payment_with_all_its_fields() -> None:
    assert event_of("form") == PaymentEvent(
        event_type="payment",
        effect=Effect.CAPTURED,
        payment_id="ACMECOMM:7004100001",
        receipt_number="7004100001",
        occurred_at=datetime(2025, 3, 6, 3, 22, 9, tzinfo=UTC),  # Sydney is 11 hours ahead in March
        amount=14875,
        surcharge=175,
        currency="AUD",
        exponent=2,
        reference="INV-58213",
        customer_reference="MEMBER-2041",
        card_scheme="MASTERCARD",
        response_code="00",
        response_description="Approved",
        summary_code="0",
        settlement_date=date(2025, 3, 6),
        merchant="ACME",
    )


def test_form_and_xml_of_one_payment_are_one_notification() -> None:
    assert identity_of("form") == identity_of("xml")
    assert event_of("form") == event_of("xml")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20)


@given(customer=TEXTS, reference=TEXTS, description=TEXTS, custom=TEXTS, community=TEXTS)
def test_form_and_xml_are_equal_for_any_text(
    customer: str, reference: str, description: str, custom: str, community: str
) -> None:
    changes = {
        "customerReferenceNumber": customer,
        "paymentReference": reference,
        "responseDescription": description,
        "communityCode": community,
        "customNote": custom,
    }
    assert identify(form_with(**changes), QUICKSTREAM) == identify(xml_with(**changes), QUICKSTREAM)
    assert interpret(form_with(**changes), QUICKSTREAM) == interpret(xml_with(**changes), QUICKSTREAM)


@given(body=st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_any_bytes_are_quarantined(content_type: str, body: bytes) -> None:
    quarantine_of(Message(content_type, {}, body))


@given(
    name=st.sampled_from([*CORE, "customNote"]),
    value=st.text(max_size=30)
    | st.sampled_from(["0", "1", "2", "3", "true", "false", "1e3", "-1", "01 Jan 0001 00:00:00"]),
    repeated=st.booleans(),
)
def test_any_value_in_any_field_is_an_event_or_quarantined_at_both_steps(name: str, value: str, repeated: bool) -> None:
    message = form_with(**{name: value})
    if repeated:
        message = Message(FORM, {}, message_of("form").body + b"&" + urlencode({name: value}).encode())
    try:
        identity = identify(message, QUICKSTREAM)
    except Quarantined:
        quarantine_of(message)
        return
    event = interpret(message, QUICKSTREAM)
    assert identity.dedupe_key == event.payment_id
    assert identity.dedupe_key
    assert len(identity.dedupe_key) <= 100
    assert event.occurred_at is None or event.occurred_at.tzinfo is UTC
    # What the ledger's columns must be able to take.
    values = msgspec.to_builtins(event)
    for text in (*values.values(), *values.get("custom", {}).values()):
        assert "\0" not in str(text)
        str(text).encode()


@given(
    authorization=st.none()
    | st.text(st.characters(codec=None))
    | st.binary().map(lambda b: f"Basic {b64encode(b).decode()}")
)
def test_any_authorization_is_refused_and_never_an_error(authorization: str | None) -> None:
    assert refusal_of(authorization).status in (401, 403)


# ---- delivery and credentials


def test_trap_01_only_200_is_success() -> None:
    assert SENDERS["quickstream"].retry.successes == {200}
    assert PROVIDER.not_stored_status not in SENDERS["quickstream"].retry.successes


def test_trap_02_no_authorization_is_401_and_a_wrong_one_403() -> None:
    check_headers(Message(FORM, {"authorization": basic("acme:new:pässword")}, b""), QUICKSTREAM)
    missing = refusal_of(None)
    assert (missing.status, missing.reason) == (401, Reason.CREDENTIALS_MISSING)
    good = basic("acme:new:pässword").removeprefix("Basic ")
    for wrong in (
        basic("acme:wrong"),
        basic("other:new:pässword"),
        "Bearer x",
        f"Bearer {good}",
        # Five characters cut off whatever they are would make these right.
        f"12345 {good}",
        f"Basic{good}",
        good,
        "Basic",
        "Basic %%%",
        "Basic " + good[:-2],
        "",
    ):
        refused = refusal_of(wrong)
        assert (refused.status, refused.reason) == (403, Reason.CREDENTIALS_REFUSED), wrong


def test_trap_02_each_environment_has_its_own_address() -> None:
    assert PROVIDER.sources == {"test": ("203.39.159.31/32",), "production": ("192.170.86.153/32",)}


def test_trap_03_what_could_not_be_saved_is_answered_500() -> None:
    assert PROVIDER.not_stored_status == 500


@pytest.mark.parametrize("password", ["old:pässword", "new:pässword"])
def test_trap_04_a_password_may_hold_colons_and_non_ascii_letters(password: str) -> None:
    check_headers(Message(FORM, {"authorization": basic(f"acme:{password}")}, b""), QUICKSTREAM)
    assert refusal_of(basic(f"acme:{password.rpartition(':')[2]}")).status == 403
    # UTF-8 is what the vendor's samples decode.
    assert refusal_of(basic(f"acme:{password}", "latin-1")).status == 403


# ---- reading


def test_trap_05_a_repeated_name_keeps_all_values() -> None:
    assert event_of("custom_repeated").custom == {"customTag": ["blue", "green", "blue"]}
    assert event_of("repeated_same").amount == 14875


@pytest.mark.parametrize("name", CORE)
def test_trap_05_two_values_for_a_core_field_are_quarantined_before_they_are_accepted(name: str) -> None:
    body = message_of("form").body
    assert quarantine_of(Message(FORM, {}, body + f"&{name}=another".encode())) is Reason.CONTRADICTORY_FIELDS
    assert quarantine_of(Message(FORM, {}, f"{name}=&".encode() + body)) is Reason.CONTRADICTORY_FIELDS


@pytest.mark.parametrize("name", ["receiptNumber", "communityCode"])
def test_a_second_receipt_number_is_quarantined_even_when_it_says_the_same(name: str) -> None:
    body = message_of("form").body
    (value,) = re.findall(rf"{name}=(\w+)".encode(), body)
    for second in (value, b"", value + b"+", b"%37004100002"):
        repeated = b"&%b=%b" % (name.encode(), second)
        for twice in (body + repeated, repeated[1:] + b"&" + body):
            assert quarantine_of(Message(FORM, {}, twice)) is Reason.CONTRADICTORY_FIELDS
    element = f"<{name}>{value.decode()}</{name}>".encode()
    xml = message_of("xml").body
    assert element in xml
    assert quarantine_of(Message("text/xml", {}, xml.replace(element, element * 2))) is Reason.CONTRADICTORY_FIELDS


def test_trap_06_blank_values_count() -> None:
    event = event_of("blank_values")
    assert event.custom == {"customSeat": ""}
    assert event.reference is None
    assert event.customer_reference is None
    assert event.surcharge is None
    assert event.card_scheme is None
    assert event.occurred_at is None
    assert event.settlement_date is None
    # A date that was not given is no date that could not be read.
    assert event.flags == ()
    assert "customBlank" in event_of("custom_fields").custom


@pytest.mark.parametrize("name", ["receiptNumber", "supplierBusinessCode", "summaryCode", "paymentAmount"])
@pytest.mark.parametrize("value", ["", "  ", None])
def test_trap_06_a_blank_field_that_is_needed_is_missing(name: str, value: str | None) -> None:
    reason = Reason.UNKNOWN_DOCUMENT if name == "receiptNumber" else Reason.MISSING_FIELD
    assert quarantine_of(form_with(**{name: value})) is reason


def test_trap_07_xml_that_is_not_well_formed_is_quarantined_and_not_refused() -> None:
    message = message_of("xml_not_well_formed")
    check_headers(message, QUICKSTREAM)
    assert b"<COMMUNITY_CODE_HERE>" in message.body
    assert quarantine_of(message) is Reason.UNREADABLE_BODY


@pytest.mark.parametrize("variant", ["xml_unknown_root", "registration"])
def test_trap_08_what_is_no_payment_is_kept_for_review(variant: str) -> None:
    assert quarantine_of(message_of(variant)) is Reason.UNKNOWN_DOCUMENT


def test_trap_08_another_root_is_no_payment_even_with_all_its_fields() -> None:
    body = message_of("xml").body
    for root in (b"RefundResponse", b"paymentresponse", b"PaymentResponses"):
        message = Message(XML, {}, body.replace(b"PaymentResponse", root))
        assert quarantine_of(message) is Reason.UNKNOWN_DOCUMENT


@pytest.mark.parametrize("variant", ["xml_doctype", "xml_external_entity", "xml_billion_laughs"])
def test_trap_09_document_types_and_entities_are_never_expanded(variant: str) -> None:
    assert quarantine_of(message_of(variant)) is Reason.UNREADABLE_BODY


# ---- outcomes


def test_trap_10_arrival_alone_is_no_success() -> None:
    assert event_of("declined").effect is Effect.DECLINED
    for summary, effect in (("1", Effect.DECLINED), ("2", Effect.PENDING), ("3", Effect.FAILED)):
        for flag in ("false", "FALSE", "", None):
            assert event_with(summaryCode=summary, successFlag=flag).effect is effect
        # Any text but "false" contradicts, and the text "false" is not taken for a truth.
        for flag in ("true", "True", "0", "no"):
            message = form_with(summaryCode=summary, successFlag=flag)
            assert quarantine_of(message) is Reason.CONTRADICTORY_FIELDS


def test_trap_10_a_flag_that_disagrees_is_quarantined() -> None:
    assert event_with(successFlag="TRUE").effect is Effect.CAPTURED
    for flag in ("false", "1", "yes"):
        assert quarantine_of(form_with(successFlag=flag)) is Reason.CONTRADICTORY_FIELDS


def test_trap_11_summary_2_is_an_unknown_outcome_for_cards_and_bank_accounts() -> None:
    for variant in ("error_card", "processing_bank", "incomplete_qi"):
        assert event_of(variant).effect is Effect.PENDING
    # Flagged in the table, but a second charge could follow from it.
    assert event_of("incomplete_qi").response_code == "QI"
    assert not event_of("incomplete_qi").soft_decline


@pytest.mark.parametrize("code", ["05", "Q3", "QI"])
def test_trap_11_only_what_was_declined_can_be_a_soft_decline(code: str) -> None:
    soft = {"0": False, "1": code != "QI", "2": False, "3": code != "QI"}
    for summary, expected in soft.items():
        event = event_with(summaryCode=summary, responseCode=code, successFlag=None)
        assert event.soft_decline is expected


def test_trap_12_codes_are_text_and_card_01_is_not_bank_1() -> None:
    card, bank = event_of("card_declined_01"), event_of("bank_declined_1")
    assert (card.response_code, card.soft_decline) == ("01", True)
    assert (bank.response_code, bank.soft_decline) == ("1", False)
    returned = event_of("bank_returned")
    assert (returned.response_code, returned.soft_decline) == ("6", True)
    # Neither table speaks for the other.
    declined = {"summaryCode": "1", "successFlag": "false"}
    assert not event_with(**declined, responseCode="6").soft_decline
    assert not event_with(**declined, responseCode="01", cardScheme=None).soft_decline


@pytest.mark.parametrize("code", ["N", "No", "No Account", "Duplicate", "Success", "47", "88", "Q0", "ZZZ", ""])
def test_trap_12_any_code_is_taken_as_it_stands(code: str) -> None:
    event = event_with(responseCode=code, summaryCode="3", successFlag="false")
    assert event.response_code == (code or None)
    assert event.effect is Effect.FAILED


@pytest.mark.parametrize("summary", ["4", "00", "-1", "x", "٠", "true"])  # noqa: RUF001
def test_trap_12_a_summary_of_no_known_word_is_quarantined(summary: str) -> None:
    assert quarantine_of(form_with(summaryCode=summary, successFlag=None)) is Reason.CONTRADICTORY_FIELDS


def test_trap_13_a_partial_approval_says_so() -> None:
    event = event_of("partial_10")
    assert event.partial
    assert event.amount == 6000
    assert not event_of("form").partial
    # 10 is a code of the card table only.
    assert not event_with(responseCode="10", cardScheme=None).partial


def test_trap_14_code_08_is_approved_like_00() -> None:
    assert event_of("approved_08").effect is Effect.CAPTURED
    for code in ("00", "08", "11", "16", "QS", "QZ"):
        assert event_with(responseCode=code).effect is Effect.CAPTURED


@given(text=TEXTS)
def test_trap_15_the_description_decides_nothing(text: str) -> None:
    said = {"responseDescription": text}
    assert identify(form_with(**said), QUICKSTREAM) == identity_of("form")
    expected = msgspec.structs.replace(event_of("form"), response_description=text or None)
    assert interpret(form_with(**said), QUICKSTREAM) == expected


@pytest.mark.parametrize("source", ["Net", "NET", "QuickWeb", "RESTAPI", "Phone", ""])
def test_trap_16_the_channel_is_no_part_of_the_key(source: str) -> None:
    assert identify(form_with(sourceCode=source), QUICKSTREAM) == identity_of("form")


# ---- dates


def test_trap_17_month_names_parse_under_any_locale() -> None:
    names = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

    def months() -> list[int]:
        events = (event_with(createdDateTime=f"15 {name} 2025 12:00:00") for name in names)
        return [event.occurred_at.month for event in events if event.occurred_at is not None]

    assert months() == list(range(1, 13))
    # Machines without other locales, as most containers are, prove it by what the module does not call.
    calls = {
        node.attr for node in ast.walk(ast.parse(inspect.getsource(quickstream))) if isinstance(node, ast.Attribute)
    }
    assert not calls & {"strptime", "month_abbr", "month_name", "setlocale"}
    before = locale.setlocale(locale.LC_TIME)
    try:
        for other in ("de_DE.UTF-8", "fr_FR.UTF-8", "ja_JP.UTF-8", "tr_TR.UTF-8"):
            try:
                locale.setlocale(locale.LC_TIME, other)
            except locale.Error:
                continue
            assert months() == list(range(1, 13))
    finally:
        locale.setlocale(locale.LC_TIME, before)


@pytest.mark.parametrize(("text", "month"), [("June", 6), ("July", 7), ("Sept", 9)])
def test_trap_17_the_long_short_names_of_java_parse_too(text: str, month: int) -> None:
    event = event_with(createdDateTime=f"09 {text} 2025 10:11:12")
    assert event.occurred_at == datetime(2025, month, 9, 0, 11, 12, tzinfo=UTC)
    assert event.flags == ()


def test_trap_18_the_hour_that_occurs_twice_takes_its_first_reading() -> None:
    event = event_of("autumn_back")
    assert event.occurred_at == datetime(2017, 4, 1, 15, 30, tzinfo=UTC)
    assert event.flags == ("created_time_ambiguous",)
    assert event.effect is Effect.CAPTURED


def test_trap_18_the_hour_that_never_occurs_loses_nothing() -> None:
    event = event_of("spring_forward")
    assert event.occurred_at == datetime(2017, 9, 30, 16, 30, tzinfo=UTC)
    assert event.flags == ("created_time_ambiguous",)
    assert event.effect is Effect.CAPTURED


@pytest.mark.parametrize(
    "text", ["01 Oct 2017 01:59:59", "01 Oct 2017 03:00:00", "02 Apr 2017 01:59:59", "2 Apr 2017 03:00:00"]
)
def test_trap_18_the_hours_beside_them_are_clear(text: str) -> None:
    assert event_with(createdDateTime=text).flags == ()


def test_trap_18_dates_that_cannot_be_read_lose_no_payment() -> None:
    event = event_of("bad_dates")
    assert event.effect is Effect.CAPTURED
    assert event.occurred_at is None
    assert event.settlement_date is None
    assert event.flags == ("created_time_unreadable", "settlement_date_unreadable")
    assert event_of("first_year").flags == ("created_time_unreadable",)


@pytest.mark.parametrize(
    "text",
    [
        "30 Feb 2025 12:00:00",
        "06 Mar 0000 12:00:00",
        "06 Mar 2025 24:00:00",
        "06 Mar 2025 12:00:60",
        "06 Mar 2025 12:00",
        "06 Mär 2025 12:00:00",
        "06 mar 2025 12:00:00",
        "06 Junk 2025 12:00:00",
        "06-Mar-2025 12:00:00",
        "2025-03-06T12:00:00",
        "٠٦ Mar 2025 12:00:00",
        "06 Mar 2025 12:00:00 AEDT",
        # Cut, it must not become a right one.
        "06 Mar 2025 12:00:00" + "0" * 5_000,
    ],
)
def test_trap_18_other_shapes_of_times_are_flagged(text: str) -> None:
    event = event_with(createdDateTime=text)
    assert event.occurred_at is None
    assert event.flags == ("created_time_unreadable",)


@pytest.mark.parametrize(
    "text",
    ["20250231", "2025-03-06", "06 Mar 2025", "2025030", "202503061", "٢٠٢٥٠٣٠٦", "00000101", "20250306" + "1" * 5_000],
)
def test_trap_18_other_shapes_of_settlement_dates_are_flagged(text: str) -> None:
    event = event_with(settlementDate=text)
    assert event.settlement_date is None
    assert event.flags == ("settlement_date_unreadable",)


# ---- the browser return: what its page will rest on. The vectors stand in tests/receiver/test_signing.py.

RETURN = [
    ("receiptNumber", "7004100001"),
    ("responseCode", "00"),
    ("communityCode", "ACMECOMM"),
    ("url", "https://a/~b*c?d=:"),
]
RETURN_KEYS = secrets("token-password")


def test_trap_19_a_return_without_hmac_or_of_the_error_flow_proves_nothing() -> None:
    error = [("action", "Error"), ("communityCode", "ACMECOMM"), ("errorField", "cvn"), ("errorField", "bsb")]
    for pairs in (RETURN, [*RETURN, ("hmac", "")], error):
        with pytest.raises(Refused) as caught:
            require_return_hmac(pairs, RETURN_KEYS)
        assert caught.value.reason is Reason.SIGNATURE_MISSING
    # Sent as a notification they are no payment either.
    assert quarantine_of(Message(FORM, {}, urlencode(error).encode())) is Reason.UNKNOWN_DOCUMENT


def test_trap_20_percent_hex_is_upper_case() -> None:
    assert canonical_return([("a", "é:/")]) == "a=%C3%A9%3A%2F"
    digest = return_digest(RETURN, *RETURN_KEYS)
    assert digest == digest.lower()
    require_return_hmac([*RETURN, ("hmac", digest)], RETURN_KEYS)


def test_trap_21_star_tilde_and_half_a_surrogate_pair() -> None:
    assert canonical_return([("a", "*-_. ~")]) == "a=*-_.+%7E"
    with pytest.raises(Refused) as caught:
        require_return_hmac([("a", "\ud800"), ("hmac", "0" * 64)], RETURN_KEYS)
    assert caught.value.reason is Reason.SIGNATURE_REFUSED


def test_trap_22_the_sort_is_stable_and_no_variant_is_tried() -> None:
    pairs = [("customTag", "b"), ("Upper", "1"), ("customTag", "a")]
    assert canonical_return(pairs) == "Upper=1&customTag=b&customTag=a"
    given = ("hmac", return_digest(pairs, *RETURN_KEYS))
    require_return_hmac([given, *pairs], RETURN_KEYS)
    for other in ([pairs[2], pairs[1], pairs[0]], [*pairs, ("empty", "")]):
        with pytest.raises(Refused):
            require_return_hmac([*other, given], RETURN_KEYS)
    with pytest.raises(Refused):
        require_return_hmac([*pairs, (given[0], given[1].upper())], RETURN_KEYS)


# ---- the Cash Applied File: only what a notification shares with it; the tests of reconciliation prove the rest.


def test_trap_23_fields_that_are_added_stop_nothing() -> None:
    event = event_with(principalAmount="147.00", newField="x", customer="no custom field")
    assert event == event_of("form")


def test_trap_24_amounts_are_those_that_were_sent_and_refunds_do_not_arrive_here() -> None:
    assert (event_of("form").amount, event_of("form").surcharge) == (14875, 175)
    assert quarantine_of(message_of("negative_amount")) is Reason.CONTRADICTORY_FIELDS
    assert quarantine_of(form_with(surchargeAmount="-1.20")) is Reason.CONTRADICTORY_FIELDS


@pytest.mark.parametrize(
    "scheme", ["VISA", "MASTERCARD", "AMEX", "DINERS", "UNIONPAY", "JCB", "JBC", "UNKNOWN", "VI", "New Scheme"]
)
def test_trap_25_the_words_for_card_schemes_are_kept_as_text(scheme: str) -> None:
    assert event_with(cardScheme=scheme).card_scheme == scheme


def test_trap_26_masked_card_numbers_are_no_core_field() -> None:
    for mask in ("45647xxxxxxx004", "456471xxxxxxx004"):
        assert event_with(maskedCardNumber=mask) == event_of("form")


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_trap_27_an_empty_body_is_no_payment(content_type: str) -> None:
    quarantine_of(Message(content_type, {}, b""))


# ---- what others got wrong


def test_trap_28_a_proof_is_not_optional_and_a_business_code_is_no_password() -> None:
    with pytest.raises(Refused):
        require_return_hmac(RETURN, RETURN_KEYS)
    for public in ("acme:ACME", "ACME:ACME", "acme:ACMECOMM", "acme:"):
        assert refusal_of(basic(public)).status == 403
    # A field of that name is not what decides.
    assert event_with(summaryCode="1", successFlag="false", fl_success="1").effect is Effect.DECLINED


def test_trap_29_names_of_older_products_are_not_mixed_in() -> None:
    legacy = {
        "cd_community": "ACMECOMM",
        "cd_supplier_business": "ACME",
        "no_receipt": "7004100001",
        "cd_summary": "0",
        "cd_response": "00",
        "fl_success": "1",
        "payment_reference": "INV-58213",
        "tx_response": "Approved",
    }
    assert quarantine_of(Message(FORM, {}, urlencode(legacy).encode())) is Reason.UNKNOWN_DOCUMENT
    assert event_with(**legacy) == event_of("form")


# ---- keys, businesses, money


def test_the_key_is_community_and_receipt() -> None:
    assert identity_of("form").dedupe_key == "ACMECOMM:7004100001"
    assert identify(form_with(communityCode="OTHER"), QUICKSTREAM).dedupe_key == "OTHER:7004100001"
    assert identify(form_with(communityCode=None), QUICKSTREAM).dedupe_key == "7004100001"


def test_a_later_decline_of_a_bank_payment_has_the_same_key_and_says_something_else() -> None:
    accepted, returned = identity_of("bank"), identity_of("bank_returned")
    assert accepted.dedupe_key == returned.dedupe_key
    assert accepted.fingerprint != returned.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "summaryCode",
        "responseCode",
        "paymentAmount",
        "surchargeAmount",
        "supplierBusinessCode",
        "customerReferenceNumber",
        "paymentReference",
    ],
)
def test_what_a_repeat_may_not_change(name: str) -> None:
    changes: dict[str, str | None] = {name: "1"}
    endpoint = msgspec.structs.replace(QUICKSTREAM, supplier_business_codes=("ACME", "1"))
    if name == "summaryCode":
        changes["successFlag"] = None
    other = identify(form_with(**changes), endpoint)
    assert other.dedupe_key == identity_of("form").dedupe_key
    assert other.fingerprint != identity_of("form").fingerprint


def test_custom_parameters_have_a_capital_letter() -> None:
    assert event_of("custom_fields").custom == {
        "customTitle": "Dr",
        "customNote": "Zoë & Co: 100% “paid”",
        "customBlank": "",
    }
    assert event_of("custom_fields_xml").custom == {"customTitle": "Dr", "customNote": "Zoë & Co"}


def test_xml_in_another_charset() -> None:
    assert event_of("xml_declared_latin1").customer_reference == "José Núñez"
    assert event_of("xml_comment_and_cdata").amount == 14875


def test_the_currency_is_the_endpoints() -> None:
    assert event_of("nzd").currency == "AUD"
    new_zealand = msgspec.structs.replace(QUICKSTREAM, currency="NZD")
    event = interpret(message_of("nzd"), new_zealand)
    assert (event.currency, event.amount, event.exponent) == ("NZD", 31000, PROVIDER.exponent("NZD"))


def test_a_zero_amount_is_an_amount() -> None:
    event = event_of("zero_value_qz")
    assert (event.amount, event.surcharge) == (0, 0)


@pytest.mark.parametrize("amount", ["1,015.00", "1e2", "624.001", "$5", "five", "9" * 16])
@pytest.mark.parametrize("name", ["paymentAmount", "surchargeAmount"])
def test_amounts_that_are_none_are_quarantined(name: str, amount: str) -> None:
    assert quarantine_of(form_with(**{name: amount})) is Reason.UNREADABLE_BODY


@pytest.mark.parametrize("name", ["receiptNumber", "communityCode"])
def test_a_key_longer_than_an_index_takes_is_quarantined(name: str) -> None:
    assert quarantine_of(form_with(**{name: "7" * 101})) is Reason.UNREADABLE_BODY


# ---- Octane: its facilities are facilities of QuickStream

OCTANE = QuickStreamEndpoint(
    facility="octane",
    username="octane",
    passwords=secrets("octane-password"),
    supplier_business_codes=("OCTANE",),
)


def test_octane_trap_04_the_form_of_the_browser_pays_nothing() -> None:
    assert refusal_of(None, OCTANE).status == 401
    assert quarantine_of(message_of("octane_token_form")) is Reason.UNKNOWN_DOCUMENT


def test_octane_trap_10_there_is_no_endpoint_of_that_name() -> None:
    assert "octane" not in PROVIDERS
    assert "octane" not in SENDERS


def test_octane_and_another_facility_stand_side_by_side() -> None:
    own, others = form_with(supplierBusinessCode="OCTANE"), form_with()
    assert OCTANE.path == "quickstream/octane"
    assert interpret(own, OCTANE).effect is Effect.CAPTURED
    assert interpret(others, QUICKSTREAM).effect is Effect.CAPTURED
    assert quarantine_of(own, QUICKSTREAM) is Reason.OTHER_BUSINESS
    assert quarantine_of(others, OCTANE) is Reason.OTHER_BUSINESS
    # Neither has the other's credentials.
    assert refusal_of(basic("acme:new:pässword"), OCTANE).status == 403
    assert refusal_of(basic("octane:octane-password")).status == 403


def test_octane_keys_are_those_of_its_endpoint() -> None:
    # One receipt at both: the ledger's key has the facility in it, so that they are two payments.
    ours = identify(form_with(), QUICKSTREAM).dedupe_key
    theirs = identify(form_with(supplierBusinessCode="OCTANE"), OCTANE).dedupe_key
    assert ours == theirs
    assert (QUICKSTREAM.provider, QUICKSTREAM.facility, ours) != (OCTANE.provider, OCTANE.facility, theirs)


# ---- the vendor's samples and tables

SAMPLE_ENDPOINT = msgspec.structs.replace(QUICKSTREAM, supplier_business_codes=("SUPP",))


def sample(name: str, content_type: str) -> Message:
    return Message(content_type, {}, (SAMPLES / "quickstream" / name).read_bytes().rstrip(b"\n"))


@needs_samples
def test_samples_are_one_payment_in_both_formats() -> None:
    as_form, as_xml = sample("s2s_payment_form.CONSTRUCTED.txt", FORM), sample("s2s_payment_wellformed.xml", XML)
    assert identify(as_form, SAMPLE_ENDPOINT) == identify(as_xml, SAMPLE_ENDPOINT)
    event = interpret(as_xml, SAMPLE_ENDPOINT)
    assert (event.payment_id, event.amount, event.surcharge) == ("COMCODE:1003548481", 62400, 2400)
    assert event.occurred_at == datetime(2017, 1, 9, 14, 11, 31, tzinfo=UTC)
    assert event.settlement_date == date(2017, 1, 10)
    assert interpret(as_form, SAMPLE_ENDPOINT) == msgspec.structs.replace(event, custom={"customTitle": "Ms"})


@needs_samples
def test_samples_that_are_no_payment_are_quarantined() -> None:
    assert quarantine_of(sample("s2s_payment_doc_literal.NOT-WELL-FORMED.txt", XML)) is Reason.UNREADABLE_BODY
    for content_type in CONTENT_TYPES:
        quarantine_of(sample("payto_webhook_envelope.json", content_type))


@needs_samples
@pytest.mark.parametrize(("table", "scheme"), [("card", "VISA"), ("bank", None)])
def test_samples_of_the_code_tables_agree(table: str, scheme: str | None) -> None:
    with (SAMPLES / "quickstream" / f"response_codes_{table}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == {"card": 137, "bank": 19}[table]
    for row in rows:
        first, _, last = row["code"].partition("-")
        codes = [f"{number:02}" for number in range(int(first), int(last) + 1)] if last else [first]
        for code in codes:
            summary = row["summary_code"]
            event = event_with(responseCode=code, cardScheme=scheme, summaryCode=summary, successFlag=None)
            assert event.effect is quickstream.EFFECTS[summary]
            assert event.response_code == code
            # QI: see trap 11.
            assert event.soft_decline is (row["soft_decline"] == "Yes" and summary != "2"), code
