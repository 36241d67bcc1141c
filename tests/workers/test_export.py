"""Exports, the timeline of a notification, and the live tail, on both databases."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from redis import Redis
from rich.console import Console
from sqlalchemy import Engine

from receiver import refusals
from receiver.notification import Effect, new_id
from receiver.refusals import Refusal, shown
from tests.support import secrets
from tests.workers import material
from tests.workers.material import MOMENT, NOW, envelope, processed
from tests.workers.test_replay import ANNA, Desk, failed_one
from workers.attention import Attention, Kind, Subject, Verdict
from workers.audit import Audit
from workers.cli import watch
from workers.export import COLUMNS, csv_lines, exported, json_lines
from workers.ledger import queries
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.queries import Filter
from workers.ledger.timeline import timeline
from workers.replay import Chosen
from workers.tail import Tail


def read_csv(engine: Engine, **wanted: Any) -> list[dict[str, str]]:
    written = b"".join(csv_lines(exported(partial(queries.reading, engine), Filter(**wanted))))
    return list(csv.DictReader(io.StringIO(written.decode(), newline="")))


# -- export


@pytest.mark.parametrize(
    "evil",
    ["=cmd()", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\N{FULLWIDTH EQUALS SIGN}1"],
)
def test_no_cell_is_a_formula(ledger: Ledger, engine: Engine, evil: str) -> None:
    said = material.event(reference=evil, customer_reference=evil, custom={"customNote": evil}, response_code=evil)
    ledger.record([processed("k1", said)])
    (row,) = read_csv(engine)
    for name in ("reference", "customer_reference", "response_code"):
        assert row[name] == f"'{evil}"
    assert json.loads(row["custom"]) == {"customNote": evil}
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in row.values())


def test_every_field_has_its_column(ledger: Ledger, engine: Engine) -> None:
    came = envelope("k1")
    said = material.event(
        amount=-62400, surcharge=5, currency="AUD", reference='a"b,c\r\nd', settlement_date=MOMENT.date()
    )
    ledger.record([Interpreted(came, "processed", event=said)])
    ledger.record([Interpreted(envelope("k2", received_at=NOW - 1, id=new_id(NOW - 10_000)), "failed", "x", "y")])
    good, failed = read_csv(engine)
    assert list(good) == list(COLUMNS)
    assert (good["id"], good["received_at"], good["deliveries"]) == (came.id, "2025-03-06T03:22:09.123457Z", "1")
    # A number is no formula.
    assert (good["amount"], good["surcharge"], good["effect"]) == ("-624.00", "0.05", "captured")
    assert (good["reference"], good["settlement_date"], good["custom"]) == ('a"b,c\r\nd', "2025-03-06", "{}")
    assert (failed["state"], failed["reason"], failed["amount"], failed["custom"]) == ("failed", "x", "", "")


def test_json_lines_have_the_same(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", material.event(amount=5, currency="JPY", exponent=0, custom={"a": ["=b"]}))])
    ledger.record([Interpreted(envelope("k2"), "failed", "x")])
    written = b"".join(json_lines(exported(partial(queries.reading, engine), Filter(state="processed"))))
    found = [json.loads(line) for line in written.splitlines()]
    assert [list(each) for each in found] == [list(COLUMNS)]
    assert (found[0]["amount"], found[0]["custom"]) == ("5", {"a": ["=b"]})


def test_an_empty_export_has_a_heading(engine: Engine, ledger: Ledger) -> None:
    assert b"".join(csv_lines(exported(partial(queries.reading, engine), Filter()))) == (
        ",".join(COLUMNS).encode() + b"\r\n"
    )


def test_memory_does_not_grow_with_the_rows() -> None:
    def many(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            yield {"id": f"{number:036}", "reference": "x" * 1000}

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in csv_lines(many(count)):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(20_000) < 3 * peak(1000)


# -- the timeline


def test_all_that_happened_is_told_in_its_order(engine: Engine) -> None:
    desk = Desk(engine)
    row = failed_one(desk)
    first = msgspec.structs.replace(envelope(row.dedupe_key), fingerprint=row.fingerprint)
    again = [msgspec.structs.replace(first, id=envelope().id, received_at=NOW + n) for n in (1, 2)]
    desk.ledger.record([Interpreted(again[0], "failed")])
    desk.ledger.record([Interpreted(msgspec.structs.replace(again[1], fingerprint="other"), "failed")])
    attention = Attention(engine, Audit(secrets("seal")))
    attention.settle(ANNA, [Subject(Kind.CONFLICT, row.id)], Verdict.RESOLVED, "first is right")
    replay_id = desk.replays.create(ANNA, Chosen(ids=(row.id,)), "mended")["id"]
    desk.run(replay_id)
    with queries.reading(engine) as connection:
        found = timeline(connection, row.id)
        assert timeline(connection, "0197") == []
    assert [(each["what"], each["by"], each["id"]) for each in found] == [
        ("received", None, row.id),
        ("duplicate", None, again[0].id),
        ("conflict", None, again[1].id),
        ("resolved", "anna", None),
        ("replayed", "anna", replay_id),
    ]
    assert found[-1]["detail"] == "failed (interpretation_failed) → processed, new payment: mended"


def test_what_was_never_replayed_was_processed_once(engine: Engine, ledger: Ledger) -> None:
    came = envelope("k1")
    ledger.record([Interpreted(came, "quarantined", "missing_field")])
    with queries.reading(engine) as connection:
        found = timeline(connection, came.id)
    assert [(each["what"], each["detail"]) for each in found] == [("received", None), ("quarantined", "missing_field")]


# -- the tail


def test_what_comes_is_told_once_in_whatever_order_it_is_recorded(engine: Engine, ledger: Ledger, redis: Redis) -> None:
    def came(key: str, at: int) -> str:
        made = envelope(key, id=new_id(NOW + at), received_at=NOW + at)
        ledger.record([Interpreted(made, "processed", event=material.event(Effect.NONE))])
        return made.id

    old = came("k1", 1000)
    tail = Tail(engine, redis, Filter(limit=200))
    assert [each["id"] for each in tail.begin(5)] == [old]
    assert tail.news() == []
    second = came("k2", 3000)
    # Another worker was slower.
    late = came("k3", 2000)
    refusal = Refusal(
        NOW + 4000, "checkout", "main", "203.0.113.9", "signature_refused", "It does not fit.", 403, 1, ""
    )
    redis.xadd(refusals.STREAM, {"r": msgspec.msgpack.encode(refusal)})
    found = tail.news()
    assert [each.get("id", each.get("reason")) for each in found] == [late, second, "signature_refused"]
    assert [each["kind"] for each in found] == ["notification", "notification", "refusal"]
    assert tail.news() == []


def test_a_tail_shows_what_is_asked_for(engine: Engine, ledger: Ledger, redis: Redis) -> None:
    tail = Tail(engine, redis, Filter(facility="second", limit=200))
    assert tail.begin(0) == []
    ledger.record([Interpreted(envelope("k1", facility=name), "failed", "x") for name in ("main", "second")])
    refusal = Refusal(NOW, "checkout", "main", "203.0.113.9", "signature_refused", "It does not fit.", 403, 1, "")
    redis.xadd(refusals.STREAM, {"r": msgspec.msgpack.encode(refusal)})
    assert [each["facility"] for each in tail.news()] == ["second"]


def test_a_path_that_somebody_asked_for_does_not_steer_the_terminal() -> None:
    written = io.StringIO()
    evil = "\x1b]0;pwned\x07\x1b[2J"
    refusal = Refusal(NOW, evil, evil, "203.0.113.9", "unknown_endpoint", evil, 404, 1, "")
    watch._show(
        Console(file=written, force_terminal=True, color_system=None), {"kind": "refusal", **shown(refusal)}, False
    )
    assert "pwned" in written.getvalue()
    assert not {"\x1b", "\x07"} & set(written.getvalue())
