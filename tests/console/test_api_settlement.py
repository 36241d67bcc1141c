"""Settlement files through the API: the same function as the page's, with a key that gives one file only once."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from sqlalchemy.exc import IntegrityError

from receiver.errors import LedgerAway
from receiver.settings import Settings
from tests import asgi
from tests.asgi import Application, End
from tests.console.conftest import Browser, both_databases
from tests.console.files import LIMIT, Held, with_settlement
from tests.console.programs import KEYS, Client, keys, problem
from tests.servers import eventually
from tests.support import QUICKSTREAM
from tests.workers.material import rows
from tests.workers.settlement import Desk, row
from workers import audit
from workers.console import receiving, uploads
from workers.console.pages import reconciliations as pages
from workers.ledger.ledger import Ledger
from workers.ledger.queries import reading
from workers.ledger.reconciliations import Reconciliations
from workers.ledger.tables import idempotency_keys, notifications, payments, reconciliations
from workers.simulator.cash_applied import FileRow, file_of

DIFFERS = [row("1", Payment_Amount="1.00"), row("2")]


@pytest.fixture
def document(document: dict[str, Any]) -> dict[str, Any]:
    document["security"]["api_keys"] = keys()
    return with_settlement(document)


@pytest.fixture
def client(browser: Browser) -> Client:
    """Of a ledger that was notified of one payment."""
    Desk(Ledger(browser.site.engine), QUICKSTREAM).notified("1")
    return Client(browser, KEYS["operator"])


def asked(**query: str) -> str:
    named = {"provider": "quickstream", "facility": "acme", "file_name": "caf.csv"} | query
    return f"/reconciliations?{urlencode(named)}"


def give(client: Client, content: bytes | list[FileRow], key: str | None = None, **query: str) -> httpx.Response:
    headers = {"Content-Type": "text/csv"} | ({"Idempotency-Key": key} if key is not None else {})
    file = content if isinstance(content, bytes) else file_of(content)
    return client.ask("POST", asked(**query), content=file, headers=headers)


@both_databases
def test_a_file_is_reconciled_and_in_the_trail(client: Client) -> None:
    answer = give(client, DIFFERS)
    said = answer.json()
    assert (answer.status_code, said["state"], said["share"], said["by"]) == (201, "done", 1.0, "shop-operator")
    assert said["result"]["counts"] == {"amount_differs": 1, "missing_here": 1}
    assert [each["kind"] for each in said["result"]["found"]] == ["amount_differs", "missing_here"]
    path = f"/reconciliations/{said['reconciliation_id']}"
    assert answer.headers["location"] == f"/api/v1{path}"
    assert client.get(path).json()["entered"] == said["result"]["entered"] == 1
    assert client.get(f"/reconciliations/uploads/{said['id']}").json() == said
    assert len(rows(client.browser.site.engine, payments)) == 2
    with reading(client.browser.site.engine) as connection:
        trail = list(audit.every(connection))
    assert [(each["action"], each["operator"], each["origin"]) for each in trail] == [
        ("reconciled", "shop-operator", "203.0.113.9"),
        ("reconciliation_begun", "shop-operator", "203.0.113.9"),
    ]


def test_every_run_is_on_one_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [give(client, b"").json()["reconciliation_id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = client.get(f"/reconciliations?limit=2&facility=acme{cursor}").json()
        seen += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == runs[::-1]
    assert client.get("/reconciliations?facility=other").json() == {"items": [], "next": None}
    problem(client.get("/reconciliations?cursor=x"), 400, "cursor_malformed")
    monkeypatch.setattr(pages, "SHOWN", 2)
    browser, seen, where = client.browser, [], "/reconciliations"
    browser.sign_in("vera")
    while where:
        shown = browser.get(where).text
        seen += re.findall(r'<th scope="row"><a href="/reconciliations/([^"]+)"', shown)
        where = shown.partition('rel="next" href="')[2].partition('"')[0]
    assert seen == runs[::-1]
    assert browser.get("/reconciliations?after=x").status_code == 400


def test_a_dry_run_writes_nothing(client: Client) -> None:
    answer = give(client, DIFFERS, "k", dry_run="true")
    said = answer.json()
    assert (answer.status_code, said["state"], said["dry_run"], said["reconciliation_id"]) == (200, "done", True, None)
    assert said["result"]["findings"] == 2
    for table in (reconciliations, idempotency_keys):
        assert rows(client.browser.site.engine, table) == []
    assert len(rows(client.browser.site.engine, payments)) == 1


def test_days_where_the_rows_do_not_say(client: Client) -> None:
    said = give(client, b"", first_day="2025-03-07", last_day="2025-03-07").json()
    assert said["result"]["counts"] == {"missing_in_file": 1}


@both_databases
def test_the_same_key_gives_the_same_run(client: Client, settings: Settings) -> None:
    first = give(client, DIFFERS, "k 1")
    again = give(client, DIFFERS, "k 1")
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["location"] == first.headers["location"]
    for other in (give(client, [row("2")], "k 1"), give(client, DIFFERS, "k 1", file_name="another.csv")):
        problem(other, 422, "idempotency_key_reused")
    replay = {"state": "processed", "reason": "r"}
    problem(client.post("/replays", replay, Idempotency_Key="k 1"), 422, "idempotency_key_reused")
    # Another process knows it from the ledger alone.
    elsewhere = give(Client(Browser(settings), KEYS["operator"]), DIFFERS, "k 1")
    assert elsewhere.status_code == 201
    # When its record began, not when the file came.
    assert elsewhere.json() == first.json() | {"id": None, "began_at": elsewhere.json()["began_at"]}
    assert len(rows(client.browser.site.engine, reconciliations)) == 1
    assert give(client, DIFFERS).json()["reconciliation_id"] != first.json()["reconciliation_id"]


def test_the_same_key_at_the_same_time(client: Client) -> None:
    others = [Client(client.browser, KEYS["operator"]) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: give(each, DIFFERS, "k"), others))
    assert {answer.status_code for answer in answers} <= {201, 202, 409}
    assert len(rows(client.browser.site.engine, reconciliations)) == 1
    assert give(client, DIFFERS, "k").json()["state"] == "done"


@both_databases
def test_a_key_that_was_used_while_the_file_was_looked_at(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another console that is as quick: only the ledger tells."""
    first = give(client, DIFFERS, "k").json()
    known: list[str | None] = []
    made_with = uploads.Uploads.made_with

    def looked(self: uploads.Uploads, *arguments: Any) -> str | None:
        known.append(made_with(self, *arguments) if known else None)
        return known[-1]

    monkeypatch.setattr(uploads.Uploads, "made_with", looked)
    assert give(client, DIFFERS, "k").json() == first
    assert len(known) == 2
    assert len(rows(client.browser.site.engine, reconciliations)) == 1


def test_what_the_ledger_refuses_is_a_fault_of_ours(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the key of a request says that somebody was quicker."""

    def refused(*_: Any) -> Any:
        raise IntegrityError("INSERT", {}, Exception("NOT NULL constraint failed"))

    monkeypatch.setattr(Reconciliations, "add", refused)
    problem(give(client, DIFFERS), 500, "fault")


def test_a_file_that_was_not_taken_uses_no_key(client: Client) -> None:
    problem(give(client, b"\0", "k"), 422, "file_refused")
    assert give(client, DIFFERS, "k").status_code == 201


def test_what_cannot_be_done_is_one_problem(client: Client) -> None:
    cases: list[tuple[bytes | list[FileRow], dict[str, str], int, str]] = [
        (b"\0", {}, 422, "file_refused"),
        ([row("1", Supplier_Business_Code="OTHER")], {}, 422, "file_refused"),
        (b"", {"provider": "checkout", "facility": "main"}, 400, "parameter_refused"),
        (b"", {"facility": "nobody"}, 400, "parameter_refused"),
        (b"", {"first_day": "yesterday"}, 400, "parameter_refused"),
        (b"", {"first_day": "2025-03-08", "last_day": "2025-03-07"}, 400, "parameter_refused"),
        (b"", {"file_name": ""}, 400, "parameter_refused"),
        (b"", {"file": "caf.csv"}, 400, "parameter_refused"),
        (b"x" * (LIMIT + 1), {}, 413, "body_too_large"),
    ]
    for content, query, status, reason in cases:
        problem(give(client, content, **query), status, reason)
    problem(client.ask("POST", asked(), content=b"", headers={"Content-Type": "text/html"}), 415, "media_type_refused")
    with Reconciliations(client.browser.site.engine).alone("quickstream", "acme"):
        problem(give(client, DIFFERS), 409, "already_reconciling")
    for id_ in ("none", "%00"):
        problem(client.get(f"/reconciliations/uploads/{id_}"), 404, "unknown_id")
    assert rows(client.browser.site.engine, reconciliations) == []


def test_a_full_disk(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    answer = give(client, DIFFERS)
    problem(answer, 507, "disk_full")
    assert "No space left on device" in answer.json()["detail"]


# -- how much is read of it, and when


@pytest.fixture
def application(client: Client) -> Iterator[Application]:
    with asgi.running(client.browser.app) as running:
        yield running
    # A file that nobody closed would be told here.
    gc.collect()


def headers(role: str = "operator", **more: str) -> dict[str, str]:
    return {
        "host": "127.0.0.1:8081",
        "authorization": f"Bearer {KEYS[role]}",
        "content-type": "text/csv",
    } | {name.replace("_", "-"): value for name, value in more.items()}


def test_nothing_is_read_of_what_cannot_be_taken(application: Application) -> None:
    def status(path: str = asked(), **more: str) -> int:
        return application.post(f"/api/v1{path}", headers(**more), [End.UNTOUCHED]).status

    assert status(authorization="Bearer none") == 403
    assert status(role="viewer") == 403
    assert status(asked(last_day="x")) == 400
    assert status(idempotency_key="x" * 201) == 400
    assert status(content_type="multipart/form-data; boundary=x") == 415
    assert status(content_length=str(LIMIT + 1)) == 413
    assert status(content_length="9" * 30) == 413


def test_a_body_without_end(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE", 0.1)
    path = f"/api/v1{asked()}"
    assert application.post(path, headers(), [b"y" * 1024] * 100).status == 413
    assert application.post(path, headers(), [b"y", End.SILENCE]).status == 408
    for _ in range(uploads.AT_ONCE + 1):
        # None of them is counted as under way any more.
        assert application.post(path, headers(), [b"y", End.HANGUP]).status == 400
    monkeypatch.setattr(uploads, "AT_ONCE", 0)
    full = application.post(path, headers(), [End.UNTOUCHED])
    assert (full.status, full.json["reason"]) == (429, "uploads_full")


# -- runs that take long


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go_on.set()


def test_a_long_run_says_how_far_it_is(client: Client, held: Held) -> None:
    answer = give(client, DIFFERS)
    assert (answer.status_code, answer.json()["state"], answer.json()["result"]) == (202, "running", None)
    path = answer.headers["location"].removeprefix("/api/v1")
    assert path == f"/reconciliations/uploads/{answer.json()['id']}"
    eventually(lambda: client.get(path).json()["share"] == 0.375)
    held.go_on.set()
    eventually(lambda: client.get(path).json()["state"] == "done")
    assert client.get(path).json()["result"]["entered"] == 1


def test_a_run_that_fails_in_the_middle_says_so(client: Client, held: Held) -> None:
    held.fault = LedgerAway("x")
    path = give(client, DIFFERS).headers["location"].removeprefix("/api/v1")
    held.go_on.set()
    said = eventually(lambda: (found := client.get(path).json())["state"] != "running" and found)
    assert (said["state"], said["reason"], said["reconciliation_id"]) == ("refused", "ledger_away", None)
    assert said["detail"].startswith("The ledger does not answer.")


def test_an_interrupted_run_is_unfinished(client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key has begun it; the file is given again with another one."""

    def interrupted(*_: Any) -> Any:
        raise LedgerAway("x")

    monkeypatch.setattr(Reconciliations, "finish", interrupted)
    said = give(client, DIFFERS, "k").json()
    assert (said["state"], said["reason"]) == ("refused", "ledger_away")
    monkeypatch.undo()
    elsewhere = Client(Browser(settings), KEYS["operator"])
    again = give(elsewhere, DIFFERS, "k").json()
    assert (again["state"], again["id"], again["result"]) == ("unfinished", None, None)
    assert again["reconciliation_id"] == said["reconciliation_id"]
    assert give(elsewhere, DIFFERS, "k 2").json()["result"]["entered"] == 0
    assert len(rows(client.browser.site.engine, notifications)) == 2
