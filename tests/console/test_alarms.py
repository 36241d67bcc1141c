"""Alarms in the console and in its API: shown, and acknowledged by whoever may, with a reason in the audit trail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests.console.conftest import Browser
from tests.workers.material import rows
from workers.alarms import store
from workers.alarms.board import Alarm
from workers.alarms.kinds import AlarmKind
from workers.audit import Actor
from workers.ledger import queries
from workers.ledger.tables import audit

KEY = "operator-key-of-thirty-two-characters"
NOW = datetime.now(UTC).replace(microsecond=0)
SILENT = "endpoint_silent:checkout/main"


@pytest.fixture
def document(document: dict[str, Any]) -> dict[str, Any]:
    document["security"]["api_keys"] = [
        {"name": "program", "key": KEY, "role": "operator"},
        {"name": "screen", "key": KEY.upper(), "role": "viewer"},
    ]
    return document


@pytest.fixture
def raised(browser: Browser) -> Browser:
    """Two alarms now, and one that is over."""
    found = [
        Alarm(
            kind=kind,
            subject=subject,
            sentence=sentence,
            level=0,
            times=1,
            raised_at=NOW - timedelta(minutes=minutes),
            told_at=NOW,
            cleared_at=NOW if kind is AlarmKind.LEDGER_AWAY else None,
        )
        for minutes, (kind, subject, sentence) in enumerate(
            [
                (AlarmKind.REDIS_AWAY, "", "Redis does not answer."),
                (AlarmKind.ENDPOINT_SILENT, "checkout/main", "Nothing came from checkout/main."),
                (AlarmKind.LEDGER_AWAY, "", "The ledger does not answer."),
            ]
        )
    ]
    with browser.site.engine.begin() as connection:
        store.write(connection, found, ())
    return browser


def ask(browser: Browser, method: str, path: str, key: str = KEY, **more: Any) -> Any:
    return browser.send(method, f"/api/v1{path}", {"Authorization": f"Bearer {key}"}, **more)


def test_the_overview_shows_them_and_takes_an_acknowledgement(raised: Browser) -> None:
    raised.sign_in("oscar")
    page = raised.get("/").text
    assert "Nothing came from checkout/main." in page
    assert "The ledger does not answer." not in page
    fields = {"token": raised.token(), "alarm": SILENT, "reason": "their holiday"}
    assert raised.post("/alarms/acknowledge", fields).status_code == 303
    assert "their holiday" in raised.get("/").text
    again = raised.post("/alarms/acknowledge", fields)
    assert (again.status_code, "oscar has acknowledged it already." in again.text) == (409, True)
    (entry,) = (row for row in rows(raised.site.engine, audit) if row.action == "acknowledged")
    assert (entry.operator, entry.subject, entry.reason) == ("oscar", SILENT, "their holiday")


def test_while_the_ledger_is_away_the_overview_shows_what_this_machine_knows(raised: Browser) -> None:
    raised.sign_in("oscar")
    site = raised.site
    known = site.alarms.acknowledge(Actor("anna", "203.0.113.7"), SILENT, "known")
    with queries.reading(site.engine) as connection:
        alarms = store.open_alarms(connection)
    site.settings.data_dir.mkdir(exist_ok=True)
    store.File(site.settings.data_dir).write(store.Copy(holder="here", here=True, alarms=alarms))
    with site.engine.begin() as connection:
        connection.execute(text("ALTER TABLE alarms RENAME TO elsewhere"))
    page = raised.get("/").text
    assert known["sentence"] in page
    assert page.count("Somebody has acknowledged it.") == page.count("Nobody has acknowledged it.") == 1
    assert "/alarms/acknowledge" not in page


@pytest.mark.parametrize(
    ("name", "changed", "status"),
    [
        ("vera", {}, 403),
        ("oscar", {"token": "forged"}, 403),
        ("oscar", {"reason": " "}, 400),
        ("oscar", {"alarm": "ledger_away"}, 404),
        ("oscar", {"alarm": "<script>"}, 404),
        ("oscar", {"alarm": ""}, 404),
    ],
)
def test_an_acknowledgement_that_cannot_be(raised: Browser, name: str, changed: dict[str, str], status: int) -> None:
    raised.sign_in(name)
    fields = {"token": raised.token(), "alarm": SILENT, "reason": "known"} | changed
    answer = raised.post("/alarms/acknowledge", fields)
    assert answer.status_code == status
    assert "<script>" not in answer.text
    assert ("Nobody has acknowledged it." in raised.get("/").text) == (name == "vera")
    assert not [row for row in rows(raised.site.engine, audit) if row.action == "acknowledged"]


def test_the_api(raised: Browser) -> None:
    now = ask(raised, "GET", "/alarms").json()["items"]
    assert [each["alarm"] for each in now] == [SILENT, "redis_away"]
    (over,) = ask(raised, "GET", "/alarms?cleared=true").json()["items"]
    assert (over["alarm"], over["cleared_at"] is not None) == ("ledger_away", True)
    body = {"alarm": "redis_away", "reason": "known"}
    assert ask(raised, "POST", "/alarms/acknowledge", KEY.upper(), json=body).status_code == 403
    done = ask(raised, "POST", "/alarms/acknowledge", json=body)
    assert (done.status_code, done.json()["acknowledged_by"]) == (200, "program")
    assert ask(raised, "POST", "/alarms/acknowledge", json=body).json()["reason"] == "state_changed"
    assert ask(raised, "POST", "/alarms/acknowledge", json=body | {"alarm": "none"}).json()["reason"] == "unknown_id"
    shown = ask(raised, "GET", "/health").json()["alarms"]
    assert [(each["alarm"], each["acknowledged"]) for each in shown] == [(SILENT, False), ("redis_away", True)]


def test_whoever_only_monitors_sees_no_names(raised: Browser) -> None:
    ask(raised, "POST", "/alarms/acknowledge", json={"alarm": "redis_away", "reason": "known"})
    answer = raised.get("/healthz")
    assert len(answer.json()["alarms"]) == 2
    assert "program" not in answer.text
