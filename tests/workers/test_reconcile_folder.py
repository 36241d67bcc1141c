"""The watched folder: whole files are taken once, half-written ones wait, refused ones lie beside their reason."""

from __future__ import annotations

import os
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from receiver.errors import LedgerAway
from tests.workers.material import held_up, rows
from tests.workers.settlement import Desk, row
from workers.ledger.ledger import Ledger
from workers.ledger.reconciliations import Reconciliations
from workers.ledger.tables import audit, reconciliations
from workers.reconcile.folder import Folder, Stopped
from workers.simulator.cash_applied import file_of


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    desk = Desk(ledger)
    desk.notified("1")
    return desk


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder


def folder_of(desk: Desk, path: Path, stopping: threading.Event | None = None) -> Folder:
    return Folder(desk.endpoint, path, desk.books, (stopping or threading.Event()).is_set)


def names(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def put(path: Path, name: str, content: bytes = b"", age: float = 60.0) -> Path:
    """A file that was last written `age` seconds ago."""
    file = path / name
    file.write_bytes(content)
    then = file.stat().st_mtime - age
    os.utime(file, (then, then))
    return file


def test_takes_whole_files_and_moves_them(desk: Desk, watched: Path, engine: Engine) -> None:
    put(watched, "caf.csv", file_of([row("1")]))
    folder = folder_of(desk, watched)
    # The first look only notes its size.
    assert folder.look() == 0
    assert folder.look() == 1
    assert names(watched) == ["done/caf.csv"]
    assert [each.file_name for each in rows(engine, reconciliations)] == ["caf.csv"]
    assert {(each.operator, each.action) for each in rows(engine, audit)} == {
        ("settlement_folder", "reconciliation_begun"),
        ("settlement_folder", "reconciled"),
    }
    assert folder.look() == 0


def test_a_file_that_still_grows_waits(desk: Desk, watched: Path) -> None:
    content = file_of([row("1"), row("2")])
    folder = folder_of(desk, watched)
    file = put(watched, "caf.csv", content[:300])
    assert folder.look() == 0
    put(watched, "caf.csv", content)
    # Another size than at the last look, however old its clock says it is.
    assert folder.look() == 0
    assert folder.look() == 1
    file = put(watched, "late.csv", content, age=0)
    assert [folder.look(), folder.look()] == [0, 0]
    assert file.exists()


@pytest.mark.parametrize("name", [".caf.csv", "caf.csv.part", "caf.csv.TMP", "caf.filepart"])
def test_unfinished_names_are_left_alone(desk: Desk, watched: Path, name: str) -> None:
    put(watched, name, file_of([row("1")]))
    folder = folder_of(desk, watched)
    assert [folder.look(), folder.look()] == [0, 0]
    assert names(watched) == [name]


def test_links_and_folders_are_left_alone(desk: Desk, watched: Path) -> None:
    (watched / "inner").mkdir()
    link = watched / "link.csv"
    link.symlink_to(put(watched.parent, "other.csv", file_of([row("1")])))
    # As old as a file that is taken.
    then = link.lstat().st_mtime - 60
    for each in (link, watched / "inner"):
        os.utime(each, (then, then), follow_symlinks=False)
    folder = folder_of(desk, watched)
    assert [folder.look(), folder.look()] == [0, 0]


def test_a_refused_file_lies_beside_its_reason(
    desk: Desk, watched: Path, engine: Engine, logged: list[MutableMapping[str, Any]]
) -> None:
    put(watched, "a.csv", b"\x00\x01")
    put(watched, "b.csv", file_of([row("1")]))
    folder = folder_of(desk, watched)
    assert [folder.look(), folder.look()] == [0, 2]
    assert names(watched) == ["done/b.csv", "failed/a.csv", "failed/a.csv.reason.txt"]
    assert "not a CSV file" in (watched / "failed" / "a.csv.reason.txt").read_text()
    assert [event["event"] for event in logged if event["log_level"] == "error"] == ["settlement_file_refused"]
    assert len(rows(engine, reconciliations)) == 1


def test_a_name_that_comes_again_overwrites_nothing(desk: Desk, watched: Path) -> None:
    folder = folder_of(desk, watched)
    for receipts in (["1"], ["1", "2"]):
        put(watched, "caf.csv", file_of([row(receipt) for receipt in receipts]))
        assert [folder.look(), folder.look()] == [0, 1]
    assert names(watched) == ["done/caf-2.csv", "done/caf.csv"]
    assert (watched / "done" / "caf.csv").read_bytes() == file_of([row("1")])


# The lock of one PostgreSQL table is not what a reconciliation begins with; SQLite has one lock for all.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_file_stays_while_the_ledger_is_away(desk: Desk, watched: Path, database_url: str, engine: Engine) -> None:
    put(watched, "caf.csv", file_of([row("1")]))
    folder = folder_of(desk, watched)
    folder.look()
    with held_up(database_url), pytest.raises(LedgerAway):
        folder.look()
    assert names(watched) == ["caf.csv"]
    assert folder.look() == 1
    assert len(rows(engine, reconciliations)) == 1


def test_a_run_that_was_stopped_is_told_from_one_that_ended(desk: Desk, watched: Path, engine: Engine) -> None:
    put(watched, "caf.csv", file_of([row("1"), row("2")]))
    stopping = threading.Event()
    folder = folder_of(desk, watched, stopping)
    folder.look()
    stopping.set()
    with pytest.raises(Stopped):
        folder.look()
    assert names(watched) == ["caf.csv"]
    stopping.clear()
    folder.look()
    folder.look()
    assert names(watched) == ["done/caf.csv"]


def test_a_file_waits_while_another_is_in_hand(desk: Desk, watched: Path, engine: Engine) -> None:
    put(watched, "caf.csv", file_of([row("1")]))
    folder = folder_of(desk, watched)
    folder.look()
    with Reconciliations(engine).alone("quickstream", "acme"):
        assert folder.look() == 0
    assert names(watched) == ["caf.csv"]
    assert folder.look() == 1
    assert names(watched) == ["done/caf.csv"]


def test_a_file_that_we_fail_at_holds_up_no_other(
    desk: Desk,
    watched: Path,
    engine: Engine,
    logged: list[MutableMapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a.csv", "b.csv"):
        put(watched, name, file_of([row("1")]))
    monkeypatch.setattr("workers.reconcile.folder.reconcile", lambda *_, **__: 1 / 0)
    folder = folder_of(desk, watched)
    assert [folder.look(), folder.look()] == [0, 2]
    assert names(watched) == ["failed/a.csv", "failed/a.csv.reason.txt", "failed/b.csv", "failed/b.csv.reason.txt"]
    assert "A fault of ours" in (watched / "failed" / "a.csv.reason.txt").read_text()
    assert "settlement_file_failed" in [event["event"] for event in logged]
