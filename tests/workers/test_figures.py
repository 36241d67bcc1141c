"""The figures that the ledger itself gives, on both databases; and those of a machine that has workers only."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from receiver import settings as configuration
from receiver.settings import Settings
from tests.live.installation import Installation, command
from tests.servers import Valkey, eventually, free_port
from tests.workers.material import MOMENT, NOW, envelope
from workers.exposition import Figures
from workers.figures import LedgerFigures, families
from workers.health import examine
from workers.ledger import database
from workers.ledger.ledger import Interpreted, Ledger


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folder = str(tmp_path)
    return configuration.read(
        {
            "security": {"seal_keys": ["seal"]},
            "endpoint": [
                {"provider": "checkout", "facility": "main", "signature_keys": ["k"]},
                {
                    "provider": "quickstream",
                    "facility": "acme",
                    "username": "acme",
                    "passwords": ["p"],
                    "supplier_business_codes": ["ACME"],
                    "settlement_folder": folder,
                },
            ],
        },
        tmp_path,
    )


def figures(page: bytes) -> dict[str, float]:
    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_the_ledger_says(engine: Engine, ledger: Ledger, settings: Settings) -> None:
    before = figures(LedgerFigures(settings, engine).page())
    assert before["postback_ledger_answers"] == 1
    assert before['postback_attention{kind="failed"}'] == 0
    assert not any("last_notification" in name for name in before), "there was none"
    assert before['postback_settlement_days_missing{facility="acme",provider="quickstream"}'] == 0
    ledger.record([Interpreted(envelope(state), state, "some_reason") for state in ("failed", "quarantined", "held")])
    after = figures(LedgerFigures(settings, engine).page())
    for kind, number in (("failed", 1), ("quarantined", 1), ("held", 1), ("conflict", 0), ("mismatch", 0)):
        assert after[f'postback_attention{{kind="{kind}"}}'] == number
    name = 'postback_last_notification_timestamp_seconds{facility="main",provider="checkout"}'
    assert after[name] == MOMENT.timestamp() == NOW / 1_000_000


def test_a_ledger_that_does_not_answer(settings: Settings, tmp_path: Path) -> None:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'nothing' / 'ledger.sqlite3'}")
    assert figures(LedgerFigures(settings, engine).page()) == {"postback_ledger_answers": 0}
    engine.dispose()


def test_every_figure_of_the_ledger_has_a_name_of_ours() -> None:
    assert all(re.fullmatch(r"postback_\w+", family.name) for family in families())


def test_a_spool_that_cannot_be_read_is_a_problem_in_words(settings: Settings, tmp_path: Path) -> None:
    spool = settings.data_dir / "spool" / "spool.sqlite3"
    spool.parent.mkdir(parents=True)
    spool.write_bytes(b"damaged" * 1000)
    state = examine(settings)
    assert state["spool"]["status"] == "away"
    assert "The spool cannot be read." in state["problems"]


@pytest.fixture
def workers_only(valkey_server: Valkey, tmp_path: Path) -> Installation:
    """A configuration of a machine on which nothing but workers runs."""
    here = Installation(tmp_path, queue=f'redis_url = "{valkey_server.url}"', store="[work]\nmetrics_bind = ADDRESS")
    here.port = free_port()
    here.config.write_text(here.config.read_text().replace("ADDRESS", f'"127.0.0.1:{here.port}"'))
    assert here.run("migrate").returncode == 0
    return here


def asked(port: int, path: str = "/metrics") -> httpx.Response | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.usefixtures("redis")
def test_workers_of_a_machine_show_their_figures_on_one_port(workers_only: Installation) -> None:
    config, port = workers_only.config, workers_only.port
    with workers_only.log.open("ab") as log:
        workers = [
            subprocess.Popen([*command(), "work", "--config", str(config)], stdout=log, stderr=log) for _ in range(2)
        ]
    try:

        def both() -> bool:
            answer = asked(port)
            assert answer is not None
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "postback_workers 2.0" in answer.text
            assert "postback_queue_answers 1.0" in answer.text
            assert 'postback_recorded_total{facility="acme",provider="quickstream",state="failed"} 0.0' in answer.text
            return True

        eventually(both, 30, "two workers that show their figures")
        other = asked(port, "/")
        assert other is not None
        assert other.status_code == 404
        workers[0].send_signal(signal.SIGTERM)
        assert workers[0].wait(15) == 0
        answer = asked(port)
        assert answer is not None
        assert answer.status_code == 200
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        workers_only.close()


def test_a_fault_while_figures_are_shown_is_in_the_log(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("receiver.metrics.expose", fails)
    monkeypatch.setattr(socket, "getfqdn", fails)  # A start does not wait for DNS.
    port = free_port()
    work = msgspec.structs.replace(settings.work, metrics_bind=f"127.0.0.1:{port}")
    with capture_logs() as logged, Figures(msgspec.structs.replace(settings, work=work)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert asked(port) is None
        eventually(lambda: [each["event"] for each in logged] == ["figures_not_shown"])
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert asked(port, "/") is not None
        server.shutdown()
        server.redis.close()
    assert len(logged) == 1, "whoever hung up is in no log"


@pytest.mark.usefixtures("redis")
def test_a_port_that_is_taken_stops_the_start(workers_only: Installation) -> None:
    with socket.create_server(("127.0.0.1", workers_only.port)):
        done = workers_only.run("work")
    assert done.returncode == 2
    assert "work.metrics_bind: cannot listen there" in done.stderr
    workers_only.close()
