"""Replays on both databases: what they say they will do is what they do, once, whoever asks and whoever is killed."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, delete, event, update

from receiver.errors import NotDone, Reason
from receiver.providers import PROVIDERS
from receiver.settings import Replay as Limits
from tests.support import EXPECTED_CASUAL, recorded, secrets
from tests.workers import material
from tests.workers.material import ENDPOINTS, SEAL, delivered, envelope, only_payment, rows, sealed, states
from workers.audit import Actor, Audit
from workers.ledger import queries, replays, tables
from workers.ledger.bodies import Bodies
from workers.ledger.revision import Revision
from workers.ledger.tables import audit, notifications, payments, replay_items
from workers.pipeline import Pipeline
from workers.replay import Chosen, Replays
from workers.replay_runner import ReplayRunner, job_id, replay_of
from workers.rerun import Outcome

ANNA, BERT = Actor("anna", "203.0.113.7"), Actor("bert", "203.0.113.8")
KEYS = secrets("seal")
CAPTURED = recorded("checkout", "payment_captured")


class Desk:
    """Operators and a worker at one ledger."""

    def __init__(self, engine: Engine, approve_above: int = 100) -> None:
        self.engine = engine
        self.ledger = Revision(engine, Bodies())
        self.woken: list[str] = []
        self.pipeline = Pipeline(ENDPOINTS, self.ledger, SEAL)
        limits = Limits(approve_above=approve_above)
        self.replays = Replays(self.ledger, self.pipeline, Audit(KEYS), limits, self.woken.append)
        self.runner = ReplayRunner(self.ledger, self.pipeline, Audit(KEYS), 1_000_000)

    def run(self, replay_id: str) -> None:
        while self.runner.run(replay_id, lambda: False):
            pass

    def shown(self, replay_id: str) -> dict[str, Any]:
        with queries.reading(self.engine) as connection:
            found = replays.replay(connection, replay_id)
        assert found is not None
        return found

    def results(self, replay_id: str) -> list[dict[str, Any]]:
        with queries.reading(self.engine) as connection:
            return list(replays.every_result(connection, replay_id))

    def replayed(self, chosen: Chosen, reason: str = "a fault of ours is mended") -> list[dict[str, Any]]:
        replay_id = self.replays.create(ANNA, chosen, reason)["id"]
        self.run(replay_id)
        assert self.shown(replay_id)["state"] == "done"
        return self.results(replay_id)


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(engine)


def break_(engine: Engine, *keys: str, state: str = "failed", reason: str = "interpretation_failed") -> None:
    """As if our code had not understood these notifications when they came."""
    columns = notifications.c
    of = columns.dedupe_key.in_(keys) if keys else columns.id.is_not(None)
    with engine.begin() as connection:
        connection.execute(
            update(notifications).where(of).values(state=state, reason=reason, event=None, payment_id=None)
        )
        connection.execute(delete(payments))


def failed_one(desk: Desk) -> Any:
    """A captured payment that a fault of ours made fail."""
    desk.pipeline.process(sealed(delivered(CAPTURED)))
    break_(desk.engine)
    (row,) = rows(desk.engine, notifications)
    return row


def snapshot(engine: Engine) -> list[Any]:
    return [rows(engine, table) for table in (notifications, payments)]


# -- what it does


def test_a_broken_notification_becomes_its_payment(desk: Desk, engine: Engine) -> None:
    row = failed_one(desk)
    (result,) = desk.replayed(Chosen(ids=(row.id,)))
    payment = only_payment(engine)
    assert (result["outcome"], result["was"], result["now"]) == (
        "new_payment",
        "failed (interpretation_failed)",
        "processed",
    )
    assert (result["payment_id"], result["payment_before"]) == (payment.payment_id, None)
    assert (result["payment_after"]["state"], result["payment_after"]["mismatch"]) == ("captured", False)
    (after,) = rows(engine, notifications)
    assert (after.state, after.payment_id, after.deliveries) == ("processed", payment.payment_id, 1)


def test_a_replay_of_what_is_right_changes_nothing(desk: Desk, engine: Engine) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED), delivered(recorded("quickstream", "payment__form"), "acme")))
    before = snapshot(engine)
    results = desk.replayed(Chosen())
    assert [result["outcome"] for result in results] == ["unchanged", "unchanged"]
    assert snapshot(engine) == before


def test_a_changed_payment_is_shown_before_and_after(desk: Desk, engine: Engine) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED)))
    payment_id = only_payment(engine).payment_id
    request = recorded("checkout", "payment_refunded")
    other = msgspec.json.decode(request.body)["data"]["id"]
    refund = delivered(request, body=request.body.replace(other.encode(), payment_id.encode()))
    desk.pipeline.process(sealed(refund))
    refunded = only_payment(engine)
    break_(engine, refund.dedupe_key)
    desk.ledger.refold([("checkout", "main", payment_id)])
    assert only_payment(engine).state == "captured"
    (result,) = desk.replayed(Chosen(ids=(refund.id,)))
    assert result["outcome"] == "payment_changed"
    assert (result["payment_before"]["state"], result["payment_before"]["amount_refunded"]) == ("captured", "0.00")
    assert (result["payment_after"]["state"], only_payment(engine).amount_refunded) == (
        refunded.state,
        refunded.amount_refunded,
    )


def test_what_still_fails_says_why(desk: Desk, engine: Engine) -> None:
    came = envelope("broken", body=b"{not json", quarantine="unreadable_body", detail="The body is no JSON.")
    desk.pipeline.process(sealed(came))
    (result,) = desk.replayed(Chosen(state="quarantined"))
    assert (result["outcome"], result["now"]) == ("still_fails", "quarantined (unreadable_body)")
    assert result["why"]
    assert states(engine) == {"broken": "quarantined"}


def test_a_fault_of_ours_that_is_still_there_takes_nothing_away(
    desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED)))
    before = snapshot(engine)

    def fails(*arguments: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setitem(PROVIDERS, "checkout", replace(PROVIDERS["checkout"], interpret=fails))
    (result,) = desk.replayed(Chosen())
    assert (result["outcome"], result["why"]) == ("kept", "KeyError: 'x'")
    assert snapshot(engine) == before


def test_what_was_held_is_judged_by_the_expectation_that_came(desk: Desk, engine: Engine) -> None:
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    desk.pipeline.process(sealed(casual))
    (result,) = desk.replayed(Chosen(state="held"))
    assert (result["outcome"], result["now"]) == ("still_fails", "held (token_unknown)")
    desk.pipeline.expect(EXPECTED_CASUAL)
    with engine.begin() as connection:
        values = {"state": "held", "reason": "token_unknown", "verified": False, "event": None}
        connection.execute(update(notifications).values(values))
        connection.execute(delete(payments))
    (result,) = desk.replayed(Chosen(state="held"))
    assert (result["outcome"], result["now"]) == ("new_payment", "processed")
    assert result["payment_after"]["amount"] == "12.50"


def test_no_statement_is_sent_for_each_notification(desk: Desk, engine: Engine) -> None:
    sent: list[bool] = []

    @event.listens_for(engine, "before_cursor_execute")
    def count(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        # SQLite has no server to wait for: one statement there runs for each row.
        sent.append(executemany and engine.dialect.name == "postgresql")

    known = msgspec.json.decode(CAPTURED.body)["data"]["id"].encode()
    counts = []
    for number in (2, 40):
        keys = [f"{number}-{n}" for n in range(number)]
        bodies = {key: CAPTURED.body.replace(known, b"pay_" + key.encode()) for key in keys}
        desk.pipeline.process(sealed(*(delivered(CAPTURED, dedupe_key=key, body=bodies[key]) for key in keys)))
        break_(engine, *keys)
        replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
        sent.clear()
        desk.run(replay_id)
        counts.append(len(sent))
        assert not any(sent)
        assert desk.shown(replay_id)["outcomes"] == {"new_payment": number}
    assert counts[0] == counts[1]


def test_a_repeat_that_was_not_understood_has_no_second_effect(desk: Desk, engine: Engine) -> None:
    """It was quarantined under the key of its bytes; the sender sent it again, and that was understood."""
    good = delivered(CAPTURED)
    odd = msgspec.structs.replace(good, id=envelope().id, dedupe_key="body:1", quarantine="missing_field", detail="x")
    desk.pipeline.process(sealed(good, odd))
    before = snapshot(engine)
    (result,) = desk.replayed(Chosen(state="quarantined"))
    assert result["outcome"] == "repeat"
    assert snapshot(engine) == before


def test_a_purged_body_and_a_missing_notification_are_results(desk: Desk, engine: Engine) -> None:
    row = failed_one(desk)
    gone = msgspec.structs.replace(delivered(recorded("quickstream", "payment__form"), "acme"))
    desk.pipeline.process(sealed(gone))
    replay_id = desk.replays.create(ANNA, Chosen(), "try")["id"]
    with engine.begin() as connection:
        connection.execute(delete(notifications).where(notifications.c.id == gone.id))
        connection.execute(update(notifications).values(body=b"", purged_at=material.MOMENT))
    desk.run(replay_id)
    found = {result["notification_id"]: result for result in desk.results(replay_id)}
    assert found[gone.id]["outcome"] == "missing"
    assert (found[row.id]["outcome"], found[row.id]["why"]) == ("still_fails", "Its raw body was purged.")


def test_one_that_cannot_be_stored_does_not_hold_up_the_others(desk: Desk, engine: Engine) -> None:
    row = failed_one(desk)
    other = delivered(recorded("quickstream", "payment__form"), "acme")
    desk.pipeline.process(sealed(other))
    break_(engine)

    def refuse(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith("UPDATE notifications") and row.id in str(parameters):
            raise ValueError("no place for it")

    event.listen(engine, "before_cursor_execute", refuse)
    replay_id = desk.replays.create(ANNA, Chosen(), "try")["id"]
    desk.run(replay_id)
    found = {result["notification_id"]: result for result in desk.results(replay_id)}
    assert (found[row.id]["outcome"], found[row.id]["why"]) == ("not_recorded", "ValueError: no place for it")
    assert found[other.id]["outcome"] == "new_payment"
    assert desk.shown(replay_id)["outcomes"] == {"not_recorded": 1, "new_payment": 1}


# -- the preview


def test_a_preview_says_what_the_replay_then_does(desk: Desk, engine: Engine) -> None:
    names = ["payment_captured", "payment_refunded", "payment_approved", "payment_declined"]
    came = [delivered(recorded("checkout", name)) for name in names]
    came += [delivered(recorded("quickstream", "payment__form"), "acme")]
    came += [envelope("broken", body=b"{", quarantine="unreadable_body", detail="x")]
    desk.pipeline.process(sealed(*came))
    break_(engine, *(each.dedupe_key for each in came[:5:2]))
    before = snapshot(engine)
    preview = desk.replays.preview(Chosen())
    assert snapshot(engine) == before
    assert (preview.total, preview.needs_approval, sum(preview.outcomes.values())) == (6, False, 6)
    done = desk.replayed(Chosen())
    left_out = {"done_at", "replay_id"}
    said = [msgspec.to_builtins(each) for each in preview.results]
    assert [{k: v for k, v in each.items() if k not in left_out} for each in done] == said
    assert rows(engine, audit) != []


def test_a_preview_looks_at_the_first_and_counts_all(desk: Desk) -> None:
    desk.pipeline.process(sealed(*(envelope(f"k{n}", quarantine="missing_field", detail="x") for n in range(5))))
    preview = Desk(desk.engine, approve_above=4).replays.preview(Chosen(state="quarantined"), 2)
    assert (preview.total, len(preview.results), preview.needs_approval) == (5, 2, True)


# -- choosing


def test_what_cannot_be_chosen(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(chosen: Chosen, reason: str = "why") -> Reason:
        with pytest.raises(NotDone) as error:
            desk.replays.create(ANNA, chosen, reason)
        return error.value.reason

    assert refused(Chosen()) == Reason.NOTHING_CHOSEN
    row = failed_one(desk)
    assert refused(Chosen(state="held")) == Reason.NOTHING_CHOSEN
    assert refused(Chosen(ids=(row.id, "0197"))) == Reason.UNKNOWN_ID
    assert refused(Chosen(ids=("\x00",))) == Reason.UNKNOWN_ID
    assert refused(Chosen(ids=(row.id,)), " ") == Reason.REASON_MISSING
    monkeypatch.setattr("workers.replay.MOST", 0)
    assert refused(Chosen()) == Reason.TOO_MANY_FOUND
    with queries.reading(desk.engine) as connection:
        assert replays.listed(connection) == []


def test_a_notification_is_chosen_by_any_of_its_deliveries(desk: Desk, engine: Engine) -> None:
    first = delivered(CAPTURED)
    again = msgspec.structs.replace(first, id=envelope().id)
    desk.pipeline.process(sealed(first))
    desk.pipeline.process(sealed(again))
    assert desk.replays.choose(Chosen(ids=(again.id, first.id))) == [first.id]


def test_a_search_chooses_as_it_lists(desk: Desk) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED), envelope("evt_other", quarantine="missing_field", detail="x")))
    (found,) = desk.replays.choose(Chosen(search="evt_other"))
    assert desk.results(desk.replays.create(ANNA, Chosen(ids=(found,)), "x")["id"]) == []


# -- who may, and when


def test_many_need_a_second_operator(engine: Engine) -> None:
    desk = Desk(engine, approve_above=0)
    row = failed_one(desk)
    made = desk.replays.create(ANNA, Chosen(ids=(row.id,)), "mended")
    assert (made["state"], desk.woken) == ("waiting", [])
    desk.run(made["id"])
    assert states(engine) == {row.dedupe_key: "failed"}
    for same in (ANNA, Actor("ANNA", "elsewhere")):
        with pytest.raises(NotDone, match="a second operator") as refused:
            desk.replays.approve(same, made["id"], "I say so")
        assert refused.value.reason == Reason.SECOND_OPERATOR_NEEDED
    with pytest.raises(NotDone):
        desk.replays.resume(BERT, made["id"])
    approved = desk.replays.approve(BERT, made["id"], "looked at it")
    assert (approved["state"], approved["approved_by"], desk.woken) == ("running", "bert", [made["id"]])
    desk.run(made["id"])
    assert states(engine) == {row.dedupe_key: "processed"}
    with pytest.raises(NotDone) as refused:
        desk.replays.approve(BERT, made["id"], "again")
    assert refused.value.reason == Reason.STATE_CHANGED


def quarantined(desk: Desk, count: int) -> None:
    desk.pipeline.process(sealed(*(envelope(f"k{n}", body=b"{", quarantine="x", detail="x") for n in range(count))))


def test_paused_it_does_nothing_and_resumed_it_goes_on(desk: Desk) -> None:
    quarantined(desk, 600)
    replay_id = _made(desk)
    assert desk.runner.run(replay_id, lambda: True)
    done = desk.shown(replay_id)["done"]
    assert 0 < done < 600
    paused = desk.replays.pause(BERT, replay_id)
    assert (paused["state"], paused["done"]) == ("paused", done)
    assert not desk.runner.run(replay_id, lambda: False)
    assert desk.shown(replay_id)["done"] == done
    assert desk.replays.resume(ANNA, replay_id)["state"] == "running"
    desk.run(replay_id)
    assert (desk.shown(replay_id)["done"], len(desk.results(replay_id))) == (600, 600)


def _made(desk: Desk) -> str:
    many = Desk(desk.engine, approve_above=1000)
    return str(many.replays.create(ANNA, Chosen(), "try")["id"])


def test_cancelled_it_never_does_the_rest(desk: Desk) -> None:
    quarantined(desk, 600)
    replay_id = _made(desk)
    desk.runner.run(replay_id, lambda: True)
    done = desk.shown(replay_id)["done"]
    cancelled = desk.replays.cancel(BERT, replay_id, "the wrong ones")
    assert (cancelled["state"], cancelled["outcomes"]) == ("cancelled", {"still_fails": done, "cancelled": 600 - done})
    assert not desk.runner.run(replay_id, lambda: False)
    with pytest.raises(NotDone):
        desk.replays.resume(BERT, replay_id)
    # What it did not do may be chosen again.
    assert desk.replays.preview(Chosen()).total == 600
    _made(desk)


def _into(desk: Desk, replay_id: str, state: str) -> None:
    if state == "cancelled":
        desk.replays.cancel(BERT, replay_id, "no")
    elif state != "waiting":
        desk.replays.approve(BERT, replay_id, "yes")
        if state == "paused":
            desk.replays.pause(BERT, replay_id)
        if state == "done":
            desk.run(replay_id)
    assert desk.shown(replay_id)["state"] == state


STEPS = {
    "waiting": {"approve", "cancel"},
    "running": {"pause", "cancel"},
    "paused": {"resume", "cancel"},
    "done": set(),
    "cancelled": set(),
}
"""What may be done next."""


@pytest.mark.parametrize("state", STEPS)
def test_no_step_is_left_out_or_done_twice(engine: Engine, state: str) -> None:
    desk = Desk(engine, approve_above=0)
    for step in ("approve", "pause", "resume", "cancel"):
        quarantined(desk, 1)
        replay_id = desk.replays.create(ANNA, Chosen(), "try")["id"]
        _into(desk, replay_id, state)
        if step in STEPS[state]:
            assert getattr(desk.replays, step)(BERT, replay_id, "so")["state"] != state
        else:
            with pytest.raises(NotDone) as refused:
                getattr(desk.replays, step)(BERT, replay_id, "so")
            assert refused.value.reason == Reason.STATE_CHANGED
            assert desk.shown(replay_id)["state"] == state
        if desk.shown(replay_id)["state"] not in ("done", "cancelled"):
            desk.replays.cancel(BERT, replay_id, "over")


@pytest.mark.parametrize("name", ["approve", "pause", "resume", "cancel"])
def test_an_unknown_replay_is_said(desk: Desk, name: str) -> None:
    for unknown in ("0197", "", "\x00"):
        with pytest.raises(NotDone) as refused:
            getattr(desk.replays, name)(ANNA, unknown, "why")
        assert refused.value.reason == Reason.UNKNOWN_ID


def test_two_replays_of_the_same_are_told_apart(desk: Desk) -> None:
    row = failed_one(desk)
    first = desk.replays.create(ANNA, Chosen(), "mine")
    with pytest.raises(NotDone) as refused:
        desk.replays.create(BERT, Chosen(ids=(row.id,)), "mine too")
    assert refused.value.reason == Reason.ALREADY_IN_REPLAY
    assert refused.value.detail == f"1 of them is in replay {first['id']} of anna, which is running."
    desk.run(first["id"])
    assert desk.replays.create(BERT, Chosen(ids=(row.id,)), "now")["state"] == "running"


def test_two_who_ask_at_once_get_one_replay(desk: Desk) -> None:
    quarantined(desk, 50)
    barrier = threading.Barrier(4)
    said: list[str] = []

    def ask(name: str) -> None:
        barrier.wait()
        try:
            said.append(Desk(desk.engine).replays.create(Actor(name, "x"), Chosen(), "mine")["state"])
        except NotDone as refused:
            said.append(refused.reason)

    threads = [threading.Thread(target=ask, args=(f"o{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["already_in_replay"] * 3 + ["running"]
    assert len(rows(desk.engine, replay_items)) == 50


def test_two_workers_do_nothing_twice(desk: Desk, engine: Engine) -> None:
    quarantined(desk, 800)
    replay_id = _made(desk)
    threads = [threading.Thread(target=Desk(engine).run, args=(replay_id,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = desk.shown(replay_id)
    assert (shown["state"], shown["done"], shown["outcomes"]) == ("done", 800, {"still_fails": 800})


# -- what stays


def test_every_step_is_in_the_audit_trail(engine: Engine) -> None:
    desk = Desk(engine, approve_above=0)
    failed_one(desk)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    desk.replays.approve(BERT, replay_id, "looked")
    desk.replays.pause(ANNA, replay_id, "lunch")
    desk.replays.resume(BERT, replay_id)
    desk.run(replay_id)
    trail = [(row.operator, row.action, row.reason) for row in rows(engine, audit)]
    assert trail == [
        ("anna", "replay_created", "mended"),
        ("bert", "replay_approved", "looked"),
        ("anna", "replay_paused", "lunch"),
        ("bert", "replay_resumed", "resumed"),
        ("postback", "replay_ended", "mended"),
    ]
    (row,) = rows(engine, notifications)
    with queries.reading(engine) as connection:
        assert Audit(KEYS).verify(connection).faults == []
        (mine,) = replays.of_notification(connection, row.id)
    assert (mine["created_by"], mine["reason"], mine["outcome"]) == ("anna", "mended", "new_payment")


def test_the_replay_object(desk: Desk) -> None:
    row = failed_one(desk)
    made = desk.replays.create(ANNA, Chosen(ids=(row.id,)), " mended ")
    assert made == desk.shown(made["id"])
    assert {name: made[name] for name in ("state", "created_by", "origin", "reason", "chosen", "total", "done")} == {
        "state": "running",
        "created_by": "anna",
        "origin": "203.0.113.7",
        "reason": "mended",
        "chosen": {"ids": [row.id]},
        "total": 1,
        "done": 0,
    }
    with queries.reading(desk.engine) as connection:
        assert replays.listed(connection) == replays.listed(connection, "running") == [made]
        assert replays.listed(connection, "done") == replays.listed(connection, before=made["id"]) == []


def test_a_place_that_cannot_be_asked_for(desk: Desk) -> None:
    with queries.reading(desk.engine) as connection:
        with pytest.raises(NotDone) as refused:
            replays.listed(connection, before="\x00")
        assert refused.value.reason is Reason.CURSOR_MALFORMED
        with pytest.raises(NotDone):
            replays.results(connection, "x", after="\x00")


def test_a_job_names_its_replay() -> None:
    assert replay_of(job_id("0197-x")) == "0197-x"
    assert replay_of(envelope().id) is None


def test_every_outcome_has_a_word_of_its_own() -> None:
    assert len({outcome.value for outcome in Outcome}) == len(Outcome)


# -- with a key of the client


def test_a_key_makes_one_replay_for_ever(desk: Desk) -> None:
    row = failed_one(desk)
    chosen = Chosen(ids=(row.id,))
    first = desk.replays.create(ANNA, chosen, "mended", "key")
    desk.run(first["id"])
    # The replay is over: without the key this would be a second one.
    again = desk.replays.create(ANNA, chosen, " mended ", "key")
    assert (again["id"], again["state"]) == (first["id"], "done")
    with pytest.raises(NotDone) as refused:
        desk.replays.create(ANNA, chosen, "another reason", "key")
    assert refused.value.reason == "idempotency_key_reused"
    assert len(rows(desk.engine, tables.replays)) == 1


def test_a_key_is_not_used_up_by_what_was_refused(desk: Desk) -> None:
    row = failed_one(desk)
    with pytest.raises(NotDone):
        desk.replays.create(ANNA, Chosen(ids=("none",)), "mended", "key")
    assert desk.replays.create(ANNA, Chosen(ids=(row.id,)), "mended", "key")["state"] == "running"
