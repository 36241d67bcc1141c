"""The watched folders: takes settlement files once they are whole, and puts them aside when they are done.

``settlement_folder/done`` has what was reconciled, ``settlement_folder/failed`` what could not be, each with a file
beside it that says why. A file whose run was interrupted stays where it is and is taken again: its rows are entered
only once. This runs in a process of its own, as a large file must not hold up notifications.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from receiver import logs
from receiver.errors import LedgerAway
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings
from workers.audit import Actor
from workers.reconcile.reader import Busy, Unreadable
from workers.reconcile.run import Books, ready, reconcile

log = logs.get("workers.reconcile")

LOOK_EVERY = 2.0
WHOLE_AFTER = 10.0
"""Seconds for which a file must not have changed. Whoever can, writes under another name and renames it."""

# What transfer programs call a file that is not whole yet.
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".swp")


class Stopped(Exception):
    """The process is to end: the file in hand stays where it is."""


class Folder:
    """The folder of one endpoint. `look` takes each file that is whole."""

    def __init__(
        self,
        endpoint: QuickStreamEndpoint,
        path: Path,
        books: Books,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stopping = stopping
        self._endpoint = endpoint
        self._path = path
        self._books = books
        self._actor = Actor("settlement_folder", socket.gethostname())
        self._sizes: dict[str, tuple[int, int]] = {}

    def look(self, whole_after: float = WHOLE_AFTER) -> int:
        """Takes what is whole, oldest first; gives the number of files. Raises `LedgerAway`, `OSError`, `Stopped`."""
        files = sorted(self._whole(whole_after), key=lambda file: (file.stat().st_mtime, file.name))
        return sum(self._take(file) for file in files)

    def _whole(self, whole_after: float) -> Iterator[Path]:
        """Files that have not changed since the last look, nor for some seconds by the clock of their disk."""
        last, self._sizes = self._sizes, {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
                    continue
                # A link may lead to any file that this process may read.
                if not entry.is_file(follow_symlinks=False):
                    continue
                state = entry.stat(follow_symlinks=False)
                self._sizes[entry.name] = (state.st_size, state.st_mtime_ns)
                unchanged = last.get(entry.name) == self._sizes[entry.name]
                if unchanged and time.time() - state.st_mtime >= whole_after:
                    yield Path(entry.path)

    def _take(self, file: Path) -> bool:
        """False while a file that somebody gave by hand is in hand: the next look takes this one."""
        try:
            with file.open("rb") as content:
                result = reconcile(self._books, self._endpoint, content, file.name, self._actor, progress=self._go_on)
        except Busy:
            return False
        except Unreadable as fault:
            self._set_aside(file, str(fault))
        except OSError as error:
            self._set_aside(file, f"The file cannot be read: {error.strerror}.")
        except (LedgerAway, Stopped):
            raise
        except Exception:
            # It would be taken again for ever, and nothing after it.
            log.exception("settlement_file_failed", facility=self._endpoint.facility, file=file.name)
            self._set_aside(file, "A fault of ours; its traceback is in the log. What was entered stays.")
        else:
            moved = self._move(file, "done")
            log.info(
                "settlement_file_done", facility=self._endpoint.facility, file=moved.name, findings=result.findings
            )
        return True

    def _go_on(self, share: float) -> None:
        if self._stopping():
            raise Stopped

    def _set_aside(self, file: Path, why: str) -> None:
        log.error("settlement_file_refused", facility=self._endpoint.facility, file=file.name, detail=why)
        moved = self._move(file, "failed")
        moved.with_name(f"{moved.name}.reason.txt").write_text(f"{why}\n", "utf-8")

    def _move(self, file: Path, where: str) -> Path:
        folder = self._path / where
        folder.mkdir(exist_ok=True)
        target, number = folder / file.name, 1
        while target.exists():
            number += 1
            target = folder / f"{file.stem}-{number}{file.suffix}"
        file.rename(target)
        return target


def watch(settings: Settings) -> None:
    """Looks after the folders of all endpoints until SIGTERM or SIGINT, which a file in hand notices within seconds."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with ready(settings) as books:
        folders = [
            Folder(endpoint, endpoint.settlement_folder, books, stopping.is_set)
            for endpoint in watched(settings)
            if endpoint.settlement_folder is not None
        ]
        log.info("settlement_watch_started", folders=len(folders))
        faults: dict[Folder, str] = {}
        while not stopping.wait(LOOK_EVERY):
            for folder in folders:
                fault = _look(folder)
                if fault and faults.get(folder) != fault:
                    log.warning("settlement_folder_away", error=fault)
                faults[folder] = fault


def watched(settings: Settings) -> list[QuickStreamEndpoint]:
    """The endpoints that have a folder."""
    return [
        endpoint
        for endpoint in settings.endpoint
        if isinstance(endpoint, QuickStreamEndpoint) and endpoint.settlement_folder is not None
    ]


def _look(folder: Folder) -> str:
    """What kept it from looking; "" when nothing did. The next look tries again."""
    try:
        folder.look()
    except Stopped:
        return ""
    except LedgerAway as error:
        return f"The ledger does not answer: {error}"
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    return ""
