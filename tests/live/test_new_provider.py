"""`receiver/providers/README.md`: its example, word for word, is a provider; a module and a name in the one list."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.live.parts import ROOT, Version
from tests.servers import Valkey, absent, eventually

PAGE = (ROOT / "receiver" / "providers" / "README.md").read_text()
MODULE, REGISTRY = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(ENDPOINT,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(SCRIPT,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
KEY = "tidepay-key-of-the-page"


def with_tidepay(code: Path) -> Path:
    """Our code, with the page's module and its list."""
    for part in ("receiver", "workers"):
        shutil.copytree(ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
    providers = code / "receiver" / "providers"
    (providers / "tidepay.py").write_text(MODULE)
    list_ = (providers / "__init__.py").read_text()
    start = list_.index("from receiver.providers import")
    ours = list_[start : list_.index("}\n", start) + 2]
    # The page shows today's list, with one name more.
    assert REGISTRY.replace(", tidepay", "") == ours
    (providers / "__init__.py").write_text(list_.replace(ours, REGISTRY))
    return code


@pytest.fixture
def running(tmp_path: Path, valkey_server: Valkey, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Version]:
    for program in ("curl", "openssl"):
        if shutil.which(program) is None:
            absent(program, FileNotFoundError(f"{program} is not installed"))
    monkeypatch.setenv("TIDEPAY_KEY", KEY)
    code = with_tidepay(tmp_path / "code")
    store = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    version = Version(tmp_path / "place", code, queue=valkey_server.url, store=store)
    config = version.running.config
    config.write_text(f"{config.read_text()}\n{ENDPOINT}")
    try:
        version.start("up", "worker_started")
        yield version
    finally:
        version.close()


def type_in(version: Version, script: str) -> subprocess.CompletedProcess[str]:
    """In a shell whose `postback` is that of the changed code."""
    folder = version.code.parent / "bin"
    folder.mkdir(exist_ok=True)
    command = folder / "postback"
    command.write_text(f'#!/bin/sh\ncd "{version.code}" && exec "{sys.executable}" -m workers.cli.main "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "POSTBACK_CONFIG": str(version.running.config),
    }
    script = script.replace("http://127.0.0.1:8080", version.running.url)
    return subprocess.run(["/bin/bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=60)


def test_the_pages_provider_takes_a_notification_through_to_a_payment(running: Version) -> None:
    sent, looked = SCRIPT.rsplit("postback ", 1)
    done = type_in(running, sent)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "accepted"), done.stderr
    look = f"postback {looked.strip()} --json"

    def payment() -> dict[str, str]:
        (found,) = map(json.loads, type_in(running, look).stdout.splitlines())
        assert isinstance(found, dict)
        return found

    found = eventually(payment, 30, "the payment")
    told = [found[name] for name in ("facility", "payment_id", "state", "amount", "currency", "reference")]
    assert told == ["shop", "pay-1", "captured", "12.50", "NZD", "ORDER-1"]
    # All else comes with the name: a repeat counts once, what is forged is refused, what cannot be read is kept.
    assert json.loads(type_in(running, sent).stdout)["status"] == "accepted"
    forged = json.loads(type_in(running, sent.replace("$TIDEPAY_KEY", "another")).stdout)
    assert forged["error"] == "signature_refused"
    other = sent.replace('"id":"evt-1",', "")
    assert json.loads(type_in(running, other).stdout)["status"] == "quarantined"

    def all_kept() -> bool:
        kept = running.run("notifications", "list", "--provider", "tidepay", "--json")
        rows = [json.loads(line) for line in kept.stdout.splitlines()]
        assert sorted((row["state"], row["deliveries"]) for row in rows) == [("processed", 2), ("quarantined", 1)]
        return True

    eventually(all_kept, 30, "what was sent")
    assert "tidepay/shop" in running.run("doctor").stdout


def test_the_module_is_in_our_style() -> None:
    ruff = [sys.executable, "-m", "ruff"]
    named = ["--stdin-filename", str(ROOT / "receiver" / "providers" / "tidepay.py"), "-"]
    for what in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *what, *named], cwd=ROOT, input=MODULE, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
