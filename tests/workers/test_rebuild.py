"""Rebuilding: right after normal processing nothing differs, and whatever was altered is found, and put right."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, delete, insert, update

from receiver.errors import LedgerAway, Quarantined, Reason
from receiver.notification import Effect, Envelope, PaymentEvent, utc
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint
from receiver.signing import Seal
from tests import ledgers
from tests.support import EXPECTED_CASUAL, PAYMENTZ, QUICKSTREAM, all_recorded, recorded, secrets
from tests.workers import material
from tests.workers.material import (
    ENDPOINTS,
    NOW,
    SEAL,
    delivered,
    delivered_as_it_came,
    envelope,
    only_payment,
    processed,
    rows,
    sealed,
)
from tests.workers.settlement import Desk, bank_row, refund, row
from workers.cli import starter
from workers.ledger import database, documents
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Ledger
from workers.ledger.revision import Revision
from workers.ledger.tables import metadata, notifications, payments
from workers.pipeline import Pipeline
from workers.rebuild import Finding, Rebuild

CAPTURED = recorded("checkout", "payment_captured")


def everything() -> list[Envelope]:
    """Every fixture of every sender, as the accept side hands it on."""
    return [delivered_as_it_came(request) for name in PROVIDERS for request in all_recorded(name)]


def walk(engine: Engine, endpoints: dict[tuple[str, str], Endpoint] | None = None) -> Pipeline:
    return Pipeline(ENDPOINTS if endpoints is None else endpoints, Ledger(engine), SEAL)


def run(
    engine: Engine,
    *,
    write: bool = False,
    endpoints: dict[tuple[str, str], Endpoint] | None = None,
    bodies: Bodies | None = None,
    **scope: Any,
) -> list[Finding]:
    ledger = Revision(engine, bodies)
    pipeline = Pipeline(ENDPOINTS if endpoints is None else endpoints, ledger, SEAL)
    # Pages of three: so that every test crosses their edges.
    return list(Rebuild(ledger, pipeline, write=write, page=3, **scope).findings())


def contents(engine: Engine) -> dict[str, list[Any]]:
    return {name: list(rows(engine, table)) for name, table in metadata.tables.items()}


def told(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.verdict, finding.id) for finding in findings]


def change(engine: Engine, statement: Any) -> None:
    with engine.begin() as connection:
        connection.execute(statement)


# -- nothing differs


def test_right_after_normal_processing_nothing_differs(engine: Engine) -> None:
    pipeline = walk(engine)
    pipeline.process(sealed(*everything()))
    pipeline.process(sealed(delivered(recorded("debitsuccess", "casual_payment"), verified=False, dedupe_key="held")))
    pipeline.expect(EXPECTED_CASUAL)
    pipeline.expect(material.expected("TICKET-20504", 58210, "USD"))
    before = contents(engine)
    assert len(before["payments"]) > 50
    assert run(engine) == []
    assert run(engine, write=True) == []
    assert contents(engine) == before


def test_what_was_never_proven_is_left_alone(engine: Engine) -> None:
    casual = recorded("debitsuccess", "casual_payment")
    walk(engine).process(sealed(delivered(casual, verified=False)))
    assert run(engine, write=True) == []
    walk(engine).expect(msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="x"))
    assert {row.state for row in rows(engine, notifications)} == {"quarantined"}
    assert run(engine, write=True) == []


def test_what_came_from_a_settlement_file_is_read_again_as_well(engine: Engine) -> None:
    """A payment that was missing here, a refund, and a direct debit that the payer's bank returned."""
    desk = Desk(Ledger(engine))
    desk.notified("1")
    desk.debited("2")
    returned = bank_row("2", Response_Code="6", Summary_Code="1")
    desk.reconcile([row("1"), row("3", Payment_Amount="95.40"), refund("4", "1"), returned])
    states = {each.receipt_number or each.payment_id: each.state for each in rows(engine, payments)}
    assert sorted(states.values()) == ["captured", "declined", "partially_refunded"]
    before = contents(engine)
    assert run(engine, write=True) == []
    assert contents(engine) == before
    change(engine, delete(payments))
    run(engine, write=True)
    assert [_without_update(each) for each in rows(engine, payments)] == list(map(_without_update, before["payments"]))


def test_an_empty_ledger(engine: Engine) -> None:
    assert run(engine) == []
    assert Rebuild(Revision(engine), walk(engine), write=False).counts() == (0, 0)


# -- what differs is found, and put right


def yesterday(engine: Engine, **fields: Any) -> Any:
    """One captured payment, as an older version with a fault would have stored it."""
    pipeline = walk(engine)
    pipeline.process(sealed(delivered(CAPTURED)))
    good = rows(engine, notifications)[0]
    said = msgspec.structs.replace(msgspec.json.decode(good.event, type=PaymentEvent), **fields)
    stored = msgspec.json.encode(said).decode()
    change(engine, update(notifications).values(event=stored, payment_id=said.payment_id))
    change(engine, delete(payments))
    Revision(engine).refold([("checkout", "main", said.payment_id or "")])
    return good


def test_a_check_finds_what_today_reads_otherwise_and_writes_nothing(engine: Engine) -> None:
    good = yesterday(engine, amount=58, total_captured=58)
    before = contents(engine)
    notification, payment = run(engine)
    assert contents(engine) == before
    assert told([notification, payment]) == [
        ("notification", "changed", good.id),
        ("payment", "changed", good.payment_id),
    ]
    assert notification.changes == {"amount": (58, 58210), "total_captured": (58, 58210)}
    assert payment.changes == {"amount": ("0.58", "582.10")}


def test_a_run_puts_it_right_and_says_the_same(engine: Engine) -> None:
    good = yesterday(engine, amount=58, total_captured=58)
    found = run(engine)
    assert run(engine, write=True) == found
    (row,) = rows(engine, notifications)
    assert (row.event, row.dedupe_key, row.body) == (good.event, good.dedupe_key, good.body)
    assert only_payment(engine).amount == 58210
    assert run(engine) == []


def test_a_payment_under_another_id_moves(engine: Engine) -> None:
    good = yesterday(engine, payment_id="pay_wrong")
    found = run(engine)
    verdicts = {(finding.kind, finding.verdict, finding.id) for finding in found}
    assert verdicts == {
        ("notification", "changed", good.id),
        ("payment", "surplus", "pay_wrong"),
        ("payment", "missing", good.payment_id),
    }
    assert set(told(run(engine, write=True))) == verdicts
    assert only_payment(engine).payment_id == good.payment_id
    assert run(engine) == []


def test_an_event_that_counts_no_more_takes_its_payment_with_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's code sees a contradiction in it: what it says itself is no reason of ours."""
    walk(engine).process(sealed(delivered(CAPTURED)))

    def contradicts(*arguments: Any) -> PaymentEvent:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "two of them")

    monkeypatch.setitem(PROVIDERS, "checkout", replace(PROVIDERS["checkout"], interpret=contradicts))
    found = run(engine)
    assert [finding.verdict for finding in found] == ["changed", "surplus"]
    assert found[0].changes["state"] == ("processed", "quarantined (contradictory_fields)")
    assert sorted(told(run(engine, write=True))) == sorted(told(found))
    assert rows(engine, payments) == []
    assert run(engine) == []


def test_altered_missing_and_surplus_payments(engine: Engine) -> None:
    walk(engine).process(sealed(*everything()))
    before = contents(engine)
    some = before["payments"]
    altered, lost = some[1], some[5]
    change(engine, update(payments).where(payments.c.payment_id == altered.payment_id).values(state="refunded"))
    change(engine, delete(payments).where(payments.c.payment_id == lost.payment_id))
    change(engine, insert(payments).values(altered._asdict() | {"payment_id": "pay_nobody"}))
    verdicts = {
        ("payment", "changed", altered.payment_id),
        ("payment", "missing", lost.payment_id),
        ("payment", "surplus", "pay_nobody"),
    }
    assert set(told(run(engine))) == verdicts
    assert set(told(run(engine, write=True))) == verdicts
    found = contents(engine)
    assert [_without_update(row) for row in found["payments"]] == [_without_update(row) for row in some]
    assert found["notifications"] == before["notifications"]


def test_all_payments_come_back_from_their_notifications(engine: Engine) -> None:
    pipeline = walk(engine)
    pipeline.process(sealed(*everything()))
    pipeline.expect(material.expected("TICKET-20504", 1, "USD"))
    before = [_without_update(row) for row in rows(engine, payments)]
    assert any(row["mismatch"] for row in before)
    change(engine, delete(payments))
    assert len(run(engine, write=True)) == len(before)
    assert [_without_update(row) for row in rows(engine, payments)] == before


def _without_update(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name != "updated_at"}


def test_what_could_not_be_read_then_is_read_today(engine: Engine) -> None:
    """As with a business whose code was configured too late."""
    body = recorded("quickstream", "payment__form").body.replace(b"=ACME&", b"=OTHER&")
    came = delivered(recorded("quickstream", "payment__form"), "acme", body=body, dedupe_key="body:1", event_type="x")
    walk(engine).process(sealed(msgspec.structs.replace(came, quarantine="other_business")))
    later: dict[tuple[str, str], Endpoint] = {
        ("quickstream", "acme"): msgspec.structs.replace(QUICKSTREAM, supplier_business_codes=("OTHER",))
    }
    found = run(engine, endpoints=later)
    assert [finding.verdict for finding in found] == ["changed", "missing"]
    assert {finding.verdict for finding in run(engine, endpoints=later, write=True)} == {"changed", "missing"}
    (row,) = rows(engine, notifications)
    assert (row.state, row.event_type, row.payment_id) == ("processed", "payment", only_payment(engine).payment_id)
    # So that a further delivery is a repeat of it.
    assert row.dedupe_key == row.payment_id
    assert run(engine, endpoints=later) == []


def test_a_repeat_of_another_notification_is_left_as_it_is(engine: Engine) -> None:
    first = delivered(recorded("quickstream", "payment__form"), "acme")
    early = msgspec.structs.replace(first, id=envelope().id, dedupe_key="body:1", quarantine="missing_field")
    walk(engine).process(sealed(early, first))
    before = contents(engine)
    assert [finding.verdict for finding in run(engine, write=True)] == ["repeat"]
    assert contents(engine) == before


# -- what is not taken back


def test_a_purged_body_keeps_what_was_made_of_it(engine: Engine) -> None:
    walk(engine).process(sealed(*everything()))
    change(engine, update(notifications).values(body=b"", purged_at=utc(NOW)))
    before = [_without_update(row) for row in rows(engine, payments)]
    assert run(engine, endpoints={}) == []
    change(engine, delete(payments))
    run(engine, write=True)
    assert [_without_update(row) for row in rows(engine, payments)] == before


def test_a_key_or_an_endpoint_that_is_gone_takes_nothing_back(engine: Engine) -> None:
    walk(engine).process(sealed(delivered(CAPTURED), delivered(recorded("paymentz", "capturesuccess"))))
    before = contents(engine)
    later: dict[tuple[str, str], Endpoint] = {
        ("paymentz", "eu"): msgspec.structs.replace(PAYMENTZ, secure_keys=secrets("another"))
    }
    found = run(engine, endpoints=later, write=True)
    assert [(finding.verdict, finding.differs) for finding in found] == [("kept", False)] * 2
    assert {finding.detail.partition(":")[0] for finding in found} == {"unknown_endpoint", "weak_proof"}
    assert contents(engine) == before


def test_a_fault_of_ours_takes_nothing_back_and_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(engine).process(sealed(delivered(CAPTURED)))
    before = contents(engine)

    def fails(*arguments: Any) -> PaymentEvent:
        raise KeyError("amount")

    monkeypatch.setitem(PROVIDERS, "checkout", replace(PROVIDERS["checkout"], interpret=fails))
    (found,) = run(engine, write=True)
    assert (found.verdict, found.differs) == ("failed", True)
    assert found.detail == "interpretation_failed: KeyError: 'amount'"
    assert contents(engine) == before


def test_a_body_that_no_key_opens_is_told_and_its_payment_stands(engine: Engine) -> None:
    bodies = Bodies(secrets("body-key"))
    Pipeline(ENDPOINTS, Ledger(engine, bodies), SEAL).process(sealed(delivered(CAPTURED)))
    assert run(engine, bodies=bodies) == []
    before = contents(engine)
    (found,) = run(engine, write=True)
    assert found.verdict == "locked"
    assert "security.body_keys" in found.detail
    assert contents(engine) == before


def test_one_that_cannot_be_stored_does_not_hold_up_the_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(engine).process(sealed(*(delivered(CAPTURED, dedupe_key=f"k{number}") for number in range(3))))
    bad = rows(engine, notifications)[1].id
    interpret = PROVIDERS["checkout"].interpret
    told_so_far: list[None] = []

    def later(message: Any, endpoint: Any) -> PaymentEvent:
        told_so_far.append(None)
        amount = 2**70 if len(told_so_far) == 2 else 700
        return msgspec.structs.replace(interpret(message, endpoint), amount=amount, action_id=f"a{amount}")

    monkeypatch.setitem(PROVIDERS, "checkout", replace(PROVIDERS["checkout"], interpret=later))
    found = run(engine, write=True)
    assert [(each.verdict, each.id == bad) for each in found if each.kind == "notification"] == [
        ("changed", False),
        ("unstored", True),
        ("changed", False),
    ]


# -- scope, patience, company


def test_only_the_provider_and_facility_that_are_named(engine: Engine) -> None:
    walk(engine).process(sealed(*everything()))
    change(engine, update(payments).values(state="expired"))
    assert {finding.provider for finding in run(engine, provider="paymentz")} == {"paymentz"}
    assert run(engine, provider="paymentz", facility="elsewhere") == []
    run(engine, provider="paymentz", write=True)
    assert run(engine, provider="paymentz") == []
    assert "paymentz" not in {finding.provider for finding in run(engine)}
    assert len(run(engine)) > 50


def test_waits_for_a_ledger_that_is_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    good = yesterday(engine, amount=58, total_captured=58)
    waited: list[float] = []
    monkeypatch.setattr("workers.rebuild.time.sleep", waited.append)
    revise = Revision.revise

    def away_at_first(self: Revision, items: Any) -> Any:
        if len(waited) < 2:
            raise LedgerAway("locked")
        return revise(self, items)

    monkeypatch.setattr(Revision, "revise", away_at_first)
    assert told(run(engine, write=True))[0] == ("notification", "changed", good.id)
    assert waited == [1, 2]
    monkeypatch.setattr(Revision, "revise", lambda self, items: (_ for _ in ()).throw(LedgerAway("gone")))
    change(engine, update(notifications).values(event='{"event_type":"payment_captured"}'))
    with pytest.raises(LedgerAway):
        run(engine, write=True)


def test_beside_workers_that_record_the_same_payments(database_url: str, engine: Engine) -> None:
    """A worker and a rebuild at once: neither loses what the other wrote, whichever comes first."""
    payment = {"payment_id": "pay_1", "currency": "EUR"}
    captures = [
        processed(f"k{number}", material.event(Effect.CAPTURED, number, action_id=f"a{number}", amount=10, **payment))
        for number in range(60)
    ]
    failures: list[BaseException] = []

    def beside(work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    own = [database.open_engine(database_url) for _ in range(2)]
    done = threading.Event()

    def record() -> None:
        for start in range(0, len(captures), 3):
            Ledger(own[0]).record(captures[start : start + 3])
        done.set()

    def rebuild_again_and_again() -> None:
        revision = Revision(own[1])
        while not done.is_set():
            revision.refold([("checkout", "main", "pay_1"), ("checkout", "main", "pay_2")])

    threads = [beside(record), beside(rebuild_again_and_again)]
    for thread in threads:
        thread.join(60)
    for each in own:
        each.dispose()
    assert failures == []
    assert only_payment(engine).amount == 600


def test_a_payment_that_a_rebuild_removed_meanwhile_is_made_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the worker's insert, which finds it there, and its lock."""
    ledger = Ledger(engine)
    ledger.record([processed("k1", material.event(payment_id="pay_1", amount=5, currency="EUR"))])
    insert_new = documents.insert_new

    def removed_after(connection: Any, table: Any, given: Any) -> Any:
        found = insert_new(connection, table, given)
        if table is payments and not found:
            connection.execute(delete(payments))
        return found

    monkeypatch.setattr("workers.ledger.ledger.insert_new", removed_after)
    ledger.record([processed("k2", material.event(payment_id="pay_1", minute=1, amount=7, currency="EUR"))])
    assert only_payment(engine).amount == 7


# -- the command


def installed(tmp_path: Path) -> tuple[Path, Engine, Pipeline]:
    """A configuration as `postback init` writes it, with a ledger."""
    from receiver import settings as configuration

    config = tmp_path / "postback.toml"
    starter.write(config)
    settings = configuration.load(config)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = database.open_engine(ledgers.new(settings))
    return config, engine, Pipeline(settings.endpoints, Ledger(engine), Seal(settings.security.seal_keys, "batch"))


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.cli.main", "payments", "rebuild", "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_checks_and_puts_right(tmp_path: Path) -> None:
    config, engine, pipeline = installed(tmp_path)
    for each in (CAPTURED, recorded("checkout", "payment_declined")):
        pipeline._ledger.record([pipeline.interpret(delivered(each))])
    checked = command(config, "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "2 notifications interpreted again, 2 payments folded again.\nNothing differs.\n"

    change(engine, update(notifications).values(body=b"", purged_at=material.MOMENT))
    checked = command(config, "--check")
    assert checked.returncode == 0
    assert checked.stdout.startswith(
        "The raw bodies of 2 notifications were purged; what was read of them before counts.\n"
    )

    change(engine, update(payments).values(amount=1))
    checked = command(config, "--check", "--json")
    found = [json.loads(line) for line in checked.stdout.splitlines()]
    assert checked.returncode == 1
    assert len(found) == 2
    (captured,) = [each for each in found if each["changes"]["amount"]["after"] == "582.10"]
    assert captured | {"id": None} == {
        "kind": "payment",
        "verdict": "changed",
        "provider": "checkout",
        "facility": "main",
        "id": None,
        "changes": {"amount": {"before": "0.01", "after": "582.10"}},
        "detail": None,
        "written": False,
    }
    table = command(config, "--check")
    assert table.returncode == 1
    assert "amount 0.01 -> 582.10" in table.stdout
    assert "2 differ. Nothing was written." in table.stdout

    repaired = command(config)
    assert (repaired.returncode, "2 differed; 2 put right." in repaired.stdout) == (0, True)
    assert command(config, "--check").returncode == 0
    engine.dispose()


def test_the_command_says_what_it_cannot_do(tmp_path: Path) -> None:
    config = tmp_path / "postback.toml"
    starter.write(config)
    nothing = command(config)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "does not exist yet" in nothing.stderr
    wrong = command(config, "--provider", "nobody")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
