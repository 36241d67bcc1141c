"""An operator changes his own password: who may, what counts afterwards, and what a row of the ledger is worth."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, select

from receiver import settings as configuration
from receiver.errors import LedgerAway
from receiver.settings import Settings
from tests.console.conftest import PASSWORD, Browser, both_databases, settings_of
from tests.live.installation import command
from workers import audit
from workers.console import guessing, passwords
from workers.ledger import queries
from workers.ledger.tables import operator_passwords

NEW = "a much longer sentence"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost as little as they may."""
    make = passwords.make
    monkeypatch.setattr(passwords, "make", lambda password: make(password, log_n=14, p=1))


def change(browser: Browser, current: str = PASSWORD, new: str = NEW, again: str | None = None) -> Any:
    token = browser.token("/password")
    return browser.post("/password", {"token": token, "current": current, "new": new, "again": again or new})


def signs_in(settings: Settings, password: str, name: str = "anna") -> bool:
    """With a console that has just started."""
    return {303: True, 403: False}[Browser(settings).sign_in(name, password).status_code]


def sealed(browser: Browser, name: str = "anna") -> bytes | None:
    with queries.reading(browser.site.engine) as connection:
        row: bytes | None = connection.scalar(
            select(operator_passwords.c.sealed).where(operator_passwords.c.name == name)
        )
    return row


def put(browser: Browser, name: str, row: bytes) -> None:
    with browser.site.engine.begin() as connection:
        connection.execute(delete(operator_passwords).where(operator_passwords.c.name == name))
        connection.execute(operator_passwords.insert(), {"name": name, "sealed": row})


@both_databases
def test_a_password_is_changed_by_whoever_has_it(
    browser: Browser, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    elsewhere = Browser(settings)
    elsewhere.sign_in()
    browser.sign_in()
    before = browser.cookie
    done = change(browser)
    assert (done.status_code, "Your password is changed" in done.text) == (200, True)
    assert browser.cookie != before
    assert browser.get("/").status_code == 200, "signed in anew, by the new one"
    assert elsewhere.get("/").status_code == 303, "other sessions have ended"
    browser.show(before)
    assert browser.get("/").status_code == 303
    assert (signs_in(settings, NEW), signs_in(settings, PASSWORD)) == (True, False)
    assert signs_in(settings, PASSWORD, "oscar"), "nobody else's"
    assert Browser(settings).sign_in("ANNA", NEW).status_code == 303
    with queries.reading(browser.site.engine) as connection:
        (entry,) = (each for each in audit.every(connection) if each["action"] == "password_changed")
    assert (entry["operator"], entry["subject"], entry["origin"]) == ("anna", "anna", "203.0.113.9")
    assert [each["event"] for each in logged].count("password_changed") == 1
    again = Browser(settings)
    again.sign_in(password=NEW)
    assert change(again, NEW, "and another sentence").status_code == 200
    assert (signs_in(settings, "and another sentence"), signs_in(settings, NEW)) == (True, False)


@pytest.mark.parametrize(
    ("current", "new", "again", "status", "said"),
    [
        ("wrong", NEW, NEW, 403, "The current password is not right."),
        ("", NEW, NEW, 403, "The current password is not right."),
        ("x" * 5000, NEW, NEW, 403, "The current password is not right."),
        (PASSWORD, NEW, f"{NEW} ", 422, "not typed the same twice"),
        (PASSWORD, "short", "short", 422, "between 12 and 1024 characters"),
        (PASSWORD, "x" * 1025, "x" * 1025, 422, "between 12 and 1024 characters"),
        (PASSWORD, "anna-password-2026", "anna-password-2026", 422, "among the first that are guessed"),
        (PASSWORD, PASSWORD, PASSWORD, 422, "the one that you have"),
    ],
)
def test_what_changes_nothing(
    browser: Browser, settings: Settings, current: str, new: str, again: str, status: int, said: str
) -> None:
    browser.sign_in()
    answer = change(browser, current, new, again)
    assert (answer.status_code, said in answer.text) == (status, True)
    assert browser.get("/").status_code == 200
    assert sealed(browser) is None
    assert signs_in(settings, PASSWORD)


def test_blanks_at_the_ends_belong_to_it(browser: Browser, settings: Settings) -> None:
    browser.sign_in()
    change(browser, new=f" {NEW} ")
    assert (signs_in(settings, f" {NEW} "), signs_in(settings, NEW)) == (True, False)


def test_guessing_the_current_one_must_wait(browser: Browser) -> None:
    browser.sign_in()
    for _ in range(guessing.FREE_FOR_NAME):
        assert change(browser, "wrong").status_code == 403
    locked = change(browser)
    assert (locked.status_code, "retry-after" in locked.headers) == (429, True)
    with queries.reading(browser.site.engine) as connection:
        tried = [each for each in audit.every(connection) if each["action"] == "sign_in_refused"]
    assert len(tried) == guessing.FREE_FOR_NAME


def test_a_stolen_list_is_looked_at(document: dict[str, Any], tmp_path: Path) -> None:
    digests = [
        hashlib.sha1(word.encode(), usedforsecurity=False).hexdigest().upper()
        for word in (NEW, "of another", "of a third")
    ]
    (tmp_path / "list").write_text("".join(f"{digest}:3\n" for digest in sorted(digests)))
    document["console"]["breached_passwords"] = "list"
    browser = Browser(settings_of(document, tmp_path))
    browser.sign_in()
    answer = change(browser)
    assert (answer.status_code, "stolen somewhere" in answer.text) == (422, True)
    assert change(browser, new=f"{NEW}.").status_code == 200


def test_another_password_in_the_configuration_is_the_last_word(
    browser: Browser, document: dict[str, Any], tmp_path: Path, settings: Settings
) -> None:
    browser.sign_in()
    change(browser)
    document["security"]["operators"][2]["password_hash"] = passwords.make("given by an administrator")
    later = settings_of(document, tmp_path)
    assert (signs_in(later, "given by an administrator"), signs_in(later, NEW)) == (True, False)
    held = Browser(later)
    held.show(browser.cookie)
    assert held.get("/").status_code == 303


def test_whoever_writes_the_ledger_alone_gives_nobody_a_password(
    browser: Browser, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    browser.sign_in("oscar")
    ended = Browser(settings)
    ended.sign_in("oscar")
    change(browser, new="the password of a thief")
    stolen = sealed(browser, "oscar")
    assert stolen is not None
    put(browser, "anna", stolen)
    assert not signs_in(settings, "the password of a thief")
    assert not signs_in(settings, PASSWORD), "nor is it guessed which one counted"
    assert "password_seal_unfit" in [each["event"] for each in logged]
    message, seal = stolen.rsplit(b".", 1)
    as_vera = msgspec.msgpack.encode(msgspec.msgpack.decode(message) | {"name": "vera"})
    for forged in (b"", b"x", as_vera, as_vera + b"." + seal):
        put(browser, "vera", forged)
        assert not signs_in(settings, "the password of a thief", "vera")
    # No session outlives it, nor does one come back.
    put(browser, "oscar", b"x")
    assert [each.get("/").status_code for each in (browser, ended)] == [303, 303]


def test_signing_in_seals_it_with_the_newest_key(
    browser: Browser, document: dict[str, Any], tmp_path: Path, settings: Settings
) -> None:
    browser.sign_in()
    change(browser)
    before = sealed(browser)
    assert signs_in(settings, NEW)
    assert sealed(browser) == before
    document["security"]["seal_keys"] = ["new-seal-key", "newest-seal-key"]
    assert signs_in(settings_of(document, tmp_path), NEW)
    assert sealed(browser) != before
    document["security"]["seal_keys"] = ["newest-seal-key"]
    assert signs_in(settings_of(document, tmp_path), NEW)
    document["security"]["seal_keys"] = ["another-seal-key"]
    assert not signs_in(settings_of(document, tmp_path), NEW)


def test_while_the_ledger_is_away_what_was_read_last_counts(
    browser: Browser, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.sign_in()
    change(browser)

    def away(*arguments: Any) -> None:
        raise LedgerAway("gone")

    started_now = Browser(settings)
    tokens = [each.token("/sign-in") for each in (started_now, browser)]
    monkeypatch.setattr(queries, "reading", away)
    for name in ("anna", "nobody"):
        fields = {"token": tokens[0], "name": name, "password": PASSWORD}
        assert started_now.post("/sign-in", fields).status_code == 503, "it is not known who has changed his"
    assert browser.get("/").status_code == 200
    browser.cookies.delete("postback-session")
    for password, status in ((PASSWORD, 403), (NEW, 303)):
        fields = {"token": tokens[1], "name": "anna", "password": password}
        assert browser.post("/sign-in", fields).status_code == status


def test_one_without_a_password_has_none_to_change(document: dict[str, Any], tmp_path: Path) -> None:
    document["console"] |= {"trusted_proxies": ["203.0.113.9"], "sign_in_header": "X-Remote-User"}
    document["security"]["operators"].append({"name": "paul", "role": "operator"})
    browser = Browser(settings_of(document, tmp_path))
    for name in ("paul", "anna"):
        answer = browser.get("/password", x_remote_user=name)
        assert (answer.status_code, "There is no password to change" in answer.text) == (404, True)


def run(config: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments, "--config", str(config)], input=given, capture_output=True, text=True, timeout=60
    )


def test_the_command_gives_an_operator_another(tmp_path: Path) -> None:
    config = tmp_path / "postback.toml"
    hashed = passwords.make(PASSWORD)
    config.write_text(
        f'[security]\nseal_keys = ["old-seal-key"]\noperators = [{{ name = "Anna", password_hash = "{hashed}" }},'
        ' { name = "paul" }]\n[console]\ntrusted_proxies = ["127.0.0.1"]\nsign_in_header = "X-Remote-User"\n'
    )
    settings = configuration.load(config)
    away = run(config, "operator", "password", "anna", given=f"{NEW}\n")
    assert (away.returncode, "does not exist yet" in away.stderr) == (1, True)
    assert run(config, "migrate").returncode == 0
    browser = Browser(settings)
    browser.sign_in("anna")
    done = run(config, "operator", "password", "anna", given=f"{NEW}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Changed the password of Anna." in done.stdout
    assert NEW not in done.stdout
    assert browser.get("/").status_code == 303
    assert (signs_in(settings, NEW), signs_in(settings, PASSWORD)) == (True, False)
    trail = run(config, "audit", "list", "--json").stdout
    assert '"action":"password_changed"' in trail.replace(": ", ":")
    for wrong, said in (
        (("nobody",), "there is no operator nobody"),
        (("paul",), "paul has no password"),
        (("anna",), "between 12 and 1024 characters"),
    ):
        refused = run(config, "operator", "password", *wrong, given="short\n")
        assert (refused.returncode, said in refused.stderr, refused.stderr.count("\n")) == (2, True, 1)
    made = run(config, "operator", "password", "anna", "--generate").stdout
    assert signs_in(settings, made.split("shown this once: ")[1].splitlines()[0])
