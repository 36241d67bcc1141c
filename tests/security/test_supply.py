"""What is deployed is pinned: every package with its version and its hashes, and all that `pyproject.toml` asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy" / "requirements.lock").read_text()
WITH_TRACES = (ROOT / "deploy" / "requirements-opentelemetry.lock").read_text()
"""The same and what the extra `opentelemetry` needs: half as many again, for those who ask for traces."""
ENTRY = re.compile(
    r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
PINNED = {name: version for name, version, _ in ENTRY.findall(LOCK)}
TRACED = {name: version for name, version, _ in ENTRY.findall(WITH_TRACES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("argon2", "encrypt", "postgres", "qr")


def wanted() -> list[str]:
    return [*PROJECT["dependencies"], *(each for name in EXTRAS for each in PROJECT["optional-dependencies"][name])]


@pytest.mark.parametrize("text", wanted())
def test_the_lock_satisfies_the_project(text: str) -> None:
    requirement = Requirement(text)
    version = PINNED.get(canonicalize_name(requirement.name))
    assert version is not None, (
        f"{requirement.name} is not in deploy/requirements.lock; its first lines say how it is made"
    )
    assert version in requirement.specifier


@pytest.mark.parametrize(("lock", "pinned"), [(LOCK, PINNED), (WITH_TRACES, TRACED)], ids=["all", "with traces"])
def test_the_lock_has_nothing_without_hashes_and_names_no_place(lock: str, pinned: dict[str, str]) -> None:
    lines = [line for line in lock.splitlines() if line and not line.startswith(("#", " "))]
    assert len(lines) == len(pinned)
    assert not re.search(r"--(extra-)?index-url|https?://|^-e|file:", lock, re.MULTILINE)


def test_traces_need_more_and_nothing_else() -> None:
    assert PINNED.items() < TRACED.items()
    for text in PROJECT["optional-dependencies"]["opentelemetry"]:
        requirement = Requirement(text)
        assert TRACED[canonicalize_name(requirement.name)] in requirement.specifier
        assert requirement.name not in PINNED


def test_every_change_is_looked_at() -> None:
    """What stands in SECURITY.md of our own code and of the list of all parts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lint = settings["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert {each for each in lint["ignore"] if each.startswith("S")} == {"S101", "S603"}
    assert not any(each.startswith("receiver") for each in lint["per-file-ignores"])
    assert settings["tool"]["mypy"]["strict"] is True
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"ruff check .", "mypy"} <= set(script)
    assert any('cyclonedx-py" requirements deploy/requirements.lock' in line for line in script)


def test_the_lock_has_no_tool_of_the_tests() -> None:
    tests = {Requirement(each).name for each in PROJECT["optional-dependencies"]["test"]} - {"postback-receiver"}
    assert TRACED.keys().isdisjoint(tests)
