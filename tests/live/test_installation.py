"""The shipped command as a user has it: processes, HTTP, and the command line, nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from receiver import settings as configuration
from tests.contract.subjects import paymentz_callback
from tests.live.installation import Installation, command, free_port, installed
from tests.servers import eventually

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(
        tmp_path_factory.mktemp("live"), receive='max_body = "64KiB"\nbody_timeout = 2\nmax_held = 3'
    ) as here:
        yield here


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


ACME = basic("acme", "qs-new:pässword")


def quickstream(
    receipt: str, *, business: str = "ACME", amount: str = "624.00", summary: str = "0", **more: str
) -> bytes:
    fields = {
        "sourceCode": "Net",
        "receiptNumber": receipt,
        "communityCode": "LIVE",
        "supplierBusinessCode": business,
        "customerReferenceNumber": "CUSTOMER7",
        "paymentReference": f"ORDER-{receipt}",
        "paymentAmount": amount,
        "surchargeAmount": "24.00",
        "cardScheme": "VISA",
        "settlementDate": "20261123",
        "createdDateTime": "23 Nov 2026 10:11:12",
        "responseCode": "08" if summary == "0" else "51",
        "responseDescription": "Honour with identification",
        "summaryCode": summary,
        "successFlag": "true" if summary == "0" else "false",
    } | more
    return "&".join(f"{name}={value.replace(' ', '+')}" for name, value in fields.items()).encode()


def as_xml(form: bytes) -> bytes:
    fields = [part.split("=", 1) for part in form.decode().replace("+", " ").split("&")]
    elements = "".join(f"<{name}>{value}</{name}>" for name, value in fields)
    return f"<PaymentResponse>{elements}</PaymentResponse>".encode()


def notify(
    running: Installation, body: bytes, *, facility: str = "acme", kind: str = FORM, credentials: str = ACME
) -> Any:
    headers = {"Content-Type": kind, "Authorization": credentials}
    return running.post(f"/notify/quickstream/{facility}", body, headers)


def payments(running: Installation, search: str, count: int = 1) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = running.json("payments", "list", "--search", search)
        return found if len(found) >= count else []

    return eventually(look, what=f"{count} payments of {search}")


def test_form_and_xml_are_one_payment_however_often_they_come(running: Installation) -> None:
    form = quickstream("7001")
    for _ in range(3):
        assert notify(running, form).json()["status"] == "accepted"
        assert notify(running, as_xml(form), kind="application/xml").status_code == 200
    (payment,) = payments(running, "7001")
    assert payment["receipt_number"] == "7001"
    assert (payment["state"], payment["amount"], payment["currency"]) == ("captured", "624.00", "AUD")
    assert (payment["surcharge"], payment["amount_refunded"]) == ("24.00", "0.00")
    assert (payment["response_code"], payment["summary_code"]) == ("08", "0")
    assert payment["settlement_date"] == "2026-11-23"
    assert payment["occurred_at"] == "2026-11-22T23:11:12Z"

    def all_counted() -> bool:
        (notification,) = running.json("notifications", "list", "--search", "7001")
        return bool(notification["deliveries"] == 6 and notification["conflicts"] == 0)

    eventually(all_counted, what="six deliveries")


def test_a_repeat_with_other_content_is_a_conflict_and_both_are_kept(running: Installation) -> None:
    first = notify(running, quickstream("7002")).json()["id"]
    second = notify(running, quickstream("7002", amount="1.00")).json()["id"]
    eventually(
        lambda: [each["conflicts"] for each in running.json("notifications", "list", "--search", "7002")] == [1],
        what="a conflict",
    )
    (payment,) = payments(running, "7002")
    assert payment["amount"] == "624.00"
    (shown,) = running.json("notifications", "show", second)
    assert shown["id"] == first
    (repeat,) = shown["repeats"]
    assert (repeat["id"], repeat["kind"]) == (second, "conflict")
    assert "paymentAmount=1.00" in repeat["body"]
    assert "paymentAmount=624.00" in shown["body"]


def test_two_facilities_do_not_see_each_other(running: Installation) -> None:
    octane = basic("octane", "octane-password")
    assert notify(running, quickstream("7003")).status_code == 200
    answer = notify(running, quickstream("7003", business="OCTANE"), facility="octane", credentials=octane)
    assert answer.json()["status"] == "accepted"
    assert {payment["facility"] for payment in payments(running, "7003", 2)} == {"acme", "octane"}
    # Each other's credentials prove nothing, and a notification for the other business is not believed.
    assert notify(running, quickstream("7004"), facility="octane").status_code == 403
    foreign = notify(running, quickstream("7004"), facility="octane", credentials=octane)
    assert (foreign.status_code, foreign.json()["status"]) == (200, "quarantined")


def test_every_row_of_the_status_table(running: Installation) -> None:
    def refusal(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, response.json()["error"]

    good = quickstream("7100")
    assert notify(running, good).json()["status"] == "accepted"
    assert notify(running, b"\xff not a form").json()["status"] == "quarantined"
    assert notify(running, b"<PaymentResponse>", kind="application/xml").json()["status"] == "quarantined"
    assert notify(running, quickstream("7101", successFlag="false")).json()["status"] == "quarantined"

    elsewhere = basic("elsewhere", "elsewhere-password")
    assert refusal(notify(running, good, facility="elsewhere", credentials=elsewhere)) == (403, "source_refused")
    assert refusal(notify(running, good, credentials=basic("acme", "x"))) == (403, "credentials_refused")
    assert refusal(notify(running, good, credentials="Bearer x")) == (403, "credentials_refused")
    unsigned = running.post("/notify/checkout/main", b"{}", {"Content-Type": "application/json"})
    assert refusal(unsigned) == (403, "signature_missing")
    forged = running.post("/notify/checkout/main", b"{}", {"Cko-Signature": "0" * 64})
    assert refusal(forged) == (403, "signature_refused")

    anonymous = running.post("/notify/quickstream/acme", good, {"Content-Type": FORM})
    assert refusal(anonymous) == (401, "credentials_missing")
    assert anonymous.headers["www-authenticate"].startswith("Basic ")

    assert refusal(notify(running, b"")) == (400, "body_empty")
    wrong_method = running.client.get("/notify/quickstream/acme")
    assert refusal(wrong_method) == (405, "method_refused")
    assert wrong_method.headers["allow"] == "POST"
    assert refusal(notify(running, good, facility="nobody")) == (404, "unknown_endpoint")
    assert refusal(notify(running, b"a" * 65537)) == (413, "body_too_large")
    assert slow_body(running) == (408, "body_too_slow")

    reasons = {row["reason"] for row in running.json("refusals", "list")}
    assert reasons >= {
        "source_refused",
        "credentials_missing",
        "credentials_refused",
        "signature_missing",
        "signature_refused",
        "body_empty",
        "method_refused",
        "unknown_endpoint",
        "body_too_large",
        "body_too_slow",
    }
    chosen = running.json("refusals", "list", "--reason", "body_empty", "--provider", "quickstream", "--limit", "5")
    assert [row["reason"] for row in chosen] == ["body_empty"]
    assert running.json("refusals", "list", "--facility", "none") == []
    assert running.run("refusals", "list", "--reason", "none").returncode == 2
    text = running.run("refusals", "list").stdout
    assert "pässword" not in text
    assert "7100" not in text


def slow_body(running: Installation) -> tuple[int, str]:
    """A body whose second half never comes."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=15) as connection:
        connection.sendall(
            b"POST /notify/quickstream/acme HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nAuthorization: " + ACME.encode() + b"\r\n\r\nhalf"
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_debitsuccess_is_held_until_its_token_is_registered(running: Installation) -> None:
    def casual(token: str, webhook_token: str) -> httpx.Response:
        body = {"WebhookToken": webhook_token, "PaymentFormToken": token, "Status": "Success", "Message": ""}
        return running.post("/notify/debitsuccess/gym", json.dumps(body).encode(), {"Content-Type": "application/json"})

    early = casual("LiveTok1", "LiveHook1")
    assert (early.status_code, early.json()["status"]) == (200, "held")
    eventually(lambda: running.json("notifications", "list", "--state", "held"), what="a held notification")
    assert running.json("payments", "list", "--provider", "debitsuccess") == []

    expectation = {
        "token": "LiveTok1",
        "webhook_token": "LiveHook1",
        "reference": "MEMBER-77",
        "amount": "12.50",
        "currency": "NZD",
        "valid_to": "2026-11-22T10:00:00Z",
    }
    assert running.expect("/expect/debitsuccess/gym", expectation).status_code == 201
    (payment,) = payments(running, "MEMBER-77")
    assert (payment["state"], payment["amount"], payment["currency"]) == ("captured", "12.50", "NZD")
    assert running.json("notifications", "list", "--state", "held") == []

    assert casual("LiveTok1", "WrongHook").json()["error"] == "token_refused"
    assert casual("LiveTok1", "LiveHook1").json()["status"] == "accepted"
    assert [casual(f"Unknown{n}", "x").status_code for n in range(5)].count(429) >= 2
    shown = running.run("notifications", "show", early.json()["id"]).stdout
    assert "LiveHook1" not in shown


def test_the_api_key_guards_expectations(running: Installation) -> None:
    body = {"reference": "R-1", "amount": "1.00", "currency": "AUD"}
    anonymous = running.client.post("/expect/quickstream/acme", json=body)
    assert (anonymous.status_code, anonymous.headers["www-authenticate"]) == (401, "Bearer")
    wrong = running.client.post("/expect/quickstream/acme", json=body, headers={"Authorization": "Bearer nothing"})
    assert wrong.status_code == 403
    assert running.expect("/expect/quickstream/acme", body).status_code == 201
    assert running.expect("/expect/quickstream/nobody", body).status_code == 404
    unclear = running.expect("/expect/quickstream/acme", body | {"amount": "1,00"})
    assert (unclear.status_code, unclear.json()["error"]) == (400, "request_malformed")
    eventually(lambda: [e for e in running.json("expect", "list") if e["reference"] == "R-1"], what="the expectation")


def test_an_amount_that_was_not_expected_is_a_mismatch(running: Installation) -> None:
    added = running.run(
        "expect", "add", "--provider", "quickstream", "--facility", "acme",
        "--reference", "ORDER-7200", "--amount", "600.00", "--currency", "AUD",
    )  # fmt: skip
    assert (added.returncode, added.stdout) == (0, "Registered.\n")
    eventually(lambda: [e for e in running.json("expect", "list") if e["reference"] == "ORDER-7200"])
    assert notify(running, quickstream("7200")).status_code == 200
    assert payments(running, "7200")[0]["mismatch"] is True
    assert notify(running, quickstream("7201")).status_code == 200
    assert payments(running, "7201")[0]["mismatch"] is False


def test_probes_and_metrics(running: Installation) -> None:
    assert running.client.get("/livez").json() == {"status": "ok"}
    assert running.client.get("/readyz").json()["status"] == "ready"
    assert notify(running, quickstream("7300")).status_code == 200

    def counted() -> bool:
        text = running.client.get("/metrics").text
        return (
            'postback_accepted_total{facility="acme",provider="quickstream",status="accepted"}' in text
            and 'postback_recorded_total{facility="acme",provider="quickstream",state="processed"}' in text
            and "postback_redis_up 1.0" in text
            and "postback_workers 1.0" in text
        )

    eventually(counted, what="the figures")
    health = json.loads(running.run("health").stdout)
    assert (health["redis"]["status"], health["database"]["status"], health["spool"]["batches"]) == ("up", "up", 0)


def test_what_the_customer_saw_stands_beside_what_the_bank_said(running: Installation) -> None:
    done = running.run("simulate", "quickstream", "--facility", "acme", "--count", "1", "--return", "--format", "form")
    assert done.returncode == 0, done.stderr
    address = done.stdout.splitlines()[-1]
    page = running.client.get(address)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    receipt = dict(parse_qsl(urlsplit(address).query))["receiptNumber"]
    assert receipt in page.text
    head = running.client.head(address)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(page.content)))

    def shown() -> dict[str, Any]:
        (payment,) = running.json("payments", "show", receipt)
        assert payment["returns"]
        return payment

    payment = eventually(shown, what="what the customer saw")
    (saw,) = payment["returns"]
    assert (saw["verified"], saw["amount"], saw["receipt_number"]) == (True, payment["amount"], receipt)
    assert "The customer saw" in running.run("payments", "show", receipt).stdout

    forged = running.client.get(address[:-1] + ("0" if address[-1] != "0" else "1"))
    assert forged.status_code == 403
    assert receipt not in forged.text
    eventually(
        lambda: any(row["provider"] == "/return/quickstream/acme" for row in running.json("refusals", "list")),
        what="its record",
    )


def test_an_expected_payment_that_does_not_come_is_overdue(running: Installation) -> None:
    def add(reference: str, *more: str) -> None:
        added = running.run(
            "expect", "add", "--provider", "quickstream", "--facility", "acme", "--merchant", "ACME",
            "--reference", reference, "--amount", "624.00", "--currency", "AUD", *more,
        )  # fmt: skip
        assert added.returncode == 0, added.stderr

    for number in (7210, 7211):
        add(f"ORDER-{number}", "--valid-to", "2026-01-01T00:00:00Z")
    add("ORDER-7212")
    assert notify(running, quickstream("7211")).status_code == 200
    payments(running, "7211")

    def overdue() -> bool:
        found = {row["reference"] for row in running.json("expect", "list", "--overdue")}
        everything = {row["reference"] for row in running.json("expect", "list")}
        return "ORDER-7210" in found and not found & {"ORDER-7211", "ORDER-7212"} and "ORDER-7212" in everything

    eventually(overdue, what="what is overdue")
    table = running.run("expect", "list", "--overdue").stdout
    assert "ORDER-7210" in table
    assert "ORDER-7211" not in table


def test_commands_answer_wrong_use_with_one_sentence(running: Installation) -> None:
    for arguments in (
        ("notifications", "list", "--state", "lost"),
        ("payments", "list", "--provider", "nobody"),
        ("payments", "list", "--since", "yesterday"),
        ("notifications", "show", "no-such-id"),
        ("simulate", "nobody"),
        ("simulate", "checkout", "--format", "xml"),
        ("simulate", "checkout", "--return"),
        ("simulate", "quickstream", "--facility", "octane", "--return"),
        (
            "expect",
            "add",
            *["--provider", "paymentz", "--facility", "eu", "--reference", "r", "--amount", "x", "--currency", "EUR"],
        ),
    ):
        done = running.run(*arguments)
        assert done.returncode == 2, (arguments, done)
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("postback: ")


def test_doctor(running: Installation) -> None:
    done = running.run("doctor", "--json")
    findings = {row["check"]: row["verdict"] for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert (findings["configuration"], findings["queue"], findings["ledger"]) == ("ok", "ok", "ok")


def test_doctor_says_what_a_list_on_trial_would_refuse_and_how_it_differs(running: Installation) -> None:
    for receipt in ("7390", "7391"):
        assert notify(running, quickstream(receipt)).status_code == 200
        eventually(lambda: payments(running, receipt), what="a payment")  # noqa: B023
    written = running.config.read_text()
    lists = 'allowed_sources = ["127.0.0.0/8"]\nproposed_sources = ["192.0.2.0/24"]\nusername = "acme"'
    changed = written.replace('allowed_sources = ["127.0.0.0/8"]\nusername = "acme"', lists)
    listed = 'facility = "static"\nallowed_sources = ["34.246.107.175/32", "192.0.2.0/24"]'
    other = running.config.with_name("on-trial.toml")
    other.write_text(changed.replace('facility = "static"', listed))
    done = subprocess.run([*command(), "doctor", "--json", "--config", str(other)], capture_output=True, text=True)
    said = [(row["check"], row["detail"]) for row in map(json.loads, done.stdout.splitlines())]
    assert done.returncode in (0, 1)
    (trial,) = [detail for check, detail in said if check == "quickstream/acme" and "would have" in detail]
    assert re.search(r"would have refused (\d+) of the last \1 notifications: 127\.0\.0\.1 \(\1\)$", trial)
    differs = " ".join(detail for check, detail in said if check == "checkout/static")
    assert "4.159.40.224/28" in differs
    assert "has 192.0.2.0/24, which is not in the documents" in differs


@pytest.mark.parametrize("provider", ["quickstream", "checkout", "debitsuccess", "paymentz"])
def test_the_simulator_sends(running: Installation, provider: str) -> None:
    done = running.run("simulate", provider, "--count", "8", "--chaos", "--seed", "5", "--speed", "1000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 given up" in done.stdout
    eventually(lambda: running.json("payments", "list", "--provider", provider), what=provider)


@pytest.mark.parametrize(("number", "role"), list(enumerate(["serve", "work", "valkey"])))
def test_what_dies_is_started_again_and_nothing_is_lost(running: Installation, number: int, role: str) -> None:
    old = running.pids(role)
    assert old
    running.kill(role)
    for receipt in range(7400 + 10 * number, 7405 + 10 * number):
        eventually(lambda: answered(running, str(receipt)), what=f"an answer after {role} was killed")  # noqa: B023
    eventually(lambda: set(running.pids(role)) - set(old), what=f"a new {role}")
    eventually(lambda: running.client.get("/readyz").json()["status"] == "ready", what="a ready receiver")
    for receipt in range(7400 + 10 * number, 7405 + 10 * number):
        assert payments(running, str(receipt))[0]["state"] == "captured"


def answered(running: Installation, receipt: str) -> bool:
    try:
        return bool(notify(running, quickstream(receipt)).status_code == 200)
    except httpx.TransportError:
        return False


def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    with installed(tmp_path) as running:
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(notify, running, quickstream(f"76{number:03}")) for number in range(200)]
            began = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - began < 10
            kept = 0
            for future in answers:
                try:
                    kept += future.result().status_code == 200
                except httpx.TransportError:
                    continue
        running.start()
        eventually(lambda: len(running.json("payments", "list")) >= kept, what="all that was acknowledged")


def test_redis_away_is_spooled_and_drained_and_a_full_spool_is_honest(tmp_path: Path) -> None:
    with installed(tmp_path, receive='max_spool = "64KiB"') as running:
        (valkey,) = running.pids("valkey")
        os.kill(valkey, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert notify(running, quickstream("7500")).status_code == 200
            assert time.monotonic() - began < 2
            eventually(lambda: running.client.get("/readyz").json()["status"] == "degraded", what="degraded")
            kept, statuses = ["7500"], set()
            for number in range(1, 400):
                response = notify(running, quickstream(f"75{number:03}", customNote="x" * 1500))
                if response.status_code == 200:
                    kept.append(f"75{number:03}")
                    continue
                statuses.add((response.status_code, response.json()["error"]))
                break
            assert statuses == {(500, "not_stored")}
            refused = paymentz_now(running)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        finally:
            os.kill(valkey, signal.SIGCONT)
        eventually(lambda: running.client.get("/readyz").json()["status"] == "ready", what="a drained spool")
        eventually(
            lambda: len(running.json("payments", "list", "--search", "75")) == len(kept), what="all that was kept"
        )


def paymentz_now(running: Installation) -> httpx.Response:
    endpoint = configuration.load(running.config).endpoints["paymentz", "eu"]
    # Larger than the pages that are left.
    outgoing = paymentz_callback(endpoint, remark="x" * 20_000)
    return running.post(outgoing.path, outgoing.body, outgoing.headers)


def test_up_demo_shows_payments_of_all_senders(tmp_path: Path) -> None:
    config = tmp_path / "postback.toml"
    init = subprocess.run([*command(), "init", "--config", str(config)], capture_output=True, text=True, timeout=60)
    assert init.returncode == 0, init.stderr
    config.write_text(config.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}"))
    with open(tmp_path / "out.txt", "wb") as out, open(tmp_path / "err.txt", "wb") as err:
        process = subprocess.Popen([*command(), "up", "--demo", "--config", str(config)], stdout=out, stderr=err)
    try:
        shown = eventually(
            lambda: (tmp_path / "out.txt").read_text() if "Send your own" in (tmp_path / "out.txt").read_text() else "",
            60,
            "the demonstration",
        )
        assert all(provider in shown for provider in ("quickstream", "checkout", "debitsuccess", "paymentz"))
        curl = shown.split("Send your own:")[1].splitlines()[0].strip()
        if shutil.which("curl"):
            answer = subprocess.run(["/bin/bash", "-c", curl], capture_output=True, text=True, timeout=30)
            assert json.loads(answer.stdout)["status"] == "accepted"
    finally:
        process.terminate()
        assert process.wait(15) == 0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (('passwords = ["octane-password"]', 'passwords = ["env:POSTBACK_NOT_SET_ANYWHERE"]'), "passwords"),
        (('passwords = ["octane-password"]', 'passwords = ["  "]'), "passwords"),
        (('facility = "octane"', 'facility = "acme"'), "endpoint[1]"),
        (('allowed_sources = ["127.0.0.0/8"]', 'allowed_sources = ["hunter2"]'), "allowed_sources"),
        (('data_dir = "var"', 'data_dirr = "hunter2"'), "data_dirr"),
        (('environment = "test"', 'environment = "hunter2"'), "environment"),
        (("[security]", "[security]\noops = 'hunter2'"), "oops"),
    ],
)
def test_a_wrong_configuration_refuses_to_start(tmp_path: Path, change: tuple[str, str], key: str) -> None:
    config = Installation(tmp_path).config
    config.write_text(config.read_text().replace(*change, 1))
    for process in ("up", "serve", "work"):
        done = subprocess.run(
            [*command(), process, "--config", str(config)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert key in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "hunter2" not in done.stderr


def refuses(config: Path, *processes: str) -> str:
    """The one sentence with which each of them ends at once."""
    told = set()
    for process in processes:
        given = [*command(), process, "--config", str(config)]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, ""), process
        told.add(done.stderr)
    (sentence,) = told
    assert sentence.count("\n") == 1
    return sentence


def test_a_place_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """Processes that write, and an address that another has."""
    config = Installation(tmp_path).config
    assert refuses(config, "work", "console").endswith("run `postback migrate`.\n")
    (tmp_path / "file").touch()
    written = config.read_text()
    config.write_text(written.replace('data_dir = "var"', 'data_dir = "file/var"'))
    assert re.fullmatch(
        r"postback: data_dir: \S*/file/var\S* cannot be used: Not a directory\.\n", refuses(config, "up", "serve")
    )
    assert "/file/var cannot be used: Not a directory.\n" in refuses(config, "migrate")
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        config.write_text(re.sub("(?m)^bind = .*", f'bind = "{bind}"', written, count=1))
        assert (
            refuses(config, "serve", "up")
            == f"postback: receive.bind: cannot listen on {bind}: Address already in use.\n"
        )


def test_the_console_answers_monitoring_and_lets_nobody_in(running: Installation) -> None:
    console = httpx.Client(base_url=f"http://127.0.0.1:{running.console_port}", timeout=15, trust_env=False)
    eventually(lambda: running.pids("console") and _answers(console), what="the console")
    state = console.get("/healthz").json()
    assert state["redis"]["status"] == state["database"]["status"] == "up"
    assert console.get("/readyz").json() == {"status": "ready"}
    assert "postback_accepted_total" in console.get("/metrics").text
    away = console.get("/payments")
    assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=%2Fpayments")
    console.close()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False
