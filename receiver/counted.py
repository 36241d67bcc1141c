"""Where the processes of a machine count together: a folder with files of each of them, and one of all that have ended.

The library leaves the files of each process there for ever: one that is started again every few seconds would fill the
disk, and every look at the figures would read all of them.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

DEPARTED = "departed"
"""In the place of a name: what those who have ended left behind."""

name: str | None = None
"""Of this process, in the names of its files; None while it counts for itself alone."""

_GATHERING = "gathering"
_kept: list[int] = []
"""Locks that are held for as long as the process lives. They end with it, however it ends."""


def join(folder: Path) -> None:
    """From now on this process counts in `folder`. Must be called before `receiver.metrics` is imported."""
    global name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    name = _take_name(folder)
    gather(folder)


def gather(folder: Path) -> None:
    """Adds the figures of processes that have ended to those of the departed, and removes their files. A process that
    is killed between the two makes them count twice: that is a moment, and figures are no payments."""
    alone = _hold(folder / f"{_GATHERING}.lock")
    if alone is None:
        return
    ended = {lock.stem: held for lock in _locks(folder) if (held := _hold(lock)) is not None}
    try:
        left_behind: dict[str, list[Path]] = defaultdict(list)
        for file in folder.glob("*.db"):
            kind, _, whose = file.stem.rpartition("_")
            if whose in ended or _of_no_process(folder, whose):
                left_behind[kind].append(file)
        for kind, files in left_behind.items():
            _add(files, folder / f"{kind}_{DEPARTED}.db")
        for whose in ended:
            (folder / f"{whose}.lock").unlink(missing_ok=True)
    finally:
        for held in (*ended.values(), alone):
            os.close(held)


@contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """While nobody gathers: in the middle of it some figures are there twice."""
    with (folder / f"{_GATHERING}.lock").open("a") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _take_name(folder: Path) -> str:
    """The process id, unless another process has it: two containers that share a folder may have the same ids."""
    for attempt in range(100):
        wanted = f"{os.getpid()}-{attempt}" if attempt else str(os.getpid())
        held = _hold(folder / f"{wanted}.lock")
        if held is not None:
            _kept.append(held)
            return wanted
    # A file system without locks.
    return str(os.getpid())


def _hold(path: Path) -> int | None:
    """A lock on `path` until it is closed; None while another process has it, or where there are no locks."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file).st_ino:
                return file
        except FileNotFoundError:
            pass
        except OSError:
            os.close(file)
            return None
        # Somebody removed it in between: the lock is on a file that nobody sees any more.
        os.close(file)


def _locks(folder: Path) -> list[Path]:
    return [lock for lock in folder.glob("*.lock") if lock.stem != _GATHERING]


def _of_no_process(folder: Path, whose: str) -> bool:
    """Whether no process can be writing there that holds no lock: versions before this one held none."""
    if not whose.isdigit() or (folder / f"{whose}.lock").exists():
        return False
    try:
        os.kill(int(whose), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _add(files: Sequence[Path], departed: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    sums: dict[str, tuple[float, float]] = {}
    is_gauge = departed.stem.startswith("gauge")
    for file in (departed, *files):
        for key, value, at in _figures(file):
            before, since = sums.get(key, (0.0, 0.0))
            if not is_gauge:
                sums[key] = (before + value, 0.0)
            elif at >= since:
                # All of our gauges are as the one says who was the last to set it.
                sums[key] = (value, at)
    fresh = departed.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    written = MmapedDict(str(fresh))  # type: ignore[no-untyped-call]
    for key, (value, at) in sums.items():
        written.write_value(key, value, at)  # type: ignore[no-untyped-call]
    written.close()  # type: ignore[no-untyped-call]
    fresh.replace(departed)
    for file in files:
        file.unlink(missing_ok=True)


def _figures(file: Path) -> Iterator[tuple[str, float, float]]:
    """(key, value, time). What cannot be read any more, on a disk that was full, counts no further."""
    from prometheus_client.mmap_dict import MmapedDict

    with suppress(Exception):
        for key, value, at, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            yield key, value, at
