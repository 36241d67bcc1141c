"""The second factor over HTTP: enrolled, asked for at the sign-in, replaced, taken off, and required."""

from __future__ import annotations

import re
import subprocess
from base64 import b32decode
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from receiver import settings as configuration
from receiver.errors import LedgerAway
from receiver.settings import Settings
from tests.console.conftest import PASSWORD, Browser, both_databases, settings_of
from tests.live.installation import command
from workers import audit
from workers.cli import operate
from workers.console import guessing, signin, totp
from workers.console.pages import second_factor
from workers.ledger import queries
from workers.ledger.tables import second_factors


class Device:
    """An authenticator app, and the clock that it has in common with the consoles that it is shown to."""

    def __init__(self, secret: bytes, now: float = 1_800_000_000.0) -> None:
        self.secret, self.now = secret, now
        self.recovery: list[str] = []

    def shown_to(self, browser: Browser) -> None:
        browser.site.operators.factors._clock = lambda: self.now

    def code(self, ahead: int = 0) -> str:
        return totp.code(self.secret, int(self.now) // totp.STEP + ahead)

    def next(self) -> str:
        """A code that was never used."""
        self.now += totp.STEP
        return self.code()


def hidden(answer: httpx.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', answer.text)
    assert found is not None, answer.text
    return found[1]


def offered(browser: Browser) -> tuple[Device, dict[str, str]]:
    """What the page shows, and the fields that it sends back."""
    page = browser.get("/second-factor")
    found = re.search(r'<code class="secret">([A-Z2-7 ]+)</code>', page.text)
    assert found is not None
    secret = b32decode(found[1].replace(" ", ""))
    assert f"secret={found[1].replace(' ', '')}&amp;issuer=Postback" in page.text
    return Device(secret), {"token": hidden(page, "token"), "proof": hidden(page, "proof"), "password": PASSWORD}


def enrol(browser: Browser, old: Device | None = None) -> Device:
    """Of an operator who is signed in."""
    device, fields = offered(browser)
    if old is not None:
        device.now = old.now
        fields["current"] = old.next()
        device.now = old.now
    device.shown_to(browser)
    done = browser.post("/second-factor", {**fields, "code": device.code()})
    assert (done.status_code, "The second factor is on" in done.text) == (200, True), done.text
    device.recovery = re.findall(r"<li><code>([A-Z2-7-]{29})</code></li>", done.text)
    assert len(set(device.recovery)) == 10
    return device


@pytest.fixture
def device(browser: Browser) -> Device:
    """Of anna, who is signed out again."""
    browser.sign_in()
    made = enrol(browser)
    browser.post("/sign-out", {"token": browser.token()})
    return made


def step(browser: Browser, page: httpx.Response, code: str) -> httpx.Response:
    fields = {name: hidden(page, name) for name in ("token", "proof", "next")}
    return browser.post("/sign-in/code", {**fields, "code": code})


def opened(settings: Settings, device: Device) -> Browser:
    """Another console that the device is shown to."""
    browser = Browser(settings)
    device.shown_to(browser)
    return browser


def entries(browser: Browser) -> list[tuple[str, str, dict[str, Any]]]:
    with queries.reading(browser.site.engine) as connection:
        found = [(each["action"], each["operator"], each["facts"]) for each in audit.every(connection)]
    return found[::-1]


@both_databases
def test_a_password_and_a_code_sign_in(
    browser: Browser, device: Device, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    page = browser.sign_in(wish="/payments")
    assert (page.status_code, browser.cookie, "Second step" in page.text) == (200, None, True)
    assert browser.get("/").status_code == 303
    assert step(browser, page, device.code()).status_code == 403, "it was shown when the device was enrolled"
    code = device.next()
    entered = step(browser, page, f"{code[:3]} {code[3:]}")
    assert (entered.status_code, entered.headers["location"]) == (303, "/payments")
    assert browser.get("/").status_code == 200
    other = opened(settings, device)
    assert step(other, other.sign_in(), code).status_code == 403, "a code counts once, whichever console has it"
    assert step(other, other.sign_in(), device.next()).status_code == 303
    assert Browser(settings).sign_in("oscar").status_code == 303, "nobody else is asked"
    assert [(action, who) for action, who, _ in entries(browser)] == [
        *(("signed_in", "anna"), ("second_factor_set", "anna"), ("signed_out", "anna")),
        *(("second_factor_refused", "anna"), ("signed_in", "anna"), ("second_factor_refused", "anna")),
        *(("signed_in", "anna"), ("signed_in", "oscar")),
    ]
    events = [each["event"] for each in logged]
    assert (events.count("second_factor_set"), events.count("second_factor_refused")) == (1, 2)
    for secret in (device.secret.decode("latin-1"), totp.text(device.secret), code, *device.recovery):
        assert secret not in repr(logged)
        assert secret not in repr(entries(browser))


def test_a_wrong_password_is_answered_as_ever(browser: Browser, device: Device) -> None:
    answers = [browser.sign_in(name, "wrong") for name in ("anna", "oscar", "nobody")]
    assert [each.status_code for each in answers] == [403] * 3
    texts = {re.sub(r'value="[^"]*"', "", each.text) for each in answers}
    assert len(texts) == 1


@pytest.mark.parametrize(
    "code", ["", "000000", "12345", "x" * 5000, "\N{ARABIC-INDIC DIGIT ONE}" * 6, "AAAA-AAAA-AAAA"]
)
def test_wrong_codes(browser: Browser, device: Device, code: str) -> None:
    answer = step(browser, browser.sign_in(), code)
    assert (answer.status_code, "The code is not right, or was used before." in answer.text) == (403, True)
    assert browser.cookie is None
    assert step(browser, answer, device.next()).status_code == 303, "the page goes on"


def test_guessing_codes_must_wait_and_a_password_is_no_new_start(
    browser: Browser, device: Device, logged: list[MutableMapping[str, Any]]
) -> None:
    for _ in range(guessing.FREE_FOR_NAME):
        page = browser.sign_in()
        assert step(browser, page, "000000").status_code == 403
    page = browser.sign_in()
    assert page.status_code == 200
    locked = step(browser, page, device.next())
    assert (locked.status_code, "Too many tries." in locked.text, browser.cookie) == (429, True, None)
    assert 0 < int(locked.headers["retry-after"]) <= guessing.FIRST_WAIT
    assert logged[-1]["event"] == "sign_in_locked"


def test_an_address_gains_no_failures_by_signing_in(browser: Browser, device: Device) -> None:
    for _ in range(guessing.FREE_FOR_ADDRESS):
        assert step(browser, browser.sign_in(), device.next()).status_code == 303
        browser.cookies.clear()
    assert browser.sign_in("oscar").status_code == 303


def test_the_proof_of_the_password_is_for_one_visit_and_five_minutes(
    browser: Browser, device: Device, settings: Settings
) -> None:
    page = browser.sign_in()
    stranger = opened(settings, device)
    form = {"token": stranger.token("/sign-in"), "code": device.next(), "next": "/"}
    for proof in (hidden(page, "proof"), "", "x", "x" * 5000, hidden(page, "token")):
        answer = stranger.post("/sign-in/code", {**form, "proof": proof})
        assert (answer.status_code, "The form was too old." in answer.text, stranger.cookie) == (403, True, None)
    # A ticket for something else is none for this.
    visit = browser.cookies["postback-visit"]
    named = browser.site.operators.named("anna")
    assert named is not None
    other = browser.site.sessions.ticket("second_factor", visit, (named.name, named.fingerprint))
    fields = {"token": hidden(page, "token"), "next": "/", "code": device.code(), "proof": other}
    assert browser.post("/sign-in/code", fields).status_code == 403
    now = browser.site.sessions._clock()
    browser.site.sessions._clock = lambda: now + signin.CODE_WITHIN + 2
    assert "The form was too old." in step(browser, page, device.code()).text
    browser.site.sessions._clock = lambda: now + signin.CODE_WITHIN - 2
    assert step(browser, page, device.code()).status_code == 303


def test_a_recovery_code_signs_in_once(
    browser: Browser, device: Device, logged: list[MutableMapping[str, Any]]
) -> None:
    first, second = device.recovery[:2]
    assert step(browser, browser.sign_in(), first).status_code == 303
    browser.cookies.clear()
    assert step(browser, browser.sign_in(), first).status_code == 403
    assert step(browser, browser.sign_in(), second.replace("-", "").lower()).status_code == 303
    used = [(who, facts) for action, who, facts in entries(browser) if action == "recovery_code_used"]
    assert used == [("anna", {"recovery_codes_left": 9}), ("anna", {"recovery_codes_left": 8})]
    told = [each for each in logged if each["event"] == "recovery_code_used"]
    assert [(each["operator"], each["left"], each["source"]) for each in told] == [
        ("anna", 9, "203.0.113.9"),
        ("anna", 8, "203.0.113.9"),
    ]


def test_enrolling_ends_other_sessions(browser: Browser, settings: Settings) -> None:
    elsewhere = Browser(settings)
    elsewhere.sign_in()
    browser.sign_in()
    before = browser.cookie
    enrol(browser)
    assert browser.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 303
    browser.show(before)
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"password": "wrong"}, 403, "The current password is not right."),
        ({"password": "x" * 5000}, 403, "The current password is not right."),
        ({"code": "000000"}, 422, "not the code that the app shows"),
        ({"code": ""}, 422, "not the code that the app shows"),
        ({"proof": ""}, 403, "The page was too old."),
        ({"proof": "x.y"}, 403, "The page was too old."),
    ],
)
def test_what_enrols_nothing(browser: Browser, change: dict[str, str], status: int, said: str) -> None:
    browser.sign_in()
    device, fields = offered(browser)
    device.shown_to(browser)
    answer = browser.post("/second-factor", {**fields, "code": device.code(), **change})
    assert (answer.status_code, said in answer.text) == (status, True)
    assert browser.site.operators.factors.device("anna") == ""
    # The page that says so can be sent again, with the same secret unless it was too old.
    if status != 403 or "password" in change:
        fields = {**fields, "proof": hidden(answer, "proof")}
        assert browser.post("/second-factor", {**fields, "code": device.code()}).status_code == 200


def test_a_secret_is_enrolled_by_the_session_that_was_shown_it(browser: Browser, settings: Settings) -> None:
    thief = Browser(settings)
    thief.sign_in("oscar")
    device, fields = offered(thief)
    device.shown_to(browser)
    browser.sign_in()
    form = {**fields, "token": browser.token("/second-factor"), "code": device.code()}
    assert browser.post("/second-factor", form).status_code == 403
    now = thief.site.sessions._clock()
    device.shown_to(thief)
    thief.site.sessions._clock = lambda: now + second_factor.SET_UP_WITHIN - 2
    thief.site.sessions._idle *= 2
    assert thief.post("/second-factor", {**fields, "code": device.code()}).status_code == 200


def test_another_device_needs_a_code_of_the_one_before(browser: Browser, device: Device, settings: Settings) -> None:
    step(browser, browser.sign_in(), device.next())
    new, fields = offered(browser)
    new.now = device.now
    for current in ("", "000000", device.code()):
        answer = browser.post("/second-factor", {**fields, "current": current, "code": new.code()})
        assert (answer.status_code, "The current code is not right" in answer.text) == (403, True)
    assert [action for action, _, _ in entries(browser)].count("second_factor_refused") == 3
    new = enrol(browser, device)
    other = opened(settings, new)
    for old in (device.code(1), device.recovery[0]):
        assert step(other, other.sign_in(), old).status_code == 403
    assert step(other, other.sign_in(), new.next()).status_code == 303
    other.cookies.clear()
    step(other, other.sign_in(), new.recovery[0])
    _, fields = offered(other)
    again, fields = offered(other)
    again.now = new.now
    form = {**fields, "current": new.recovery[1], "code": again.code()}
    assert other.post("/second-factor", form).status_code == 200, "the device before is lost, its codes are not"


def test_changing_the_password_is_no_new_start_for_codes(browser: Browser, device: Device) -> None:
    step(browser, browser.sign_in(), device.next())
    new, fields = offered(browser)
    new.now = device.now
    for _ in range(guessing.FREE_FOR_NAME):
        assert browser.post("/second-factor", {**fields, "current": "0", "code": new.code()}).status_code == 403
    locked = browser.post("/second-factor", {**fields, "current": device.next(), "code": new.code()})
    assert (locked.status_code, "retry-after" in locked.headers) == (429, True)


@both_databases
def test_it_is_taken_off_by_password_and_code(browser: Browser, device: Device, settings: Settings) -> None:
    step(browser, browser.sign_in(), device.next())
    fields = {"token": browser.token("/second-factor"), "password": PASSWORD, "current": device.next()}
    for wrong in ({"password": "wrong"}, {"current": "000000"}):
        assert browser.post("/second-factor/off", {**fields, **wrong}).status_code == 403
    done = browser.post("/second-factor/off", fields)
    assert (done.status_code, "The second factor is off" in done.text) == (200, True)
    assert browser.get("/").status_code == 200
    assert Browser(settings).sign_in().status_code == 303
    assert "second_factor_taken_off" in [action for action, _, _ in entries(browser)]
    nothing = browser.post("/second-factor/off", {**fields, "token": browser.token()})
    assert (nothing.status_code, nothing.headers["location"]) == (303, "/second-factor")


def test_a_row_that_is_not_ours_lets_nobody_in(
    browser: Browser, device: Device, settings: Settings, logged: list[MutableMapping[str, Any]]
) -> None:
    step(browser, browser.sign_in(), device.next())
    page = opened(settings, device)
    asked = page.sign_in()
    with browser.site.engine.begin() as connection:
        connection.execute(update(second_factors).values(sealed=b"x"))
    assert browser.get("/").status_code == 303
    assert step(page, asked, device.next()).status_code == 403
    assert Browser(settings).sign_in().status_code == 403
    assert "second_factor_seal_unfit" in [each["event"] for each in logged]


def test_no_code_counts_while_the_ledger_is_away(
    browser: Browser, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.sign_in()

    def away(*arguments: Any) -> None:
        raise LedgerAway("gone")

    with monkeypatch.context() as gone:
        gone.setattr(queries, "reading", away)
        gone.setattr(signin, "away_when_it_fails", away)
        assert browser.sign_in().status_code == 200, "it is known that he has a device"
        assert step(browser, page, device.next()).status_code == 503
    assert browser.cookie is None


class TestRequired:
    @pytest.fixture
    def settings(self, document: dict[str, Any], tmp_path: Path) -> Settings:
        document["console"] |= {"second_factor": "required"}
        return settings_of(document, tmp_path)

    def test_whoever_has_none_can_only_enrol(self, browser: Browser) -> None:
        assert browser.sign_in().status_code == 303
        for path in ("/", "/payments", "/audit", "/password", "/reconciliations"):
            answer = browser.get(path)
            assert (answer.status_code, answer.headers.get("location")) == (303, "/second-factor"), path
        token = browser.token("/second-factor")
        for path in ("/password", "/replays", "/attention/settle", "/second-factor/off", "/alarms/acknowledge"):
            answer = browser.post(path, {"token": token})
            assert (answer.status_code, "A second factor is required here" in answer.text) == (403, True), path
        file = browser.send("POST", "/reconciliations", data={"token": token}, files={"file": b"x"})
        assert (file.status_code, "A second factor is required here" in file.text) == (403, True)
        device = enrol(browser)
        assert browser.get("/").status_code == 200
        off = browser.post(
            "/second-factor/off", {"token": browser.token(), "password": PASSWORD, "current": device.next()}
        )
        assert (off.status_code, "A second factor is required here" in off.text) == (403, True)
        assert "Take it off" not in browser.get("/second-factor").text

    def test_he_may_sign_out(self, browser: Browser) -> None:
        browser.sign_in()
        browser.post("/sign-out", {"token": browser.token("/second-factor")})
        assert browser.cookie is None

    def test_a_proxy_asks_for_its_own(self, document: dict[str, Any], tmp_path: Path) -> None:
        document["console"] |= {
            "second_factor": "required",
            "trusted_proxies": ["203.0.113.9"],
            "sign_in_header": "X-Remote-User",
        }
        document["security"]["operators"].append({"name": "paul", "role": "operator"})
        browser = Browser(settings_of(document, tmp_path))
        for name in ("paul", "anna"):
            assert browser.get("/", x_remote_user=name).status_code == 200
            assert browser.get("/second-factor", x_remote_user=name).status_code == 404


def test_the_secret_is_also_a_qr_code(browser: Browser) -> None:
    pytest.importorskip("segno", reason="the extra `qr` is not installed")
    browser.sign_in()
    page = browser.get("/second-factor").text
    assert 'aria-label="The secret as a QR code"><svg' in page
    assert "style=" not in page, "the policy allows none"


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments, "--config", str(config)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_lost_device_is_taken_off_by_the_command(tmp_path: Path, password_hash: str) -> None:
    config = tmp_path / "postback.toml"
    config.write_text(
        '[security]\nseal_keys = ["old-seal-key"]\noperators = ['
        f'{{ name = "Anna", password_hash = "{password_hash}", role = "approver" }},'
        f' {{ name = "vera", password_hash = "{password_hash}" }}]\n'
    )
    settings = configuration.load(config)
    assert run(config, "migrate").returncode == 0
    browser = Browser(settings)
    browser.sign_in()
    assert findings(settings) == [("note", "console.second_factor: Anna may replay or approve with a password alone")]
    device = enrol(browser)
    assert findings(settings) == [("ok", "whoever may replay or approve has one")]
    for wrong, said in (
        (("nobody", "--reason", "lost"), "there is no operator nobody"),
        (("vera", "--reason", "lost"), "vera has no second factor"),
        (("anna", "--reason", " "), "A reason is needed"),
    ):
        refused = run(config, "operator", "unenrol", *wrong)
        assert (refused.returncode == 0, said in refused.stderr, refused.stderr.count("\n")) == (False, True, 1)
    assert browser.get("/").status_code == 200
    done = run(config, "operator", "unenrol", "anna", "--reason", "lost on the train")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Took off the second factor of Anna" in done.stdout
    assert browser.get("/").status_code == 303, "his sessions have ended"
    assert Browser(settings).sign_in().status_code == 303
    with queries.reading(browser.site.engine) as connection:
        (entry,) = (each for each in audit.every(connection) if each["action"] == "second_factor_taken_off")
    assert (entry["subject"], entry["reason"]) == ("Anna", "lost on the train")
    assert device.recovery[0] not in done.stdout
    # A row that fits no key lets nobody in; the command takes that off as well.
    with browser.site.engine.begin() as connection:
        connection.execute(update(second_factors).values(sealed=b"x"))
    assert findings(settings)[0][0] == "fault"
    assert run(config, "operator", "unenrol", "anna", "--reason", "a key is gone").returncode == 0
    assert Browser(settings).sign_in().status_code == 303


def findings(settings: Settings) -> list[tuple[str, str]]:
    return [(each.verdict, each.detail) for each in operate._second_factors(settings)]
