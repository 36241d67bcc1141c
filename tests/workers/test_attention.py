"""What needs attention on both databases: found, explained, settled with a reason, and back when it comes again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from receiver.errors import NotDone, Reason
from receiver.notification import new_id
from tests.support import secrets
from tests.workers import material
from tests.workers.material import NOW, envelope, processed, rows
from workers import attention
from workers.attention import MEANINGS, Attention, Kind, Subject, Verdict
from workers.audit import Actor, Audit
from workers.ledger import queries
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.tables import audit

ANNA = Actor("anna", "203.0.113.7")


@pytest.fixture
def desk(engine: Engine) -> Attention:
    return Attention(engine, Audit(secrets("seal")))


@pytest.fixture
def one_of_each(ledger: Ledger) -> dict[str, str]:
    """By kind the id of what needs attention, beside much that does not."""
    came = {state: envelope(state) for state in ("failed", "quarantined", "held")}
    ledger.record([Interpreted(each, state, "some_reason", "detail") for state, each in came.items()])
    first = envelope("twice")
    ledger.record([Interpreted(first, "processed", event=material.event(payment_id="right"))])
    again(ledger, first, "f2")
    ledger.record([processed("part", material.event(payment_id="part", partial=True))])
    return {**{state: each.id for state, each in came.items()}, "conflict": first.id, "mismatch": "part"}


def again(ledger: Ledger, first: Any, fingerprint: str) -> None:
    came = msgspec.structs.replace(first, id=envelope().id, fingerprint=fingerprint, body=fingerprint.encode())
    ledger.record([Interpreted(came, "processed", event=material.event(payment_id="right"))])


def counts(engine: Engine) -> dict[str, int]:
    with queries.reading(engine) as connection:
        return attention.counts(connection)


def listed(engine: Engine, kind: Kind, **wanted: Any) -> list[dict[str, Any]]:
    with queries.reading(engine) as connection:
        return attention.page(connection, kind, **wanted).items


def test_each_kind_is_counted_and_listed(engine: Engine, one_of_each: dict[str, str]) -> None:
    assert counts(engine) == {"failed": 1, "quarantined": 1, "held": 1, "conflict": 1, "mismatch": 1}
    for kind in Kind:
        (item,) = listed(engine, kind)
        assert (item["kind"], item["subject"], item["resolution"]) == (kind, one_of_each[kind], None)
        assert (item["provider"], item["facility"]) == ("checkout", "main")
        shown = item["payment"] if kind is Kind.MISMATCH else item["notification"]
        assert one_of_each[kind] in shown.values()
        assert listed(engine, kind, provider="checkout", facility="main") == [item]
        assert listed(engine, kind, provider="paymentz") == listed(engine, kind, settled=True) == []


def test_every_kind_says_what_it_means_and_what_to_do() -> None:
    assert set(MEANINGS) == set(Kind)
    assert all(meaning.means.endswith(".") and meaning.do.endswith(".") for meaning in MEANINGS.values())


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_is_settled_needs_no_attention(
    engine: Engine, desk: Attention, one_of_each: dict[str, str], kind: Kind, verdict: Verdict
) -> None:
    subject = Subject(kind, one_of_each[kind])
    desk.settle(ANNA, [subject], verdict, " the bank says so ")
    assert counts(engine) == {each.value: int(each is not kind) for each in Kind}
    assert listed(engine, kind) == []
    (item,) = listed(engine, kind, settled=True)
    resolution = item["resolution"]
    assert (resolution["verdict"], resolution["operator"]) == (verdict, "anna")
    assert resolution["reason"] == "the bank says so"
    with queries.reading(engine) as connection:
        assert attention.of(connection, kind, "checkout", "main", one_of_each[kind]) == resolution
        assert attention.of(connection, kind, "checkout", "main", "x") is None
    (entry,) = rows(engine, audit)
    assert (entry.action, entry.subject, entry.reason) == (verdict, one_of_each[kind], "the bank says so")
    with pytest.raises(NotDone) as refused:
        desk.settle(ANNA, [subject], verdict, "twice")
    assert refused.value.reason == Reason.STATE_CHANGED
    desk.reopen(ANNA, [subject], "it was not")
    assert counts(engine)[kind] == 1
    with pytest.raises(NotDone) as refused:
        desk.reopen(ANNA, [subject], "it was not")
    assert refused.value.reason == Reason.STATE_CHANGED


def test_a_further_conflict_needs_attention_again(
    engine: Engine, desk: Attention, ledger: Ledger, one_of_each: dict[str, str]
) -> None:
    desk.settle(ANNA, [Subject(Kind.CONFLICT, one_of_each["conflict"])], Verdict.RESOLVED, "first was right")
    with queries.reading(engine) as connection:
        first = queries.show_notification(connection, one_of_each["conflict"], ledger.bodies)
    assert first is not None
    again(ledger, envelope("twice", id=first["id"]), "f3")
    assert counts(engine)["conflict"] == 1
    desk.settle(ANNA, [Subject(Kind.CONFLICT, one_of_each["conflict"])], Verdict.IGNORED, "again")
    assert counts(engine)["conflict"] == 0


def test_several_are_settled_together_or_not_at_all(
    engine: Engine, desk: Attention, one_of_each: dict[str, str]
) -> None:
    subjects = [Subject(Kind(kind), one_of_each[kind]) for kind in ("failed", "quarantined")]
    with pytest.raises(NotDone):
        desk.settle(ANNA, [*subjects, Subject(Kind.HELD, "0197")], Verdict.RESOLVED, "all")
    assert rows(engine, audit) == []
    assert counts(engine)["failed"] == 1
    desk.settle(ANNA, [*subjects, subjects[0]], Verdict.RESOLVED, "all")
    assert (counts(engine)["failed"], len(rows(engine, audit))) == (0, 2)


@pytest.mark.parametrize(
    ("subjects", "reason", "refusal"),
    [
        ([], "why", Reason.NOTHING_CHOSEN),
        ([Subject(Kind.FAILED, "x")], "", Reason.REASON_MISSING),
        ([Subject(Kind.FAILED, "x")], "why", Reason.UNKNOWN_ID),
        ([Subject(Kind.MISMATCH, "\x00")], "why", Reason.UNKNOWN_ID),
        ([Subject(Kind.MISMATCH, "right")], "why", Reason.STATE_CHANGED),
        ([Subject(Kind.MISMATCH, "part", "paymentz")], "why", Reason.UNKNOWN_ID),
        ([Subject(Kind.FAILED, str(n)) for n in range(1001)], "why", Reason.TOO_MANY_FOUND),
    ],
)
@pytest.mark.usefixtures("one_of_each")
def test_what_cannot_be_settled(desk: Attention, subjects: list[Subject], reason: str, refusal: Reason) -> None:
    with pytest.raises(NotDone) as refused:
        desk.settle(ANNA, subjects, Verdict.RESOLVED, reason)
    assert refused.value.reason == refusal


def test_a_payment_of_two_endpoints_needs_to_be_named(engine: Engine, desk: Attention, ledger: Ledger) -> None:
    for facility in ("main", "second"):
        said = material.event(payment_id="same", partial=True)
        ledger.record([processed(f"k-{facility}", said, facility=facility)])
    with pytest.raises(NotDone, match="say which"):
        desk.settle(ANNA, [Subject(Kind.MISMATCH, "same")], Verdict.RESOLVED, "why")
    desk.settle(ANNA, [Subject(Kind.MISMATCH, "same", "checkout", "second")], Verdict.RESOLVED, "why")
    assert [item["facility"] for item in listed(engine, Kind.MISMATCH)] == ["main"]


@pytest.mark.parametrize("kind", [Kind.FAILED, Kind.MISMATCH])
def test_they_are_listed_in_pages(engine: Engine, ledger: Ledger, kind: Kind) -> None:
    for n in range(7):
        came = envelope(f"k{n}", id=new_id(NOW + n * 1000))
        said = material.event(payment_id=f"p{n}", partial=True)
        ledger.record(
            [Interpreted(came, "failed", "x") if kind is Kind.FAILED else Interpreted(came, "processed", event=said)]
        )
    with queries.reading(engine) as connection:
        whole = list(attention.every(connection, kind))
        assert len(whole) == 7
        assert list(attention.every(connection, kind, limit=3)) == whole[:3]
        found, cursor = [], None
        for _ in range(4):
            page = attention.page(connection, kind, cursor=cursor, limit=2)
            found += page.items
            cursor = page.next
        assert (found, cursor) == (whole, None)
        with pytest.raises(NotDone):
            attention.page(connection, kind, cursor="x")
