"""The pages over HTTP: what is asked for and does not exist, cannot be meant, or was written by somebody else."""

from __future__ import annotations

import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from redis import Redis
from sqlalchemy import select

from receiver.notification import new_id, now_us
from receiver.settings import Settings
from tests.console.conftest import Browser, both_databases, settings_of
from tests.console.refusing import refuse
from tests.workers.material import envelope, event, processed
from workers.console import words
from workers.console.health import Health
from workers.console.render import commands
from workers.ledger import queries
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.tables import metadata, notifications

EVIL = "<script>alert(1)</script>\u202e\x07"


@pytest.fixture
def filled(browser: Browser) -> Browser:
    """Sixty notifications of as many payments, one in conflict, one that failed; the operator is signed in."""
    ledger = Ledger(browser.site.engine)
    for number in range(60):
        ledger.record(
            [processed(f"k{number}", event(payment_id=f"p{number}", custom={EVIL: EVIL}), id=new_id(now_us()))]
        )
    ledger.record([processed("k0", event(payment_id="p0"), id=new_id(now_us()), fingerprint="f2", body=b'{"a":1}')])
    failed = envelope("bad", id=new_id(now_us()), event_type=EVIL, body=EVIL.encode())
    ledger.record([Interpreted(failed, "failed", "interpretation_failed", EVIL)])
    browser.sign_in("oscar")
    return browser


def following(page: Any) -> str:
    """Where the link to the next part of a list leads."""
    _, _, rest = page.text.partition('rel="next" href="')
    return str(rest.partition('"')[0].replace("&amp;", "&"))


@both_databases
@pytest.mark.parametrize(("path", "rows"), [("/notifications", 61), ("/payments", 60)])
def test_every_row_is_on_one_page(filled: Browser, path: str, rows: int) -> None:
    links: list[str] = []
    where = path
    while where:
        page = filled.get(where)
        assert page.status_code == 200
        links += [part.partition('"')[0] for part in page.text.split('<th scope="row"')[1:]]
        where = following(page)
    assert len(links) == rows


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/notifications/none", 404),
        ("/notifications/%00", 404),
        ("/payments/checkout/main?id=none", 404),
        ("/payments/checkout/main", 404),
        ("/payments/nobody/main?id=p1", 404),
        ("/payments/checkout/main?id=%00", 404),
        ("/replays/none", 404),
        ("/replays/%00", 404),
        ("/replays?after=%00", 400),
        ("/replays/new", 400),
        ("/replays/new?id=none", 404),
        ("/replays/new?state=held", 400),
        ("/replays?state=none", 400),
        ("/replays/x?outcome=none", 400),
        ("/reconciliations/none", 404),
        ("/reconciliations/%00", 404),
        ("/attention?kind=none", 400),
        ("/attention?kind=failed&after=x", 400),
        ("/notifications?after=x", 400),
        ("/notifications?after=%00", 400),
        ("/payments?after=%F0%9F%92%A9", 400),
        ("/audit?after=x", 400),
        ("/audit?after=%C2%B2", 400),
        ("/audit?after=99999999999999999999", 400),
        ("/notifications?state=none", 400),
        ("/payments?state=processed", 400),
        ("/notifications?endpoint=none/x", 400),
        ("/notifications?since=yesterday", 400),
        ("/notifications?until=0000-00-00", 400),
        ("/notifications?until=9999-12-31", 400),
        ("/notifications?search=" + "x" * 201, 400),
        ("/notifications?search=%00", 200),
        ("/notifications?search=%25_'--", 200),
        ("/notifications?endpoint=checkout/%3Cscript%3E", 200),
        ("/notifications?since=2026-11-24&until=2026-11-24T10:00", 200),
        ("/refused?reason=none", 400),
        ("/refused?after=1", 400),
        ("/refused?endpoint=%3Cscript%3E", 200),
        ("/audit?operator=%00&subject=%00", 200),
    ],
)
def test_what_does_not_exist_or_cannot_be_meant(filled: Browser, path: str, status: int) -> None:
    page = filled.get(path)
    assert page.status_code == status
    assert "A fault of ours" not in page.text
    assert "<script" not in page.text


def test_what_a_sender_wrote_is_text(filled: Browser) -> None:
    page = filled.get("/notifications?state=failed")
    link = page.text.partition('<th scope="row"><a href="')[2].partition('"')[0]
    for path in (link, "/notifications", "/payments/checkout/main?id=p3", f"/replays/new?id={link.rpartition('/')[2]}"):
        shown = filled.get(path)
        assert shown.status_code == 200, path
        assert "&lt;script&gt;" in shown.text or path.startswith("/replays")
        assert "<script" not in shown.text
        assert not {"\u202e", "\x07"} & set(shown.text), "neither a turned direction nor a bell"


def test_looking_changes_nothing(filled: Browser, redis: Redis) -> None:
    """And whoever looks can leave, from every page."""
    refuse(redis, 3)
    with queries.reading(filled.site.engine) as connection:
        known = connection.scalar(select(notifications.c.id))

    def everything() -> list[object]:
        with queries.reading(filled.site.engine) as connection:
            rows: list[object] = [connection.execute(select(table)).all() for table in metadata.sorted_tables]
        return [*rows, {key: redis.dump(key) for key in redis.scan_iter()}]

    before = everything()
    looked = 0
    for route in filled.app._app.routes:  # type: ignore[attr-defined]
        if "GET" not in (getattr(route, "methods", None) or ()) or "{name}" in route.path:
            continue
        path = route.path.replace("{provider}/{facility}", "checkout/main?id=p3").replace("{id}", str(known))
        page = filled.get(f"{path}?id={known}" if path == "/replays/new" else path)
        assert page.status_code in (200, 404, 503), path
        if "text/html" in page.headers["content-type"] and route.path != "/sign-in":
            assert page.text.count('action="/sign-out"') == 1, path
            looked += 1
    assert looked >= 15
    assert everything() == before


def test_every_refusal_is_on_one_page(browser: Browser, redis: Redis) -> None:
    refuse(redis, 820)
    browser.sign_in("vera")
    sizes, where = list[str](), "/refused?reason=source_refused&endpoint=checkout/main"
    while where:
        page = browser.get(where)
        assert "410 of 820" in page.text
        table = page.text.partition("Refused requests, newest first")[2]
        sizes += re.findall(r'<td class="num wide">(\d+)</td>', table)
        where = following(page)
    assert [int(size) for size in sizes] == list(range(818, -1, -2))


def test_a_command_in_an_alarm_stands_out(filled: Browser) -> None:
    page = filled.get("/").text
    assert "Notifications failed; <code>postback attention list --kind failed</code> shows them." in page
    assert "<li>" in page
    assert commands("a `<b>` & `c`") == "a <code>&lt;b&gt;</code> &amp; <code>c</code>"


def test_a_response_without_a_code_is_its_words(browser: Browser) -> None:
    said = event(payment_id="p", response_description="Approved", amount=100, currency="AUD")
    Ledger(browser.site.engine).record([processed("k", said, id=new_id(now_us()))])
    browser.sign_in("vera")
    page = browser.get("/payments/checkout/main?id=p").text
    assert "<dt>Response</dt><dd>Approved" in " ".join(page.split()).replace("<dd> ", "<dd>")


@both_databases
def test_conflicts_stand_side_by_side(filled: Browser) -> None:
    page = filled.get("/notifications?search=k0")
    link = page.text.partition('<th scope="row"><a href="')[2].partition('"')[0]
    shown = filled.get(link)
    assert "Conflict of" in shown.text
    assert shown.text.count('class="differs"') >= 1


@both_databases
def test_a_replay_is_refused_without_a_reason_and_with_one_is_asked_for(filled: Browser) -> None:
    page = filled.get("/notifications?state=failed")
    id_ = page.text.partition('href="/notifications/')[2].partition('"')[0]
    token = filled.token()
    refused = filled.post("/replays", {"token": token, "id": id_, "reason": " "})
    assert refused.status_code == 400
    assert "A reason is needed" in refused.text
    asked = filled.post("/replays", {"token": token, "id": id_, "reason": "mended"})
    assert asked.status_code == 303
    where = asked.headers["location"]
    running = filled.get(where)
    assert running.headers["refresh"] == f"2; url={where}?live=1"
    assert "refresh" not in filled.get(f"{where}?still=1").headers
    again = filled.post("/replays", {"token": token, "id": id_, "reason": "mended"})
    assert again.status_code == 409
    assert where.rpartition("/")[2] in again.text
    assert filled.post(f"{where}/pause", {"token": token}).status_code == 303
    assert "refresh" not in filled.get(where).headers
    assert filled.post(f"{where}/pause", {"token": token}).status_code == 409
    assert filled.post(f"{where}/cancel", {"token": token, "reason": ""}).status_code == 400
    assert filled.post(f"{where}/cancel", {"token": token, "reason": "no more"}).status_code == 303
    cancelled = filled.get(where)
    assert "The replay was cancelled before its turn." in cancelled.text
    by_search = filled.post("/replays", {"token": token, "state": "failed", "reason": "all of them"})
    shown = filled.get(by_search.headers["location"])
    assert shown.status_code == 200
    assert "state <strong>failed</strong>" in shown.text
    assert filled.get("/replays").status_code == 200
    assert filled.post(f"{where}/approve", {"token": token, "reason": "x"}).status_code == 403, (
        "an operator approves none"
    )


@both_databases
def test_settling(filled: Browser) -> None:
    page = filled.get("/attention?kind=failed")
    subject = page.text.partition('name="subject" value="')[2].partition('"')[0]
    given = {"token": filled.token(), "kind": "failed", "subject": subject}
    assert filled.post("/attention/settle", {**given, "reason": "x"}).status_code == 400
    assert filled.post("/attention/settle", {**given, "verdict": "resolved", "reason": ""}).status_code == 400
    assert filled.post("/attention/settle", {**given, "subject": "x", "verdict": "ignored"}).status_code == 400
    unknown = {**given, "subject": "checkout/main/none", "verdict": "ignored", "reason": "x"}
    assert filled.post("/attention/settle", unknown).status_code == 404
    done = filled.post("/attention/settle", {**given, "verdict": "ignored", "reason": "a test", "back": "//evil"})
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert filled.post("/attention/settle", {**given, "verdict": "ignored", "reason": "a test"}).status_code == 409
    assert "a test" in filled.get("/attention?kind=failed&settled=1").text
    shown = filled.get(f"/notifications/{subject.rpartition('/')[2]}").text
    assert re.search(r'<li class="ignored">.*by oscar: a test', shown)
    reopened = filled.post("/attention/reopen", {**given, "reason": "not yet"})
    assert reopened.headers["location"] == "/attention?kind=failed"


def test_a_mismatch_is_settled_where_it_is_seen(browser: Browser) -> None:
    said = event(payment_id="p/1", partial=True, amount=999, currency="AUD")
    Ledger(browser.site.engine).record([processed("k", said, id=new_id(now_us()))])
    browser.sign_in("oscar")
    where = "/payments/checkout/main?id=p%2F1"
    page = browser.get(where).text
    assert "settle it, with a reason" in page
    _, _, form = page.partition('action="/attention/settle"')
    fields = dict(re.findall(r'name="(token|kind|subject|back)" value="([^"]+)"', form))
    done = browser.post("/attention/settle", {**fields, "verdict": "resolved", "reason": "a discount"})
    assert (done.status_code, done.headers["location"]) == (303, where)
    assert "by oscar" in browser.get(where).text
    assert "settle it, with a reason" not in browser.get(where).text


def test_amounts_keep_their_spaces(browser: Browser) -> None:
    said = event(payment_id="p1", amount=123456789, currency="EUR", exponent=2)
    Ledger(browser.site.engine).record([processed("k", said, id=new_id(now_us()))])
    browser.sign_in("vera")
    for path in ("/payments", "/payments/checkout/main?id=p1"):
        page = browser.get(path)
        assert "1\u202f234\u202f567.89\u00a0EUR" in page.text
        assert "\N{REPLACEMENT CHARACTER}" not in page.text


def test_what_fits_is_exported_and_in_the_trail(filled: Browser) -> None:
    page = filled.get("/notifications?state=failed").text
    _, _, form = page.partition('action="/notifications/export"')
    fields = dict(re.findall(r'name="(token|state|search)" value="([^"]+)"', form))
    assert fields["state"] == "failed"
    for format_, kind in (("csv", "text/csv; charset=utf-8"), ("jsonl", "application/jsonl")):
        file = filled.post("/notifications/export", {**fields, "format": format_, "reason": "for the bank"})
        assert (file.status_code, file.headers["content-type"]) == (200, kind)
        assert file.headers["content-disposition"] == f'attachment; filename="notifications.{format_}"'
        assert file.text.count("interpretation_failed") == 1
    trail = filled.get("/audit").text
    assert "format jsonl, state failed" in trail
    assert trail.count("<td>exported</td>") == trail.count("for the bank") == 2
    assert filled.post("/notifications/export", {**fields, "format": "xml"}).status_code == 400
    assert filled.post("/notifications/export", {**fields, "format": "csv", "state": "none"}).status_code == 400
    assert filled.post("/notifications/export", {**fields, "format": "csv", "token": "x"}).status_code == 403


def test_payments_that_are_not_as_expected(browser: Browser) -> None:
    said = (event(payment_id="p1"), event(payment_id="p2", partial=True))
    Ledger(browser.site.engine).record([processed(f"k{n}", each, id=new_id(now_us())) for n, each in enumerate(said)])
    browser.sign_in("vera")
    page = browser.get("/payments?mismatch=1").text
    assert ("p2" in page, "p1" in page) == (True, False)
    assert "checked" in page


@both_databases
def test_what_needs_attention_at_one_endpoint(filled: Browser) -> None:
    for endpoint, rows in (("", 1), ("checkout", 1), ("checkout/main", 1), ("paymentz", 0), ("checkout/none", 0)):
        page = filled.get(f"/attention?kind=failed&endpoint={endpoint}").text
        assert page.count('name="subject"') == rows, endpoint
        _, _, trial = page.partition('href="/replays/new?')
        assert f"endpoint={endpoint}" in unquote(trial.partition('"')[0]) or not endpoint, "of no other endpoint"


def test_the_overview_says_that_somebody_must_look(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when everything runs: what is quarantined is no fault of the installation."""
    state = browser.site.health.now() | {"problems": [], "status": "ok"}
    monkeypatch.setattr(Health, "now", lambda self: state)
    browser.sign_in("vera")
    assert "All is well" in browser.get("/").text
    state["database"] |= {"quarantined": 2, "conflicts": 1}
    page = browser.get("/").text
    assert ("All is well" in page, "3 need a person to look" in page) == (False, True)


def test_what_a_replay_would_make_is_short() -> None:
    made = {"state": "captured", "amount": "12.50", "surcharge": "0.00", "response_code": "00", "mismatch": False}
    assert words.changes(None, made) == [
        ("state", None, "captured"),
        ("amount", None, "12.50"),
        ("response_code", None, "00"),
    ]
    assert words.changes(made, made | {"state": "refunded"}) == [("state", "captured", "refunded")]
    assert words.changes(made, None) == []


def test_facts_of_the_trail_are_one_line() -> None:
    facts = {
        "notifications": 3,
        "needs_approval": True,
        "chosen": {"ids": ["a", "b"]},
        "sha256": "f" * 64,
        "none": None,
    }
    assert words.facts(facts) == f"notifications 3, needs approval yes, chosen (ids a and 1 more), sha256 {'f' * 16}…"


@both_databases
def test_of_two_operators_who_replay_the_same_at_once_one_is_told_of_the_other(
    filled: Browser, settings: Settings
) -> None:
    others = [filled, Browser(settings)]
    others[1].sign_in("anna")
    tokens = [each.token() for each in others]
    (failed,) = re.findall(
        r'<th scope="row"><a href="/notifications/([^"]+)"', filled.get("/notifications?state=failed").text
    )
    barrier = threading.Barrier(2)

    def ask(number: int) -> Any:
        barrier.wait(30)
        return others[number].post("/replays", {"token": tokens[number], "id": failed, "reason": "mended"})

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(ask, range(2)), key=lambda answer: int(answer.status_code))
    assert (first.status_code, second.status_code) == (303, 409)
    assert "in replay" in second.text or "was in another replay just now" in second.text
    assert filled.get("/replays").text.count('<th scope="row">') == 1


def test_an_approver_can_try_what_waits(document: dict[str, Any], tmp_path: Path) -> None:
    document["replay"] = {"approve_above": 1}
    asks = Browser(settings_of(document, tmp_path))
    ledger = Ledger(asks.site.engine)
    odd = [envelope(f"odd{number}", id=new_id(now_us()), body=b"{}") for number in range(2)]
    ledger.record([Interpreted(each, "failed", "interpretation_failed", "a fault") for each in odd])
    asks.sign_in("oscar")
    for chosen in ({"state": "failed", "endpoint": "checkout/main"}, {"id": [each.id for each in odd]}):
        made = asks.post("/replays", {"token": asks.token(), "reason": "mended", **chosen})
        where = made.headers["location"]
        trial = html.unescape(re.search(r'href="(/replays/new[^"]*)"', asks.get(where).text)[1])  # type: ignore[index]
        tried = asks.get(trial)
        assert (tried.status_code, "<strong>2 notifications</strong>" in tried.text) == (200, True)
        assert "A replay would mend none of them." in tried.text
        assert asks.post(f"{where}/cancel", {"token": asks.token(), "reason": "seen"}).status_code == 303
