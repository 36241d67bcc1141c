"""SECURITY.md and deploy/ASVS.md: every test that they name exists, and every row names one or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
THREATS = ROOT / "SECURITY.md"
CHECKLIST = ROOT / "deploy" / "ASVS.md"
_TEST = re.compile(r"`((?:tests/)?[\w/]*test_\w+\.py(?:::\w+)?|tests/\w+)`")


def rows(path: Path, columns: int) -> list[list[str]]:
    """The rows of all tables with so many columns, without their headings."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.startswith("|")]
    tables = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        row
        for row, after in zip(tables, [*tables[1:], [""]], strict=True)
        if len(row) == columns and not is_rule(row, after)
    ]


def is_rule(row: list[str], after: list[str]) -> bool:
    """Whether it is the line below a heading, or the heading above it."""
    return any(set("".join(each)) <= set("|- ") for each in (row, after) if each != [""])


def exists(test: str) -> bool:
    path, _, function = test.partition("::")
    found = [ROOT / path] if path.startswith("tests/") else list((ROOT / "tests").rglob(path))
    found = [each for each in found if each.exists()]
    return bool(found) and (not function or any(f"def {function}(" in each.read_text() for each in found))


@pytest.mark.parametrize("document", [THREATS, CHECKLIST], ids=lambda path: path.name)
def test_every_named_test_exists(document: Path) -> None:
    named = _TEST.findall(document.read_text())
    assert len(named) > 20
    assert [test for test in named if not exists(test)] == []


def test_every_threat_has_its_test() -> None:
    threats = rows(THREATS, 5)
    assert len(threats) > 25
    for asset, attacker, path, defence, test in threats:
        assert all((asset, attacker, path, defence)), asset
        assert _TEST.search(test), f"{asset}: no test"


def test_every_line_that_was_asked_for_has_its_test() -> None:
    section = THREATS.read_text().partition("## Line by line\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 60
    for line in lines:
        asked, defence, test = (cell.strip() for cell in line.strip("|").split(" | "))
        assert all((asked, defence)), line
        named = _TEST.findall(test)
        assert named, f"{asked}: no test"
        assert any("::" in each for each in named), f"{asked}: a file, and no test by its name"


def test_every_requirement_has_a_test_or_a_reason() -> None:
    requirements = rows(CHECKLIST, 3)
    assert len(requirements) > 150
    for number, what, shown in requirements:
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?(, \d+\.\d+(\.\d+)?)*", number), number
        assert what, number
        assert _TEST.search(shown) or len(shown) > 8, f"{number}: neither test nor reason"


def test_no_test_is_named_that_is_not() -> None:
    assert not exists("tests/security/test_nothing.py")
    assert not exists("test_threats.py::test_nothing")
    assert exists("test_threats.py::test_every_threat_has_its_test")


def test_the_figures_of_fuzzing_are_those_of_all_targets() -> None:
    figures = {
        name: int(runs.replace(",", ""))
        for name, runs in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", THREATS.read_text(), re.MULTILINE)
    }
    assert figures.keys() == TARGETS.keys()
    assert sum(figures.values()) >= 10_000_000
