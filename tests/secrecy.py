"""Looks for the tests' own secrets in all that is printed, logged, answered, sent, kept in a ledger or a spool, and
shown in the list of processes, while the whole suite runs: the test during which one comes out fails.

Each process of the test runner looks for itself, so that any number of them may share the suite.
"""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest

from receiver.settings import Settings
from workers.cli import machine

KNOWN = (
    *("old:pässword", "new:pässword", "cko-old-key", "cko-new-key", "pz-old-key", "pz-new-key"),
    *("event-old-token", "event-new-token", "qs-old:pass", "qs-new:pässword", "octane-password", "elsewhere-password"),
    *("cko-static-key", "cko-static-authorization", "old-seal-key", "new-seal-key", "test-api-key"),
    *("seal-key-of-the-tests", "api-key-of-the-tests", "old-api-key", "seal-key-of-the-apart"),
    *("acl-accept-password", "acl-worker-password", "acl-console-password", "role-owner-password"),
    *("console-client-key-of-32-characters!", "operators-password-17", "queue-password", "sentinel-password"),
    *("rotated-first-pass", "rotated-second-pass", "rotated-third-pass", "moved-seal-key", "a-seal-key-of-the-tests"),
    *("old-body-key-oooooooooooooooo", "new-body-key-nnnnnnnnnnnnnnnn", "return-password", "next-password"),
    *("return-old-password", "return-new-password", "correct horse battery", "operators-choice-18"),
    *(f"{role}-key-of-thirty-two-characters" for role in ("viewer", "operator", "approver")),
    *("mail-password-of-the-tests", "whsec_bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctMQ=="),
)
"""Secrets that tests configure, long and odd enough to stand nowhere else."""


def _spellings(secret: str) -> Iterator[bytes]:
    """As text, escaped as JSON, HTML and addresses do it, and as credentials carry it."""
    yield secret.encode()
    yield secret.encode("latin-1")
    yield json.dumps(secret)[1:-1].encode()
    yield quote(secret).encode()
    yield quote_plus(secret).encode()
    yield b64encode(secret.encode())
    yield b64encode(f"acme:{secret}".encode())


SPELLINGS = {spelling: secret for secret in KNOWN for spelling in _spellings(secret)}


def unknown(settings: Settings) -> list[str]:
    """The secrets of a configuration that nobody would look out for. A hash of a password and the address of a server
    are none."""
    known = {secret.encode() for secret in KNOWN}
    revealed = {secret.reveal() for secret in machine.secrets_of(settings)}
    return [repr(secret) for secret in revealed - known if not secret.startswith(b"$scrypt$") and b"://" not in secret]


LEFT = {".log", ".jsonl", ".out", ".err", ".csv", ".html", ".json", ".sqlite3", ".sqlite3-wal"}
"""Kinds of files that tests leave: logs, exports, pages, ledgers and spools. A configuration may have secrets in it."""
LONGEST = 8 << 20
"""Bytes of such a file; those of a million notifications say nothing new."""


class Recorder:
    """What came out since the last question."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def look(self, where: str, text: bytes | str | None) -> None:
        if not text:
            return
        given = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        for spelling, secret in SPELLINGS.items():
            if spelling in given:
                self._found.append(f"{secret!r} in {where}")

    def look_at_processes(self) -> None:
        """Every command line of this machine that is ours to see."""
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.look(f"the command line of process {process.parent.name}", process.read_bytes())
            except OSError:
                continue

    def look_at_files(self, folder: Path) -> None:
        """What a test has left in its folder, whichever process has written it."""
        for file in folder.rglob("*"):
            try:
                if file.suffix in LEFT and file.is_file() and file.stat().st_size <= LONGEST:
                    self.look(f"the file {file.relative_to(folder)}", file.read_bytes())
            except OSError:
                # A folder of a server that is just being removed.
                continue

    def taken(self) -> list[str]:
        found, self._found = self._found, []
        return found


RECORDER = Recorder()


def watch() -> None:
    """From now on answers, commands and what they print are looked at."""
    _after(httpx.Client, "send", _look_at_answer)
    _after_all(httpx.AsyncClient, "send", _look_at_answer)
    _after(subprocess, "run", _look_at_output)


def _after(owner: Any, name: str, look: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    def watched(*arguments: Any, **more: Any) -> Any:
        result = original(*arguments, **more)
        look(result)
        return result

    setattr(owner, name, watched)


def _after_all(owner: Any, name: str, look: Callable[[Any], None]) -> None:
    """The same for what is awaited."""
    original = getattr(owner, name)

    async def watched(*arguments: Any, **more: Any) -> Any:
        result = await original(*arguments, **more)
        look(result)
        return result

    setattr(owner, name, watched)


def _look_at_answer(answer: httpx.Response) -> None:
    where = f"the answer to {answer.request.method} {answer.request.url.path}"
    if answer.is_stream_consumed:
        RECORDER.look(where, answer.content)
    RECORDER.look(where, repr(answer.headers.multi_items()))


def _look_at_output(done: subprocess.CompletedProcess[Any]) -> None:
    RECORDER.look(f"what {done.args} printed", done.stdout)
    RECORDER.look(f"what {done.args} printed", done.stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    for name, content in report.sections:
        # Those of the phases before come again.
        if name.endswith(report.when or ""):
            RECORDER.look(name, content)
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.when == "teardown" and isinstance(folder, Path):
        RECORDER.look_at_files(folder)
    if (found := RECORDER.taken()) and report.passed:
        report.outcome = "failed"
        report.longrepr = "A secret came out: " + "; ".join(dict.fromkeys(found))
    return report
