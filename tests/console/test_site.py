"""What holds for every page: headers, hosts, roles, form tokens, and faults that end in a page."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from receiver.settings import Role, Settings
from tests.console.conftest import PASSWORD, Browser, settings_of
from tests.secrecy import unknown
from workers.console import headers
from workers.console.site import LARGEST_FORM, own_path
from workers.ledger import queries

OPEN = {"/livez", "/readyz", "/metrics", "/healthz", "/static/{name}", "/sign-in", "/sign-in/code"}


def routes(browser: Browser) -> list[Route]:
    app = browser.app._app  # type: ignore[attr-defined]
    return [route for route in app.routes if isinstance(route, Route)]


def filled(path: str) -> str:
    return path.replace("{id}", "x").replace("{provider}/{facility}", "checkout/main").replace("{name}", "console.css")


def test_every_page_asks_for_a_sign_in(browser: Browser) -> None:
    asked = 0
    for route in routes(browser):
        methods = route.methods or set()
        if route.path in OPEN:
            continue
        asked += 1
        if "GET" in methods:
            answer = browser.get(filled(route.path))
            assert answer.status_code == 303, route.path
            assert answer.headers["location"].startswith("/sign-in?next=%2F")
        else:
            assert methods == {"POST"}
            assert browser.post(filled(route.path), {"token": "x"}).status_code == 401, route.path
    assert asked >= 4


def test_the_secrets_of_these_tests_are_looked_out_for(settings: Settings) -> None:
    assert unknown(settings) == []


NEEDS = {
    ("POST", "/sign-out"): "viewer",
    ("POST", "/password"): "viewer",
    ("POST", "/second-factor"): "viewer",
    ("POST", "/second-factor/off"): "viewer",
    ("POST", "/notifications/export"): "viewer",
    ("POST", "/alarms/acknowledge"): "operator",
    ("POST", "/attention/settle"): "operator",
    ("POST", "/attention/reopen"): "operator",
    ("GET", "/replays/new"): "operator",
    ("POST", "/replays"): "operator",
    ("POST", "/replays/{id}/pause"): "operator",
    ("POST", "/replays/{id}/resume"): "operator",
    ("POST", "/replays/{id}/cancel"): "operator",
    ("POST", "/reconciliations"): "operator",
    ("POST", "/replays/{id}/approve"): "approver",
}
"""The least role of each form, and of each page that is not for everybody."""


def test_every_form_needs_its_role(
    browser: Browser, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    forms = {("POST", route.path) for route in routes(browser) if "POST" in (route.methods or ())}
    assert forms - {("POST", "/sign-in"), ("POST", "/sign-in/code")} == {each for each in NEEDS if each[0] == "POST"}
    for name, role in (("vera", Role.VIEWER), ("oscar", Role.OPERATOR)):
        asking = Browser(settings)
        asking.sign_in(name)
        token = asking.token()
        for (method, path), needed in NEEDS.items():
            if not role.includes(Role(needed)):
                answer = asking.send(method, filled(path), data={"token": token} if method == "POST" else None)
                assert (answer.status_code, "Your role does not allow this" in answer.text) == (403, True), path
                told = {"operator": name, "path": filled(path), "source": "203.0.113.9"}
                assert told.items() <= logged[-1].items()
                assert (logged[-1]["event"], logged[-1]["why"]) == ("console_refused", "Your role does not allow this")


def test_every_form_needs_the_token_of_its_session(
    browser: Browser, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    other = Browser(settings)
    other.sign_in()
    browser.sign_in()
    forms = [route.path for route in routes(browser) if "POST" in (route.methods or ()) and route.path not in OPEN]
    assert "/sign-out" in forms
    for path in forms:
        for token in ("", "x", "\N{SNOWMAN}", "x" * 200, other.token(), browser.site.sessions.form_token("visit:x")):
            answer = browser.post(filled(path), {"token": token})
            assert answer.status_code == 403, path
            assert "This form is not from your session" in answer.text
            assert logged[-1]["event"] == "console_refused"
        elsewhere = browser.post(filled(path), {"token": browser.token()}, sec_fetch_site="cross-site")
        assert (elsewhere.status_code, logged[-1]["why"]) == (403, "This form is not ours")
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("text/plain", b"token=x", 415),
        ("application/x-www-form-urlencoded", b"x" * (LARGEST_FORM + 1), 413),
        ("application/x-www-form-urlencoded", b"\xff", 400),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 2001), 400),
        ("application/x-www-form-urlencoded", b"", 403),
    ],
)
def test_forms_that_are_none(browser: Browser, content_type: str, body: bytes, status: int) -> None:
    browser.sign_in()
    answer = browser.send("POST", "/sign-out", {"content-type": content_type}, content=body)
    assert answer.status_code == status
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 303), ("/sign-in", 200), ("/static/console.css", 200), ("/livez", 200), ("/metrics", 200),
     ("/nothing", 404), ("/static/../app.py", 404), ("/static/%2e%2e%2fapp.py", 404), ("/sign-out", 405),
     ("/payments/", 404), ("/static/", 404)],
)  # fmt: skip
def test_headers_on_every_answer(browser: Browser, path: str, status: int) -> None:
    answer = browser.get(path)
    assert answer.status_code == status
    for name, value in headers.HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "strict-transport-security" not in answer.headers
    assert "server" not in answer.headers


def test_the_headers_are_what_is_asked_for() -> None:
    """OWASP's secure headers and ASVS 3.2 to 3.4, in our own words rather than in the code's."""
    assert headers.HEADERS["content-security-policy"].split("; ") == [
        *("default-src 'none'", "style-src 'self'", "img-src 'self'", "form-action 'self'"),
        *("frame-ancestors 'none'", "base-uri 'none'"),
    ]
    asked = {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    assert asked.items() <= headers.HEADERS.items()


def test_headers_on_a_fault_of_ours(browser: Browser, monkeypatch: pytest.MonkeyPatch, logged: Any) -> None:
    browser.sign_in()
    monkeypatch.setattr(browser.site.health, "now", lambda: 1 / 0)
    answer = browser.get("/")
    assert answer.status_code == 500
    assert "A fault of ours" in answer.text
    assert "ZeroDivision" not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert logged[-1]["event"] == "console_failed"


def test_cookies_without_tls(browser: Browser) -> None:
    browser.token("/sign-in")
    fields = {"token": browser.token("/sign-in"), "name": "anna", "password": PASSWORD}
    (session, gone) = browser.post("/sign-in", fields).headers.get_list("set-cookie")
    assert session.startswith("postback-session=")
    assert session.endswith("; HttpOnly; Path=/; SameSite=lax")
    assert gone.startswith('postback-visit="";')


def test_cookies_behind_tls(document: dict[str, Any], tmp_path: Path) -> None:
    document["console"]["public_url"] = "https://console.example.com"
    browser = Browser(settings_of(document, tmp_path), base="https://console.example.com")
    page = browser.get("/sign-in")
    assert page.headers["strict-transport-security"].startswith("max-age=63072000")
    (visit,) = page.headers.get_list("set-cookie")
    assert visit.startswith("__Host-postback-visit=")
    (session, _) = browser.sign_in().headers.get_list("set-cookie")
    assert session.startswith("__Host-postback-session=")
    assert session.endswith("; HttpOnly; Path=/; SameSite=lax; Secure")
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8081", 303), ("localhost:9999", 303), ("[::1]:8081", 303), ("LOCALHOST", 303),
     ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost@evil.example", 421), ("", 421),
     ("[::1", 421), ("\xff", 421)],
)  # fmt: skip
def test_only_our_own_names_are_answered(browser: Browser, host: str, status: int) -> None:
    answer = browser.send("GET", "/", {b"host": host.encode("latin-1")})
    assert answer.status_code == status
    assert "evil" not in answer.headers.get("location", "") + answer.text
    assert browser.send("GET", "/livez", {b"host": host.encode("latin-1")}).status_code == 200


@pytest.mark.parametrize(
    ("wish", "path"),
    [("/payments?state=captured&search=a%20b", "/payments?state=captured&search=a%20b"), ("/", "/"),
     ("//x", "/"), ("/\\x", "/"), ("x", "/"), ("", "/"), ("/a\r\nb", "/"), ("/\N{SNOWMAN}", "/")],
)  # fmt: skip
def test_own_paths(wish: str, path: str) -> None:
    assert own_path(wish) == path


def test_healthz(browser: Browser) -> None:
    answer = browser.get("/healthz")
    state = answer.json()
    assert answer.status_code == 503
    assert state["problems"] == ["No worker is alive."]
    assert state["database"]["status"] == "up"
    assert browser.get("/readyz").json() == {"status": "ready"}
    assert "postback_workers" in browser.get("/metrics").text


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_without_a_ledger(document: dict[str, Any], tmp_path: Path) -> None:
    browser = Browser(settings_of(document, tmp_path))
    browser.sign_in()
    (tmp_path / "ledger.sqlite3").write_bytes(b"damaged" * 1000)
    for beside in ("-wal", "-shm"):
        (tmp_path / f"ledger.sqlite3{beside}").unlink(missing_ok=True)
    browser.site.engine.dispose()
    overview = browser.get("/")
    assert overview.status_code == 200
    assert "The ledger does not answer." in overview.text
    assert browser.get("/readyz").status_code == 503
    assert browser.get("/healthz").status_code == 503
    away = browser.get("/payments")
    assert away.status_code == 503
    assert "The ledger does not answer" in away.text


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_probe_says_what_is_wrong_and_no_secret(document: dict[str, Any], tmp_path: Path) -> None:
    passwords = "queue-password", "role-owner-password"
    document["queue"]["redis_url"] = f"redis://postback:{passwords[0]}@127.0.0.1:1/0"
    document["store"]["database_url"] = f"postgresql+psycopg://postback:{passwords[1]}@127.0.0.1:1/postback"
    browser = Browser(settings_of(document, tmp_path))
    ready, health = browser.get("/readyz"), browser.get("/healthz")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    assert "Connection refused" in ready.json()["fault"]
    assert health.status_code == 503
    assert {"Redis does not answer.", "The ledger does not answer."} <= set(health.json()["problems"])
    assert browser.get("/livez").status_code == 200
    assert not [each for each in passwords if each in ready.text + health.text + browser.get("/metrics").text]


def test_without_redis(document: dict[str, Any], tmp_path: Path) -> None:
    document["queue"]["redis_url"] = f"unix://{tmp_path}/none.sock"
    browser = Browser(settings_of(document, tmp_path))
    browser.sign_in()
    overview = browser.get("/")
    assert overview.status_code == 200
    assert "Redis does not answer." in overview.text
    assert "Redis does not answer" in browser.get("/refused").text
    assert browser.get("/payments").status_code == 200
    assert browser.get("/metrics").status_code == 200


def test_roles_include_those_before_them(browser: Browser) -> None:
    for name, allowed in (("vera", (True, False, False)), ("oscar", (True, True, False)), ("anna", (True, True, True))):
        operator = browser.site.operators.named(name)
        assert operator is not None
        assert tuple(operator.role.includes(role) for role in type(operator.role)) == allowed
    assert queries.NOTIFICATION_STATES
