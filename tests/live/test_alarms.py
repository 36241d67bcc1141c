"""Redis is killed: whoever is on call hears of it within a minute, and of its return, by mail and by webhook."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from tests.live.apart import make_authority, make_certificate
from tests.live.installation import Installation, installed
from tests.live.test_installation import notify, quickstream
from tests.mailbox import PASSWORD, USERNAME, Hookbox, Mailbox
from tests.servers import Valkey, eventually, running_valkey

SECRETS = ("whsec_b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtMQ==", "whsec_bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctMQ==")
RAISED, CLEARED = "[Postback] Redis does not answer.", "[Postback] Cleared: Redis does not answer."
PROMISED = 60
"""Seconds."""

ALARMS = """
look_every = 1
confirm = 1
calm = 1
[alarms.email]
server = "{mail}"
tls = "starttls"
username = "{username}"
password = "{password}"
sender = "postback@example.com"
to = ["oncall@example.com"]
[alarms.webhook]
url = "{hook}"
secrets = {secrets}
"""


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def test_a_killed_redis_is_told_and_its_return_as_well(server: Valkey, tmp_path: Path) -> None:
    """With the shipped processes, of which the one that looks after the alarms is killed too."""
    make_certificate(tmp_path, make_authority(tmp_path, "ca"))
    environment = os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    with Mailbox(tmp_path).running() as mailbox, Hookbox().running() as hookbox:
        alarms = ALARMS.format(
            mail=mailbox.address,
            hook=hookbox.url,
            username=USERNAME,
            password=PASSWORD,
            secrets=json.dumps(SECRETS),
        )
        queue = f'redis_url = "{server.url}"'
        with installed(_short(tmp_path), queue=queue, alarms=alarms, environment=environment) as running:
            _watched(running)
            running.kill("work")
            server.kill()
            killed_at = time.monotonic()
            eventually(lambda: RAISED in mailbox.subjects, PROMISED, "the letter")
            assert time.monotonic() - killed_at < PROMISED
            assert notify(running, quickstream("9001")).status_code == 200
            assert [each["alarm"] for each in _health(running)["alarms"]][:1] == ["redis_away"]
            done = running.run("alarms", "acknowledge", "redis_away", "--reason", "killed on purpose")
            assert (done.returncode, done.stdout) == (0, "redis_away acknowledged.\n")
            server.start()
            eventually(lambda: CLEARED in mailbox.subjects, PROMISED, "the letter of its return")
            eventually(lambda: not _health(running)["alarms"], PROMISED, "calm")
        assert [mailbox.subjects.count(subject) for subject in (RAISED, CLEARED)] == [1, 1]
        for secret in SECRETS:
            told = [Webhook(secret).verify(posted.body, posted.headers) for posted in hookbox.posted]
            types = [each["type"] for each in told if each["data"]["alarm"] == "redis_away"]
            assert types == ["alarm.raised", "alarm.cleared"]
        for text in (*(letter.as_string() for letter in mailbox.letters), *(str(each.body) for each in hookbox.posted)):
            assert not any(secret in text for secret in (PASSWORD, *SECRETS, "old-seal-key", "qs-new"))


def test_doctor_and_a_trial(tmp_path: Path) -> None:
    """Whether mail server and webhook are reached, without sending; and a message of each when asked for."""
    with Mailbox().running() as mailbox, Hookbox().running() as hookbox:
        email = f'[alarms.email]\nserver = "{mailbox.address}"\ntls = "none"\nsender = "a@b.c"\nto = ["d@e.f"]\n'
        webhook = f'[alarms.webhook]\nurl = "{hookbox.url}"\nsecrets = ["{SECRETS[0]}"]\n'
        here = Installation(tmp_path, alarms=f'holidays = ["NZ-XX"]\npublic_name = "localhost:1"\n{email}{webhook}')
        try:
            found = _doctor(here)
            assert (found["alarms.email"], found["alarms.webhook"]) == ("ok", "ok")
            assert (found["alarms"], found["public name"]) == ("fault", "fault")
            assert (mailbox.letters, hookbox.posted) == ([], [])
            hookbox.status = 404
            done = here.run("alarms", "test")
            assert (done.returncode, done.stdout) == (1, "email: sent\nwebhook: not taken: It was answered 404.\n")
            assert mailbox.subjects == ["[Postback] Test: Alarms of Postback arrive here."]
            assert json.loads(hookbox.posted[0].body)["type"] == "alarm.test"
        finally:
            here.close()


def _short(folder: Path) -> Path:
    """A folder for the installation alone."""
    return Path(tempfile.mkdtemp(dir=folder))


def _doctor(here: Installation) -> dict[str, str]:
    lines = here.run("doctor", "--json").stdout.splitlines()
    return {each["check"]: each["verdict"] for each in map(json.loads, lines)}


def _health(running: Installation) -> dict[str, list[dict[str, str]]]:
    answer = httpx.get(f"http://127.0.0.1:{running.console_port}/healthz", timeout=20, trust_env=False)
    state: dict[str, list[dict[str, str]]] = answer.json()
    return state


def _watched(running: Installation) -> None:
    """Until somebody looks after the alarms."""
    eventually(lambda: (running.data_dir / "alarms.json").exists(), what="a first look")
