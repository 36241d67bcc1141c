"""The settlement file as a user meets it: the simulator writes it, the command and the folder compare it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.installation import Installation
from tests.servers import eventually
from workers.reconcile.compare import Kind

COUNT = 60


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("settlement")
    (folder / "arriving").mkdir()
    installation = Installation(folder)
    text = installation.config.read_text()
    installation.config.write_text(
        text.replace('facility = "acme"\n', 'facility = "acme"\nsettlement_folder = "arriving"\n')
    )
    try:
        installation.start()
        yield installation
    finally:
        print(installation.log.read_text()[-10_000:])
        installation.close()


def simulated(installation: Installation, name: str, *differences: str) -> Path:
    """The file of payments that were sent and are in the ledger."""
    file = installation.folder / name
    before = len(installation.json("payments", "list", "--facility", "acme"))
    options = [option for kind in differences for option in ("--difference", kind)]
    done = installation.run(
        "simulate", "quickstream", "--facility", "acme", "--count", str(COUNT), "--seed", name, "--speed", "100",
        "--cash-applied-file", str(file), *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    eventually(lambda: len(installation.json("payments", "list", "--facility", "acme")) == before + COUNT)
    return file


def test_finds_exactly_the_differences_that_the_file_has(installation: Installation) -> None:
    wanted = sorted(kind.value for kind in Kind)
    file = simulated(installation, "1", *wanted)
    done = installation.run("reconcile", str(file), "--facility", "acme", "--json")
    *found, run = map(json.loads, done.stdout.splitlines())
    assert sorted(finding["kind"] for finding in found) == wanted
    assert (done.returncode, done.stderr) == (1, "")
    assert (run["kind"], run["findings"], run["entered"]) == ("reconciliation", len(wanted), 4)
    again = installation.run("reconcile", str(file), "--provider", "quickstream", "--facility", "acme")
    assert again.returncode == 1
    assert "0 entered" in again.stdout
    assert "missing_in_file" in again.stdout
    entered = installation.json("notifications", "list", "--facility", "acme")
    assert sum(each["event_type"] == "settlement_file" for each in entered) == 4
    trail = installation.json("audit", "list")
    assert [each["action"] for each in trail] == ["reconciled", "reconciliation_begun"] * 2
    assert {each["origin"].partition(" on ")[0] for each in trail} == {"command"}
    second, first = installation.json("reconciliations", "list", "--facility", "acme")
    assert (first["id"], first["entered"], second["entered"]) == (run["id"], 4, 0)
    (shown,) = installation.json("reconciliations", "show", run["id"])
    assert [each["kind"] for each in shown["found"]] == [each["kind"] for each in found]
    assert "amount_differs" in installation.run("reconciliations", "show", run["id"]).stdout
    assert installation.run("reconciliations", "show", "none").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.csv"], "cannot be read"),
        (["postback.toml"], "not a Cash Applied File"),
        (["a.csv", "b.csv"], "one file at a time"),
        ([], "give a file, or --watch"),
        (["postback.toml", "--provider", "checkout"], "checkout has no settlement file"),
        (["postback.toml", "--facility", "nobody"], "no such endpoint"),
        (["postback.toml", "--since", "yesterday"], "--since must be a day"),
    ],
)
def test_wrong_use_is_one_sentence(installation: Installation, arguments: list[str], sentence: str) -> None:
    files = [str(installation.folder / name) if "." in name else name for name in arguments]
    facility = [] if "--facility" in arguments else ["--facility", "acme"]
    done = installation.run("reconcile", *files, *facility)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_folder_is_watched(installation: Installation) -> None:
    file = simulated(installation, "2")
    file.rename(installation.folder / "arriving" / "caf.csv")
    eventually((installation.folder / "arriving" / "done" / "caf.csv").exists, 60, "the file in done/")
    metrics = installation.client.get("/metrics").text
    assert 'postback_settlement_files_total{facility="acme",outcome=' in metrics
