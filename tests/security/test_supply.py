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
ENTRY = re.compile(
    r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
PINNED = {name: version for name, version, _ in ENTRY.findall(LOCK)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("argon2", "encrypt", "postgres")


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


def test_the_lock_has_nothing_without_hashes_and_names_no_place() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith(("#", " "))]
    assert len(lines) == len(PINNED)
    assert not re.search(r"--(extra-)?index-url|https?://|^-e|file:", LOCK, re.MULTILINE)


def test_the_lock_has_no_tool_of_the_tests() -> None:
    tests = {Requirement(each).name for each in PROJECT["optional-dependencies"]["test"]} - {"postback-receiver"}
    assert PINNED.keys().isdisjoint(tests)
