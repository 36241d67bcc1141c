"""The audit trail on both databases: in one chain whoever writes at once, and no change goes unseen."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, text, update
from sqlalchemy.exc import DBAPIError

from receiver.errors import NotDone, Reason
from tests.support import secrets
from tests.workers.material import rows
from workers import audit as trail
from workers.audit import NOBODY_BEFORE, Action, Actor, Audit, Verdict
from workers.ledger import queries
from workers.ledger.tables import audit

ANNA = Actor("anna", "203.0.113.7")
KEYS = secrets("old-seal-key", "new-seal-key")


@pytest.fixture
def kept() -> Audit:
    return Audit(KEYS)


def add(engine: Engine, kept: Audit, *reasons: str) -> None:
    for reason in reasons:
        with engine.begin() as connection:
            kept.add(connection, ANNA, Action.RESOLVED, "0197", reason, {"kind": "failed"})


def verified(engine: Engine, kept: Audit) -> Verdict:
    with queries.reading(engine) as connection:
        return kept.verify(connection)


def faults(engine: Engine, kept: Audit) -> list[tuple[int, str]]:
    return [(fault.number, fault.what) for fault in verified(engine, kept).faults]


def forge(engine: Engine, *statements: Any) -> None:
    """As somebody who may do everything in the database."""
    with engine.begin() as connection:
        allow(connection)
        for statement in statements:
            connection.execute(statement)
        forbid(connection)


def allow(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE audit DISABLE TRIGGER audit_keeps_all"))
        return
    for when in ("UPDATE", "DELETE"):
        connection.execute(text(f"DROP TRIGGER audit_keeps_{when}"))


def forbid(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE audit ENABLE TRIGGER audit_keeps_all"))
        return
    for when in ("UPDATE", "DELETE"):
        connection.execute(
            text(f"CREATE TRIGGER audit_keeps_{when} BEFORE {when} ON audit BEGIN SELECT RAISE(ABORT, 'x'); END")
        )


def test_an_entry_says_who_what_when_where_and_why(
    engine: Engine, kept: Audit, logged: Sequence[MutableMapping[str, Any]]
) -> None:
    add(engine, kept, "asked the bank")
    (row,) = rows(engine, audit)
    with queries.reading(engine) as connection:
        (found,) = trail.listed(connection)
    assert found == {
        "number": 1,
        "at": row.at,
        "operator": "anna",
        "origin": "203.0.113.7",
        "action": "resolved",
        "subject": "0197",
        "reason": "asked the bank",
        "facts": {"kind": "failed"},
        "hash": row.hash,
    }
    assert row.previous == NOBODY_BEFORE
    (line,) = [event for event in logged if event["event"] == "audit_entry"]
    assert (line["number"], line["hash"]) == (1, row.hash)


def test_an_empty_and_a_whole_trail_hold(engine: Engine, kept: Audit) -> None:
    assert verified(engine, kept) == Verdict(0, NOBODY_BEFORE, [])
    add(engine, kept, "a", "b", "c")
    assert verified(engine, kept) == Verdict(3, rows(engine, audit)[-1].hash, [])


def test_it_is_listed_newest_first_in_pages(engine: Engine, kept: Audit) -> None:
    add(engine, kept, "a", "b", "c")
    with queries.reading(engine) as connection:
        assert [each["number"] for each in trail.listed(connection, limit=2)] == [3, 2]
        assert [each["number"] for each in trail.listed(connection, before=2)] == [1]
        assert [each["number"] for each in trail.listed(connection, operator="anna", subject="0197")] == [3, 2, 1]
        assert [each["number"] for each in trail.every(connection, 2)] == [3, 2]
        assert [each["number"] for each in trail.every(connection)] == [3, 2, 1]
        assert trail.listed(connection, operator="bert") == trail.listed(connection, subject="x\x00") == []


@pytest.mark.parametrize("statement", [update(audit).values(reason="x"), delete(audit)])
def test_the_database_refuses_a_change(engine: Engine, kept: Audit, statement: Any) -> None:
    add(engine, kept, "a")
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(statement)
    assert verified(engine, kept).faults == []


def test_what_is_rolled_back_was_never_there(
    engine: Engine, kept: Audit, logged: Sequence[MutableMapping[str, Any]]
) -> None:
    with engine.connect() as connection:
        kept.add(connection, ANNA, Action.EXPORTED)
        connection.rollback()
    assert rows(engine, audit) == []
    assert not [event for event in logged if event["event"] == "audit_entry"]


def test_many_at_once_make_one_chain(engine: Engine, kept: Audit) -> None:
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(add, engine, kept, *(f"{n}-{i}" for i in range(20))) for n in range(2)]:
            done.result()
    assert verified(engine, kept).entries == 40
    assert verified(engine, kept).faults == []


@pytest.mark.parametrize(
    ("statements", "first"),
    [
        ([update(audit).where(audit.c.number == 2).values(reason="x")], (2, "was changed")),
        ([update(audit).where(audit.c.number == 2).values(operator="bert")], (2, "was changed")),
        ([update(audit).where(audit.c.number == 2).values(facts="{}")], (2, "was changed")),
        ([update(audit).where(audit.c.number == 2).values(facts="no JSON")], (2, "was changed")),
        ([update(audit).where(audit.c.number == 2).values(facts="[]")], (2, "was changed")),
        ([delete(audit).where(audit.c.number == 2)], (2, "is missing")),
        ([delete(audit).where(audit.c.number == 1)], (1, "is missing")),
        ([update(audit).where(audit.c.number == 3).values(seal="0" * 64)], (3, "has a seal that does not fit")),
        ([update(audit).where(audit.c.number == 3).values(previous="0" * 64)], (3, "does not follow the entry before")),
    ],
)
def test_a_change_names_the_entry(engine: Engine, kept: Audit, statements: list[Any], first: tuple[int, str]) -> None:
    add(engine, kept, "a", "b", "c")
    forge(engine, *statements)
    number, what = faults(engine, kept)[0]
    assert (number, what[: len(first[1])]) == first


def test_a_chain_written_anew_has_no_seals(engine: Engine, kept: Audit) -> None:
    """By somebody who may write the database and has not the keys."""
    add(engine, kept, "a", "b", "c")
    forge(engine, delete(audit))
    add(engine, Audit(secrets("a key of the forger")), "x", "b", "c")
    assert faults(engine, kept) == [(1, "and those after it are sealed with a key that is not in security.seal_keys")]
    # Nor does it help to wait for the next honest entry.
    add(engine, kept, "d")
    assert faults(engine, kept) == [(4, "was added when the seal before it could not be checked")]


def test_facts_that_nobody_can_read_hide_no_entry(engine: Engine, kept: Audit) -> None:
    add(engine, kept, "a", "b")
    forge(engine, update(audit).where(audit.c.number == 1).values(facts="no JSON"))
    with queries.reading(engine) as connection:
        assert [(entry["number"], entry["facts"]) for entry in trail.listed(connection)] == [
            (2, {"kind": "failed"}),
            (1, {}),
        ]


def test_seal_keys_come_and_go(engine: Engine) -> None:
    first, both, second = (Audit(secrets(*names)) for names in (["k1"], ["k1", "k2"], ["k2"]))
    for kept, reason in zip((first, both, second), "abc", strict=True):
        add(engine, kept, reason)
    for kept in (both, second):
        assert faults(engine, kept) == []
    forge(engine, update(audit).where(audit.c.number == 1).values(reason="x"))
    assert faults(engine, second) == [(1, "was changed")]


@pytest.mark.parametrize("reason", ["", " \n", "x" * 1001])
def test_a_reason_is_needed(reason: str) -> None:
    with pytest.raises(NotDone) as refused:
        trail.reason_given(reason)
    assert refused.value.reason == Reason.REASON_MISSING


def test_any_text_can_be_kept(engine: Engine, kept: Audit) -> None:
    odd = "\x00\ud800é=cmd()|<script>"
    with engine.begin() as connection:
        kept.add(connection, Actor(odd * 50, odd * 50), Action.EXPORTED, odd * 50, odd * 200, {"odd": "\x00é"})
    assert faults(engine, kept) == []


def test_every_action_has_a_word_of_its_own() -> None:
    words = [action.value for action in Action]
    assert len(words) == len(set(words))
    assert all(len(word) <= 40 for word in words)
