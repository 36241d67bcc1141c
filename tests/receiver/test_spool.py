"""The spool: what `add` took is on the disk, whatever happens next; what it did not take leaves nothing behind."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.errors import ConfigurationError, NotStored
from receiver.spool import Spool
from tests.servers import eventually

ROOM = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "spool.sqlite3"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    spool = Spool(path, ROOM)
    yield spool
    spool.close()


def ids(spool: Spool) -> list[str]:
    return [batch.job_id for batch in spool.oldest(ROOM, max_batches=1_000_000)]


def reopened(path: Path, max_bytes: int = ROOM) -> list[str]:
    spool = Spool(path, max_bytes)
    try:
        return ids(spool)
    finally:
        spool.close()


def fill(spool: Spool, size: int) -> int:
    """Adds batches until one is refused; how many were taken."""
    for number in range(1000):
        try:
            spool.add(f"{number}", b"x" * size, "")
        except NotStored as lost:
            assert lost.detail == "The spool did not take the batch: database or disk is full."  # noqa: PT017
            return number
    raise AssertionError("the spool has no end")


def test_batches_come_out_as_they_came_in(spool: Spool) -> None:
    for number in (3, 1, 2):
        spool.add(f"job-{number}", b"sealed %d" % number, f"batch {number}")
    assert spool.count() == 3
    assert [(b.job_id, b.sealed, b.description) for b in spool.oldest(ROOM)] == [
        ("job-3", b"sealed 3", "batch 3"),
        ("job-1", b"sealed 1", "batch 1"),
        ("job-2", b"sealed 2", "batch 2"),
    ]


def test_an_empty_spool(spool: Spool) -> None:
    assert (spool.count(), spool.oldest(ROOM)) == (0, [])


def test_oldest_is_bounded_by_bytes_and_by_batches_but_gives_one_at_least(spool: Spool) -> None:
    for number in range(70):
        spool.add(f"{number}", b"x" * 100, "")
    assert len(spool.oldest(1)) == 1
    assert len(spool.oldest(100)) == 1
    assert len(spool.oldest(299)) == 2
    assert len(spool.oldest(300)) == 3
    assert len(spool.oldest(ROOM)) == 64
    assert len(spool.oldest(ROOM, max_batches=5)) == 5


def test_remove_takes_all_up_to_a_position_and_positions_are_never_used_again(spool: Spool) -> None:
    for number in range(5):
        spool.add(f"{number}", b"x", "")
    third = spool.oldest(ROOM)[2].position
    spool.remove(third)
    assert ids(spool) == ["3", "4"]
    spool.remove(spool.oldest(ROOM)[-1].position)
    spool.add("later", b"x", "")
    assert spool.oldest(ROOM)[0].position > third + 2


def test_a_batch_is_in_it_once(spool: Spool) -> None:
    spool.add("a", b"1", "")
    spool.add("a", b"2", "")
    assert [(batch.job_id, batch.sealed) for batch in spool.oldest(ROOM)] == [("a", b"1")]


def test_it_outlives_its_process(path: Path) -> None:
    spool = Spool(path, ROOM)
    spool.add("a", b"1", "")
    spool.close()
    assert reopened(path) == ["a"]


def test_two_processes_share_it(spool: Spool, path: Path) -> None:
    other = Spool(path, ROOM)
    spool.add("a", b"1", "")
    other.add("b", b"2", "")
    assert ids(spool) == ids(other) == ["a", "b"]
    other.remove(other.oldest(ROOM)[0].position)
    assert ids(spool) == ["b"]
    other.close()


def test_nobody_else_may_read_it(spool: Spool, path: Path) -> None:
    spool.add("a", b"1", "")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = list(path.parent.iterdir())
    assert {file.name for file in files} == {"spool.sqlite3", "spool.sqlite3-wal", "spool.sqlite3-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_each_write_is_synchronous(spool: Spool) -> None:
    settings = [spool._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


def test_a_full_spool_takes_nothing_of_what_it_refuses(path: Path) -> None:
    spool = Spool(path, 128 << 10)
    taken = fill(spool, 5000)
    assert 10 < taken < 30
    assert ids(spool) == [str(number) for number in range(taken)]
    # There may be room for less.
    spool.add("small", b"x", "")
    spool.remove(spool.oldest(ROOM)[0].position)
    spool.add("again", b"x" * 5000, "")
    spool.close()
    assert path.stat().st_size <= 128 << 10
    assert reopened(path, 128 << 10) == [*(str(number) for number in range(1, taken)), "small", "again"]


def test_a_batch_larger_than_the_spool_is_refused_whole(path: Path) -> None:
    spool = Spool(path, 128 << 10)
    with pytest.raises(NotStored):
        spool.add("huge", bytes(4 << 20), "")
    assert (spool.count(), spool._db.in_transaction) == (0, False)
    spool.add("small", b"x", "")
    spool.close()
    assert reopened(path) == ["small"]


def test_trying_out_leaves_nothing_behind(spool: Spool) -> None:
    spool.add("a", b"1", "")
    for _ in range(3):
        spool.try_out()
    assert (ids(spool), spool._db.in_transaction) == (["a"], False)


def test_trying_out_a_full_spool(path: Path) -> None:
    spool = Spool(path, 128 << 10)
    before = fill(spool, 3000)
    with pytest.raises(NotStored):
        spool.try_out()
    assert (spool.count(), spool._db.in_transaction) == (before, False)
    spool.remove(spool.oldest(ROOM)[5].position)
    spool.try_out()
    spool.close()


def test_a_spool_that_is_closed_or_locked_takes_nothing(path: Path) -> None:
    spool = Spool(path, ROOM)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotStored, match="database is locked"):
        spool.add("a", b"1", "")
    other.execute("ROLLBACK")
    other.close()
    spool.add("a", b"1", "")
    spool.close()
    with pytest.raises(NotStored):
        spool.add("b", b"1", "")
    with pytest.raises(NotStored):
        spool.try_out()


def test_a_file_that_is_no_spool_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(ConfigurationError) as error:
        Spool(path, ROOM)
    assert str(error.value) == f"data_dir: the spool {path} cannot be used: file is not a database."


def test_a_folder_that_cannot_be_made_is_named(path: Path) -> None:
    path.parent.write_text("a file")
    with pytest.raises(ConfigurationError, match=r"^data_dir: the spool .* cannot be used: "):
        Spool(path, ROOM)


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from receiver.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30)
number = 0
while True:
    spool.add(str(number), str(number).encode() * 1000, "")
    print(number, flush=True)
    number += 1
"""

WRITE_UNTIL_THE_DISK_IS_FULL = """
import resource, sys
from pathlib import Path
from receiver.errors import NotStored
from receiver.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
taken = 0
try:
    while True:
        spool.add(str(taken), b"x" * 5000, "")
        taken += 1
except NotStored as lost:
    print(taken, lost.detail)
try:
    spool.try_out()
except NotStored:
    print("full")
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
spool.try_out()
spool.add("later", b"x", "")
spool.close()
"""


def test_kill_9_loses_nothing_that_was_taken(path: Path) -> None:
    for _ in range(3):
        shutil.rmtree(path.parent, ignore_errors=True)
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(25):
            process.stdout.readline()
        process.kill()
        taken = 25 + len(process.stdout.read().splitlines())
        process.wait()
        process.stdout.close()
        spool = Spool(path, ROOM)
        batches = spool.oldest(ROOM, max_batches=1_000_000)
        spool.close()
        # The last one may have been written without being told of.
        assert len(batches) in (taken, taken + 1)
        assert [(b.job_id, b.sealed) for b in batches] == [
            (str(number), str(number).encode() * 1000) for number in range(len(batches))
        ]


def test_a_full_disk_takes_nothing_of_what_it_refuses(path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WRITE_UNTIL_THE_DISK_IS_FULL, str(path)], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    first, full = process.stdout.splitlines()
    taken = int(first.split()[0])
    assert 5 < taken < 40
    assert first.removeprefix(f"{taken} ") in (
        "The spool did not take the batch: disk I/O error.",
        "The spool did not take the batch: database or disk is full.",
    )
    assert full == "full"
    assert reopened(path) == [*(str(number) for number in range(taken)), "later"]


def test_a_torn_last_write_is_undone(path: Path, tmp_path: Path) -> None:
    spool = Spool(path, ROOM)
    for number in range(10):
        spool.add(str(number), b"x" * 3000, "")
    log = path.with_name(path.name + "-wal").read_bytes()
    whole = len(log)
    survived = set()
    for torn in range(whole, whole - 9000, -777):
        copy = tmp_path / "copy" / "spool.sqlite3"
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        shutil.copy(path, copy)
        copy.with_name(copy.name + "-wal").write_bytes(log[:torn])
        left = reopened(copy)
        assert left == [str(number) for number in range(len(left))]
        survived.add(len(left))
    spool.close()
    assert max(survived) == 10
    assert min(survived) >= 7


def test_garbage_after_the_last_write_is_ignored(path: Path, tmp_path: Path) -> None:
    spool = Spool(path, ROOM)
    spool.add("a", b"x" * 3000, "")
    copy = tmp_path / "copy.sqlite3"
    shutil.copy(path, copy)
    log = path.with_name(path.name + "-wal").read_bytes()
    copy.with_name(copy.name + "-wal").write_bytes(log + b"\xa5" * 5000)
    spool.close()
    assert reopened(copy) == ["a"]


def test_counting_reads_no_batch(spool: Spool) -> None:
    (plan,) = spool._db.execute("EXPLAIN QUERY PLAN SELECT count(*) FROM batches").fetchall()
    assert "USING COVERING INDEX" in plan[-1]


def test_another_process_that_writes_is_waited_for(path: Path) -> None:
    spool = Spool(path, ROOM)
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE)
    eventually(lambda: spool.count() > 5, what="the other process's batches")
    for number in range(50):
        spool.add(f"mine-{number}", b"x", "")
    process.kill()
    process.communicate()
    mine = [job_id for job_id in ids(spool) if job_id.startswith("mine-")]
    spool.close()
    assert mine == [f"mine-{number}" for number in range(50)]
