"""The walk behind the queue: whatever is wrong with one notification, the others of its batch are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text, update

from receiver.errors import LedgerAway, NewerEnvelope, Quarantined, Reason, Refused, SealBroken
from receiver.notification import ENVELOPE_VERSION, Effect, Envelope, PaymentEvent
from receiver.providers import PROVIDERS
from receiver.providers.base import Message
from receiver.signing import Seal
from tests.support import CHECKOUT, EXPECTED_CASUAL, PAYMENTZ, QUICKSTREAM, all_recorded, recorded, secrets
from tests.workers import material
from tests.workers.material import SEAL, delivered, delivered_as_it_came, envelope, pipeline, rows, sealed, states
from workers.ledger.ledger import Interpreted, Ledger, Recorded
from workers.ledger.tables import expectations, notifications, payments
from workers.pipeline import takes_back

CAPTURED = recorded("checkout", "payment_captured")
CASUAL = recorded("debitsuccess", "casual_payment")

GOOD = [
    delivered(CAPTURED),
    delivered(recorded("quickstream", "payment__form"), "acme"),
    delivered(recorded("paymentz", "capturesuccess")),
    delivered(CASUAL),
]


def good() -> list[Envelope]:
    """One notification of each sender, as new deliveries."""
    return [msgspec.structs.replace(each, id=envelope().id) for each in GOOD]


@pytest.fixture
def checkout_does(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts other functions into the Checkout.com provider, such as a fault of ours would be."""

    def change(**functions: Any) -> None:
        monkeypatch.setitem(PROVIDERS, "checkout", replace(PROVIDERS["checkout"], **functions))

    return change


# -- the walk


def test_records_what_each_sender_sends(ledger: Ledger, engine: Engine) -> None:
    envelopes = good()
    done = pipeline(ledger).process(sealed(*envelopes))
    assert [item.envelope for item in done.new] == envelopes
    assert {row.state for row in rows(engine, notifications)} == {"processed"}
    assert {(row.provider, row.facility, row.state) for row in rows(engine, payments)} == {
        ("checkout", "main", "captured"),
        ("quickstream", "acme", "captured"),
        ("paymentz", "eu", "captured"),
        ("debitsuccess", "gym", "captured"),
    }


def test_a_batch_that_runs_again_has_no_effect(ledger: Ledger, engine: Engine) -> None:
    batch = sealed(*good(), *good())
    walk = pipeline(ledger)
    assert len(walk.process(batch).duplicates) == 4
    before = rows(engine, notifications), rows(engine, payments)
    assert walk.process(batch) == Recorded()
    assert (rows(engine, notifications), rows(engine, payments)) == before


def test_a_batch_that_comes_twice_at_once_counts_once(ledger: Ledger, engine: Engine) -> None:
    envelopes = good()
    done = pipeline(ledger).process(sealed(*envelopes), sealed(*envelopes))
    assert [item.envelope for item in done.new] == envelopes
    assert (done.duplicates, done.conflicts) == ([], [])
    assert [row.deliveries for row in rows(engine, notifications)] == [1] * len(envelopes)


def test_opens_what_an_old_seal_key_sealed(ledger: Ledger) -> None:
    old = Seal(secrets("old-seal-key"), "batch")
    message = SEAL.open(sealed(*good()))
    assert len(pipeline(ledger).process(old.seal(message)).new) == 4


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"junk",
        sealed(*GOOD)[:-1],
        b"x" + sealed(*GOOD),
        Seal(secrets("other"), "batch").seal(SEAL.open(sealed(*GOOD))),
        Seal(secrets("new-seal-key"), "expectation").seal(SEAL.open(sealed(*GOOD))),
        SEAL.seal(b"not a batch"),
    ],
)
def test_a_broken_seal_is_refused_whole(ledger: Ledger, engine: Engine, broken: bytes) -> None:
    with pytest.raises(SealBroken):
        pipeline(ledger).process(broken)
    assert rows(engine, notifications) == []


def test_a_newer_envelope_is_left_for_a_newer_worker(ledger: Ledger, engine: Engine) -> None:
    message = msgspec.msgpack.encode((ENVELOPE_VERSION + 1, [{"some": "other shape"}]))
    with pytest.raises(NewerEnvelope):
        pipeline(ledger).process(SEAL.seal(message))
    assert rows(engine, notifications) == []


# -- one bad notification


BAD = delivered(CAPTURED, dedupe_key="bad")
HELD = delivered(CASUAL, verified=False, dedupe_key="bad")


def bad(name: str, state: str, reason: str, came: Envelope, **fields: Any) -> Any:
    return pytest.param(msgspec.structs.replace(came, **fields), state, reason, id=name)


BADS = [
    bad("unreadable", "quarantined", "unreadable_body", BAD, body=b"\xff{"),
    bad("no type", "quarantined", "missing_field", BAD, body=b"{}"),
    bad("quarantined before", "quarantined", "other_business", BAD, quarantine="other_business", detail="x"),
    bad("unknown provider", "failed", "unknown_endpoint", BAD, provider="nobody"),
    bad("endpoint removed", "failed", "unknown_endpoint", BAD, facility="gone"),
    bad("held", "held", "token_unknown", HELD),
    bad("held, unknown provider", "failed", "unknown_endpoint", HELD, provider="nobody"),
    bad("held, endpoint removed", "failed", "unknown_endpoint", HELD, facility="gone"),
    bad("held without a token", "quarantined", "token_missing", HELD, body=b"no json"),
    bad("held event", "quarantined", "token_missing", HELD, headers={"x-eventname": "a"}),
    bad("held where no token proves anything", "quarantined", "token_missing", BAD, verified=False),
]


@pytest.mark.parametrize(("came", "state", "reason"), BADS)
def test_one_bad_notification_never_holds_up_its_batch(
    ledger: Ledger, engine: Engine, came: Envelope, state: str, reason: str
) -> None:
    first, *others = good()
    pipeline(ledger).process(sealed(first, came, *others))
    found = {row.dedupe_key: row for row in rows(engine, notifications)}
    assert (found["bad"].state, found["bad"].reason, found["bad"].body) == (state, reason, came.body)
    assert sorted(row.state for key, row in found.items() if key != "bad") == ["processed"] * 4
    assert len(rows(engine, payments)) == 4


class Broken(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Broken("a\x00\ud800"), KeyError("x"), RecursionError(), MemoryError(), LedgerAway("no")]
)
def test_a_failed_interpretation_keeps_the_bytes_and_the_traceback(
    ledger: Ledger, engine: Engine, checkout_does: Callable[..., None], error: Exception
) -> None:
    def interpret(message: Any, endpoint: Any) -> PaymentEvent:
        raise error

    checkout_does(interpret=interpret)
    pipeline(ledger).process(sealed(*good()))
    by_provider = {row.provider: row for row in rows(engine, notifications)}
    failed = by_provider.pop("checkout")
    assert (failed.state, failed.reason, failed.body) == ("failed", "interpretation_failed", CAPTURED.body)
    assert failed.detail.startswith("Traceback (most recent call last):")
    assert type(error).__name__ in failed.detail
    assert (failed.verified, failed.event, failed.payment_id) == (True, None, None)
    assert {row.state for row in by_provider.values()} == {"processed"}


UNSTORABLE = [
    pytest.param({"amount": 2**63}, id="number"),
    pytest.param({"custom": {"a": "\ud800"}}, id="surrogate"),
    pytest.param({"settlement_date": "yesterday"}, id="type"),
    pytest.param({"reference": ["R1"]}, id="list"),
]
NAIVE = pytest.param({"occurred_at": material.MOMENT.replace(tzinfo=None)}, id="naive time")


@pytest.mark.parametrize("fields", [*UNSTORABLE, NAIVE])
def test_an_event_that_cannot_be_stored_is_kept_as_failed(
    ledger: Ledger, engine: Engine, checkout_does: Callable[..., None], fields: dict[str, Any]
) -> None:
    """A fault of ours in one provider: neither does it stop the others, nor is it taken for a ledger that is away."""
    ledger.record([material.processed("earlier", material.event(Effect.AUTHORISED, amount=5, currency="EUR"))])
    checkout_does(interpret=lambda message, endpoint: material.event(**fields))
    done = pipeline(ledger).process(sealed(*good()))
    assert sorted(item.state for item in done.new) == ["failed", "processed", "processed", "processed"]
    (failed,) = (row for row in rows(engine, notifications) if row.state == "failed")
    assert (failed.provider, failed.reason, failed.body) == ("checkout", "interpretation_failed", CAPTURED.body)
    assert "Traceback" in failed.detail
    (payment,) = (row for row in rows(engine, payments) if row.provider == "checkout")
    assert (payment.state, payment.amount) == ("authorised", 5)


def test_a_bad_one_among_its_own_kind_and_run_again(
    ledger: Ledger, engine: Engine, checkout_does: Callable[..., None]
) -> None:
    amounts = {b"1": 1, b"2": 2**70, b"3": 3}

    def interpret(message: Message, endpoint: Any) -> PaymentEvent:
        return material.event(payment_id=message.body.decode(), currency="EUR", amount=amounts[message.body])

    checkout_does(interpret=interpret)
    batch = sealed(*(envelope(f"k{number}", body=b"%d" % number) for number in (1, 2, 3)), envelope("k1"))
    walk = pipeline(ledger)
    done = walk.process(batch)
    assert [(item.envelope.dedupe_key, item.state) for item in done.new] == [
        ("k1", "processed"),
        ("k2", "failed"),
        ("k3", "processed"),
    ]
    assert [each.dedupe_key for each in done.duplicates] == ["k1"]
    assert walk.process(batch) == Recorded()
    assert states(engine) == {"k1": "processed", "k2": "failed", "k3": "processed"}
    assert [(row.payment_id, row.amount) for row in rows(engine, payments)] == [("1", 1), ("3", 3)]


def test_what_cannot_even_be_kept_as_failed_lets_all_others_pass_first(ledger: Ledger, engine: Engine) -> None:
    impossible = envelope("bad", received_at=2**62)
    walk = pipeline(ledger)
    with pytest.raises((ValueError, OverflowError)):
        walk.process(sealed(impossible, *good()))
    assert len(rows(engine, notifications)) == 4
    assert len(rows(engine, payments)) == 4


def test_a_ledger_that_is_away_is_never_a_fault_of_a_notification(ledger: Ledger, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE payments RENAME TO elsewhere"))
    try:
        with pytest.raises(LedgerAway):
            pipeline(ledger).process(sealed(*good()))
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO payments"))
    assert rows(engine, notifications) == []
    assert len(pipeline(ledger).process(sealed(*good())).new) == 4


class AwayAfter(Ledger):
    """A ledger that goes away after some transactions."""

    def __init__(self, engine: Engine, transactions: int) -> None:
        super().__init__(engine)
        self.left = transactions
        self.asked = 0

    def record(self, batch: Any, judge: Any = None) -> Recorded:
        if len(batch) > 1:
            raise Broken
        self.asked += 1
        if self.left == 0:
            raise LedgerAway("gone")
        self.left -= 1
        return super().record(batch, judge)


def test_a_ledger_that_goes_away_in_the_middle_of_a_split(ledger: Ledger, engine: Engine) -> None:
    batch = sealed(*good())
    away = AwayAfter(engine, 2)
    with pytest.raises(LedgerAway):
        pipeline(away).process(batch)
    assert away.asked == 3
    assert len(rows(engine, notifications)) == 2
    assert len(pipeline(ledger).process(batch).new) == 2
    assert {row.state for row in rows(engine, notifications)} == {"processed"}
    assert {row.deliveries for row in rows(engine, notifications)} == {1}
    assert len(rows(engine, payments)) == 4


class Interruption(BaseException):
    """As the alarm of a job that takes too long."""


def test_an_interruption_is_no_fault_of_a_notification(
    ledger: Ledger, engine: Engine, checkout_does: Callable[..., None]
) -> None:
    def interpret(message: Any, endpoint: Any) -> PaymentEvent:
        raise Interruption

    checkout_does(interpret=interpret)
    with pytest.raises(Interruption):
        pipeline(ledger).process(sealed(*good()))
    assert rows(engine, notifications) == []


# -- proofs that come later


def test_judges_what_is_held_by_the_provider(ledger: Ledger) -> None:
    walk, held = pipeline(ledger), delivered(CASUAL, verified=False)
    released = walk.judge(held, EXPECTED_CASUAL)
    assert (released.state, released.envelope.verified) == ("processed", True)
    refused = walk.judge(held, msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="x"))
    assert (refused.state, refused.reason, refused.envelope.verified) == ("quarantined", "token_refused", False)
    nowhere = pipeline(ledger, {}).judge(held, EXPECTED_CASUAL)
    assert (nowhere.state, nowhere.reason) == ("failed", "unknown_endpoint")


def test_proven_and_contradictory_is_quarantined(ledger: Ledger, engine: Engine) -> None:
    body = CASUAL.body.replace(b'"Status"', b'"status": "Declined", "Status"')
    held = delivered(CASUAL, verified=False)
    walk = pipeline(ledger)
    walk.process(sealed(msgspec.structs.replace(held, body=body, quarantine="contradictory_fields", detail="x")))
    assert {row.state for row in rows(engine, notifications)} == {"held"}
    walk.expect(EXPECTED_CASUAL)
    (row,) = rows(engine, notifications)
    assert (row.state, row.reason, row.verified) == ("quarantined", "contradictory_fields", True)


@pytest.mark.parametrize("error", [KeyError("x"), Quarantined(Reason.UNREADABLE_BODY, "x")])
def test_a_proof_that_fails_by_our_own_fault_is_kept(
    ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def authenticate(*arguments: Any) -> None:
        raise error

    changed = replace(PROVIDERS["debitsuccess"], authenticate=authenticate)
    monkeypatch.setitem(PROVIDERS, "debitsuccess", changed)
    walk = pipeline(ledger)
    walk.process(sealed(delivered(CASUAL, verified=False)))
    walk.expect(EXPECTED_CASUAL)
    (row,) = rows(engine, notifications)
    assert row.state == ("quarantined" if isinstance(error, Quarantined) else "failed")
    assert row.body == CASUAL.body
    assert len(rows(engine, expectations)) == 1


@pytest.mark.parametrize("error", [KeyError("x"), Refused(Reason.TOKEN_MISSING, "x")])
def test_a_token_that_cannot_be_read_any_more(
    ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def token_of(message: Any) -> str:
        raise error

    monkeypatch.setitem(PROVIDERS, "debitsuccess", replace(PROVIDERS["debitsuccess"], token_of=token_of))
    pipeline(ledger).process(sealed(delivered(CASUAL, verified=False), good()[0]))
    found = {row.provider: row.state for row in rows(engine, notifications)}
    assert found == {"debitsuccess": "quarantined" if isinstance(error, Refused) else "failed", "checkout": "processed"}


@pytest.mark.parametrize("fields", UNSTORABLE)
def test_an_expectation_is_not_lost_for_what_waited_for_it(
    ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    def interpret(message: Any, endpoint: Any) -> PaymentEvent:
        return material.event(token="FormTok1", **({"payment_id": "FormTok1"} | fields))

    monkeypatch.setitem(PROVIDERS, "debitsuccess", replace(PROVIDERS["debitsuccess"], interpret=interpret))
    walk = pipeline(ledger)
    walk.process(sealed(delivered(CASUAL, verified=False)))
    done = walk.expect(EXPECTED_CASUAL)
    assert [item.state for item in done.new] == ["failed"]
    (row,) = rows(engine, notifications)
    assert (row.state, row.payment_id) == ("failed", "FormTok1")
    assert len(rows(engine, expectations)) == 1


# -- interpreting what is stored again


def test_what_is_stored_is_interpreted_as_it_was(ledger: Ledger, engine: Engine) -> None:
    """Whatever came: every fixture of every sender, the expectations that are missing included."""
    walk = pipeline(ledger)
    came = [delivered_as_it_came(request) for provider in PROVIDERS for request in all_recorded(provider)]
    walk.process(sealed(*came))
    for row in rows(engine, notifications):
        again = walk.interpret_again(row)
        assert (again.envelope.dedupe_key, again.envelope.verified) == (row.dedupe_key, row.verified)
        assert (again.state, again.reason, again.payment_id) == (row.state, row.reason, row.payment_id)
        assert (msgspec.json.encode(again.event).decode() if again.event else None) == row.event


def test_what_was_quarantined_is_read_with_todays_code_and_settings(ledger: Ledger, engine: Engine) -> None:
    body = recorded("quickstream", "payment__form").body.replace(b"=ACME&", b"=OTHER&")
    came = delivered(recorded("quickstream", "payment__form"), "acme", body=body, dedupe_key="body:1")
    pipeline(ledger).process(sealed(msgspec.structs.replace(came, quarantine="other_business")))
    (row,) = rows(engine, notifications)
    adopted = msgspec.structs.replace(QUICKSTREAM, supplier_business_codes=("OTHER",))
    again = pipeline(ledger, {("quickstream", "acme"): adopted}).interpret_again(row)
    assert (again.state, again.envelope.dedupe_key) == ("processed", GOOD[1].dedupe_key)


def test_what_was_held_is_judged_by_its_expectation_or_stays(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    walk.process(sealed(delivered(CASUAL, verified=False)))
    (row,) = rows(engine, notifications)
    stays = walk.interpret_again(row)
    assert (stays.state, stays.token, stays.envelope.verified) == ("held", "FormTok1", False)
    judged = walk.interpret_again(row, EXPECTED_CASUAL)
    assert (judged.state, judged.envelope.verified) == ("processed", True)


def test_what_has_no_body_any_more_stays_as_it_was(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger, {})
    pipeline(ledger).process(sealed(GOOD[0]))
    with engine.begin() as connection:
        connection.execute(update(notifications).values(body=b"", purged_at=material.MOMENT))
    (row,) = rows(engine, notifications)
    again = walk.interpret_again(row)
    assert (again.state, again.payment_id) == ("processed", row.payment_id)
    assert again.event == PROVIDERS["checkout"].interpret(CAPTURED.message(), CHECKOUT)


@pytest.mark.parametrize("reason", ["weak_proof", "other_business", "unknown_endpoint", "interpretation_failed"])
def test_what_was_believed_is_not_taken_back_for_a_reason_of_ours(reason: str) -> None:
    again = Interpreted(GOOD[0], "failed", reason)
    assert takes_back("processed", Interpreted(GOOD[0], "quarantined", "contradictory_fields"))
    assert not takes_back("processed", again)


def test_a_key_or_an_endpoint_that_is_gone_does_not_take_back(ledger: Ledger, engine: Engine) -> None:
    pipeline(ledger).process(sealed(*good()[:3]))
    by_provider = {row.provider: row for row in rows(engine, notifications)}
    other_key = msgspec.structs.replace(PAYMENTZ, secure_keys=secrets("another"))
    walk = pipeline(ledger, {("paymentz", "eu"): other_key})
    for provider, reason in (("paymentz", "weak_proof"), ("checkout", "unknown_endpoint")):
        again = walk.interpret_again(by_provider[provider])
        assert again.reason == reason
        assert not takes_back("processed", again)


def test_a_fault_of_ours_while_interpreting_again_is_a_result(
    ledger: Ledger, engine: Engine, checkout_does: Callable[..., None]
) -> None:
    def fails(*arguments: Any) -> Any:
        raise KeyError("x")

    walk = pipeline(ledger)
    walk.process(sealed(GOOD[0]))
    (row,) = rows(engine, notifications)
    for name in ("identify", "interpret"):
        checkout_does(**{name: fails})
        again = walk.interpret_again(row)
        assert (again.state, again.reason) == ("failed", "interpretation_failed")
        assert "KeyError" in again.detail
