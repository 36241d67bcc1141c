"""Settlement files that an operator gives: who may, what is read of them and when, and what the pages then say."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.errors import LedgerAway
from receiver.settings import Settings
from tests import asgi
from tests.asgi import Application, End
from tests.console.conftest import Browser, both_databases, settings_of
from tests.console.files import LIMIT, Held, with_settlement
from tests.servers import eventually
from tests.support import QUICKSTREAM
from tests.workers.material import rows
from tests.workers.settlement import Desk, row
from workers import audit
from workers.console import receiving, uploads
from workers.ledger.ledger import Ledger
from workers.ledger.queries import reading
from workers.ledger.reconciliations import Reconciliations
from workers.ledger.tables import notifications, payments, reconciliations
from workers.simulator.cash_applied import FileRow, file_of

PLACE = re.compile(r"/reconciliations/[0-9a-f-]{36}")
DRY = re.compile(r"/reconciliations/uploads/[0-9a-f-]{36}")


@pytest.fixture
def document(document: dict[str, Any]) -> dict[str, Any]:
    return with_settlement(document)


@pytest.fixture
def desk(browser: Browser) -> Desk:
    """One payment was notified, and the operator has signed in."""
    browser.sign_in("oscar")
    desk = Desk(Ledger(browser.site.engine), QUICKSTREAM)
    desk.notified("1")
    return desk


def give(browser: Browser, content: bytes | list[FileRow], name: str = "caf.csv", **fields: str) -> Any:
    """Sends the form with a file, as a browser does."""
    data = {"token": browser.token(), "endpoint": "quickstream/acme"} | fields
    file = content if isinstance(content, bytes) else file_of(content)
    return browser.send("POST", "/reconciliations", data=data, files={"file": (name, file)})


@both_databases
def test_a_file_is_compared_and_its_page_says_what_came_of_it(browser: Browser, desk: Desk) -> None:
    answer = give(browser, [row("1", Payment_Amount="1.00"), row("2")], "C:\\bank\\<b>caf.csv")
    assert answer.status_code == 303
    assert PLACE.fullmatch(answer.headers["location"])
    page = browser.get(answer.headers["location"])
    text = " ".join(re.sub("<[^>]+>", " ", page.text).split())
    for said in ("&lt;b&gt;caf.csv", "2 findings", "2 , of which 0 agree and 1 were entered", "By oscar"):
        assert said.replace(" ,", ",") in text, said
    assert "C:" not in page.text, "no folder of whoever gave it"
    for said in ("1 amount differs", "1 missing here", "624.00 1.00"):
        assert said in text, said
    for payment in ("ACMECOMM%3A1", "ACMECOMM%3A2"):
        assert browser.get(f"/payments/quickstream/acme?id={payment}").status_code == 200
        assert f'"/payments/quickstream/acme?id={payment}"' in page.text
    assert answer.headers["location"] in browser.get("/reconciliations").text
    with reading(browser.site.engine) as connection:
        trail = [each for each in audit.every(connection, operator="oscar") if each["action"] != "signed_in"]
    assert [(each["action"], each["origin"]) for each in trail] == [
        ("reconciled", "203.0.113.9"),
        ("reconciliation_begun", "203.0.113.9"),
    ]
    assert f'href="{answer.headers["location"]}"' in browser.get("/audit").text


def test_only_looking_writes_nothing(browser: Browser, desk: Desk) -> None:
    answer = give(browser, [row("1", Payment_Amount="1.00"), row("2")], dry_run="1")
    assert answer.status_code == 303
    assert DRY.fullmatch(answer.headers["location"])
    for _ in range(2):
        page = browser.get(answer.headers["location"])
        assert page.status_code == 200
        assert "Nothing was written" in page.text
        assert "<b>1</b> missing here" in page.text
        assert "id=ACMECOMM%3A1" in page.text
        assert "id=ACMECOMM%3A2" not in page.text, "it is not there"
        assert "refresh" not in page.headers
    assert rows(browser.site.engine, reconciliations) == []
    assert len(rows(browser.site.engine, payments)) == 1


def test_the_same_file_again_says_so_and_enters_nothing(browser: Browser, desk: Desk) -> None:
    content = [row("1"), row("2")]
    first, second = (give(browser, content).headers["location"] for _ in range(2))
    assert first != second
    assert "The very same file" not in browser.get(first).text
    page = browser.get(second).text
    assert "The very same file was reconciled before" in page
    assert f'href="{first}"' in page
    assert "2, of which 2 agree and 0 were entered" in page
    assert len(rows(browser.site.engine, notifications)) == 2


def test_days_where_the_rows_do_not_say(browser: Browser, desk: Desk) -> None:
    answer = give(browser, b"", since="2025-03-07", until="2025-03-07")
    assert "<b>1</b> missing in file" in browser.get(answer.headers["location"]).text


# -- what cannot be done


def test_what_cannot_be_done_is_one_sentence(browser: Browser, desk: Desk) -> None:
    cases: list[tuple[Any, dict[str, str], int, str]] = [
        (b"\0", {}, 422, "caf.csv: This is not a CSV file: line 1 is no text. Nothing was written."),
        ([row("1", Supplier_Business_Code="OTHER")], {}, 422, "This file is of another facility"),
        (b"", {"endpoint": "checkout/main"}, 400, "Choose whose file it is: quickstream/acme, quickstream/other."),
        (b"", {"endpoint": ""}, 400, "Choose whose file it is"),
        (b"", {"since": "yesterday"}, 400, "The first day must be a day such as 2026-11-24."),
        (b"", {"since": "2025-03-08", "until": "2025-03-07"}, 400, "The first day must not be after the last one."),
        (b"", {"token": "x"}, 403, "This form is not from your session"),
        (b"x" * (LIMIT + receiving.AROUND), {}, 413, "4\N{NO-BREAK SPACE}KiB: console.max_upload says so."),
    ]
    for content, fields, status, sentence in cases:
        answer = give(browser, content, **fields)
        assert answer.status_code == status, sentence
        assert sentence in answer.text
    assert rows(browser.site.engine, reconciliations) == []


def test_without_a_file(browser: Browser, desk: Desk) -> None:
    fields = {"token": browser.token(), "endpoint": "quickstream/acme"}
    for answer in (browser.post("/reconciliations", fields), give(browser, b"", name="")):
        assert answer.status_code == 400
        assert "Choose a file first. Nothing was done." in answer.text


def test_forms_that_are_none(browser: Browser, desk: Desk) -> None:
    one = ("file", ("caf.csv", b""))
    two = browser.send("POST", "/reconciliations", data={"token": browser.token()}, files=[one, one])
    assert (two.status_code, "A form has one file." in two.text) == (400, True)
    for kind, body, status in (
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"x" * 100, 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n',
            403,
        ),
        ("text/csv", b"", 415),
    ):
        answer = browser.send("POST", "/reconciliations", {"content-type": kind}, content=body)
        assert answer.status_code == status, kind
    assert rows(browser.site.engine, reconciliations) == []


def test_another_file_in_hand(browser: Browser, desk: Desk) -> None:
    with Reconciliations(browser.site.engine).alone("quickstream", "acme"):
        answer = give(browser, [row("1")])
    assert answer.status_code == 409
    assert "Another settlement file is being reconciled at the moment. Nothing was written." in answer.text
    assert give(browser, [row("1")]).status_code == 303


def test_nobody_is_asked_for_a_file_that_no_endpoint_has(document: dict[str, Any], tmp_path: Path) -> None:
    document["endpoint"] = document["endpoint"][:2]
    browser = Browser(settings_of(document, tmp_path))
    browser.sign_in("oscar")
    assert 'type="file"' not in browser.get("/reconciliations").text
    answer = give(browser, b"")
    assert (answer.status_code, "only those of QuickStream have" in answer.text) == (400, True)


def test_a_viewer_sees_the_runs_and_gives_no_file(browser: Browser, desk: Desk, settings: Settings) -> None:
    place = give(browser, [row("1")]).headers["location"]
    viewer = Browser(settings)
    viewer.sign_in("vera")
    assert 'type="file"' not in viewer.get("/reconciliations").text
    assert viewer.get(place).status_code == 200
    assert give(viewer, [row("1")]).status_code == 403


# -- how much is read of it, and when


@pytest.fixture
def application(browser: Browser) -> Iterator[Application]:
    with asgi.running(browser.app) as running:
        yield running
    # A file that nobody closed would be told here.
    gc.collect()


def headers(browser: Browser, **more: str) -> dict[str, str]:
    return {
        "host": "127.0.0.1:8081",
        "cookie": f"postback-session={browser.cookie}",
        "content-type": "multipart/form-data; boundary=x",
    } | {name.replace("_", "-"): value for name, value in more.items()}


def test_nothing_is_read_of_whoever_may_not(browser: Browser, application: Application, desk: Desk) -> None:
    def status(body: Any = End.UNTOUCHED, **more: str) -> int:
        return application.post("/reconciliations", headers(browser, **more), [body]).status

    assert status(cookie="") == 401
    assert status(sec_fetch_site="cross-site") == 403
    assert status(content_length=str(LIMIT + receiving.AROUND + 1)) == 413
    assert status(content_length="9" * 30) == 413
    browser.sign_in("vera")
    assert status() == 403


def test_a_body_without_end_or_without_a_length(
    browser: Browser, application: Application, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "PATIENCE", 0.1)
    start = b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
    known = headers(browser)
    endless = application.post("/reconciliations", known, [start, *[b"y" * 1024] * 100])
    assert endless.status == 413
    assert application.post("/reconciliations", known, [start, End.SILENCE]).status == 408
    assert application.post("/reconciliations", known, [start, b"y", End.HANGUP]).status == 400
    for _ in range(uploads.AT_ONCE + 1):
        # None of them is counted as under way any more.
        assert application.post("/reconciliations", known, [End.HANGUP]).status == 400


def test_not_too_many_at_once(
    browser: Browser, application: Application, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "AT_ONCE", 0)
    answer = application.post("/reconciliations", headers(browser), [End.UNTOUCHED])
    assert (answer.status, b"try again" in answer.body) == (429, True)


def test_a_full_disk(browser: Browser, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    answer = give(browser, [row("1")])
    assert (answer.status_code, "No space left on device" in answer.text) == (507, True)


# -- runs that take long


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go_on.set()


def test_a_long_run_shows_how_far_it_is_and_keeps_nobody_from_working(browser: Browser, desk: Desk, held: Held) -> None:
    place = give(browser, [row("1"), row("2")]).headers["location"]
    assert DRY.fullmatch(place)
    eventually(lambda: "37 % done" in browser.get(place).text)
    assert browser.get(place).headers["refresh"] == f"2; url={place}?live=1"
    assert "refresh" not in browser.get(f"{place}?still=1").headers
    assert browser.get("/payments").status_code == 200
    held.go_on.set()
    eventually(lambda: browser.get(place).status_code == 303)
    # As often as it is loaded.
    for _ in range(2):
        assert "1 were entered" in browser.get(browser.get(place).headers["location"]).text
    assert len(rows(browser.site.engine, reconciliations)) == 1


def test_a_run_that_fails_in_the_middle_says_so(browser: Browser, desk: Desk, held: Held, logged: list[Any]) -> None:
    for fault, sentence in ((LedgerAway("x"), "The ledger does not answer."), (ZeroDivisionError(), "A fault of ours")):
        assert "settlement_upload_failed" not in [each["event"] for each in logged]
        held.fault = fault
        held.go_on.clear()
        place = give(browser, [row("1")]).headers["location"]
        held.go_on.set()
        page = browser.get(place)
        while "37 % done" in page.text:
            page = browser.get(place)
        assert sentence in page.text
        assert (page.status_code, "entered only once" in page.text) == (200, True)
        assert "refresh" not in page.headers
    assert "settlement_upload_failed" in [each["event"] for each in logged]


def test_the_end_of_the_process_ends_a_run(browser: Browser, desk: Desk, held: Held) -> None:
    place = give(browser, [row("1")]).headers["location"]
    browser.site.uploads.close()
    assert "The console is being stopped" in browser.get(place).text


def test_an_upload_that_nobody_knows_any_more(browser: Browser, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.console.uploads.KEPT", 1)
    old, _ = (give(browser, [row("1")], dry_run="1").headers["location"] for _ in range(2))
    for path in (old, "/reconciliations/uploads/x", "/reconciliations/uploads/%00"):
        page = browser.get(path)
        assert (page.status_code, "is among the reconciliations" in page.text) == (404, True)
