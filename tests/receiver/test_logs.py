"""Logs: JSON lines without a terminal, and never a local variable in a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SECRET = "hunter2-Recognisable"

PROGRAM = """
import logging, sys
from receiver import logs
sys.stderr.isatty = lambda: {terminal}
logs.configure("serve")
def fail(password):
    raise ValueError("the reason")
log = logs.get("receiver.test")
log.info("request_refused", reason="body_empty", detail="a\\x1b[31m\\nb")
try:
    fail("".join({letters}))
except ValueError:
    log.exception("accept_failed", provider="quickstream")
    logging.getLogger("rq.worker").exception("library")
logging.getLogger("uvicorn.access").info("silent")
"""


def output(terminal: bool) -> str:
    program = PROGRAM.format(terminal=terminal, letters=list(SECRET))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


def test_json_lines() -> None:
    refused, failed, library = map(json.loads, output(terminal=False).splitlines())
    assert refused.pop("timestamp").endswith("Z")
    assert refused == {
        "process": "serve",
        "level": "info",
        "logger": "receiver.test",
        "event": "request_refused",
        "reason": "body_empty",
        "detail": "a\x1b[31m\nb",
    }
    assert (failed["event"], failed["provider"], failed["level"]) == ("accept_failed", "quickstream", "error")
    assert failed["exception"].endswith("ValueError: the reason")
    assert library["process"] == "serve"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_shows_no_variables(terminal: bool) -> None:
    text = output(terminal)
    assert "ValueError: the reason" in text
    assert "request_refused" in text
    assert SECRET not in text


CARDS = """
import logging, sys
from receiver import logs
sys.stderr.isatty = lambda: {terminal}
logs.configure("serve")
log = logs.get("receiver.test")
number = "4111 1111 1111 1111"
nested = {{"a": [number, int(number.replace(" ", ""))]}}
log.info("request_refused", detail="x" + number, nested=nested, raw=number.encode())
try:
    raise ValueError("pan=4111%201111%201111%201111")
except ValueError:
    log.exception("accept_failed")
    logging.getLogger("rq.worker").exception("library " + number)
log.info("request_refused", id="0193a3c1-4111-7111-8111-111111111111", at=1741231329123457)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_holds_a_card_number(terminal: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CARDS.format(terminal=terminal)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "1111 1111" not in done.stderr
    assert "411111******1111" in done.stderr
    assert "4111%201111" not in done.stderr
    assert done.stderr.count("4111 11** **** 1111") == 4
    # Ids and times stay as they are.
    assert "0193a3c1-4111-7111-8111-111111111111" in done.stderr
    assert "1741231329123457" in done.stderr


def test_a_command_that_configures_nothing_shows_no_variables_and_leaves_its_output_alone() -> None:
    program = PROGRAM.replace('logs.configure("serve")', "").format(terminal=False, letters=list(SECRET))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "ValueError: the reason" in done.stderr
    assert "".join(SECRET) not in done.stderr
    assert "'R', 'e', 'c'" not in done.stderr
