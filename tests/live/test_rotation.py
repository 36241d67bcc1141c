"""A secret is changed while its sender posts: no request is refused for it, and it is told when the old one can go."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live.installation import Installation, installed
from tests.live.test_installation import basic, notify, quickstream
from tests.servers import eventually

FIRST, SECOND, THIRD = "rotated-first-pass", "rotated-second-pass", "rotated-third-pass"
OLD_LIST = 'passwords = ["qs-old:pass", "qs-new:pässword"]'


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Installation]:
    here = Installation(tmp_path, receive="processes = 2")
    (tmp_path / "one").write_text(FIRST)
    here.config.write_text(here.config.read_text().replace(OLD_LIST, 'passwords = ["file:one"]'))
    try:
        here.start()
        yield here
    finally:
        here.close()
        print(here.log.read_text()[-5000:])


class Sender(threading.Thread):
    """Posts with what it knows of `passwords`, one after the other, for as long as it is not ended."""

    def __init__(self, running: Installation, passwords: list[str]) -> None:
        super().__init__(daemon=True)
        self._running, self.passwords = running, passwords
        self._ending = threading.Event()
        self.answers: list[int] = []

    def run(self) -> None:
        for number in range(100_000):
            if self._ending.wait(0.01):
                return
            password = self.passwords[number % len(self.passwords)]
            # A connection each, so that both accept processes are asked.
            headers = {"Authorization": basic("acme", password), "Content-Type": "application/x-www-form-urlencoded"}
            url = f"{self._running.url}/notify/quickstream/acme"
            self.answers.append(httpx.post(url, content=quickstream(f"9{number:05}"), headers=headers).status_code)

    def end(self) -> list[int]:
        self._ending.set()
        self.join(30)
        return self.answers


def reload(running: Installation, times: int) -> None:
    """SIGHUP; waits until both accept processes have reloaded for the `times`th time."""
    assert running.process is not None
    running.process.send_signal(signal.SIGHUP)
    eventually(lambda: events(running, "configuration_reloaded") == 2 * times, 30, "two reloaded processes")


def events(running: Installation, event: str) -> int:
    return running.log.read_text().count(f'"event": "{event}"')


def edit(running: Installation, old: str, new: str) -> None:
    text = running.config.read_text()
    assert old in text
    running.config.write_text(text.replace(old, new))


def matched(running: Installation) -> dict[str, float]:
    figures = running.client.get("/metrics").text
    wanted = re.compile(
        r'^postback_secret_matched_total\{facility="acme",provider="quickstream",secret="(.*)"\} (.*)$', re.M
    )
    return {secret: float(count) for secret, count in wanted.findall(figures)}


def status(running: Installation, password: str) -> int:
    return int(notify(running, quickstream("9999999"), credentials=basic("acme", password)).status_code)


def advice(running: Installation) -> list[str]:
    found = [json.loads(line) for line in running.run("doctor", "--json").stdout.splitlines()]
    return [
        each["detail"]
        for each in found
        if each["detail"].startswith("passwords[") and each["check"] == "quickstream/acme"
    ]


def test_a_secret_changes_without_a_gap(running: Installation) -> None:
    sender = Sender(running, [FIRST])
    sender.start()
    eventually(lambda: matched(running).get("passwords[0]", 0) > 5, what="the old one to be counted")
    assert advice(running) == []

    (running.folder / "two").write_text(SECOND)
    edit(running, '["file:one"]', '["file:one", "file:two"]')
    reload(running, 1)
    assert (status(running, FIRST), status(running, SECOND)) == (200, 200)
    # Uses are written down every few seconds.
    proved = re.compile(r"passwords\[0\] \(file:one\) is unused since \S+Z, when it last proved something")
    eventually(lambda: [bool(proved.fullmatch(told)) for told in advice(running)] == [True], what="the last use")
    sender.passwords[:] = [SECOND, FIRST]
    eventually(lambda: matched(running).get("passwords[1]", 0) > 5, what="the new one to be counted")
    sender.passwords[:] = [SECOND]

    def newest_only() -> bool:
        """Each process hands its counts on once a second: what was sent before may still come into the figures."""
        before = matched(running)
        eventually(lambda: matched(running)["passwords[1]"] > before["passwords[1]"] + 20, what="more by the new one")
        return matched(running)["passwords[0]"] == before["passwords[0]"]

    eventually(newest_only, 60, "a sender that has changed over")
    edit(running, '["file:one", "file:two"]', '["file:two"]')
    reload(running, 2)
    assert set(sender.end()) == {200}
    assert {status(running, FIRST) for _ in range(10)} == {403}
    assert status(running, SECOND) == 200
    for place in (running.log.read_text(), running.run("doctor").stdout, running.client.get("/metrics").text):
        assert not re.search("rotated-(first|second)", place)


def test_a_file_is_read_again_and_a_broken_configuration_changes_nothing(running: Installation) -> None:
    (running.folder / "one").write_text(THIRD + "\n")
    assert (status(running, THIRD), status(running, FIRST)) == (403, 200)
    reload(running, 1)
    assert (status(running, THIRD), status(running, FIRST)) == (200, 403)

    os.truncate(running.folder / "one", 0)
    assert running.process is not None
    running.process.send_signal(signal.SIGHUP)
    eventually(lambda: events(running, "configuration_refused") == 2, 30, "two processes that refuse it")
    assert "passwords[0]: the secret is empty" in running.log.read_text()
    assert {status(running, THIRD) for _ in range(10)} == {200}


def test_the_worker_reads_it_again_too(tmp_path: Path) -> None:
    """An endpoint that is new after SIGHUP is known to accept processes and worker alike."""
    with installed(tmp_path) as running:
        old = running.pids("work")
        edit(running, 'supplier_business_codes = ["ACME"]', 'supplier_business_codes = ["ACME", "NEW"]')
        assert running.process is not None
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: running.pids("work") and running.pids("work") != old, 30, "another worker")
        eventually(lambda: events(running, "process_reloaded") >= 2, 30, "worker and console")
        eventually(lambda: events(running, "configuration_reloaded") == 1, 30, "a reloaded accept process")
        assert notify(running, quickstream("9100", business="NEW")).json()["status"] == "accepted"
        eventually(lambda: len(running.json("payments", "list", "--search", "9100")) == 1, 30, "its payment")
