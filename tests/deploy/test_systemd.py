"""The units of ``deploy/systemd``: systemd takes them, they leave little open, and they fit the rest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from receiver.server import CLIENTS_LEAVE_WITHIN
from receiver.settings import Receive
from tests.deploy.nginx import CONFIGURATION
from tests.live.apart import DEPLOY
from tests.live.installation import command
from tests.servers import absent
from workers.cli import processes

UNITS = DEPLOY / "systemd"
PAGE = (DEPLOY / "README.md").read_text()
PROGRAM = "/opt/postback/venv/bin/postback"
SERVICES = {path.name for path in UNITS.glob("*.service")}
EXPOSURE = dict(re.findall(r"^\| `([\w@.-]+\.service)` \|.*\| ([\d.]+) \|$", PAGE, re.MULTILINE))


def text(name: str) -> str:
    return (UNITS / name).read_text()


HARDENING = text("postback-.service.d/hardening.conf")


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy whose program is there."""
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.service"):
        path.write_text(path.read_text().replace(PROGRAM, command()[0]))
    return tmp_path


def analyzed(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        absent("systemd-analyze", FileNotFoundError("systemd is not installed"))
        raise AssertionError
    # Ours first, then the system's own.
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_COLORS": "0"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=30)


def instance(name: str) -> str:
    return name.replace("@.", "@1.")


def test_systemd_takes_them(units: Path) -> None:
    names = [instance(path.name) for path in sorted(units.iterdir()) if path.is_file()]
    assert len(names) == 6
    done = analyzed(units, "verify", "--man=no", *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_service_states_its_exposure() -> None:
    assert EXPOSURE.keys() == SERVICES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_they_leave_no_more_open_than_is_stated(units: Path, name: str) -> None:
    done = analyzed(units, "security", "--offline=true", "--no-pager", instance(name))
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= float(EXPOSURE[name]) < 2.0, done.stdout


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_they_run_what_there_is_and_stay_bounded(name: str) -> None:
    (line,) = values(text(name), "ExecStart")
    program, *arguments = line.split()
    assert program == PROGRAM
    assert subprocess.run([*command(), *arguments, "--help"], capture_output=True, timeout=30).returncode == 0
    assert values(text(name), "MemoryMax") == ["1G"]
    # Stopped and started with the target, and never given up.
    assert values(text(name), "PartOf") == ["postback.target"]
    assert values(text(name), "StartLimitIntervalSec") == ["0"]
    assert values(HARDENING, "Restart") == ["always"]


def test_one_address_everywhere() -> None:
    bind = Receive().bind
    assert values(text("postback-serve.socket"), "ListenStream") == [bind]
    assert f"server {bind} max_fails=0;" in CONFIGURATION


def test_there_are_files_for_all_connections() -> None:
    assert int(values(HARDENING, "LimitNOFILE")[0]) >= Receive().max_connections + processes.OTHER_FILES


def test_systemd_waits_longer_than_the_accept_processes_take() -> None:
    longest = processes.PATIENCE + processes.TIME_TO_LEAVE
    assert longest > CLIENTS_LEAVE_WITHIN
    assert int(values(text("postback-serve.service"), "TimeoutStopSec")[0]) > longest


def test_the_target_starts_them() -> None:
    wanted = values(text("postback.target"), "Wants")[0].split()
    assert {unit.replace("@1.", "@.") for unit in wanted} == (SERVICES | {"postback-serve.socket"}) - {
        "postback-reconcile.service"
    }


def test_the_accept_processes_cannot_open_the_ledger() -> None:
    (closed,) = values(text("postback-serve.service"), "InaccessiblePaths")
    (ledger,) = re.findall(r'database_url = "sqlite:///(/\S+)/ledger.sqlite3"', PAGE)
    assert closed == f"-{ledger}"


def test_who_is_reached_from_the_internet_reaches_this_machine_only() -> None:
    alone = {name for name in SERVICES if values(text(name), "IPAddressDeny") == ["any"]}
    # The others send alarms, by mail and webhook.
    assert alone == {"postback-serve.service", "postback-reconcile.service"}
    assert not values(HARDENING, "IPAddressDeny")
