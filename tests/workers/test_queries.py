"""Reading the ledger on both databases: the objects of the contract, filters, search, and what is never shown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine

from receiver.errors import LedgerAway
from receiver.notification import Effect, utc
from tests.support import EXPECTED_CASUAL, recorded
from tests.workers import material
from tests.workers.material import MOMENT, NOW, delivered, envelope, never_judged, pipeline, processed, sealed
from workers.ledger import database, pages, queries
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.queries import Filter

# Written down from the contract once more.
NOTIFICATION = [
    "id",
    "provider",
    "facility",
    "event_type",
    "dedupe_key",
    "state",
    "reason",
    "received_at",
    "processed_at",
    "source",
    "deliveries",
    "conflicts",
]
PAYMENT = [
    "provider",
    "facility",
    "payment_id",
    "receipt_number",
    "state",
    "amount",
    "currency",
    "surcharge",
    "amount_refunded",
    "reference",
    "customer_reference",
    "card_scheme",
    "response_code",
    "response_description",
    "summary_code",
    "soft_decline",
    "settlement_date",
    "occurred_at",
    "updated_at",
    "custom",
    "mismatch",
]


def listed(engine: Engine, list_: Callable[[Connection, Filter], Any], **wanted: Any) -> list[dict[str, Any]]:
    with queries.reading(engine) as connection:
        return list(list_(connection, Filter(**wanted)))


def keys(engine: Engine, **wanted: Any) -> list[str]:
    return [found["dedupe_key"] for found in listed(engine, pages.every_notification, **wanted)]


def ids(engine: Engine, **wanted: Any) -> list[str]:
    return [found["payment_id"] for found in listed(engine, pages.every_payment, **wanted)]


def shown(engine: Engine, notification_id: str) -> dict[str, Any] | None:
    with queries.reading(engine) as connection:
        return queries.show_notification(connection, notification_id, Bodies())


# -- the objects


def test_a_notification_has_exactly_the_contracts_keys(ledger: Ledger, engine: Engine) -> None:
    came = envelope("evt_1")
    ledger.record([Interpreted(came, "failed", "interpretation_failed", "Traceback ...")])
    (found,) = listed(engine, pages.every_notification)
    assert list(found) == NOTIFICATION
    assert found | {"processed_at": None} == {
        "id": came.id,
        "provider": "checkout",
        "facility": "main",
        "event_type": "payment_captured",
        "dedupe_key": "evt_1",
        "state": "failed",
        "reason": "interpretation_failed",
        "received_at": MOMENT,
        "processed_at": None,
        "source": "203.0.113.7",
        "deliveries": 1,
        "conflicts": 0,
    }


def test_a_processed_notification_has_no_reason(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", material.event())])
    assert [found["reason"] for found in listed(engine, pages.every_notification)] == [None]


def test_a_payment_has_exactly_the_contracts_keys(ledger: Ledger, engine: Engine) -> None:
    said = material.event(amount=62400, surcharge=2400, currency="AUD", receipt_number="R", custom={"customTitle": "é"})
    ledger.record([processed("k1", said)])
    (found,) = listed(engine, pages.every_payment)
    assert list(found) == PAYMENT
    assert (found["amount"], found["surcharge"], found["amount_refunded"]) == ("624.00", "24.00", "0.00")
    assert (found["state"], found["currency"], found["custom"]) == ("captured", "AUD", {"customTitle": "é"})
    assert (found["occurred_at"], found["mismatch"], found["soft_decline"]) == (MOMENT, False, False)
    assert found["updated_at"].tzinfo is not None


@pytest.mark.parametrize(
    ("currency", "exponent", "amount", "text"),
    [
        ("JPY", 0, 58210, "58210"),
        ("EUR", 2, 5, "0.05"),
        ("KWD", 3, 1, "0.001"),
        ("KWD", 3, 2**63 - 1, "9223372036854775.807"),
        ("EUR", 2, None, None),
        ("EUR", 2, 0, "0.00"),
    ],
)
def test_amounts_are_decimal_texts(
    ledger: Ledger, engine: Engine, currency: str, exponent: int, amount: int | None, text: str | None
) -> None:
    ledger.record([processed("k1", material.event(amount=amount, currency=currency, exponent=exponent))])
    assert listed(engine, pages.every_payment)[0]["amount"] == text


def test_an_expectation_shows_no_secret(ledger: Ledger, engine: Engine) -> None:
    ledger.expect([EXPECTED_CASUAL], never_judged)
    (found,) = listed(engine, queries.list_expectations)
    assert found == {
        "provider": "debitsuccess",
        "facility": "gym",
        "reference": "MEMBER-1001",
        "amount": "12.50",
        "currency": "NZD",
        "merchant": None,
        "token": "FormTok1",
        "valid_to": None,
        "registered_at": utc(1_700_000_000_000_000),
        "due_at": utc(1_700_000_000_000_000) + timedelta(minutes=15),
        "answered": False,
    }


# -- lists


@pytest.fixture
def several(ledger: Ledger) -> None:
    """k1 to k4, a second apart; p2 is of another provider, k3 failed, k4 is of another facility."""
    second = 1_000_000
    for number, (provider, facility) in enumerate(
        [("checkout", "main"), ("paymentz", "eu"), ("checkout", "main"), ("checkout", "second")], 1
    ):
        received_at = NOW + number * second
        came = envelope(
            f"k{number}",
            id=f"{pages.first_id(utc(received_at))}-7000-8000-00000000000{number}",
            provider=provider,
            facility=facility,
            received_at=received_at,
        )
        effect = Effect.DECLINED if number == 2 else Effect.CAPTURED
        said = material.event(
            effect,
            payment_id=f"p{number}",
            receipt_number=f"10%_0{number}",
            reference=f"Ref/{number}",
            customer_reference=f"CUSTOMER-{number}",
            amount=1200 + number,
        )
        ledger.record([Interpreted(came, "failed", "x") if number == 3 else Interpreted(came, "processed", event=said)])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["k4", "k3", "k2", "k1"]),
        ({"limit": 2}, ["k4", "k3"]),
        ({"state": "failed"}, ["k3"]),
        ({"state": "held"}, []),
        ({"provider": "checkout"}, ["k4", "k3", "k1"]),
        ({"provider": "checkout", "facility": "main"}, ["k3", "k1"]),
        ({"facility": "eu", "state": "processed"}, ["k2"]),
        ({"since": MOMENT + timedelta(seconds=2)}, ["k4", "k3", "k2"]),
        ({"until": MOMENT + timedelta(seconds=2)}, ["k1"]),
        ({"since": MOMENT + timedelta(seconds=2), "until": MOMENT + timedelta(seconds=3)}, ["k2"]),
        ({"search": "k2"}, ["k2"]),
        ({"search": "K2"}, ["k2"]),
        ({"search": "p4"}, ["k4"]),
        ({"search": pages.first_id(MOMENT)[:8]}, ["k4", "k3", "k2", "k1"]),
        ({"search": pages.first_id(MOMENT + timedelta(seconds=1)).upper()}, ["k1"]),
        ({"search": "0"}, []),
        ({"search": "10%_04"}, ["k4"]),
        ({"search": "ref/"}, []),
        ({"search": "Ref/"}, ["k4", "k2", "k1"]),
        ({"search": "Ref/", "provider": "checkout", "limit": 1}, ["k4"]),
        ({"search": "customer-2"}, ["k2"]),
        ({"search": "12.04"}, ["k4"]),
        ({"search": "capt"}, []),
        ({"search": "%"}, []),
        ({"search": "k_"}, []),
        ({"search": "\\"}, []),
        ({"search": "/"}, []),
        ({"search": "'; --"}, []),
        ({"search": "\x00"}, []),
        ({"search": "\ud800"}, []),
        ({"provider": "\x00"}, []),
        ({"search": ""}, ["k4", "k3", "k2", "k1"]),
    ],
)
@pytest.mark.usefixtures("several")
def test_notifications_newest_first(engine: Engine, wanted: dict[str, Any], found: list[str]) -> None:
    assert keys(engine, **wanted) == found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["p4", "p2", "p1"]),
        ({"limit": 1}, ["p4"]),
        ({"state": "declined"}, ["p2"]),
        ({"provider": "checkout"}, ["p4", "p1"]),
        ({"facility": "main"}, ["p1"]),
        ({"search": "P1"}, ["p1"]),
        ({"search": "10%_0"}, ["p4", "p2", "p1"]),
        ({"search": "10%_0", "state": "declined"}, ["p2"]),
        ({"search": "_02"}, []),
        ({"search": "Ref/4"}, ["p4"]),
        ({"search": "Ref_4"}, []),
        ({"search": "customer-"}, ["p4", "p2", "p1"]),
        ({"search": "12.02"}, ["p2"]),
        ({"search": "12.020"}, ["p2"]),
        ({"search": "1202"}, []),
        ({"search": "99999999999999999.99"}, []),
        ({"search": "1%0"}, []),
        ({"search": "\x00"}, []),
    ],
)
@pytest.mark.usefixtures("several")
def test_payments_last_changed_first(engine: Engine, wanted: dict[str, Any], found: list[str]) -> None:
    assert ids(engine, **wanted) == found


@pytest.mark.usefixtures("several")
def test_payments_by_the_time_of_their_last_change(engine: Engine) -> None:
    last, *others = (found["updated_at"] for found in listed(engine, pages.every_payment))
    assert ids(engine, since=last) == ["p4"]
    assert ids(engine, until=last) == ["p2", "p1"]
    assert ids(engine, since=others[-1], until=last) == ["p2", "p1"]


def test_a_long_list_is_read_in_pages(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed(f"k{number}", material.event(payment_id=None)) for number in range(500)])
    ledger.record([processed(f"l{number}", material.event(payment_id=None)) for number in range(600)])
    assert len(keys(engine)) == 1100
    with queries.reading(engine) as connection:
        assert next(pages.every_notification(connection, Filter()))["deliveries"] == 1


@pytest.mark.usefixtures("several")
def test_counts_by_state(engine: Engine) -> None:
    with queries.reading(engine) as connection:
        assert {state: queries.count(connection, state) for state in queries.NOTIFICATION_STATES} == {
            "processed": 3,
            "failed": 1,
            "quarantined": 0,
            "held": 0,
        }


# -- one of them


def test_a_notification_is_found_by_the_id_of_any_of_its_deliveries(ledger: Ledger, engine: Engine) -> None:
    first, same = envelope("k1", headers={"x-traceid": "t"}, body=b"first"), envelope("k1", body=b"first")
    other = envelope("k1", body=b"other \xff", fingerprint="f2", source="203.0.113.8", received_at=NOW + 1)
    for came in (first, same, other):
        ledger.record([Interpreted(came, "quarantined", "missing_field", "type is missing")])
    found = shown(engine, first.id)
    assert found is not None
    assert shown(engine, same.id) == shown(engine, other.id) == found
    assert list(found) == [
        *NOTIFICATION,
        *("verified", "detail", "content_type", "headers", "body", "body_note", "payment_id", "event", "repeats"),
    ]
    assert (found["id"], found["deliveries"], found["conflicts"]) == (first.id, 3, 1)
    assert (found["verified"], found["detail"], found["headers"]) == (True, "type is missing", {"x-traceid": "t"})
    assert (found["body"], found["event"], found["payment_id"]) == ("first", None, None)
    assert sorted(found["repeats"], key=lambda each: str(each["kind"])) == [
        {
            "id": other.id,
            "kind": "conflict",
            "received_at": utc(NOW + 1),
            "source": "203.0.113.8",
            "body": "other \N{REPLACEMENT CHARACTER}",
            "body_note": None,
        },
        {
            "id": same.id,
            "kind": "duplicate",
            "received_at": MOMENT,
            "source": "203.0.113.7",
            "body": None,
            "body_note": None,
        },
    ]


@pytest.mark.parametrize("unknown", ["", "x", "00000000-0000-7000-8000-000000000000", "\x00", "\ud800", "x" * 100])
def test_an_unknown_notification_is_none(ledger: Ledger, engine: Engine, unknown: str) -> None:
    ledger.record([processed("k1", material.event())])
    assert shown(engine, unknown) is None


def test_a_payment_is_found_by_its_id_or_receipt_with_its_notifications(ledger: Ledger, engine: Engine) -> None:
    first, second = (
        processed(effect, material.event(effect, payment_id="ACME:1003548481", receipt_number="1003548481"))
        for effect in (Effect.PENDING, Effect.CAPTURED)
    )
    elsewhere = msgspec.structs.replace(second.envelope, id=envelope().id, facility="second")
    ledger.record([first, second, msgspec.structs.replace(second, envelope=elsewhere)])
    with queries.reading(engine) as connection:
        found = queries.show_payment(connection, "1003548481")
        assert queries.show_payment(connection, "ACME:1003548481") == found
        assert queries.show_payment(connection, "1") == queries.show_payment(connection, "\x00") == []
    assert [(each["facility"], len(each["notifications"])) for each in found] == [("main", 2), ("second", 1)]
    assert list(found[0]) == [*PAYMENT, "response", "expected", "differs", "returns", "notifications"]
    assert found[0]["response"] is None
    assert {each["id"] for each in found[0]["notifications"]} == {first.envelope.id, second.envelope.id}
    assert list(found[0]["notifications"][0]) == NOTIFICATION


def test_a_payment_is_shown_with_its_response_code_explained(ledger: Ledger, engine: Engine) -> None:
    ledger.record(
        [
            processed("soft", material.event(Effect.DECLINED, payment_id="pay_1", response_code="20051")),
            processed("odd", material.event(Effect.DECLINED, payment_id="pay_2", response_code="99999")),
        ]
    )
    with queries.reading(engine) as connection:
        (soft,), (odd,) = (queries.show_payment(connection, name) for name in ("pay_1", "pay_2"))
    assert list(soft["response"]) == ["code", "known", "meaning", "summary", "soft_decline", "advice"]
    assert (soft["response"]["summary"], soft["response"]["meaning"]) == ("soft_decline", "There is not enough money")
    assert odd["response"] == dict.fromkeys(soft["response"]) | {"code": "99999", "known": False}


# -- secrets


def test_a_body_is_shown_without_its_secrets(ledger: Ledger, engine: Engine) -> None:
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    signed = delivered(recorded("paymentz", "capturesuccess"))
    form = delivered(recorded("paymentz", "capturesuccess__form"), dedupe_key="form")
    pipeline(ledger).process(sealed(casual, signed, form))
    found = shown(engine, casual.id)
    assert found is not None
    assert found["body"] == (
        '{"WebhookToken": "***", "PaymentFormToken": "FormTok1", "Status": "Success", "Message": "",'
        ' "ResponseCode": "00"}'
    )
    for came in (signed, form):
        found = shown(engine, came.id)
        assert found is not None
        assert "***" in found["body"]
        assert came.body.decode().lower().partition("checksum")[2].strip('":= ')[:32] not in found["body"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"WebhookToken":"a"}', '{"WebhookToken":"***"}'),
        ('{"webhooktoken" :\n "a","x":1}', '{"webhooktoken" :\n "***","x":1}'),
        ('{"WEBHOOKTOKEN": "a\\"b, c", "x": "y"}', '{"WEBHOOKTOKEN": "***", "x": "y"}'),
        ('{"x":{"WebhookToken":123}}', '{"x":{"WebhookToken":"***"}}'),
        ('{"WebhookToken":"a","webhookToken":"b"}', '{"WebhookToken":"***","webhookToken":"***"}'),
        ('{"WebhookToken":"never ends, and more', '{"WebhookToken":"***"'),
        ('\ufeff {"WebhookToken":"a"}', '\ufeff {"WebhookToken":"***"}'),
        ('{"Message":"WebhookToken=1&x"}', '{"Message":"WebhookToken=1&x"}'),
        ("WebhookToken=a&x=1", "WebhookToken=***&x=1"),
        ("x=1&webhooktoken=a", "x=1&webhooktoken=***"),
        ("MyWebhookToken=a", "MyWebhookToken=a"),
        ("", ""),
    ],
)
def test_secret_fields_are_blanked_in_any_spelling(body: str, text: str) -> None:
    assert queries.shown_body("debitsuccess", body.encode()) == text


def test_a_conflicting_body_is_blanked_too(ledger: Ledger, engine: Engine) -> None:
    bodies = {"f1": b'{"checksum":"secret1"}', "f2": b'{"checksum":"secret2"}'}
    conflict = [
        envelope("k1", provider="paymentz", body=body, fingerprint=fingerprint) for fingerprint, body in bodies.items()
    ]
    ledger.record([Interpreted(came, "quarantined", "weak_proof", "x") for came in conflict])
    found = shown(engine, conflict[0].id)
    assert found is not None
    assert (found["body"], found["repeats"][0]["body"]) == ('{"checksum":"***"}', '{"checksum":"***"}')


def test_a_body_of_an_unknown_provider_is_shown_as_it_is() -> None:
    assert queries.shown_body("nobody", b"\xffx") == "\N{REPLACEMENT CHARACTER}x"


# -- away


def test_a_ledger_that_does_not_answer_is_away() -> None:
    engine = database.open_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(LedgerAway), queries.reading(engine) as connection:
        queries.count(connection, "failed")
    engine.dispose()
