"""That fuzzing looks at all there is, begins where our code is reached, and tells what it finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from receiver.errors import Quarantined, Reason
from receiver.providers import PROVIDERS
from receiver.server import Connection, Cycle
from receiver.source import TrustedProxies, parse
from tests.fuzz import __main__ as command
from tests.fuzz import targets
from tests.fuzz.corpus import FINDINGS, seeds
from tests.fuzz.targets import TARGETS, Finding
from tests.support import EXPECTED_CASUAL, FIXTURES

BROKEN = """
from tests.fuzz import one, targets
def form(data):
    assert b"customNote" not in data
targets.TARGETS["form"] = form
one.main()
"""


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_and_every_former_finding_passes(target: str) -> None:
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


def test_every_provider_is_fuzzed() -> None:
    assert {f"{step}_{name}" for step in ("authenticate", "interpret") for name in PROVIDERS} <= TARGETS.keys()


def test_findings_belong_to_targets() -> None:
    if FINDINGS.exists():
        assert {folder.name for folder in FINDINGS.iterdir()} <= TARGETS.keys()


def test_seeds_reach_what_they_are_for() -> None:
    """Of every provider some seeds are proven, and some become payments."""
    for name, provider in PROVIDERS.items():
        proven = interpreted = 0
        for seed in seeds(f"authenticate_{name}"):
            message = targets.message_of(name, seed)
            proven += targets.is_proven(name, message, targets.ENDPOINTS[name], EXPECTED_CASUAL)
            try:
                interpreted += provider.interpret(message, targets.ENDPOINTS[name]).payment_id is not None
            except Quarantined:
                continue
        assert proven, name
        assert interpreted, name


# Each oracle sees what it is there for.


def test_a_proof_without_the_secret_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.signing.hmac.compare_digest", lambda given, wanted: True)
    with pytest.raises(Finding, match="do not know its secret"):
        TARGETS["authenticate_quickstream"](seeds("authenticate_quickstream")[0])


def test_an_address_that_a_client_writes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrustedProxies, "_last_foreign", lambda self, hops, header: parse(hops[0]))
    for forged in (b"203.0.113.7", b"for=203.0.113.7"):
        with pytest.raises(Finding, match="wrote its own address"):
            TARGETS["forwarded_for"](forged)


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n" + b" " * 40, "in pieces it is another request"),
        (b"POST / HTTP/1.1\r\nX-Fails: 1\r\n\r\n", "an answer is \\[500\\]"),
    ],
)
def test_a_connection_that_is_read_in_two_ways_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, found: str
) -> None:
    right, receive = Connection.data_received, Cycle.receive

    async def failing(self: Any) -> Any:
        if any(name == b"x-fails" for name, _ in self.scope["headers"]):
            raise LookupError
        return await receive(self)

    TARGETS["connection"](sent)
    monkeypatch.setattr(Connection, "data_received", lambda self, data: right(self, data.lstrip(b" ")))
    monkeypatch.setattr(Cycle, "receive", failing)
    with pytest.raises(Finding, match=found):
        TARGETS["connection"](sent)


def test_an_error_outside_the_tree_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: bytes) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        targets.read_with(broken)(b"")

    def quarantines(body: bytes) -> None:
        raise Quarantined(Reason.UNREADABLE_BODY, "x")

    targets.read_with(quarantines)(b"")


@pytest.mark.parametrize("value", ["a\0", "\ud800", ["a", {"b": "\0"}], {"\0": "a"}])
def test_a_text_that_no_database_takes_is_a_finding(value: object) -> None:
    with pytest.raises(Finding):
        targets.read_with(lambda body: value)(b"")


@pytest.mark.parametrize("field", ["reference", "card_scheme"])
def test_a_row_that_does_not_fit_is_a_finding(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setattr("workers.ledger.rows.cut", lambda value, length: value)
    name = {"reference": b"paymentReference", "card_scheme": b"cardScheme"}[field]
    seed = (FIXTURES / "quickstream" / "payment__form.http").read_bytes()
    head, _, rest = seed.partition(name + b"=")
    with pytest.raises(Finding, match=field):
        TARGETS["interpret_quickstream"](head + name + b"=" + b"x" * 300 + b"&" + rest.partition(b"&")[2])


# The command.


def test_the_command_runs_a_target_and_tells_how_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    figures, corpus = tmp_path / "figures.json", tmp_path / "corpus"
    assert (
        command.main(["--runs", "500", "--json", str(figures), "--corpus", str(corpus), *_findings(tmp_path), "form"])
        == 0
    )
    (outcome,) = json.loads(figures.read_text())
    assert (outcome["target"], outcome["runs"] >= 500, outcome["covered"] > 5) == ("form", True, True)
    assert any((corpus / "form").iterdir())
    assert "form" in capsys.readouterr().out


def test_the_command_leaves_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    monkeypatch.setattr(command, "ONE", (sys.executable, "-c", BROKEN))
    assert command.main(["--runs", "500", *_findings(tmp_path), "form"]) == 1
    (left,) = (tmp_path / "findings").iterdir()
    assert left.name.startswith("form-crash-")
    assert b"customNote" in left.read_bytes()
    assert "AssertionError" in capsys.readouterr().err


def test_the_command_knows_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["no_such_target"])
    assert ended.value.code == 2
    assert "interpret_paymentz" in capsys.readouterr().err


def _findings(folder: Path) -> list[str]:
    return ["--findings", str(folder / "findings")]
