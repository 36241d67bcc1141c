"""A whole installation under a real Prometheus: what rules and panels ask for is there, and what they say is so."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.programs import program
from tests.deploy.watching import FOLDER, RULES, Exposed, Prometheus, watched
from tests.live.installation import Installation, installed
from tests.live.test_installation import basic, notify, payments, quickstream
from tests.servers import eventually

# One installation and one Prometheus for all of it.
pytestmark = pytest.mark.xdist_group("monitoring")

RUNBOOK = (FOLDER.parent / "RUNBOOK.md").read_text()
ALERTS = re.findall(r"^      - alert: (\w+)$", RULES.read_text(), re.MULTILINE)
DASHBOARD = json.loads((FOLDER.parent / "grafana" / "postback.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$provider": ".*", "$facility": ".*", "$__rate_interval": "1m"}
"""As Grafana fills them in when nothing is chosen."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """With something of everything that is counted."""
    folder = tmp_path_factory.mktemp("watched")
    with installed(folder, receive="processes = 2", store='[retention]\nbodies = "400d"') as here:
        traffic(here)
        assert here.client.get("/return/debitsuccess/gym?Status=Success&Token=T1").status_code == 200
        assert notify(here, quickstream("1", amount="1.00")).status_code == 200
        assert notify(here, quickstream("2", successFlag="false")).json()["status"] == "quarantined"
        assert notify(here, quickstream("3"), credentials=basic("acme", "x")).status_code == 403
        payments(here, "1")
        eventually(lambda: here.pids("console") and metrics(here.console_port), 30, "the console")
        yield here


@pytest.fixture(scope="module")
def prometheus(running: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with watched(tmp_path_factory.mktemp("prometheus"), running) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def exposed(running: Installation) -> Exposed:
    return Exposed(metrics(running.port), metrics(running.console_port))


def traffic(running: Installation) -> None:
    assert notify(running, quickstream("1")).status_code == 200


def metrics(port: int) -> str:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=15, trust_env=False)
    except httpx.TransportError:
        return ""
    return answer.text if answer.status_code == 200 else ""


@pytest.mark.parametrize("tests", ["postback.rules.test.yml", "postback.rules.weeks.test.yml"])
def test_the_rules_do_what_their_own_tests_say(tests: str) -> None:
    done = subprocess.run([program("promtool"), "test", "rules", FOLDER / tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    tried = "".join(path.read_text() for path in FOLDER.glob("*.test.yml"))
    assert len(ALERTS) > 30
    for alert in ALERTS:
        assert f"{{ alertname: {alert}," in tried, f"{alert}: when is it not raised?"
        assert f"- alertname: {alert}\n" in tried, f"{alert}: when is it raised?"


def test_prometheus_takes_the_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", FOLDER / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_leads_to_its_section() -> None:
    sections = RUNBOOK.split("\n## Prometheus alerts\n")[1].split("\n## ")[0].split("\n### ")[1:]
    told = {name: text.strip() for name, _, text in (section.partition("\n") for section in sections)}
    assert list(told) == ALERTS, "in the order of the rules"
    assert all(len(text) > 60 for text in told.values())
    named = re.findall(r"^          runbook: (\S+)$", RULES.read_text(), re.MULTILINE)
    assert named == [f"RUNBOOK.md#{alert.lower()}" for alert in ALERTS]


def test_every_figure_that_a_rule_asks_for_is_there(prometheus: Prometheus, exposed: Exposed) -> None:
    rules = prometheus.rules()
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(ALERTS)
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    for rule in rules:
        assert exposed.lacks(rule["query"]) == [], rule["name"]
        assert set(re.findall(r"postback:[\w:]+", rule["query"])) <= recorded


def test_the_rules_can_be_evaluated(running: Installation, prometheus: Prometheus) -> None:
    recorded = [rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"]

    def all_there() -> bool:
        traffic(running)
        assert [name for name in recorded if not prometheus.query(name)] == []
        return True

    eventually(all_there, 30, "every recorded figure")
    assert [rule["lastError"] for rule in prometheus.rules() if rule["health"] == "err"] == []
    (accepted,) = prometheus.query('postback:accepted:rate5m{facility="acme",status="accepted"}')
    assert set(accepted["metric"]) == {"__name__", "provider", "facility", "status"}


def test_only_what_is_wrong_raises_an_alert(prometheus: Prometheus) -> None:
    def raised() -> bool:
        alerts = prometheus.query('ALERTS{alertstate="firing"}')
        assert {alert["metric"]["alertname"] for alert in alerts} == {"PostbackConflict", "PostbackQuarantined"}
        return True

    eventually(raised, 30, "the alerts")


def test_both_ports_show_the_same_counters(running: Installation) -> None:
    wanted = 'postback_accepted_total{facility="acme",provider="quickstream",status="accepted"}'

    def counted(port: int) -> str:
        (line,) = [line for line in metrics(port).splitlines() if line.startswith(wanted)]
        return line

    eventually(lambda: counted(running.port) == counted(running.console_port), what="the same figure")


def test_the_dashboard_asks_for_what_is_there(running: Installation, prometheus: Prometheus, exposed: Exposed) -> None:
    recorded = {rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"}
    for panel in PANELS:
        for query in queries(panel):
            assert exposed.lacks(query) == [], panel["title"]
            assert set(re.findall(r"postback:[\w:]+", query)) <= recorded

    def all_there() -> bool:
        traffic(running)
        assert [panel["title"] for panel in PANELS if not all(map(prometheus.query, queries(panel)))] == []
        return True

    eventually(all_there, 30, "a figure in every panel")


def queries(panel: dict[str, Any]) -> list[str]:
    found = [target["expr"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    assert found
    assert "$" not in "".join(found), panel["title"]
    return found


def test_every_panel_says_what_it_shows_and_has_its_place() -> None:
    assert len(PANELS) > 20
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
        assert max(one["x"] + one["w"], other["x"] + other["w"]) <= 24
