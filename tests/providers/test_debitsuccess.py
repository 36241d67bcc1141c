"""Debitsuccess: two products at one URL, each proven and read by its own rule. Numbers are the traps of its page."""

from __future__ import annotations

import hmac
import json
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.errors import STATUS_OF, Quarantined, Reason, Refused
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Message
from receiver.providers.debitsuccess import CASUAL, EFFECTS, EVENTS, PROVIDER, DebitsuccessEndpoint
from receiver.signing import digest
from tests.support import DEBITSUCCESS, EXPECTED_CASUAL, SAMPLES, all_recorded, recorded
from workers.simulator.debitsuccess import SENDER

ADDED = "Customer.Schedule.Suspension.Added"
CAPTURED = {"WebhookToken": "HookTok1", "PaymentFormToken": "FormTok1", "Status": "Success", "Message": ""}
SAMPLE_FILES = SAMPLES / "debitsuccess"
needs_samples = pytest.mark.skipif(not SAMPLE_FILES.is_dir(), reason="the sample files are not beside this repository")


def message(body: bytes | dict[str, Any], **headers: str) -> Message:
    """A request as the accept side hands it on; ``x_token="..."`` is the header ``x-token``."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Message("application/json", {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def event(body: bytes | dict[str, Any] = b'{"ScheduleId": "1"}', **headers: str) -> Message:
    return message(body, **{"x_eventname": ADDED, "x_token": "event-new-token", **headers})


def kept(sent: Message) -> Message:
    """The message as a worker sees it, without the headers that proved it."""
    headers = {name: value for name, value in sent.headers.items() if name in PROVIDER.kept_headers}
    return Message(sent.content_type, headers, sent.body)


def refusal(sent: Message, endpoint: DebitsuccessEndpoint = DEBITSUCCESS, known: bool = True) -> Reason | None:
    """Why the accept side refuses `sent`, in the order in which it asks; None when it is proven."""
    try:
        PROVIDER.check_headers(sent, endpoint)
        token = PROVIDER.token_of(sent)
        expected = EXPECTED_CASUAL if known and token == EXPECTED_CASUAL.token else None
        PROVIDER.authenticate(sent, endpoint, expected)
    except Refused as refused:
        return refused.reason
    return None


def quarantine(sent: Message) -> Reason:
    """The reason for which `sent` is quarantined, on arrival and by the worker alike."""
    with pytest.raises(Quarantined) as on_arrival:
        PROVIDER.identify(sent, DEBITSUCCESS)
    with pytest.raises(Quarantined) as by_worker:
        PROVIDER.interpret(kept(sent), DEBITSUCCESS)
    assert by_worker.value.reason is on_arrival.value.reason
    return by_worker.value.reason


def interpreted(sent: Message) -> PaymentEvent:
    return PROVIDER.interpret(kept(sent), DEBITSUCCESS)


# Fixtures


@pytest.mark.parametrize("name", [request.name for request in all_recorded("debitsuccess")])
def test_every_fixture_is_proven_and_is_what_its_name_says(name: str) -> None:
    sent = recorded("debitsuccess", name).message()
    assert refusal(sent) is None
    assert PROVIDER.identify(sent, DEBITSUCCESS).event_type == name.partition("__")[0]
    assert PROVIDER.identify(kept(sent), DEBITSUCCESS) == PROVIDER.identify(sent, DEBITSUCCESS)
    assert interpreted(sent).event_type == name.partition("__")[0]


def test_declared_types_and_fixtures_are_the_same() -> None:
    assert {request.name.partition("__")[0] for request in all_recorded("debitsuccess")} == PROVIDER.event_types
    assert frozenset({CASUAL, *EVENTS.values()}) == PROVIDER.event_types


def test_every_status_word_has_a_fixture() -> None:
    casual = [interpreted(request.message()) for request in all_recorded("debitsuccess") if CASUAL in request.name]
    assert {str(event.custom["status"]).lower() for event in casual} == set(EFFECTS)


# Reading


def test_a_paid_casual_payment() -> None:
    sent = recorded("debitsuccess", "casual_payment").message()
    identity = PROVIDER.identify(sent, DEBITSUCCESS)
    assert identity.dedupe_key == "casual:5db889a2f58069664214b3821881033f77757a0d093ad1c1ea0ae863e505a160"
    assert identity.fingerprint == digest(b"success", b"00")
    assert interpreted(sent) == PaymentEvent(
        event_type="casual_payment",
        effect=Effect.CAPTURED,
        payment_id="FormTok1",
        token="FormTok1",
        response_code="00",
        custom={"status": "Success"},
        flags=("confirm_by_inquiry",),
    )


def test_a_declined_casual_payment() -> None:
    assert interpreted(recorded("debitsuccess", "casual_payment__declined").message()) == PaymentEvent(
        event_type="casual_payment",
        effect=Effect.DECLINED,
        payment_id="FormTok1",
        token="FormTok1",
        response_code="05",
        response_description="DO NOT HONOUR",
        custom={"status": "Declined"},
    )


def test_an_event_changes_no_payment() -> None:
    sent = recorded("debitsuccess", ADDED).message()
    identity = PROVIDER.identify(sent, DEBITSUCCESS)
    assert identity.dedupe_key == "event:7d1f0a52-0001"
    assert identity.fingerprint == digest(ADDED.encode(), sent.body)
    assert interpreted(sent) == PaymentEvent(
        event_type=ADDED,
        custom={
            "FacilityNo": "GYM7",
            "ScheduleId": "700123",
            "AccountId": "GYM7000456",
            "SuspensionFee": "2.50",
            "StartDate": "2026-03-01",
            "EndDate": "2026-04-01",
            "Frequency": "Fortnightly",
            "ScheduleDescription": "Gold membership",
        },
    )


@pytest.mark.parametrize(
    ("word", "effect"),
    [
        ("Success", Effect.CAPTURED),
        ("Declined", Effect.DECLINED),
        ("Error", Effect.FAILED),
        ("Failure", Effect.FAILED),
        ("ContractPrefixInvalid", Effect.FAILED),
        ("TokenExpired", Effect.EXPIRED),
        ("Cleared", Effect.CAPTURED),
        ("Settled", Effect.CAPTURED),
        ("authorized", Effect.AUTHORISED),
        ("authorised", Effect.AUTHORISED),
        ("Pending", Effect.PENDING),
        ("processing", Effect.PENDING),
        ("StatusRequired", Effect.PENDING),
        ("Requires3ds", Effect.PENDING),
        ("declined_insufficient_funds", Effect.DECLINED),
        ("declined_card_expired", Effect.DECLINED),
        ("declined_do_not_honour", Effect.DECLINED),
        ("declined_refer_to_card_issuer", Effect.DECLINED),
        ("Failed", Effect.FAILED),
        ("not_submitted", Effect.FAILED),
    ],
)
def test_status_words_count_in_any_letter_case(word: str, effect: Effect) -> None:
    for spelling in (word, word.upper(), word.lower(), f" {word} "):
        assert interpreted(message({**CAPTURED, "Status": spelling})).effect is effect


def test_an_unknown_status_word_is_kept_for_a_person() -> None:
    found = interpreted(message({**CAPTURED, "Status": "Partly" * 100}))
    assert found.effect is Effect.NONE
    assert found.flags == ("unknown_status",)
    assert found.custom == {"status": ("Partly" * 100)[:100]}


def test_numbers_read_as_text() -> None:
    found = interpreted(recorded("debitsuccess", "casual_payment__numbers").message())
    assert (found.response_code, found.response_description) == ("5", None)
    sent = message({"WebhookToken": 12345678, "PaymentFormToken": 87654321, "Status": "Success", "ResponseCode": 0})
    assert PROVIDER.token_of(sent) == "87654321"
    PROVIDER.authenticate(sent, DEBITSUCCESS, msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="12345678"))
    assert interpreted(sent).response_code == "0"


@pytest.mark.parametrize("odd", [None, [], ["Success"], {}, {"a": 1}, "", "  "])
def test_a_status_that_is_no_text_is_quarantined(odd: object) -> None:
    assert quarantine(message({**CAPTURED, "Status": odd})) is Reason.MISSING_FIELD


@pytest.mark.parametrize("odd", [None, [], ["x"], {}, {"a": 1}, "", "  "])
def test_message_and_code_that_are_no_text_are_left_out(odd: object) -> None:
    found = interpreted(message({**CAPTURED, "Message": odd, "ResponseCode": odd}))
    assert (found.response_description, found.response_code) == (None, None)


def test_latin_1_letters_do_not_lose_a_payment_that_is_posted_once() -> None:
    found = interpreted(recorded("debitsuccess", "casual_payment__latin1").message())
    assert (found.effect, found.response_description) == (Effect.DECLINED, "REFUSÉ")


def test_the_fields_of_an_event_are_kept_within_limits() -> None:
    body = {"L" * 200: "v" * 2000, "nested": {"a": 1}, "none": None, "fee": 2.50, "yes": True, "WebhookToken": "secret"}
    body |= {f"n{number}": number for number in range(100)}
    custom = interpreted(event(body)).custom
    assert custom["L" * 100] == "v" * 500
    assert custom["fee"] == "2.5"
    assert type(custom["fee"]) is str  # msgspec encodes no subclass of str
    assert custom["yes"] == "true"
    assert "nested" not in custom
    assert "none" not in custom
    assert "WebhookToken" not in custom
    assert len(custom) == 48


def test_an_event_of_the_same_name_and_body_has_the_same_key_without_a_trace() -> None:
    first = PROVIDER.identify(event(b'{"a": 1}'), DEBITSUCCESS).dedupe_key
    assert first == "event:" + digest(ADDED.encode(), b'{"a": 1}')
    assert first == PROVIDER.identify(event(b'{"a": 1}', x_eventname=ADDED.upper()), DEBITSUCCESS).dedupe_key
    assert first == PROVIDER.identify(event(b'{"a": 1}', x_traceid=" "), DEBITSUCCESS).dedupe_key
    assert first == PROVIDER.identify(event(b'{"a": 1}', x_traceid="t" * 101), DEBITSUCCESS).dedupe_key
    assert first != PROVIDER.identify(event(b'{"a": 2}'), DEBITSUCCESS).dedupe_key
    assert first != PROVIDER.identify(event(b'{"a": 1}', x_eventname="Other"), DEBITSUCCESS).dedupe_key


def test_the_same_trace_with_other_content_is_a_conflict() -> None:
    first = PROVIDER.identify(event(b'{"a": 1}', x_traceid="t-1"), DEBITSUCCESS)
    second = PROVIDER.identify(event(b'{"a": 2}', x_traceid="t-1"), DEBITSUCCESS)
    assert first.dedupe_key == second.dedupe_key == "event:t-1"
    assert first.fingerprint != second.fingerprint


def test_the_same_token_with_another_status_is_a_conflict() -> None:
    paid, declined = (
        PROVIDER.identify(recorded("debitsuccess", name).message(), DEBITSUCCESS)
        for name in ("casual_payment", "casual_payment__declined")
    )
    assert paid.dedupe_key == declined.dedupe_key
    assert paid.fingerprint != declined.fingerprint


def test_a_repeat_in_other_letters_says_the_same() -> None:
    paid, camel = (
        PROVIDER.identify(recorded("debitsuccess", name).message(), DEBITSUCCESS)
        for name in ("casual_payment", "casual_payment__camel_case")
    )
    assert paid == camel


# Which product it is


@pytest.mark.parametrize("token", ["event-old-token", "event-new-token"])
def test_events_are_proven_by_the_old_and_the_new_token(token: str) -> None:
    assert refusal(event(x_token=token)) is None


def test_events_need_their_token() -> None:
    assert refusal(message({"ScheduleId": "1"}, x_eventname=ADDED)) is Reason.TOKEN_MISSING
    assert refusal(message(CAPTURED, x_eventname=ADDED)) is Reason.TOKEN_MISSING
    assert {STATUS_OF[reason] for reason in (Reason.TOKEN_MISSING, Reason.TOKEN_REFUSED)} == {403}
    for wrong in ("", " ", "event", "event-new-token ", "EVENT-NEW-TOKEN", "event-new-token\xe9", "\u2028"):
        assert refusal(event(x_token=wrong)) is Reason.TOKEN_REFUSED


def test_without_an_event_token_every_event_is_refused_and_casual_payments_are_not() -> None:
    endpoint = DebitsuccessEndpoint(facility="gym")
    assert refusal(event(), endpoint) is Reason.TOKEN_REFUSED
    assert refusal(event(x_token=""), endpoint) is Reason.TOKEN_REFUSED
    assert refusal(message(CAPTURED), endpoint) is None


def test_neither_proof_stands_for_the_other() -> None:
    # Right tokens in the body, wrong header; and the other way round.
    assert refusal(message(CAPTURED, x_token="wrong")) is Reason.TOKEN_REFUSED
    assert refusal(message(CAPTURED, x_eventname=ADDED, x_token="wrong")) is Reason.TOKEN_REFUSED
    assert refusal(message({**CAPTURED, "WebhookToken": "event-new-token"})) is Reason.TOKEN_REFUSED
    # A proven event with the body of a payment stays an event.
    assert interpreted(event(CAPTURED)).effect is Effect.NONE
    assert interpreted(event(CAPTURED)).payment_id is None


def test_an_event_without_a_name_is_still_an_event_when_its_token_is_gone() -> None:
    sent = message({"ScheduleId": "1"}, x_token="event-new-token")
    assert refusal(sent) is None
    assert PROVIDER.identify(sent, DEBITSUCCESS) == PROVIDER.identify(kept(sent), DEBITSUCCESS)
    assert interpreted(sent) == PaymentEvent(event_type="unnamed_event", custom={"ScheduleId": "1"})


@pytest.mark.parametrize("headers", [{}, {"x_eventname": ""}])
def test_an_event_token_never_makes_a_casual_payment(headers: dict[str, str]) -> None:
    # On replay the header would be gone, and this would be a payment that nobody has proven.
    for body in (CAPTURED, {**CAPTURED, "WebhookToken": "anything"}):
        assert refusal(message(body, x_token="event-new-token", **headers)) is Reason.TOKEN_REFUSED


# The numbered traps


def test_trap_01_posted_once_so_that_nothing_but_storing_comes_first() -> None:
    # That it is stored, in Redis or else in the spool, before the answer: tests/contract and tests/live.
    assert PROVIDER.not_stored_status == 503
    assert SENDER.retry.delays == ()
    assert SENDER.retry.successes == {200}


def test_trap_02_names_count_in_any_letter_case() -> None:
    for change in (str.lower, str.upper, str.title, lambda name: name[0].lower() + name[1:]):
        sent = message({change(name): value for name, value in CAPTURED.items()})
        assert refusal(sent) is None
        assert interpreted(sent).effect is Effect.CAPTURED


@pytest.mark.parametrize(
    "extra",
    [
        {"webhookToken": "other"},
        {"webhookToken": "HookTok1"},
        {"webhookToken": None},
        {"paymentFormToken": "FormTok2"},
        {"status": "Declined"},
        {"STATUS": "Success"},
        {"message": "something"},
    ],
)
def test_trap_02_names_that_differ_in_letter_case_only_are_quarantined(extra: dict[str, Any]) -> None:
    for body in (CAPTURED | extra, extra | CAPTURED):
        sent = message(body)
        if PROVIDER.token_of(sent) == "FormTok1":
            assert refusal(sent) is None
        assert quarantine(sent) is Reason.CONTRADICTORY_FIELDS


def test_trap_02_a_name_that_repeats_must_say_the_same() -> None:
    tail = json.dumps(CAPTURED)[1:].encode()
    assert refusal(message(b'{"WebhookToken": "other", ' + tail)) is None
    assert quarantine(message(b'{"WebhookToken": "other", ' + tail)) is Reason.CONTRADICTORY_FIELDS
    assert interpreted(message(b'{"Status": "Success", ' + tail)).effect is Effect.CAPTURED


@pytest.mark.parametrize("length", [8, 16])
def test_trap_03_tokens_of_both_lengths_pass(length: int) -> None:
    token, webhook_token = "FormTok1FormTok1"[:length], "HookTok1HookTok1"[:length]
    expected = msgspec.structs.replace(EXPECTED_CASUAL, token=token, webhook_token=webhook_token)
    sent = message({**CAPTURED, "PaymentFormToken": token, "WebhookToken": webhook_token})
    assert PROVIDER.token_of(sent) == token
    PROVIDER.authenticate(sent, DEBITSUCCESS, expected)
    assert interpreted(sent).payment_id == token


def test_trap_03_what_cannot_be_a_token_is_never_looked_up() -> None:
    assert PROVIDER.token_of(message({**CAPTURED, "PaymentFormToken": "t" * 100})) == "t" * 100
    assert refusal(message({**CAPTURED, "PaymentFormToken": "t" * 101})) is Reason.TOKEN_MISSING


def test_trap_04_what_a_redirect_carries_proves_nothing() -> None:
    # That the redirect itself changes nothing in the store: tests/contract and tests/live, GET /return/debitsuccess.
    redirect = {"Status": "Success", "Token": "FormTok1", "Message": ""}
    assert refusal(message(redirect)) is Reason.TOKEN_MISSING
    assert refusal(message({**redirect, "PaymentFormToken": "FormTok1"})) is Reason.TOKEN_MISSING
    assert refusal(message(b"Status=Success&Token=FormTok1&Message=")) is Reason.TOKEN_MISSING


def test_trap_05_success_has_two_meanings() -> None:
    # That the ledger shows such a payment for a decision: tests/workers.
    for word in ("Success", "Cleared", "Settled"):
        found = interpreted(message({**CAPTURED, "Status": word}))
        assert (found.effect, found.flags) == (Effect.CAPTURED, ("confirm_by_inquiry",))
        assert (found.amount, found.currency) == (None, None)
    # After Error the API has to be asked as well; the other words are final or move no money.
    assert interpreted(message({**CAPTURED, "Status": "Error"})).flags == ("confirm_by_inquiry",)
    for word in ("Declined", "Failure", "TokenExpired", "Pending", "authorised"):
        assert interpreted(message({**CAPTURED, "Status": word})).flags == ()


@pytest.mark.parametrize("wrong", ["HookTok2", "hooktok1", "HookTok", "HookTok11", "FormTok1", "Höok", "0", 0, True])
def test_trap_06_a_known_form_token_with_a_wrong_webhook_token_is_refused(wrong: object) -> None:
    assert refusal(message({**CAPTURED, "WebhookToken": wrong})) is Reason.TOKEN_REFUSED


@pytest.mark.parametrize("name", ["WebhookToken", "PaymentFormToken"])
@pytest.mark.parametrize("value", [None, "", "  ", [], ["HookTok1"], {"a": "HookTok1"}])
def test_trap_06_without_tokens_nothing_can_ever_be_proven(name: str, value: object) -> None:
    assert refusal(message({**CAPTURED, name: value})) is Reason.TOKEN_MISSING
    assert refusal(message({key: text for key, text in CAPTURED.items() if key != name})) is Reason.TOKEN_MISSING


@pytest.mark.parametrize("webhook_token", [None, ""])
def test_trap_06_an_expectation_without_a_webhook_token_proves_nothing(webhook_token: str | None) -> None:
    expected = msgspec.structs.replace(EXPECTED_CASUAL, webhook_token=webhook_token)
    with pytest.raises(Refused) as caught:
        PROVIDER.authenticate(message(CAPTURED), DEBITSUCCESS, expected)
    assert caught.value.reason is Reason.TOKEN_REFUSED


def test_trap_07_an_unknown_token_can_be_held_and_proven_later() -> None:
    # That it is held within limits, answered 200 and released: tests/contract, tests/workers, tests/live.
    sent = message(CAPTURED)
    assert PROVIDER.token_of(sent) == "FormTok1"
    assert refusal(sent, known=False) is Reason.TOKEN_REFUSED
    assert refusal(kept(sent)) is None


@pytest.mark.parametrize("body", [b"not json", b"[]", b"null", b"\xff\xfe", b'{"a": ', b'{"a": "\\u0000"}'])
def test_trap_08_a_proven_event_with_an_unreadable_body_is_kept(body: bytes) -> None:
    # That the answer is 200 and nothing else: tests/contract.
    for headers in ({"x_eventname": ADDED}, {}):
        sent = message(body, x_token="event-new-token", **headers)
        assert refusal(sent) is None
        assert quarantine(sent) is Reason.UNREADABLE_BODY


@pytest.mark.parametrize("name", [ADDED, ADDED.lower(), ADDED.upper(), "customer.Schedule.Suspension.Added"])
def test_trap_09_event_names_count_in_any_letter_case(name: str) -> None:
    assert PROVIDER.identify(event(x_eventname=name), DEBITSUCCESS).event_type == ADDED
    assert interpreted(event(x_eventname=name)).event_type == ADDED


def test_trap_09_unknown_events_are_kept_under_their_own_name() -> None:
    sent = event(x_eventname="Customer.Contact.Changed")
    assert refusal(sent) is None
    assert PROVIDER.identify(sent, DEBITSUCCESS).event_type == "Customer.Contact.Changed"
    assert interpreted(sent) == PaymentEvent(event_type="Customer.Contact.Changed", custom={"ScheduleId": "1"})
    assert interpreted(event(x_eventname="N" * 300)).event_type == "N" * 100


def test_trap_10_tokens_are_compared_in_constant_time_over_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert refusal(event()) is Reason.TOKEN_REFUSED
    assert refusal(message({"webhooktoken": "first", **CAPTURED})) is Reason.TOKEN_REFUSED
    assert compared == [
        (b"event-new-token", b"event-old-token"),
        (b"event-new-token", b"event-new-token"),
        (b"first", b"HookTok1"),
        (b"HookTok1", b"HookTok1"),
    ]


def test_trap_10_no_token_is_kept_or_shown() -> None:
    # That logs and pages show none: tests/contract and tests/live.
    assert "x-token" in PROVIDER.proof_headers
    assert "x-token" not in PROVIDER.kept_headers
    assert "webhooktoken" in PROVIDER.secret_fields
    sent = message(CAPTURED)
    assert "HookTok1" not in repr((PROVIDER.identify(sent, DEBITSUCCESS), interpreted(sent)))
    with pytest.raises(Refused) as wrong:
        PROVIDER.authenticate(message({**CAPTURED, "WebhookToken": "Guess1"}), DEBITSUCCESS, EXPECTED_CASUAL)
    with pytest.raises(Refused) as junk:
        PROVIDER.check_headers(event(x_token="Guess2"), DEBITSUCCESS)
    assert not {"HookTok1", "Guess1", "Guess2", "event-new-token"} & set(f"{wrong.value} {junk.value}".split())


def test_trap_11_two_spellings_are_one_status_and_processing_is_pending() -> None:
    spellings = {interpreted(message({**CAPTURED, "Status": word})).effect for word in ("authorized", "authorised")}
    assert spellings == {Effect.AUTHORISED}
    found = interpreted(message({**CAPTURED, "Status": "Processing", "externalIdentifier": "GYM7-1"}))
    assert found.effect is Effect.PENDING


@pytest.mark.parametrize("code", ["02", "00", "13060"])
def test_trap_12_codes_are_text(code: str) -> None:
    # Rate-limit headers are of the vendor's API, which only people call.
    assert interpreted(message({**CAPTURED, "ResponseCode": code})).response_code == code


@pytest.mark.parametrize("word", ["Pending", "Processing", "StatusRequired"])
def test_trap_13_what_is_not_decided_is_neither_failed_nor_declined(word: str) -> None:
    # A merchant would charge again after a failure. Polling is done by people: Postback only receives.
    found = interpreted(message({**CAPTURED, "Status": word}))
    assert (found.effect, found.soft_decline) == (Effect.PENDING, False)


# The simulated sender


def test_the_simulated_sender_registers_and_proves_its_payments() -> None:
    random = Random(1)
    tokens: set[str] = set()
    effects: set[Effect] = set()
    events = 0
    for serial in range(300):
        casual, *behind = SENDER.payment(DEBITSUCCESS, random, serial, None)
        assert casual.path == "/notify/debitsuccess/gym"
        assert casual.expect is not None
        assert set(casual.expect) == {"token", "webhook_token", "reference", "amount", "currency"}
        token, webhook_token = casual.expect["token"], casual.expect["webhook_token"]
        sent = message(casual.body)
        assert PROVIDER.token_of(sent) == token
        expected = msgspec.structs.replace(EXPECTED_CASUAL, token=token, webhook_token=webhook_token)
        PROVIDER.authenticate(sent, DEBITSUCCESS, expected)
        assert len(token) == len(webhook_token) == 16
        tokens |= {token, webhook_token}
        effects.add(interpreted(sent).effect)
        for outgoing in behind:
            headers = {name.lower().replace("-", "_"): value for name, value in outgoing.headers.items()}
            del headers["content_type"]
            assert refusal(message(outgoing.body, **headers)) is None
            assert interpreted(message(outgoing.body, **headers)).event_type in PROVIDER.event_types
            assert outgoing.expect is None
            events += 1
    assert len(tokens) == 600
    assert effects == {Effect.CAPTURED, Effect.DECLINED, Effect.EXPIRED}
    assert events > 10
    without = DebitsuccessEndpoint(facility="gym")
    assert all(len(SENDER.payment(without, random, serial, None)) == 1 for serial in range(100))


# Anything at all

headers_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        "x-token": st.sampled_from(["event-new-token", ""]) | st.text(st.characters(max_codepoint=255), max_size=20),
        "x-eventname": st.sampled_from([ADDED, ""]) | st.text(st.characters(max_codepoint=255), max_size=120),
        "x-traceid": st.text(st.characters(max_codepoint=255), max_size=120),
    },
)
names = st.sampled_from(
    ["WebhookToken", "webhooktoken", "PaymentFormToken", "paymentFormToken", "Status", "status", "Message"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["FormTok1", "HookTok1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def walk(sent: Message) -> None:
    """The whole way of a message; only `Refused`, then only `Quarantined` may leave it."""
    try:
        PROVIDER.check_headers(sent, DEBITSUCCESS)
        token = PROVIDER.token_of(sent)
        PROVIDER.authenticate(sent, DEBITSUCCESS, EXPECTED_CASUAL if token else None)
    except Refused:
        pass
    for seen in (sent, kept(sent)):
        try:
            identity = PROVIDER.identify(seen, DEBITSUCCESS)
            found = PROVIDER.interpret(seen, DEBITSUCCESS)
        except Quarantined:
            continue
        assert identity.event_type == found.event_type
        assert 0 < len(found.event_type) <= 100
        assert len(identity.dedupe_key) <= 107
        msgspec.msgpack.encode(found)


@settings(deadline=None)
@given(st.binary(max_size=300), headers_of_any_kind)
def test_arbitrary_bytes_end_in_the_error_tree(body: bytes, headers: dict[str, str]) -> None:
    walk(Message("application/json", headers, body))


@settings(deadline=None)
@given(st.dictionaries(names | st.text(), anything, max_size=8) | anything, headers_of_any_kind)
def test_arbitrary_json_ends_in_the_error_tree(value: object, headers: dict[str, str]) -> None:
    walk(Message("application/json", headers, json.dumps(value).encode()))


@settings(deadline=None)
@given(st.integers(0, len(json.dumps(CAPTURED)) - 1), st.integers(0, 255))
def test_an_altered_byte_never_proves_other_tokens(position: int, byte: int) -> None:
    raw = bytearray(json.dumps(CAPTURED).encode())
    raw[position] = byte
    sent = message(bytes(raw))
    if refusal(sent) is None:
        assert PROVIDER.token_of(sent) == "FormTok1"
        assert b"HookTok1" in raw


# The vendor's samples


@needs_samples
def test_the_constructed_webhook_sample() -> None:
    body = json.loads((SAMPLE_FILES / "casual_webhook.CONSTRUCTED.json").read_bytes())["body"]
    sent = message(body)
    expected = msgspec.structs.replace(
        EXPECTED_CASUAL, token=body["PaymentFormToken"], webhook_token=body["WebhookToken"]
    )
    PROVIDER.authenticate(sent, DEBITSUCCESS, expected)
    assert PROVIDER.token_of(sent) == "KBpE6YKuabcdEFGH"
    found = interpreted(sent)
    assert (found.effect, found.response_code, found.response_description) == (Effect.DECLINED, "05", "DO NOT HONOUR")


@needs_samples
def test_the_constructed_event_sample() -> None:
    sample = json.loads((SAMPLE_FILES / "event_suspension_added.CONSTRUCTED.json").read_bytes())
    names = {name.lower().replace("-", "_"): value for name, value in sample["headers"].items()}
    assert refusal(message(sample["body"], **names)) is Reason.TOKEN_REFUSED
    sent = message(sample["body"], **{**names, "x_token": "event-old-token"})
    assert refusal(sent) is None
    assert interpreted(sent) == PaymentEvent(event_type=ADDED, custom=sample["body"])


@needs_samples
def test_no_redirect_sample_proves_anything_and_all_their_words_are_known() -> None:
    for line in (SAMPLE_FILES / "callback_urls_doc.txt").read_text().split():
        fields = dict(parse_qsl(urlsplit(line).query, keep_blank_values=True))
        assert refusal(message(fields)) is Reason.TOKEN_MISSING
        assert fields["Status"].lower() in EFFECTS


@needs_samples
def test_the_token_response_sample_is_no_notification() -> None:
    assert refusal(message((SAMPLE_FILES / "casual_payment_token_response.json").read_bytes())) is Reason.TOKEN_MISSING
