"""Keeps the processes of one machine running: starts what dies, and drains it in order when it is told to stop."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from receiver import logs

log = logs.get("workers.supervisor")

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 0.1
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_WELL_AFTER = 10.0
"""Seconds of life after which a process that dies is started again at once."""


@dataclass(slots=True)
class Child:
    """One supervised process. `patience` is how long it may take to stop after SIGTERM, in seconds."""

    name: str
    argv: Sequence[str]
    patience: float
    pass_fds: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause: float = _FIRST_PAUSE
    start_after: float = field(default=0.0)
    on_reload: int | None = None
    """The signal that makes it read the configuration again: SIGHUP, or SIGTERM where it is started again for that."""
    reloading: bool = False

    def start(self) -> None:
        # A group of its own: Ctrl-C in a terminal reaches the supervisor alone, which stops the others in their order.
        self.process = subprocess.Popen(self.argv, pass_fds=self.pass_fds, preexec_fn=_die_with_parent, process_group=0)
        self.started_at = time.monotonic()


def _die_with_parent() -> None:
    """In the child: a supervisor that was killed leaves no process behind that would hold its port or its files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    def __init__(self) -> None:
        self._children: list[Child] = []
        self._stop = threading.Event()
        self._reload = False

    def listen(self) -> None:
        """Makes SIGTERM and SIGINT stop everything, and SIGHUP read the configuration again."""
        signal.signal(signal.SIGHUP, self._ask_to_reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def start(self, child: Child) -> None:
        """Starts `child` and keeps it. Children are stopped in the order in which they were started, reversed."""
        child.start()
        self._children.append(child)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Looks after the children until `condition` holds, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self._stop.wait(0.02):
                return False
            self._look_after()
        return True

    def run(self) -> None:
        """Looks after the children until a signal asks to stop."""
        while not self._stop.wait(_LOOK_EVERY):
            self._look_after()

    def stop(self, *, together: bool = False) -> None:
        """Stops the children, last started first, each when the one before it has ended, or all `together`; what
        outlives its patience is killed."""
        self._stop.set()
        running = [(child, child.process) for child in reversed(self._children) if child.process is not None]
        for _, process in running if together else ():
            process.terminate()
        for child, process in running:
            if not together:
                # Of one that has ended it is no signal.
                process.terminate()
            try:
                process.wait(child.patience)
            except subprocess.TimeoutExpired:
                log.warning("process_killed", name=child.name)
                process.kill()
                process.wait()

    def _ask_to_reload(self, *_: object) -> None:
        self._reload = True

    def _look_after(self) -> None:
        now = time.monotonic()
        if self._reload:
            self._reload = False
            for child in self._children:
                if child.on_reload is not None and child.process is not None and child.process.poll() is None:
                    child.reloading = child.on_reload == signal.SIGTERM
                    child.process.send_signal(child.on_reload)
        for child in self._children:
            if child.process is not None and (status := child.process.poll()) is not None:
                if child.reloading:
                    child.reloading, child.pause = False, _FIRST_PAUSE
                    log.info("process_reloaded", name=child.name)
                else:
                    log.warning("process_died", name=child.name, status=status)
                if now - child.started_at > _WELL_AFTER:
                    child.pause = _FIRST_PAUSE
                child.process, child.start_after = None, now + child.pause
                child.pause = min(child.pause * 2, _LONGEST_PAUSE)
            if child.process is None and now >= child.start_after:
                child.start()


def own_command(*arguments: str) -> list[str]:
    """The command line of another process of this installation."""
    return [sys.executable, "-m", "workers.cli.main", *arguments]
