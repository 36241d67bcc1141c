"""Expected payments against what was notified, in every order and on both databases: mismatch, alarm, overdue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import count, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select, text
from structlog.testing import capture_logs

from receiver import metrics
from receiver.money import text_from_minor
from receiver.notification import Effect, Envelope, Expectation, utc
from receiver.providers import PROVIDERS
from tests.support import DEBITSUCCESS, EXPECTED_CASUAL, QUICKSTREAM, recorded
from tests.workers import material
from tests.workers.material import (
    NOW,
    delivered,
    expected,
    never_judged,
    only_payment,
    pipeline,
    processed,
    sealed,
)
from workers import health
from workers.ledger import pages, queries
from workers.ledger.ledger import Ledger, Mismatch
from workers.ledger.payments import fold
from workers.ledger.queries import Filter
from workers.ledger.tables import payments
from workers.pipeline import Pipeline

FORM = recorded("quickstream", "payment__form")
SAID = PROVIDERS["quickstream"].interpret(FORM.message(), QUICKSTREAM)
CASUAL = recorded("debitsuccess", "casual_payment")
both_orders = pytest.mark.parametrize("expectation_first", [True, False], ids=["before", "after"])


def announced(**fields: Any) -> Expectation:
    """What FORM is when all is well."""
    values: dict[str, Any] = {
        "provider": "quickstream",
        "reference": SAID.reference,
        "amount": SAID.amount,
        "currency": "AUD",
        "merchant": "ACME",
        "facility": "acme",
    }
    return expected(**(values | fields))


def told(walk: Pipeline, came: Envelope, expectation: Expectation, first: bool) -> list[Mismatch]:
    steps: Sequence[Callable[[], Any]] = (lambda: walk.expect(expectation), lambda: walk.process(sealed(came)))
    return [mismatch for step in (steps if first else reversed(steps)) for mismatch in step().mismatches]


@both_orders
@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({}, ()),
        ({"merchant": None}, ()),
        ({"amount": 1}, ("amount",)),
        ({"currency": "NZD"}, ("currency",)),
        ({"merchant": "OCTANE"}, ("merchant",)),
        ({"amount": 1, "currency": "NZD", "merchant": "OCTANE"}, ("amount", "currency", "merchant")),
    ],
    ids=lambda value: str(value),
)
def test_what_differs_is_a_mismatch_and_an_alarm(
    ledger: Ledger, engine: Engine, expectation_first: bool, changed: dict[str, Any], differs: tuple[str, ...]
) -> None:
    counter = metrics.MISMATCHES.labels("quickstream", "acme")
    before = counter._value.get()
    with capture_logs() as logs:
        found = told(pipeline(ledger), delivered(FORM, "acme"), announced(**changed), expectation_first)
    payment = only_payment(engine)
    assert (payment.mismatch, payment.amount) == (bool(differs), SAID.amount)
    assert found == ([Mismatch("quickstream", "acme", SAID.reference, differs)] if differs else [])
    alarms = [entry for entry in logs if entry["event"] == "payment_mismatch"]
    assert [(entry["log_level"], entry["differs"]) for entry in alarms] == ([("error", differs)] if differs else [])
    assert counter._value.get() - before == len(alarms)
    with queries.reading(engine) as connection:
        assert queries.count_mismatches(connection) == len(alarms)
        (shown,) = queries.show_payment(connection, SAID.receipt_number or "")
        assert len(list(pages.every_payment(connection, Filter(mismatch=True)))) == len(alarms)
    assert (tuple(shown["differs"]), shown["expected"]["due_at"]) == (differs, utc(NOW) + timedelta(days=1))


@both_orders
def test_cve_2026_9189_an_authentic_notification_of_another_amount(
    ledger: Ledger, engine: Engine, expectation_first: bool
) -> None:
    """Everything proves the sender, but a cent was paid for an order of 624 dollars: a plugin that looks at the proof
    and the success flag alone ships the goods."""
    assert b"successFlag=true" in FORM.body
    cent = delivered(FORM, "acme", body=FORM.body.replace(f"={text_from_minor(SAID.amount or 0, 2)}".encode(),
                                                          b"=0.01", 1))  # fmt: skip
    assert told(pipeline(ledger), cent, announced(), expectation_first) != []
    payment = only_payment(engine)
    assert (payment.state, payment.amount, payment.mismatch) == ("captured", 1, True)


def test_an_alarm_is_raised_once_and_again_after_it_was_over(ledger: Ledger) -> None:
    walk, came = pipeline(ledger), delivered(FORM, "acme")
    assert told(walk, came, announced(amount=1), True) != []
    assert told(walk, came, announced(amount=1), False) == [], "the same again"
    assert walk.expect(announced(amount=2, registered_at=NOW + 1)).mismatches == [], "it differed before"
    assert walk.expect(announced(registered_at=NOW + 2)).mismatches == []
    assert walk.expect(announced(amount=3, registered_at=NOW + 3)).mismatches != []


def test_a_part_that_nothing_was_expected_for_is_an_alarm(ledger: Ledger) -> None:
    part = delivered(recorded("quickstream", "payment__partial_10"), "acme")
    (mismatch,) = pipeline(ledger).process(sealed(part)).mismatches
    assert mismatch.differs == ("part",)


@both_orders
@pytest.mark.parametrize("verified", [True, False], ids=["proven", "held"])
def test_debitsuccess_has_its_amount_from_the_expectation(
    ledger: Ledger, engine: Engine, expectation_first: bool, verified: bool
) -> None:
    assert told(pipeline(ledger), delivered(CASUAL, verified=verified), EXPECTED_CASUAL, expectation_first) == []
    payment = only_payment(engine)
    assert (payment.state, payment.amount, payment.currency) == ("captured", 1250, "NZD")
    assert (payment.reference, payment.mismatch) == ("MEMBER-1001", False)


def test_without_an_expectation_it_is_accepted_and_matched_when_it_comes(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    assert walk.process(sealed(delivered(FORM, "acme"))).mismatches == []
    assert not only_payment(engine).mismatch
    assert overdue(engine, utc(NOW)) == []
    walk.expect(announced())
    with queries.reading(engine) as connection:
        (found,) = queries.list_expectations(connection, Filter())
    assert found["answered"]


# -- every order

_SERIAL = count()
_EVENTS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict,
        effect=st.sampled_from([Effect.AUTHORISED, Effect.CAPTURED, Effect.DECLINED, Effect.REFUNDED]),
        minute=st.integers(0, 2),
        amount=st.sampled_from([None, 999, 1000]),
        currency=st.sampled_from([None, "EUR", "JPY"]),
        merchant=st.sampled_from([None, "A", "B"]),
    ),
    min_size=1,
    max_size=2,
)
_EXPECTED: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    amount=st.sampled_from([999, 1000]),
    currency=st.sampled_from(["EUR", "JPY"]),
    merchant=st.sampled_from([None, "A"]),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=_EVENTS, announcement=_EXPECTED)
def test_no_order_of_expectation_and_events_changes_the_payment(
    ledger: Ledger, engine: Engine, said: list[dict[str, Any]], announcement: dict[str, Any]
) -> None:
    seen = []
    for order in permutations(range(len(said) + 1)):
        name = f"o{next(_SERIAL)}"
        events = [material.event(**each, payment_id=name, reference=name) for each in said]
        expectation = expected(name, **announcement)
        raised = 0
        for step in order:
            if step == len(said):
                raised += len(ledger.expect([expectation], never_judged).mismatches)
            else:
                raised += len(ledger.record([processed(f"{name}-{step}", events[step])]).mismatches)
        with engine.connect() as connection:
            row = connection.execute(select(payments).where(payments.c.payment_id == name)).one()
        wanted = fold(events, expectation)
        assert wanted is not None
        assert (row.mismatch, row.amount, row.currency) == (wanted.mismatch, wanted.amount, wanted.currency)
        assert raised >= row.mismatch, "a mismatch without an alarm"
        seen.append((row.state, row.amount, row.currency, row.mismatch, row.response_code))
    assert len(set(seen)) == 1


# -- overdue


def overdue(engine: Engine, moment: datetime, **wanted: Any) -> list[str]:
    with queries.reading(engine) as connection:
        return [found["reference"] for found in queries.list_expectations(connection, Filter(**wanted), moment)]


def test_an_expectation_is_overdue_after_its_time(ledger: Ledger, engine: Engine) -> None:
    until = utc(NOW) + timedelta(minutes=10)
    ledger.expect([expected("R1", valid_to=until)], never_judged)
    assert overdue(engine, until) == []
    assert overdue(engine, until + timedelta(seconds=1)) == ["R1"]
    assert overdue(engine, until + timedelta(seconds=1), provider="quickstream") == []
    ledger.record([processed("k1", material.event(Effect.DECLINED, reference="R1"))])
    assert overdue(engine, until + timedelta(days=9)) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_without_an_end_the_senders_own_time_counts(ledger: Ledger, engine: Engine, provider: str) -> None:
    token: dict[str, Any] = {"token": "T1", "webhook_token": "W1"} if provider == "debitsuccess" else {}
    ledger.expect([expected("R1", provider=provider, **token)], never_judged)
    due = utc(NOW) + PROVIDERS[provider].answer_within
    assert overdue(engine, due) == []
    assert overdue(engine, due + timedelta(microseconds=1)) == ["R1"]
    if provider == "debitsuccess":
        assert due == utc(NOW) + timedelta(minutes=15)


def test_a_payment_elsewhere_answers_nothing(ledger: Ledger, engine: Engine) -> None:
    ledger.expect([expected("R1", valid_to=utc(NOW))], never_judged)
    elsewhere = processed("k1", material.event(reference="R1"), facility="second")
    ledger.record([elsewhere, processed("k2", material.event(reference="R2", payment_id="p2"))])
    assert overdue(engine, utc(NOW) + timedelta(days=9)) == ["R1"]


def test_a_token_is_answered_by_its_own_notification_alone(ledger: Ledger, engine: Engine) -> None:
    walk, late = pipeline(ledger), utc(NOW) + timedelta(days=9)
    walk.expect(EXPECTED_CASUAL)
    assert overdue(engine, late) == ["MEMBER-1001"]
    walk.process(sealed(delivered(CASUAL)))
    assert overdue(engine, late) == []


# -- what is asked often is found by an index

ASKED: dict[str, Callable[[Any], Any]] = {
    "a payment by its id": lambda connection: queries.show_payment(connection, "p7"),
    "a payment by its receipt": lambda connection: queries.show_payment(connection, "1003548487"),
    "the number of mismatches": queries.count_mismatches,
    "the silence of an endpoint": lambda connection: health.last_received(connection, DEBITSUCCESS),
}


@pytest.mark.parametrize("asked", ASKED)
def test_no_table_is_read_as_a_whole_for(ledger: Ledger, engine: Engine, asked: str) -> None:
    said = [material.event(payment_id=f"p{n}", receipt_number=f"100354848{n}", reference="R1") for n in range(10)]
    ledger.record([processed(f"k{n}", each) for n, each in enumerate(said)])
    statements: list[tuple[str, Any]] = []
    with queries.reading(engine) as connection:
        listen = event.listens_for(engine, "before_cursor_execute")
        listen(lambda c, cursor, statement, parameters, *rest: statements.append((statement, parameters)))
        ASKED[asked](connection)
        asked_for = list(statements)
        assert asked_for
        if engine.dialect.name == "postgresql":
            # So few rows are read as a whole unless there is a way around it.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        for statement, parameters in asked_for:
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            lines = " ".join(str(row[-1]) for row in plan)
            assert "Seq Scan" not in lines, lines
            assert not any(line.startswith("SCAN") and "INDEX" not in line for line in (str(row[-1]) for row in plan))


def test_health_shows_the_number_of_mismatches(database_url: str, ledger: Ledger, tmp_path: Any) -> None:
    from receiver import settings as configuration

    told(pipeline(ledger), delivered(FORM, "acme"), announced(amount=1), True)
    document = {
        "data_dir": str(tmp_path),
        "security": {"seal_keys": ["k" * 20]},
        "store": {"database_url": database_url},
        "endpoint": [
            {"provider": "quickstream", "facility": "acme", "username": "a", "passwords": ["p"],
             "supplier_business_codes": ["ACME"]},
            {"provider": "checkout", "facility": "main", "signature_keys": ["k"]},
        ],
    }  # fmt: skip
    database = health.examine(configuration.read(document, tmp_path))["database"]
    assert database["mismatches"] == 1
    assert [each["silent_seconds"] is None for each in database["endpoints"]] == [False, True]
