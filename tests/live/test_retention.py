"""`postback purge`, `show` and `doctor` as a user runs them: what is over its time, and a key that is gone."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis

from receiver.notification import microseconds, new_id
from tests import ledgers
from tests.live.installation import command
from tests.servers import Valkey
from tests.support import recorded, secrets
from tests.workers import material
from tests.workers.material import delivered
from workers.ledger import database
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Ledger

KEY, LATER = "first-body-key-" + "k" * 32, "later-body-key-" + "k" * 32
DAY = timedelta(days=1)


class Site:
    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        self.configure()

    def configure(self, *keys: str, retention: str = "", redis_url: str = "") -> None:
        (self.folder / "postback.toml").write_text(
            f'[queue]\nredis_url = "{redis_url or self.redis_url}"\n[store]\ndatabase_url = "{self.url}"\n'
            f'[security]\nseal_keys = ["seal"]\nbody_keys = {json.dumps(keys)}\n[retention]\n{retention}\n'
            '[[endpoint]]\nprovider = "checkout"\nfacility = "main"\nsignature_keys = ["k"]\n'
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [*command(), *arguments, "--config", str(self.folder / "postback.toml")]
        return subprocess.run(whole, capture_output=True, text=True, timeout=60)

    def keep(self, days: int, *keys: str) -> str:
        """Records a payment of so many days ago; gives its id."""
        at = microseconds(datetime.now(UTC) - days * DAY)
        came = delivered(recorded("checkout", "payment_captured"), id=new_id(at), received_at=at, dedupe_key=f"k{days}")
        engine = database.open_engine(self.url)
        material.pipeline(Ledger(engine, Bodies(secrets(*keys)))).process(material.sealed(came))
        engine.dispose()
        return came.id


@pytest.fixture
def site(tmp_path: Path, redis: Redis, valkey_server: Valkey) -> Site:
    site = Site(tmp_path, valkey_server.url)
    ledgers.new_file(tmp_path / "ledger.sqlite3")
    return site


def test_purge(site: Site) -> None:
    old, young = site.keep(500), site.keep(1)
    site.configure(retention='bodies = "400d"\nrefusals = "30d"')
    dry = site.run("purge", "--dry-run", "--json")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert [json.loads(line)["overdue"] for line in dry.stdout.splitlines()] == [1, 0, 0]
    assert '"body_note":null' in site.run("notifications", "show", old, "--json").stdout
    done = site.run("purge", "--json")
    assert done.returncode == 0
    counts = [(row["what"], row["purged"]) for row in map(json.loads, done.stdout.splitlines())]
    assert counts == [("bodies", 1), ("conflicts", 0), ("refusals", 0)]
    assert f"The raw body of {old} was purged at 20" in site.run("notifications", "show", old).stdout
    assert '"body_note":null' in site.run("notifications", "show", young, "--json").stdout
    assert "captured" in site.run("payments", "list").stdout
    (entry,) = map(json.loads, site.run("audit", "list", "--json").stdout.splitlines())
    assert (entry["action"], entry["facts"]) == ("purged", {"bodies": 1})
    again = site.run("purge")
    assert again.returncode == 0
    assert [line.split()[-2:] for line in again.stdout.splitlines()[1:]] == [["0", "0"]] * 3


def test_purge_without_periods_keeps_all(site: Site) -> None:
    site.keep(5000)
    done = site.run("purge")
    assert (done.returncode, done.stdout) == (0, "Nothing has a period in [retention], so all is kept.\n")
    assert site.run("purge", "--json").stdout == ""


def test_purge_says_in_one_sentence_what_is_wrong(site: Site, tmp_path: Path) -> None:
    site.configure(retention='bodies = "soon"')
    wrong = site.run("purge")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("postback: retention.bodies: must be a period such as 400d")
    site.keep(500)
    site.configure(retention='bodies = "400d"\nrefusals = "1d"', redis_url=f"unix://{tmp_path}/no.sock")
    away = site.run("purge")
    assert (away.returncode, away.stdout) == (1, "")
    assert away.stderr.startswith("postback: Redis does not answer: ")


def test_a_key_that_is_gone(site: Site) -> None:
    first = site.keep(3, KEY)
    site.keep(2, KEY, LATER)
    site.configure(KEY, LATER)
    assert '"body":"{' in site.run("notifications", "show", first, "--json").stdout
    assert "bodies are encrypted with" in site.run("doctor").stdout
    site.configure(LATER)
    shown = site.run("notifications", "show", first, "--json")
    assert shown.returncode == 0
    name = Bodies(secrets(KEY)).key_ids[0]
    assert json.loads(shown.stdout)["body_note"] == (
        f"The raw body of {first} needs the key {name}: not in security.body_keys."
    )
    doctor = site.run("doctor", "--json")
    assert doctor.returncode == 1
    (finding,) = [row for row in map(json.loads, doctor.stdout.splitlines()) if row["check"] == "body keys"]
    assert (finding["verdict"], name in finding["detail"]) == ("fault", True)
    assert not any(key in doctor.stdout + shown.stdout for key in (KEY, LATER))


def test_a_key_that_is_needed_no_more(site: Site) -> None:
    site.keep(500, KEY)
    site.configure(KEY, LATER, retention='bodies = "400d"')
    site.keep(1, KEY, LATER)
    assert site.run("purge").returncode == 0
    name = Bodies(secrets(KEY)).key_ids[0]
    assert f"{name} is used by no body any more" in site.run("doctor", "--json").stdout
