"""`postback operator`, and the operator that a starter configuration has."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from receiver import settings as configuration
from tests.live.installation import command
from workers.console import passwords


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "postback.toml"
    path.write_text('# mine\n[security]\nseal_keys = ["k"]  # not to be lost\n')
    path.chmod(0o640)
    return path


def run(config: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments, "--config", str(config)], input=given, capture_output=True, text=True, timeout=60
    )


def verified(config: Path, name: str, password: str) -> bool:
    (found,) = (entry for entry in configuration.load(config).security.operators if entry.name == name)
    assert found.password_hash is not None
    return passwords.verify(password, found.password_hash.reveal().decode())


def test_add_writes_the_entry_and_keeps_the_rest(config: Path) -> None:
    before = config.read_text()
    done = run(config, "operator", "add", "jane", "--role", "approver", given="a long password\n")
    assert done.returncode == 0, done.stderr
    assert "a long password" not in done.stdout + done.stderr + config.read_text()
    assert config.read_text().startswith(before.rstrip("\n"))
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert verified(config, "jane", "a long password")
    again = run(config, "operator", "add", "Jane", given="a long password\n")
    assert (again.returncode, again.stderr) == (2, "postback: security.operators: there is an operator Jane already.\n")


def test_a_generated_password_is_shown_once(config: Path) -> None:
    done = run(config, "operator", "add", "sam@example.com", "--generate")
    found = re.search(r"shown this once: (\S+)", done.stdout)
    assert found is not None
    assert verified(config, "sam@example.com", found[1])
    listed = run(config, "operator", "list", "--json")
    assert [json.loads(line) for line in listed.stdout.splitlines()] == [
        {"name": "sam@example.com", "role": "viewer", "password": True}
    ]
    assert found[1] not in listed.stdout


def test_a_list_on_one_line_is_not_touched_and_the_entry_printed(config: Path) -> None:
    config.write_text('[security]\nseal_keys = ["k"]\noperators = []\n')
    before = config.read_text()
    done = run(config, "operator", "add", "jane", given="a long password\n")
    assert done.returncode == 0
    assert "[[security.operators]]" in done.stdout
    assert config.read_text() == before
    assert [path.name for path in config.parent.iterdir()] == ["postback.toml"]


def test_print_leaves_the_file_alone(config: Path) -> None:
    before = config.read_text()
    done = run(config, "operator", "add", "jane", "--print", given="a long password\n")
    assert 'name = "jane"' in done.stdout
    assert config.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["operator", "add", "jane"], "short\n"),
        (["operator", "add", "jane"], ""),
        (["operator", "add", "jane"], "jane-password-2026\n"),
        (["operator", "add", "ja ne"], "a long password\n"),
        (["operator", "add", "jane", "--role", "root"], "a long password\n"),
    ],
)
def test_wrong_use(config: Path, arguments: list[str], given: str) -> None:
    before = config.read_text()
    done = run(config, *arguments, given=given)
    assert done.returncode == 2
    assert done.stderr.startswith("postback: ")
    assert done.stderr.count("\n") == 1
    assert config.read_text() == before


def test_the_starter_has_an_operator_whose_password_is_shown_once(tmp_path: Path) -> None:
    config = tmp_path / "new" / "postback.toml"
    done = run(config, "init")
    found = re.search(r"as operator with the password, shown this once: (\S+)", done.stdout)
    assert found is not None
    assert verified(config, "operator", found[1])
    assert configuration.load(config).security.operators[0].role == "approver"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    added = run(config, "operator", "add", "jane", "--generate")
    assert "Added jane" in added.stdout
    assert run(config, "init").returncode == 2
