"""`deploy/RUNBOOK.md` names everything that the product can say, and nothing that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from prometheus_client import Counter, Gauge, Histogram

from receiver import metrics
from receiver.errors import STATUS_OF, Reason
from workers import figures
from workers.alarms.kinds import AlarmKind
from workers.cli.main import app

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "deploy" / "RUNBOOK.md").read_text()
RULES = ROOT / "deploy" / "prometheus" / "postback.rules.yml"
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}


def section(title: str) -> str:
    """The text below a second-level heading."""
    return RUNBOOK.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> dict[str, list[str]]:
    """The rows of a section's tables whose first cell is one word of code."""
    rows: dict[str, list[str]] = {}
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if match := re.fullmatch(r"`(\w+)`", cells[0]):
            assert match[1] not in rows, f"{match[1]} stands there twice"
            rows[match[1]] = cells[1:]
    return rows


def logged() -> Iterator[tuple[str, str]]:
    """Every event that the source logs, with its level."""
    for part in ("receiver", "workers"):
        for path in sorted((ROOT / part).rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = constants(tree)
            for node in ast.walk(tree):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_log(node.func)):
                    continue
                level = LEVELS[node.func.attr]
                first = node.args[0]
                events = names[first.id] if isinstance(first, ast.Name) else {ast.literal_eval(first)}
                assert events, f"{path}:{node.lineno}: which event is this?"
                for event in events:
                    yield event, level


def is_log(function: ast.Attribute) -> bool:
    of = function.value
    named = isinstance(of, ast.Name) and of.id == "log"
    made = isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) and of.func.attr == "get_logger"
    return function.attr in LEVELS and (named or made)


def constants(tree: ast.AST) -> dict[str, set[str]]:
    """The texts that each name of a module may have, tuples taken apart."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found.setdefault(name.id, set()).add(value.value)
    return found


def commands(group: typer.Typer, prefix: str = "postback") -> Iterator[str]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__}"
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def test_every_log_event() -> None:
    found = set(logged())
    assert len(found) > 30
    rows = {event: cells[0] for event, cells in table("Log events").items()}
    assert rows == dict(found)


def test_every_reason() -> None:
    rows = table("Reasons")
    assert set(rows) == {reason.value for reason in Reason}
    for reason, status in STATUS_OF.items():
        assert rows[reason][0] == str(status)


def test_every_metric() -> None:
    exposed = set()
    for value in vars(metrics).values():
        if isinstance(value, Counter | Gauge | Histogram):
            exposed |= {family.name + ("_total" if family.type == "counter" else "") for family in value.describe()}
    exposed |= {family.name for family in figures.families()}
    assert len(exposed) > 10
    assert set(table("Metrics")) == exposed


def test_every_metric_leads_to_the_alerts_that_look_at_it() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    asked: dict[str, str] = {}
    for rule in rules:  # one that is recorded stands for what it is made of
        name = rule.get("record", rule.get("alert"))
        asked[name] = f"{asked.get(name, '')} {rule['expr']}"
    for name, cells in table("Metrics").items():
        looking = {name} | {f"{name}_{part}" for part in ("bucket", "count", "sum")}
        for _ in range(3):
            looking |= {of for of, expression in asked.items() if looking & set(re.findall(r"[\w:]+", expression))}
        alerts = {alert for alert in looking if alert.startswith("Postback")}
        told = set(re.findall(r"\(#(postback\w+)\)", cells[2]))
        assert {alert.lower() for alert in alerts} <= told, name


def test_every_alarm() -> None:
    assert set(table("Alarms")) == {kind.value for kind in AlarmKind}


@pytest.mark.parametrize("title", ["Log events", "Reasons", "Metrics", "Alarms"])
def test_no_row_is_empty(title: str) -> None:
    for name, cells in table(title).items():
        assert all(cells), name


def test_every_fault_says_what_to_do() -> None:
    rows = [line.strip("|").split(" | ") for line in section("Faults").splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    for cells in rows:
        assert len(cells) == 4, cells
        assert all(cell.strip() for cell in cells), cells


def test_every_command_exists() -> None:
    known = set(commands(app))
    assert "postback notifications show" in known
    named = re.findall(r"`(postback [a-z]+(?: [a-z]+)?)[^`]*`", RUNBOOK)
    assert len(named) > 10
    for command in named:
        assert command in known or command.rpartition(" ")[0] in known, command
