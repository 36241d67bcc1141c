"""The console in a real browser, on a whole installation: what an operator does, and that every page can be used."""

from __future__ import annotations

import os
import re
import subprocess
from base64 import b32decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect

from receiver import settings as configuration
from receiver.notification import now_us
from receiver.signing import Seal
from tests import ledgers
from tests.browser import running_chromium
from tests.console.conftest import PASSWORD
from tests.live.installation import Installation
from tests.servers import absent, eventually
from tests.workers.material import envelope
from tests.workers.settlement import row
from workers.alarms.board import Alarm
from workers.alarms.kinds import AlarmKind
from workers.alarms.store import write
from workers.console import totp
from workers.ledger.ledger import open_ledger
from workers.pipeline import Pipeline
from workers.simulator.cash_applied import file_of

Scheme = Literal["light", "dark"]

FORM = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Authorization": "Basic " + b64encode("acme:qs-new:pässword".encode()).decode(),
}
SCRIPT = "<script>document.title = 'hacked'; alert(1)</script><img src=x onerror=alert(2)>"
PAGES = ("/", "/notifications", "/notifications?search=nothing-has-this", "/payments", "/refused", "/attention",
         "/attention?kind=conflict", "/attention?kind=conflict&settled=1", "/replays", "/reconciliations", "/audit",
         "/audit/verify", "/password", "/second-factor", "/nothing")  # fmt: skip
WITHIN = 20_000
"""Milliseconds until what is awaited must be seen; a busy machine is no finding."""
expect.set_options(timeout=WITHIN)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, password_hash: str) -> Iterator[Installation]:
    """Four notifications are quarantined for a business that the configuration did not have then and has now. An alarm
    was raised before, and the conflict raises another; neither is cleared before an hour is over."""
    here = Installation(tmp_path_factory.mktemp("console"), alarms="look_every = 1\nconfirm = 0\ncalm = 3600\n")
    roles = {"vera": "viewer", "theo": "viewer", "oscar": "operator", "anna": "approver"}
    operators = "".join(
        f'[[security.operators]]\nname = "{name}"\npassword_hash = "{password_hash}"\nrole = "{role}"\n'
        for name, role in roles.items()
    )
    text = here.config.read_text().replace('["ACME"]', '["ACME", "LATER"]')
    here.config.write_text(f"{text}\n[replay]\napprove_above = 1\n{operators}")
    quarantine(here, "9101", "9102", "9103", "9104")
    try:
        here.start()
        for amount in ("10.00", "99.00"):
            assert here.post(
                "/notify/quickstream/acme", body("9201", amount=amount, customField=SCRIPT), FORM
            ).is_success
        here.post("/notify/quickstream/acme", b"x=1", {**FORM, "Authorization": "Basic eDp5"})
        eventually(
            lambda: sum(each["conflicts"] for each in here.json("notifications", "list", "--search", "LIVE:9201")),
            what="a conflict",
        )
        eventually(lambda: here.pids("console"), what="the console")
        yield here
    except BaseException:
        print(here.log.read_text()[-10_000:])
        raise
    finally:
        here.close()


def quarantine(here: Installation, *receipts: str) -> None:
    """As an accept process and a worker do it whose configuration has no business LATER."""
    settings = configuration.load(here.config)
    settings.data_dir.mkdir()
    ledgers.new(settings)
    ledger = open_ledger(settings)
    kept = Pipeline(settings.endpoints, ledger, Seal(settings.security.seal_keys, "batch"))
    common = {
        "provider": "quickstream",
        "facility": "acme",
        "content_type": FORM["Content-Type"],
        "event_type": "unknown",
    }
    why = {"quarantine": "other_business", "detail": "supplierBusinessCode is not one of this endpoint's"}
    kept.record(
        [
            envelope(f"body:{receipt}", received_at=now_us(), body=body(receipt, "LATER"), **common, **why)
            for receipt in receipts
        ]
    )
    now = datetime.now(UTC)
    silent = "Nothing came from paymentz/eu since 2026-11-27 09:12 UTC. At this time of the week pauses of up to 12"
    alarm = Alarm(
        kind=AlarmKind.ENDPOINT_SILENT,
        subject="paymentz/eu",
        sentence=f"{silent} minutes are usual.",
        level=0,
        times=1,
        raised_at=now,
        told_at=now,
    )
    with ledger.engine.begin() as connection:
        write(connection, [alarm], ())
    ledger.engine.dispose()


def body(receipt: str, business: str = "ACME", amount: str = "12.50", **more: str) -> bytes:
    fields = {
        "communityCode": "LIVE",
        "supplierBusinessCode": business,
        "receiptNumber": receipt,
        "paymentReference": f"ORDER-{receipt}",
        "paymentAmount": amount,
        "surchargeAmount": "0.00",
        "responseCode": "00",
        "summaryCode": "0",
        "successFlag": "true",
        **more,
    }
    return urlencode(fields).encode()


class Seat:
    """A browser of one operator. A script that runs in it, or an error of its console, is a failure."""

    def __init__(self, chromium: Browser, running: Installation, name: str, scheme: Scheme = "light") -> None:
        base = f"http://127.0.0.1:{running.console_port}"
        self.context: BrowserContext = chromium.new_context(base_url=base, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.heard: list[str] = []
        self.page.on("dialog", self._asked)
        self.page.on("console", lambda message: self.heard.append(message.text))
        self.page.on("pageerror", lambda error: self.heard.append(str(error)))
        self.page.goto("/")
        self.knock(name)
        expect(self.page.get_by_role("heading", name="Overview")).to_be_visible()

    def knock(self, name: str) -> None:
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()

    def _asked(self, dialog: Dialog) -> None:
        self.heard.append(dialog.message)
        dialog.dismiss()


@pytest.fixture
def seats(chromium: Browser, running: Installation) -> Iterator[list[Seat]]:
    """Every seat that a test takes; closed when it ends, and none may have heard anything."""
    taken: list[Seat] = []
    yield taken
    for seat in taken:
        seat.context.close()
    assert [heard for seat in taken for heard in seat.heard] == []


def sit(seats: list[Seat], chromium: Browser, running: Installation, name: str) -> Page:
    seats.append(Seat(chromium, running, name))
    return seats[-1].page


def test_a_broken_notification_is_found_understood_and_repaired(
    chromium: Browser, running: Installation, seats: list[Seat]
) -> None:
    page = sit(seats, chromium, running, "oscar")
    page.get_by_role("link", name="Needs attention").click()
    expect(page.get_by_text("Add it to supplier_business_codes, then replay").first).to_be_visible()
    page.get_by_role("table").get_by_role("row").nth(1).get_by_role("link").click()
    expect(page.get_by_role("heading", name="quarantined")).to_be_visible()
    page.get_by_role("link", name="Try a replay").click()
    expect(page.get_by_text("Nothing is done yet")).to_be_visible()
    expect(page.get_by_role("table").get_by_text("new payment")).to_be_visible()
    page.get_by_label("Reason, kept in the audit trail").fill("LATER is a business of ours")
    page.get_by_role("button", name="Replay 1 notification").click()
    # It looks again by itself until the worker is done.
    expect(page.get_by_text("1 of 1 done")).to_be_visible()
    expect(page.get_by_role("heading", name="done")).to_be_visible()
    page.get_by_role("table").get_by_role("link", name=re.compile("LIVE:910")).click()
    expect(page.get_by_role("heading", name="captured")).to_be_visible()
    expect(page.get_by_text("12.50 AUD").first).to_be_visible()
    page.get_by_role("link", name="Audit").click()
    entry = page.get_by_role("row", name=re.compile("replay created"))
    expect(entry.get_by_text("LATER is a business of ours")).to_be_visible()
    page.get_by_role("link", name="Verify the whole chain").click()
    expect(page.get_by_text("entries hold")).to_be_visible()


def test_a_second_operator_approves(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    asks = sit(seats, chromium, running, "oscar")
    asks.goto("/notifications?state=quarantined")
    boxes = asks.get_by_role("checkbox")
    boxes.nth(0).check()
    boxes.nth(1).check()
    asks.get_by_role("button", name="Try a replay of the marked").click()
    expect(asks.get_by_text("a second operator must approve it")).to_be_visible()
    asks.get_by_label("Reason, kept in the audit trail").fill("the business is ours now")
    asks.get_by_role("button", name="Ask for approval of 2 notifications").click()
    expect(asks.get_by_text("You have asked for it")).to_be_visible()
    assert asks.get_by_role("button", name="Approve").count() == 0

    approves = sit(seats, chromium, running, "anna")
    approves.goto(asks.url)
    approves.get_by_label("Reason to approve it").fill("looked at both")
    approves.get_by_role("button", name="Approve and start").click()
    expect(approves.get_by_text("2 of 2 done")).to_be_visible()
    asks.reload()
    expect(asks.get_by_text("looked at both")).to_have_count(0)
    expect(asks.get_by_role("definition").filter(has_text="anna")).to_be_visible()


def test_a_viewer_looks_and_does_nothing(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    page = sit(seats, chromium, running, "vera")
    page.goto("/notifications?state=quarantined")
    expect(page.get_by_role("row").nth(1)).to_be_visible()
    assert page.get_by_role("checkbox").count() == 0
    page.get_by_role("row").nth(1).get_by_role("link").click()
    assert page.get_by_role("link", name="Try a replay").count() == 0
    seats[0].heard.clear()
    answer = page.goto("/replays/new?state=quarantined")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_text("Your role does not allow this")).to_be_visible()
    # The browser's console names the status, which is what was wanted.
    assert all("403" in heard for heard in seats[0].heard)
    seats[0].heard.clear()


def test_a_script_in_a_custom_field_does_no_harm(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    page = sit(seats, chromium, running, "vera")
    page.goto("/payments?search=9201")
    page.get_by_role("row").nth(1).get_by_role("link").click()
    expect(page.get_by_text(SCRIPT)).to_be_visible()
    page.get_by_role("table").get_by_role("link").first.click()
    expect(page.get_by_role("heading", name=re.compile("Conflict of"))).to_be_visible()
    expect(page.get_by_text("paymentAmount=99.00").first).to_be_visible()
    assert "hacked" not in page.title()
    assert seats[0].heard == []
    # Nor does one that the page itself were made to contain: the policy allows none.
    blocked = page.evaluate(
        """() => new Promise(found => {
            document.addEventListener('securitypolicyviolation', event => found(event.violatedDirective));
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src")
    assert page.evaluate("window.ran") is None
    assert all("Content Security Policy" in heard for heard in seats[0].heard)
    seats[0].heard.clear()


def test_an_alarm_is_acknowledged(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    def told() -> subprocess.CompletedProcess[str]:
        done = running.run("alarms", "list")
        assert "conflicts: " in done.stdout
        return done

    listed = eventually(told, what="the alarm of the conflict")
    assert (listed.returncode, "What to do: `postback attention list --kind conflict`" in listed.stdout) == (1, True)
    page = sit(seats, chromium, running, "oscar")
    alarm = page.get_by_role("listitem").filter(has_text="says something else than before")
    alarm.get_by_label("Reason, for conflicts").fill("asked the sender")
    alarm.get_by_role("button", name="Acknowledge").click()
    expect(alarm.get_by_text("asked the sender")).to_be_visible()
    expect(page.get_by_label("Reason, for endpoint_silent:paymentz/eu")).to_be_visible()


def test_settling_with_a_reason(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    page = sit(seats, chromium, running, "oscar")
    page.goto("/attention?kind=conflict")
    page.get_by_role("checkbox").first.check()
    page.get_by_label("ignored").check()
    page.get_by_label("Reason, kept in the audit trail").fill("a test of the sender")
    page.get_by_role("button", name="Settle").click()
    expect(page.get_by_text("1 settled; it is in the audit trail.")).to_be_visible()
    page.get_by_role("link", name="Show what was settled").click()
    expect(page.get_by_text("a test of the sender")).to_be_visible()


def test_by_keyboard_alone(chromium: Browser, running: Installation, seats: list[Seat]) -> None:
    page = sit(seats, chromium, running, "vera")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_a_settlement_file_is_given_without_javascript(
    chromium: Browser, running: Installation, seats: list[Seat], axe: str, tmp_path: Path
) -> None:
    file = tmp_path / "caf.csv"
    file.write_bytes(file_of([row("9201", Payment_Amount="11.50", Surcharge_Amount="0.00"), row("9301")]))
    page = sit(seats, chromium, running, "oscar")
    without = chromium.new_context(
        base_url=page.url, java_script_enabled=False, storage_state=seats[-1].context.storage_state()
    )
    plain = without.new_page()
    plain.goto("/reconciliations")
    plain.get_by_label("Cash Applied File").set_input_files(file)
    plain.get_by_label("Whose file").select_option("quickstream/acme")
    plain.get_by_role("button", name="Only look").click()
    expect(plain.get_by_text("Nothing was written")).to_be_visible()
    looked = plain.url
    plain.get_by_role("link", name="give the file again").click()
    plain.get_by_label("Cash Applied File").set_input_files(file)
    plain.get_by_role("button", name="Reconcile").click()
    expect(plain.get_by_role("heading", name=re.compile("caf.csv"))).to_be_visible()
    expect(plain.get_by_text("0 agree and 1 were entered")).to_be_visible()
    expect(plain.get_by_role("row", name=re.compile("amount differs.*10.00.*11.50"))).to_be_visible()
    done = plain.url
    plain.get_by_role("table").get_by_role("link", name="9301").click()
    expect(plain.get_by_role("heading", name="captured")).to_be_visible()
    without.close()
    for path in ("/reconciliations", looked, done):
        page.goto(path)
        assert violations(page, axe) == [], path
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        page.set_viewport_size({"width": 1280, "height": 800})


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, from where `AXE_CORE` says."""
    path = Path(os.environ.get("AXE_CORE", "axe.min.js"))
    if not path.is_file():
        absent("axe-core", FileNotFoundError("AXE_CORE names no file"))
    return path.read_text()


def violations(page: Page, axe: str, rules: str = "{}") -> list[list[object]]:
    page.evaluate(axe)
    found: list[list[object]] = page.evaluate(
        f"async () => (await axe.run({rules})).violations.map(each => [each.id, each.nodes.map(node => node.html)])"
    )
    return found


def test_a_second_factor_is_enrolled_and_asked_for(
    chromium: Browser, running: Installation, seats: list[Seat], axe: str
) -> None:
    page = sit(seats, chromium, running, "theo")

    def look() -> None:
        assert violations(page, axe) == [], page.url
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), page.url
        page.set_viewport_size({"width": 1280, "height": 800})

    page.get_by_role("link", name="Password").click()
    page.get_by_role("link", name="Ask for a code of my device as well").click()
    secret = b32decode(page.locator("code.secret").inner_text().replace(" ", ""))
    step = now_us() // 1_000_000 // totp.STEP
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Code of the app").fill(totp.code(secret, step))
    page.get_by_role("button", name="Turn it on").click()
    expect(page.get_by_role("heading", name="The second factor is on")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text=re.compile(r"^[A-Z2-7-]{29}$"))).to_have_count(10)
    look()
    page.get_by_role("button", name="Sign out").click()
    seats[-1].knock("theo")
    # The browser's console says what signing out has cleared.
    assert all("Clear-Site-Data" in heard for heard in seats[-1].heard)
    seats[-1].heard.clear()
    expect(page.get_by_role("heading", name="Second step")).to_be_visible()
    look()
    # A code counts once: this is the next one, which an app whose clock is ahead shows now.
    page.get_by_label("Code of your app").fill(totp.code(secret, step + 1))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.goto("/second-factor")
    expect(page.get_by_role("button", name="Take the new device")).to_be_visible()
    look()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium: Browser, running: Installation, axe: str, scheme: Scheme) -> None:
    """All rules in light; in dark the colours, which alone are others. On a phone nothing is wider than the screen."""
    seat = Seat(chromium, running, "anna", scheme)
    page = seat.page
    (conflict,) = running.json("notifications", "list", "--search", "LIVE:9201")
    failed = running.json("notifications", "list", "--state", "quarantined")[0]["id"]
    replays = [each["id"] for each in running.json("replays", "list")[:1]]
    paths = [*PAGES, f"/notifications/{conflict['id']}", f"/notifications/{failed}", f"/replays/new?id={failed}",
             "/payments/quickstream/acme?id=LIVE:9201", *(f"/replays/{each}" for each in replays)]  # fmt: skip
    rules = "{}" if scheme == "light" else "{runOnly: ['color-contrast']}"

    for path in paths:
        page.goto(path)
        assert violations(page, axe, rules) == [], path
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        page.set_viewport_size({"width": 1280, "height": 800})
    seat.context.clear_cookies()
    page.goto("/sign-in")
    assert violations(page, axe, rules) == []
    seat.context.close()
