"""What other receivers have fallen to, each tried on the running command under the number of its advisory."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields
from sqlalchemy import Engine

from receiver.errors import Refused
from receiver.providers import PROVIDERS
from tests.contract.subjects import Subject, basic, paymentz_callback
from tests.contract.test_contract import assert_refused, send, stored, total
from tests.live.installation import ENDPOINTS, Installation, command
from tests.servers import Valkey
from tests.support import EXPECTED_CASUAL, recorded
from workers.simulator.base import Outgoing

QUICKSTREAM, CHECKOUT = "/notify/quickstream/acme", "/notify/checkout/main"
ACME = basic("acme", "qs-new:pässword")
FORM = "application/x-www-form-urlencoded"


def quickstream(receipt: str, body: bytes | None = None, kind: str = FORM, **fields: str) -> Outgoing:
    """A proven QuickStream notification of one dollar, or of `body`."""
    given = {
        "receiptNumber": receipt,
        "supplierBusinessCode": "ACME",
        "paymentAmount": "1.00",
        "summaryCode": "0",
        "responseCode": "00",
    } | fields
    if body is None:
        body = "&".join(f"{name}={value}" for name, value in given.items()).encode()
    return Outgoing(QUICKSTREAM, {"Authorization": ACME, "Content-Type": kind}, body)


def checkout(body: bytes, key: bytes = b"cko-new-key", kind: str = "application/json") -> Outgoing:
    return Outgoing(CHECKOUT, {"Cko-Signature": hmac.digest(key, body, "sha256").hex(), "Content-Type": kind}, body)


def captured(number: int, **more: Any) -> bytes:
    data = {"id": f"pay_advisory{number}", "amount": 100, "currency": "AUD"}
    return json.dumps({"id": f"evt_advisory{number}", "type": "payment_captured", "data": data} | more).encode()


@contextmanager
def nobody_calls() -> Iterator[str]:
    """The address of a listener, which must not have been reached at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


# svix: a signature was compared only as far as the given one went.
def test_cve_2024_21491_a_beginning_of_the_right_proof_is_none(installation: Installation, subject: Subject) -> None:
    outgoing = subject.make(-1)
    proof = subject.proof(outgoing)
    for length in sorted({0, 1, len(proof) // 2, *range(max(0, len(proof) - 9), len(proof))}):
        answer = send(installation, subject.with_proof(outgoing, proof[:length]))
        assert answer.status_code == 403, length
    for longer in (proof + "0", proof + proof, "0" + proof):
        assert_refused(send(installation, subject.with_proof(outgoing, longer)), 403)
    assert send(installation, outgoing).status_code == 200


# django-anymail: the shared secret was compared with ==, which takes longer the more of it is right.
@pytest.mark.parametrize("name", ["quickstream", "checkout", "debitsuccess", "event", "paymentz"])
def test_cve_2018_6596_the_time_of_a_comparison_does_not_tell_what_was_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    right = hmac.compare_digest

    def compare(given: bytes, wanted: bytes) -> bool:
        assert isinstance(given, bytes)
        assert isinstance(wanted, bytes)
        compared.append((len(given), len(wanted)))
        return right(given, wanted)

    monkeypatch.setattr(hmac, "compare_digest", compare)

    def tried(change: Any, *, newest_first: bool = False) -> list[tuple[int, int]]:
        compared.clear()
        with suppress(Refused):
            _prove(name, change, newest_first)
        return [*compared]

    first, last = (
        tried(lambda proof: _other(proof[:1]) + proof[1:]),
        tried(lambda proof: proof[:-1] + _other(proof[-1:])),
    )
    assert first == last != []
    # Each secret of the list has its own comparison, whichever it is that fits.
    right_last, right_first = tried(lambda proof: proof), tried(lambda proof: proof, newest_first=True)
    assert right_last == right_first == first[: len(right_last)] != []


def _other(letter: str) -> str:
    return "0" if letter != "0" else "1"


def _prove(name: str, change: Any, newest_first: bool) -> None:
    """A recorded request, which the newest secret proves, through its provider's own checks, with its proof changed."""
    from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM

    fixture, endpoint, expected = {
        "quickstream": ("payment__form", QUICKSTREAM, None),
        "checkout": ("payment_captured", CHECKOUT, None),
        "debitsuccess": ("casual_payment", DEBITSUCCESS, EXPECTED_CASUAL),
        "event": ("Customer.Schedule.Suspension.Added", DEBITSUCCESS, None),
        "paymentz": ("capturesuccess", PAYMENTZ, None),
    }[name]
    message = recorded(endpoint.provider, fixture).message()
    headers, body = dict(message.headers), message.body
    if name == "quickstream":
        user, _, password = "acme:new:pässword".partition(":")
        headers["authorization"] = basic(user, change(password))
    elif name in ("checkout", "event"):
        header = "cko-signature" if name == "checkout" else "x-token"
        headers[header] = change(headers[header])
    else:
        field = "WebhookToken" if name == "debitsuccess" else "checksum"
        members = json.loads(body)
        body = body.replace(members[field].encode(), change(members[field]).encode())
    changed = type(message)(message.content_type, headers, body)
    provider = PROVIDERS[endpoint.provider]
    if newest_first:
        lists = {
            each: value for each in endpoint.__struct_fields__ if isinstance(value := getattr(endpoint, each), tuple)
        }
        endpoint = replace_fields(endpoint, **{each: value[::-1] for each, value in lists.items()})
    provider.check_headers(changed, endpoint)
    provider.authenticate(changed, endpoint, expected)


def test_cve_2018_6596_no_secret_is_compared_otherwise() -> None:
    for path in sorted(Path("receiver").rglob("*.py")):
        if path.name == "settings.py":
            continue  # compares what the configuration says with itself, at the start
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert ".reveal()" not in text, f"{path}:{node.lineno}"
                assert "hexdigest" not in text, f"{path}:{node.lineno}"


# django-anymail: the secret stood in the report of an error. Here every step fails in turn, with proven requests.
def test_cve_2018_1000089_no_report_of_an_error_holds_a_secret(valkey_server: Valkey, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, valkey_server.url, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("Traceback (most recent call last)") >= 8
    assert "deliberate" in said
    secrets = ["new:pässword", "old:pässword", "cko-new-key", "cko-static-key", "event-new-token", "pz-new-key"]
    shown = [basic("acme", "new:pässword")[6:], "HookTok1", "seal-key-of-the-tests", "api-key-of-the-tests"]
    bodies = ["receiptNumber=", "payment_captured", "capturesuccess", "FacilityNo"]
    for text in (*secrets, *shown, *bodies):
        assert text not in said, text


_FAULTS = """
import sys
from dataclasses import replace
from pathlib import Path
from receiver import accept, logs
from receiver.providers import PROVIDERS
logs.configure("serve")
from tests.receiver.serving import configured, serving
from tests.receiver.test_accept import SENDERS, send

def fail(*arguments, **more):
    raise RuntimeError("deliberate")

settings = configured(Path(sys.argv[2]), sys.argv[1])
print(repr(settings), str(settings))
with serving(settings) as application:
    for step in ("_credentials", "_authenticate", "_identify", "_envelope", "_status"):
        kept = getattr(accept.Accept, step)
        setattr(accept.Accept, step, fail)
        for request in SENDERS.values():
            assert send(application, request).status in (500, 503)
        setattr(accept.Accept, step, kept)
"""


# New API: an empty secret signed for everybody, and a signature of one gateway paid the orders of another.
@pytest.mark.parametrize("secret", ["", " ", "\t", "env:POSTBACK_TEST_EMPTY", "file:empty", "changeme", "..."])
@pytest.mark.parametrize(
    "key", ["passwords", "hmac_passwords", "signature_keys", "authorization_keys", "event_tokens", "secure_keys"]
)
def test_ghsa_xff3_5c9p_2mr4_an_empty_secret_stops_the_start(
    tmp_path: Path, key: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from receiver import settings as configuration
    from receiver.errors import ConfigurationError

    monkeypatch.setenv("POSTBACK_TEST_EMPTY", "")
    (tmp_path / "empty").write_text("\n")
    written = re.sub(rf"{key} = \[.*\]", f"{key} = [{json.dumps(secret)}]", ENDPOINTS, count=1)
    assert written != ENDPOINTS
    config = tmp_path / "postback.toml"
    config.write_text(f'[security]\nseal_keys = ["a-seal-key-of-the-tests"]\n{written}')
    with pytest.raises(
        ConfigurationError, match=rf"^endpoint\[\d\]\.{key}\[0\]: the secret is (empty|a placeholder)\.$"
    ):
        configuration.load(config)


def test_ghsa_xff3_5c9p_2mr4_the_command_says_so_in_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "postback.toml"
    config.write_text('[security]\nseal_keys = ["a-seal-key-of-the-tests"]\n' + ENDPOINTS.replace('"pz-old-key"', '""'))
    for role in ("serve", "work", "up"):
        done = subprocess.run([*command(), role, "--config", str(config)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert (done.stdout, done.stderr.strip().count("\n")) == ("", 0)
        assert done.stderr.strip().endswith("endpoint[6].secure_keys[0]: the secret is empty.")


def test_ghsa_xff3_5c9p_2mr4_nothing_is_signed_by_an_empty_key(installation: Installation) -> None:
    body = captured(1)
    for key in (b"", b"\0", b" ", b"null", b"None"):
        assert_refused(send(installation, checkout(body, key)), 403)
    fields = {"paymentId": "1", "merchantTransactionId": "2", "amount": "3.00", "transactionStatus": "Y"}
    for signed in ("1|2|3.00|Y|", "1|2|3.00|Y", "1|2|3.00|Y|null"):
        checksum = hashlib.md5(signed.encode(), usedforsecurity=False).hexdigest()
        forged = json.dumps({**fields, "status": "capturesuccess", "currency": "EUR", "checksum": checksum}).encode()
        assert_refused(installation.post("/notify/paymentz/eu", forged, {"Content-Type": "application/json"}), 403)
    for credentials in (basic("acme", ""), basic("", ""), "Basic", "Basic ="):
        given = replace(quickstream("7100"), headers={"Authorization": credentials, "Content-Type": FORM})
        assert_refused(send(installation, given), 403)


def test_ghsa_xff3_5c9p_2mr4_no_gateway_pays_the_order_of_another(
    installation: Installation, engine: Engine, all_subjects: dict[str, Subject]
) -> None:
    order = {"reference": "ADVISORY-1", "amount": "12.50", "currency": "EUR"}
    assert installation.expect("/expect/checkout/main", order).status_code == 201
    # Another gateway's proof of the same order, and another endpoint's of the same gateway.
    from receiver import settings as configuration

    endpoint = configuration.load(installation.config).endpoints["paymentz", "eu"]
    paid = send(installation, paymentz_callback(endpoint, merchantTransactionId="ADVISORY-1"))
    assert stored(engine, paid.json()["id"]).state == "processed"
    signed = checkout(captured(2), b"cko-static-key")
    assert_refused(send(installation, signed), 403)
    for subject in all_subjects.values():
        for path in {other.path for other in all_subjects.values()} - {subject.path}:
            assert_refused_anywhere(send(installation, replace(subject.make(-1), path=path, expect=None)))
    (mine,) = [row for row in installation.json("expect", "list") if row["reference"] == "ADVISORY-1"]
    assert (mine["provider"], mine["answered"]) == ("checkout", False)


def assert_refused_anywhere(response: Any) -> None:
    assert response.status_code in (401, 403), response.text


# Receivers that check a signature only where there is one.
@pytest.mark.parametrize("absent", ["left out", "empty", "null", "list", "object", "true", "zero"])
def test_a_missing_signature_field_is_no_proof(
    installation: Installation, engine: Engine, subject: Subject, absent: str
) -> None:
    outgoing = subject.make(-1)
    proof = subject.proof(outgoing)
    before = total(engine)
    if absent in ("left out", "empty"):
        changed = subject.with_proof(outgoing, None if absent == "left out" else "")
    elif proof.encode() in outgoing.body:
        other = {"null": "null", "list": "[]", "object": "{}", "true": "true", "zero": "0"}[absent]
        quoted = json.dumps(proof).encode()
        changed = replace(outgoing, body=outgoing.body.replace(quoted, other.encode()))
    else:
        changed = subject.with_proof(outgoing, {"null": "null", "list": "[]", "object": "{}"}.get(absent, absent))
    assert_refused_anywhere(send(installation, changed))
    response = send(installation, outgoing)
    assert response.status_code == 200
    stored(engine, response.json()["id"])
    assert total(engine) == before + 1


# n8n: the content type chose a parser whose result other code took for its own.
TYPES = [
    *("multipart/form-data; boundary=x", "application/json", FORM, "text/xml", "application/xml;charset=utf-7", ""),
    *("image/png", "application/x-python-pickle", "application/x-yaml", "application/x-msgpack", "a/b/c;;;"),
]


def test_cve_2026_21858_the_content_type_proves_nothing_and_changes_no_meaning(
    installation: Installation, engine: Engine, subject: Subject
) -> None:
    outgoing = subject.make(-1)
    for kind in TYPES:
        unproven = subject.with_proof(outgoing, None)
        headers = {name: text for name, text in unproven.headers.items() if name.lower() != "content-type"}
        assert_refused_anywhere(send(installation, replace(unproven, headers={**headers, "Content-Type": kind})))
    if subject.provider == "quickstream":
        return  # has two formats; see below
    first = stored(engine, send(installation, outgoing).json()["id"])
    for kind in TYPES:
        again = send(installation, replace(outgoing, headers={**outgoing.headers, "Content-Type": kind}))
        assert stored(engine, again.json()["id"]).id == first.id, kind
    assert stored(engine, first.id).conflicts == 0


def test_cve_2026_21858_what_is_not_of_its_type_is_quarantined(installation: Installation, engine: Engine) -> None:
    files = {"files": {"a": {"filepath": "/etc/passwd", "originalFilename": "a"}}, "data": {"__proto__": 1}}
    multipart = b'--x\r\nContent-Disposition: form-data; name="receiptNumber"\r\n\r\n7101\r\n--x--\r\n'
    for number, (kind, body) in enumerate(
        [
            ("application/json", json.dumps({"receiptNumber": "7101", **files}).encode()),
            ("multipart/form-data; boundary=x", multipart),
            ("application/xml", quickstream("7101").body),
            (FORM, b"<PaymentResponse><receiptNumber>7101</receiptNumber></PaymentResponse>"),
            ("application/x-python-pickle", b"cos\nsystem\n(S'false'\ntR."),
        ]
    ):
        response = send(installation, quickstream("7101", body, kind))
        assert (response.status_code, response.json()["status"]) == (200, "quarantined"), number
        assert stored(engine, response.json()["id"]).state == "quarantined"
    shown = send(installation, checkout(captured(3, **files)))
    (row,) = installation.json("notifications", "show", shown.json()["id"])
    assert "root:" not in json.dumps(row)


# Contact Form 7 add-on: the notification was real, and its amount another one than the order's.
def test_cve_2026_9189_an_authentic_notification_of_another_amount_is_a_mismatch(
    installation: Installation, engine: Engine
) -> None:
    order = {"reference": "ADVISORY-99", "amount": "2000.00", "currency": "AUD", "merchant": "ACME"}
    assert installation.expect("/expect/quickstream/acme", order).status_code == 201
    response = send(installation, quickstream("7102", paymentReference="ADVISORY-99"))
    assert response.json()["status"] == "accepted"
    assert stored(engine, response.json()["id"]).state == "processed"
    (payment,) = [row for row in installation.json("payments", "list", "--mismatch") if row["receipt_number"] == "7102"]
    assert (payment["amount"], payment["mismatch"]) != ("2000.00", None)
    assert payment["mismatch"]


# WeChat Pay's SDK: an entity in the XML of a notification read files and called addresses.
def test_cve_2018_13439_entities_in_xml_read_and_call_nothing(
    installation: Installation, engine: Engine, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("what-nobody-may-read")
    with nobody_calls() as address:
        for number, declaration in enumerate(
            [
                f'<!ENTITY x SYSTEM "file://{secret}">',
                f'<!ENTITY x SYSTEM "http://{address}/x">',
                f'<!ENTITY % p SYSTEM "http://{address}/x.dtd"> %p; <!ENTITY x "y">',
                f'<!ENTITY x PUBLIC "-//X//Y" "http://{address}/x">',
            ]
        ):
            body = (
                f'<?xml version="1.0"?><!DOCTYPE PaymentResponse [{declaration}]><PaymentResponse><receiptNumber>'
                f"710{number}&x;</receiptNumber><supplierBusinessCode>ACME</supplierBusinessCode></PaymentResponse>"
            )
            for kind in ("application/xml", "text/xml"):
                response = send(installation, quickstream("", body.encode(), kind))
                assert (response.status_code, response.json()["status"]) == (200, "quarantined")
                row = stored(engine, response.json()["id"])
                assert (row.state, row.reason) == ("quarantined", "unreadable_body")
                (shown,) = installation.json("notifications", "show", row.id)
                assert "what-nobody-may-read" not in json.dumps(shown)
        external = f'<!DOCTYPE PaymentResponse SYSTEM "http://{address}/x.dtd"><PaymentResponse/>'.encode()
        included = f'<PaymentResponse xmlns:i="http://www.w3.org/2001/XInclude"><i:include href="http://{address}/"/>'
        styled = f'<?xml-stylesheet href="http://{address}/x.xsl" type="text/xsl"?><PaymentResponse/>'.encode()
        for body_bytes in (external, included.encode() + b"</PaymentResponse>", styled):
            response = send(installation, quickstream("", body_bytes, "application/xml"))
            assert response.json()["status"] == "quarantined"
            stored(engine, response.json()["id"])


# Plunk: an address in the body of a notification was fetched before anything of it was proven.
def test_cve_2026_32096_no_address_in_a_body_is_called(installation: Installation, engine: Engine) -> None:
    with nobody_calls() as address:
        url = f"http://{address}/x"
        links = {"_links": {"self": {"href": url}, "payment": {"href": url}}, "SigningCertURL": url, "url": url}
        topic = {"Type": "SubscriptionConfirmation", "SubscribeURL": url, "TopicArn": "x", "callback": url}
        endpoint_body = {"NotificationUrl": url, "SubscribeURL": url, "FacilityNo": "X", "jku": url, "x5u": url}
        proven = [
            checkout(captured(4, **links, **topic)),
            quickstream("7103", customReturnUrl=url, SubscribeURL=url, notificationUrl=url),
            Outgoing(
                "/notify/debitsuccess/gym",
                {"X-Token": "event-new-token", "X-EventName": "Advisory.Seen", "Content-Type": "application/json"},
                json.dumps(endpoint_body).encode(),
            ),
        ]
        for outgoing in proven:
            response = send(installation, outgoing)
            assert response.status_code == 200
            assert stored(engine, response.json()["id"]).state == "processed"
            unproven = replace(outgoing, headers={"Content-Type": outgoing.headers["Content-Type"]})
            assert_refused_anywhere_or_held(send(installation, unproven))
        held = json.dumps({"PaymentFormToken": "AdvisoryT", "WebhookToken": "x", "SubscribeURL": url}).encode()
        response = installation.post("/notify/debitsuccess/gym", held, {"Content-Type": "application/json"})
        assert response.json()["status"] == "held"
        stored(engine, response.json()["id"])


def assert_refused_anywhere_or_held(response: Any) -> None:
    assert response.status_code in (401, 403) or response.json()["status"] == "held"
