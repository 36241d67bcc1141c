"""An operator's day with the shipped command: find what is broken, understand it, mend it, do it again, prove it."""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.installation import Installation, command, installed
from tests.live.test_installation import notify, quickstream
from tests.servers import eventually

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path) as here:
        here.config.write_text(here.config.read_text() + "\n[replay]\napprove_above = 2\n")
        yield here


def quarantined(running: Installation, *receipts: str) -> list[str]:
    """Payments for a business that the configuration does not know; their ids."""
    for receipt in receipts:
        answer = notify(running, quickstream(receipt, business="OTHER", customNote="=cmd()"))
        assert answer.status_code == 200, answer.text

    def ids() -> list[str]:
        found = running.json("notifications", "list", "--state", "quarantined")
        return [each["id"] for each in found] if len(found) == len(receipts) else []

    return eventually(ids)


def mend(running: Installation) -> None:
    """The business is ours after all; the processes are started again with it."""
    text = running.config.read_text()
    running.config.write_text(text.replace('codes = ["ACME"]', 'codes = ["ACME", "OTHER"]'))
    running.stop()
    running.start()


def test_what_is_broken_is_found_mended_and_done_again(running: Installation) -> None:
    (broken,) = quarantined(running, "8001")
    listed = running.run("attention", "list")
    assert "Quarantined (1 open)" in listed.stdout
    assert "What to do:" in listed.stdout
    assert broken in listed.stdout
    (item,) = running.json("attention", "list", "--kind", "quarantined")
    assert (item["subject"], item["reason"]) == (broken, "other_business")

    tried = running.run("notifications", "replay", "--ids", broken, "--dry-run", "--json")
    assert tried.returncode == 1
    (result,) = map(json.loads, tried.stdout.splitlines())
    assert (result["outcome"], result["was"]) == ("still_fails", "quarantined (other_business)")

    mend(running)
    tried = running.run("notifications", "replay", "--state", "quarantined", "--dry-run")
    assert tried.returncode == 0, tried.stdout
    assert "1 new payment" in tried.stdout
    assert "Nothing was changed." in tried.stdout
    assert running.json("payments", "list") == []

    refused = running.run("notifications", "replay", "--ids", broken)
    assert (refused.returncode, refused.stderr) == (2, "postback: A reason is needed; it stays in the audit trail.\n")
    done = running.run("notifications", "replay", "--ids", broken, "--reason", "the business is ours", "--json")
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout)
    assert (replay["state"], replay["outcomes"], replay["created_by"]) == ("done", {"new_payment": 1}, ME)
    (payment,) = running.json("payments", "list", "--search", "ORDER-8001")
    assert (payment["state"], payment["amount"]) == ("captured", "624.00")

    shown = running.json("replays", "show", replay["id"])
    assert (shown[0]["reason"], shown[1]["outcome"]) == ("the business is ours", "new_payment")
    (told,) = running.json("notifications", "show", broken)
    assert [each["what"] for each in told["timeline"]] == ["received", "replayed"]
    trail = running.json("audit", "list")
    assert [(each["action"], each["operator"]) for each in trail] == [
        ("replay_ended", "postback"),
        ("replay_created", ME),
    ]
    assert f"uid {os.getuid()}" in trail[1]["origin"]
    assert running.run("audit", "verify").returncode == 0
    assert running.run("attention", "list").stdout == "Nothing needs attention.\n"


def test_many_wait_for_a_second_operator_who_is_not_the_first(running: Installation) -> None:
    ids = quarantined(running, "8001", "8002", "8003")
    made = running.run("notifications", "replay", "--state", "quarantined", "--reason", "try")
    assert made.returncode == 0, made.stderr
    assert "A second operator must approve it" in made.stdout
    (replay,) = running.json("replays", "list", "--state", "waiting")
    refused = running.run("replays", "approve", replay["id"], "--reason", "I say so")
    assert refused.returncode == 2
    assert refused.stderr == f"postback: {ME} asked for this replay; a second operator must approve it.\n"
    again = running.run("notifications", "replay", "--ids", ids[0], "--reason", "mine")
    assert again.returncode == 2
    assert f"1 of them is in replay {replay['id']} of {ME}, which is waiting." in again.stderr
    assert running.run("replays", "pause", replay["id"]).returncode == 2
    assert running.run("replays", "cancel", replay["id"], "--reason", "too many").returncode == 0
    assert running.json("replays", "list")[0]["state"] == "cancelled"


def test_what_is_settled_counts_no_more(running: Installation) -> None:
    (broken,) = quarantined(running, "8001")
    assert json.loads(running.run("health").stdout)["database"]["quarantined"] == 1
    settled = running.run("attention", "ignore", broken, "--kind", "quarantined", "--reason", "the bank's test")
    assert settled.returncode == 0, settled.stderr
    assert json.loads(running.run("health").stdout)["database"]["quarantined"] == 0
    (item,) = running.json("attention", "list", "--settled")
    assert (item["resolution"]["operator"], item["resolution"]["reason"]) == (ME, "the bank's test")
    assert "the bank's test" in running.run("attention", "list", "--settled").stdout
    assert running.run("attention", "reopen", broken, "--kind", "quarantined", "--reason", "no").returncode == 0


def test_an_export_is_harmless_and_audited(running: Installation, tmp_path: Path) -> None:
    assert notify(running, quickstream("8005", customNote="=cmd()", paymentReference="=2*3")).status_code == 200
    eventually(lambda: running.json("payments", "list"))
    done = running.run("notifications", "export", "--search", "8005")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["receipt_number"], row["amount"], row["reference"]) == ("8005", "624.00", "'=2*3")
    file = tmp_path / "export.jsonl"
    assert running.run("notifications", "export", "--format", "jsonl", "--output", str(file)).returncode == 0
    assert json.loads(file.read_text())["reference"] == "=2*3"
    assert file.stat().st_mode & 0o777 == 0o600
    assert running.run("notifications", "export", "--output", str(tmp_path / "no" / "x")).returncode == 2
    assert [each["action"] for each in running.json("audit", "list")][:2] == ["exported", "exported"]


def test_what_comes_is_watched(running: Installation) -> None:
    watching = subprocess.Popen(
        [*command(), "watch", "--count", "2", "--json", "--config", str(running.config)], stdout=subprocess.PIPE
    )
    assert watching.stdout is not None
    try:
        # Whenever it has begun to look: each payment is another one.
        number = iter(range(9000, 9999))
        eventually(lambda: notify(running, quickstream(str(next(number)))).status_code == 200 and _ended(watching), 30)
        lines = [json.loads(line) for line in watching.stdout.read().splitlines()]
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()
    assert [line["kind"] for line in lines] == ["notification", "notification"]
    assert watching.returncode == 0


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize(
    "arguments",
    [
        ("notifications", "replay"),
        ("notifications", "replay", "--ids", "x", "--state", "failed"),
        ("notifications", "replay", "--state", "broken", "--dry-run"),
        ("notifications", "replay", "--ids", "x", "--dry-run"),
        ("notifications", "replay", "--search", "nobody", "--dry-run"),
        ("notifications", "export", "--format", "xls"),
        ("replays", "show", "x"),
        ("replays", "wait", "x"),
        ("replays", "resume", "x"),
        ("replays", "list", "--state", "x"),
        ("attention", "resolve", "x", "--kind", "failed", "--reason", "y"),
        ("attention", "resolve", "x", "--kind", "odd", "--reason", "y"),
        ("attention", "list", "--kind", "odd"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    here = Installation(tmp_path)
    assert here.run("migrate").returncode == 0
    done = here.run(*arguments)
    here.close()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("postback: ")
    assert done.stderr.count("\n") == 1
