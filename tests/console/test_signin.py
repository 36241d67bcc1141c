"""Signing in and out over HTTP: who gets in, for how long, and what nobody learns."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from receiver.errors import LedgerAway
from receiver.settings import Settings
from tests.console.conftest import PASSWORD, Browser, settings_of
from workers import audit
from workers.console import app, guessing, passwords, signin
from workers.ledger import queries
from workers.ledger import sessions as ended


def test_in_and_out(browser: Browser, logged: list[MutableMapping[str, Any]]) -> None:
    away = browser.get("/payments?state=captured")
    assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=%2Fpayments%3Fstate%3Dcaptured")
    entered = browser.sign_in(wish="/payments?state=captured")
    assert (entered.status_code, entered.headers["location"]) == (303, "/payments?state=captured")
    page = browser.get("/")
    assert page.status_code == 200
    assert "anna" in page.text
    assert "approver" in page.text
    left = browser.post("/sign-out", {"token": browser.token()})
    assert (left.headers["location"], left.headers["clear-site-data"]) == ("/sign-in", '"cache"')
    assert browser.cookie is None
    assert browser.get("/").status_code == 303
    events = [(event["event"], event.get("operator")) for event in logged if event["event"] != "audit_entry"]
    assert events == [("signed_in", "anna"), ("signed_out", "anna")]
    browser.sign_in("vera", "wrong")
    browser.sign_in("nobody", "wrong")
    with queries.reading(browser.site.engine) as connection:
        entries = [(each["operator"], each["action"], each["origin"]) for each in audit.listed(connection)]
    assert entries == [
        ("vera", "sign_in_refused", "203.0.113.9"),
        ("anna", "signed_out", "203.0.113.9"),
        ("anna", "signed_in", "203.0.113.9"),
    ]


def test_a_copy_of_the_cookie_is_worth_nothing_after_signing_out(browser: Browser, settings: Settings) -> None:
    browser.sign_in()
    thief = Browser(settings)
    thief.show(browser.cookie)
    assert thief.get("/").status_code == 200
    browser.post("/sign-out", {"token": browser.token()})
    # Another process of the console knows it as well: it is in the ledger.
    assert thief.get("/").status_code == 303
    restarted = Browser(settings)
    restarted.show(thief.cookie)
    assert restarted.get("/").status_code == 303


def test_signing_out_while_the_ledger_is_away_says_so_and_is_made_up_for(
    browser: Browser, settings: Settings, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    browser.sign_in()
    cookie = browser.cookie or ""
    token = browser.token()

    def away(*arguments: Any) -> None:
        raise LedgerAway("gone")

    with monkeypatch.context() as gone:
        gone.setattr(ended, "end", away)
        gone.setattr(ended, "has_ended", away)
        assert browser.get("/").status_code == 200
        answer = browser.post("/sign-out", {"token": token})
        assert answer.status_code == 503
        assert "Signed out here, not yet everywhere" in answer.text
        assert browser.cookie is None
        assert "session_end_not_recorded" in [event["event"] for event in logged]
        browser.show(cookie)
        assert browser.get("/").status_code == 303
    other = Browser(settings)
    other.show(cookie)
    assert other.get("/").status_code == 200, "what the page warns of"
    monkeypatch.setattr(app, "SETTLE_EVERY", 0.01)
    asyncio.run(lived(browser, lambda: "session_ends_recorded" in [event["event"] for event in logged]))
    other.show(cookie)
    assert other.get("/").status_code == 303
    assert browser.site.ended.settle() == 0


def test_an_end_that_the_ledger_was_not_told_is_written_when_the_console_stops(
    browser: Browser, settings: Settings
) -> None:
    browser.site.ended._owed["s1"] = 2_000_000_000
    asyncio.run(lived(browser, lambda: True))
    assert "s1" in Browser(settings).site.ended


async def lived(browser: Browser, until: Callable[[], bool]) -> None:
    """The life of the console as its server runs it."""
    application = browser.app._app  # type: ignore[attr-defined]
    async with application.router.lifespan_context(application):
        async with asyncio.timeout(30):
            while not until():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "password"),
    [("anna", "wrong"), ("nobody", PASSWORD), ("", ""), ("anna", ""), ("anna", "x" * 5000), ("anna\0", PASSWORD),
     ("\N{LATIN SMALL LETTER A WITH DIAERESIS}nna", PASSWORD), ("anna", "\ud800".encode("utf-8", "surrogatepass"))],
)  # fmt: skip
def test_wrong_sign_ins_are_answered_alike(browser: Browser, name: str, password: Any) -> None:
    fields = {"token": browser.token("/sign-in"), "name": name, "password": password, "next": "/"}
    answer = browser.post("/sign-in", fields)
    assert answer.status_code == 403
    assert "Name or password is not right." in answer.text
    assert browser.cookie is None


def test_an_unknown_name_costs_as_much_as_a_known_one(browser: Browser) -> None:
    tried = []
    with patch.object(passwords, "verify", side_effect=lambda password, stored: tried.append(stored)):
        browser.sign_in("anna", "wrong")
        browser.sign_in("nobody", "wrong")
    assert len(tried) == 2
    assert [stored.split("$")[2] for stored in tried] == ["ln=14,r=8,p=1"] * 2


def test_neither_names_nor_passwords_are_logged(browser: Browser, logged: list[MutableMapping[str, Any]]) -> None:
    browser.sign_in("hunter2-typed-into-the-name", "wrong-password-typed")
    assert [event["event"] for event in logged] == ["sign_in_refused"]
    assert "typed" not in repr(logged)


@pytest.mark.parametrize("path", ["/sign-in", "/password"])
def test_fields_of_passwords_are_masked_and_help_a_manager(browser: Browser, path: str) -> None:
    if path == "/password":
        browser.sign_in()
    fields = re.findall(r"<input [^>]*(?:password|f-new|f-again|f-current)[^>]*>", browser.get(path).text)
    shown = [field for field in fields if 'type="hidden"' not in field]
    assert len(shown) == {"/sign-in": 1, "/password": 3}[path]
    for field in shown:
        assert 'type="password"' in field
        assert re.search(r'autocomplete="(current|new)-password"', field)
        assert 'maxlength="1024"' in field


def test_names_do_not_depend_on_case(browser: Browser) -> None:
    assert browser.sign_in("ANNA").status_code == 303


@pytest.mark.parametrize("name", ["anna", "nobody"])
def test_guessing_must_wait(browser: Browser, name: str, logged: list[MutableMapping[str, Any]]) -> None:
    for _ in range(guessing.FREE_FOR_NAME):
        assert browser.sign_in(name, "wrong").status_code == 403
    locked = browser.sign_in(name)
    assert locked.status_code == 429
    assert 0 < int(locked.headers["retry-after"]) <= guessing.FIRST_WAIT
    assert "Too many tries." in locked.text
    assert logged[-1]["event"] == "sign_in_locked"
    assert browser.sign_in("oscar").status_code == 303


def test_guessing_many_names_from_one_address_must_wait(browser: Browser, settings: Settings) -> None:
    for number in range(guessing.FREE_FOR_ADDRESS):
        browser.cookies.clear()
        assert browser.sign_in(f"name{number}", "wrong").status_code == 403
    assert browser.sign_in("anna").status_code == 429


def test_a_flood_of_sign_ins_is_no_fault_of_ours(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can send one: only stores that are away are answered with 5xx."""
    monkeypatch.setattr(signin, "_WAITING", 0)
    answer = browser.sign_in()
    assert answer.status_code == 429
    assert "Too many sign-ins at once" in answer.text


@pytest.mark.parametrize(
    "wish",
    ["//evil.example", "https://evil.example", "/\\evil.example", "\\/evil.example", "", "evil", "/\n/x", "/\t/evil",
     "javascript:alert(1)", "/" + "x" * 1000, "/\N{FULLWIDTH SOLIDUS}evil.example"],
)  # fmt: skip
def test_nobody_is_sent_elsewhere(browser: Browser, wish: str) -> None:
    assert browser.sign_in(wish=wish).headers["location"] == "/"
    browser.cookies.clear()
    page = browser.send("GET", "/sign-in", params={"next": wish})
    assert 'name="next" value="/"' in page.text


def test_a_sign_in_form_of_another_visit_is_refused(browser: Browser, settings: Settings) -> None:
    attacker = Browser(settings)
    token = attacker.token("/sign-in")
    browser.get("/sign-in")
    answer = browser.post("/sign-in", {"token": token, "name": "anna", "password": PASSWORD, "next": "/"})
    assert (answer.status_code, browser.cookie) == (403, None)
    # Nor does a token alone do, without the visit that it was made for.
    other = Browser(settings)
    assert other.post("/sign-in", {"token": token, "name": "anna", "password": PASSWORD}).status_code == 403


def test_each_sign_in_is_a_session_of_its_own(browser: Browser) -> None:
    browser.sign_in()
    first = browser.cookie
    browser.cookies.clear()
    browser.sign_in()
    assert first
    assert first != browser.cookie


def test_idle_and_absolute_expiry(settings: Settings) -> None:
    now = [1_800_000_000.0]
    browser = Browser(settings)
    browser.site.sessions._clock = lambda: now[0]
    browser.sign_in()
    now[0] += 29 * 60
    kept = browser.cookie
    assert browser.get("/").status_code == 200
    assert browser.cookie != kept, "renewed"
    now[0] += 29 * 60
    assert browser.get("/?live=1").status_code == 200
    now[0] += 2 * 60
    assert browser.get("/").status_code == 303, "a page that fetches itself keeps nobody signed in"
    browser.cookies.clear()
    browser.sign_in()
    for _ in range(12 * 3):
        now[0] += 20 * 60 - 1
        assert browser.get("/").status_code == 200
    now[0] += 20 * 60
    assert browser.get("/").status_code == 303
    now[0] -= 24 * 3600
    assert browser.get("/").status_code == 303, "a cookie from the future"


def test_a_form_of_an_expired_session_does_nothing_and_says_so(browser: Browser) -> None:
    now = [1_800_000_000.0]
    browser.site.sessions._clock = lambda: now[0]
    browser.sign_in("oscar")
    form = {
        "token": browser.token(),
        "kind": "failed",
        "subject": "checkout/main/x",
        "verdict": "ignored",
        "reason": "x",
    }
    now[0] += 31 * 60
    over = browser.post("/attention/settle", form)
    assert (over.status_code, "Your session is over" in over.text, "Nothing was done." in over.text) == (
        401,
        True,
        True,
    )
    assert 'href="/sign-in"' in over.text
    browser.sign_in("oscar")
    another = browser.post("/attention/settle", form)
    assert (another.status_code, "This form is not from your session" in another.text) == (403, True)


@pytest.mark.parametrize("change", ["password", "role", "name", "gone"])
def test_a_changed_operator(browser: Browser, document: dict[str, Any], tmp_path: Path, change: str) -> None:
    browser.sign_in()
    operators = document["security"]["operators"]
    if change == "password":
        operators[2]["password_hash"] = passwords.make("another password", log_n=14, p=1)
    elif change == "role":
        operators[2]["role"] = "viewer"
    elif change == "name":
        operators[2]["name"] = "anna2"
    else:
        del operators[2]
    later = Browser(settings_of(document, tmp_path))
    later.show(browser.cookie)
    page = later.get("/")
    if change == "role":
        assert "approver" not in page.text
    else:
        assert page.status_code == 303


@pytest.mark.parametrize("broken", ["", "x", ".", "e30.AAAA", "\x00", "a" * 5000, "=;=", "null.null"])
def test_broken_cookies(browser: Browser, broken: str) -> None:
    assert browser.get("/", cookie=f"postback-session={broken}").status_code == 303
    browser.sign_in()
    cookie = browser.cookie or ""
    browser.cookies.clear()
    for position in range(0, len(cookie) - 1, 7):
        forged = cookie[:position] + ("A" if cookie[position] != "A" else "B") + cookie[position + 1 :]
        assert browser.get("/", cookie=f"postback-session={forged}").status_code == 303


def test_what_signs_forms_signs_no_session(browser: Browser) -> None:
    """Whoever is not signed in yet may have any text of his own signed for a form."""
    browser.sign_in()
    content, _, seal = (browser.cookie or "").rpartition(".")
    sessions = browser.site.sessions
    assert sessions.read(f"{content}.{seal}") is not None
    assert sessions.read(f"{content}.{sessions.form_token(content)}") is None
    assert not sessions.proves(seal, content)


def test_an_old_seal_key_still_reads_and_the_new_one_signs(
    browser: Browser, document: dict[str, Any], tmp_path: Path
) -> None:
    browser.sign_in()
    document["security"]["seal_keys"] = ["new-seal-key", "newest-seal-key"]
    rotated = Browser(settings_of(document, tmp_path))
    rotated.show(browser.cookie)
    assert rotated.get("/").status_code == 200
    document["security"]["seal_keys"] = ["newest-seal-key"]
    without = Browser(settings_of(document, tmp_path))
    without.show(browser.cookie)
    assert without.get("/").status_code == 303


class TestProxy:
    """Signing in by the header of a trusted proxy."""

    @pytest.fixture
    def settings(self, document: dict[str, Any], tmp_path: Path) -> Settings:
        document["console"] |= {"trusted_proxies": ["203.0.113.9"], "sign_in_header": "X-Remote-User"}
        document["security"]["operators"].append({"name": "paul@example.com", "role": "operator"})
        return settings_of(document, tmp_path)

    def test_its_word_counts(self, browser: Browser) -> None:
        page = browser.get("/", x_remote_user="paul@example.com")
        assert page.status_code == 200
        assert "paul@example.com" in page.text
        assert "Signed in by the proxy" in page.text
        # What it set is worth nothing without the proxy's word.
        assert browser.cookie
        assert browser.get("/").status_code == 303

    def test_nobody_else_s_word_counts(self, settings: Settings) -> None:
        stranger = Browser(settings, "203.0.113.10")
        assert stranger.get("/", x_remote_user="anna").status_code == 303
        forwarded = stranger.get("/", x_remote_user="anna", x_forwarded_for="203.0.113.9")
        assert forwarded.status_code == 303

    def test_an_unknown_operator(self, browser: Browser) -> None:
        assert browser.get("/", x_remote_user="eve").status_code == 403

    def test_two_names_are_none(self, browser: Browser) -> None:
        answer = browser.send("GET", "/", [("x-remote-user", "vera"), ("x-remote-user", "anna")])
        assert answer.status_code == 400

    def test_another_operator_gets_a_session_of_his_own(self, browser: Browser) -> None:
        browser.get("/", x_remote_user="vera")
        first = browser.cookie
        page = browser.get("/", x_remote_user="anna")
        assert "anna" in page.text
        assert browser.cookie != first

    def test_passwords_still_work_and_one_without_has_none(self, browser: Browser) -> None:
        assert browser.sign_in("paul@example.com", "").status_code == 403
        assert browser.sign_in("anna").status_code == 303

    def test_the_client_s_own_address_is_locked_out(self, browser: Browser) -> None:
        for number in range(guessing.FREE_FOR_ADDRESS):
            fields = {"token": browser.token("/sign-in"), "name": f"n{number}", "password": "wrong"}
            browser.post("/sign-in", fields, x_forwarded_for="198.51.100.7")
        fields = {"token": browser.token("/sign-in"), "name": "anna", "password": PASSWORD}
        assert browser.post("/sign-in", fields, x_forwarded_for="198.51.100.7").status_code == 429
        assert browser.post("/sign-in", fields, x_forwarded_for="198.51.100.8").status_code == 303
