"""`GET /return/...`: what the customer sees, what goes on to the merchant, what is noted, and that nothing of it is in
the way of notifications."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import signal
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest
from redis import Redis
from structlog.testing import capture_logs

from receiver import metrics, return_page, return_result, returned, returns, settings
from receiver.notification import BrowserReturn, ReturnOutcome
from receiver.refusals import listed
from receiver.return_log import KEEP
from receiver.settings import Settings
from receiver.signing import Seal
from tests.asgi import Answer, Application, End
from tests.receiver.serving import ENDPOINTS, PROXY, SEAL_KEY, configured, jobs, kept, serving
from tests.receiver.test_returned import FAILED, PAID, Pairs, changed, signed
from tests.servers import Valkey, eventually, running_valkey
from tests.support import recorded, secrets

QUICK = "/return/quickstream/acme"
GYM = "/return/debitsuccess/gym"
NEW_KEY = "new-result-key-" + "x" * 32
RESULT_KEYS = ["old-result-key-" + "x" * 32, NEW_KEY]
RETURN_SEAL = Seal(secrets(SEAL_KEY), "returns")
README = Path(__file__).parents[2] / "README.md"


def with_returns(folder: Path, url: str, **more: Any) -> Settings:
    """The four endpoints; `more` is for QuickStream and, but for the passwords, for Debitsuccess."""
    changes = {
        "quickstream": {"hmac_passwords": ["return-password", "next-password"]} | more,
        "debitsuccess": {name: value for name, value in more.items() if name != "hmac_passwords"},
    }
    return settings.read(
        {
            "data_dir": str(folder),
            "receive": {"trusted_proxies": [f"{PROXY}/32"]},
            "queue": {"redis_url": url},
            "security": {"seal_keys": [SEAL_KEY]},
            "endpoint": [entry | changes.get(entry["provider"], {}) for entry in ENDPOINTS],
        },
        folder,
    )


@pytest.fixture
def application(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> Iterator[Application]:
    with serving(with_returns(tmp_path, valkey_server.url)) as application:
        yield application


@pytest.fixture
def onward(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> Iterator[Application]:
    """With a merchant's own page to go on to."""
    url = "https://shop.example/paid?lang=en"
    with serving(with_returns(tmp_path, valkey_server.url, return_url=url, result_keys=RESULT_KEYS)) as application:
        yield application


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def back(application: Application, path: str, pairs: Pairs, method: str = "GET") -> Answer:
    return application.ask(method, f"{path}?{urlencode(pairs)}")


class Page(HTMLParser):
    """What a page says, and what it would load or run."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self._in_style = False
        self.feed(answer.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style and data.strip():
            self.words.append(data.strip())


def title(answer: Answer) -> str:
    return Page(answer).words[0]


def noted(redis: Redis) -> list[BrowserReturn]:
    found = []
    for job in jobs(redis):
        assert job.func_name == "workers.jobs.record_returns"
        found += msgspec.msgpack.decode(RETURN_SEAL.open(job.args[0]), type=list[BrowserReturn])
    return found


# -- the page


@pytest.mark.parametrize(
    ("summary", "heading"),
    [
        ("0", "Your payment was approved"),
        ("1", "Your payment was declined"),
        ("2", "Your payment is being processed"),
        ("3", "Your payment did not go through"),
    ],
)
def test_a_proven_return_is_shown(application: Application, summary: str, heading: str) -> None:
    answer = back(application, QUICK, signed(changed(summaryCode=summary)))
    assert (answer.status, title(answer)) == (200, heading)
    words = Page(answer).words
    assert [words[words.index(name) + 1] for name in ("Receipt number", "Amount", "Surcharge included")] == [
        *("1003548481", "AUD 1001.15", "AUD 1.15")
    ]
    text = answer.body.decode()
    # Whoever looks over a shoulder learns no reason, no name and no card.
    assert not any(hidden in text for hidden in ("Honour", "John Smith", "456471"))


def test_the_page_loads_and_runs_nothing(application: Application) -> None:
    for answer in (
        back(application, QUICK, signed(PAID)),
        back(application, QUICK, PAID),
        back(application, GYM, [("Token", "T1")]),
        application.get("/return/nobody/here"),
        application.post(QUICK),
    ):
        page = Page(answer)
        assert not {"script", "link", "img", "form", "iframe", "a", "object"} & set(page.tags)
        assert not {"src", "href", "style", "onload", "action"} & set(page.attributes)
        assert "url(" not in answer.body.decode()
        (style,) = re.findall(r"<style>(.*?)</style>", answer.body.decode(), re.DOTALL)
        digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = answer.headers["content-security-policy"]
        assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
        assert "frame-ancestors 'none'" in policy
        for name, value in return_page.HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert page.tags[:2] == ["html", "head"]
        assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("title") == 1


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e"


def test_no_value_becomes_markup(application: Application) -> None:
    pairs = signed([(name, HOSTILE) if name in ("paymentReference", "receiptNumber") else (name, value)
                    for name, value in PAID] + [(HOSTILE, HOSTILE)])  # fmt: skip
    answer = back(application, QUICK, pairs)
    page = Page(answer)
    assert answer.status == 200
    assert HOSTILE in page.words
    assert not {"script", "img"} & set(page.tags)
    for path, unproven in ((QUICK, [*FAILED, ("errorField", HOSTILE), ("errorDescription", HOSTILE)]),
                           (GYM, [("Token", "T1"), ("Status", HOSTILE), ("Message", HOSTILE)]),
                           (QUICK, [("hmac", HOSTILE)]), (f"/return/{'x' * 50}", [(HOSTILE, HOSTILE)])):  # fmt: skip
        assert b"alert" not in back(application, path, unproven).body


@pytest.mark.parametrize(
    ("names", "sentences"),
    [
        (["acceptSurcharge"], ["A surcharge applies"]),
        (["ignoreDuplicate"], ["The same card or account paid the same amount"]),
        (["acceptSurcharge", "ignoreDuplicate"], ["A surcharge applies", "The same card or account"]),
    ],
)
def test_a_question_is_asked_and_says_that_nothing_was_paid(
    application: Application, names: list[str], sentences: list[str]
) -> None:
    pairs = [*FAILED, ("surchargeAmount", "1.15"), *(("errorField", name) for name in names)]
    answer = back(application, QUICK, pairs)
    assert (answer.status, title(answer)) == (200, "Your payment was not made yet")
    text = " ".join(Page(answer).words)
    assert all(sentence in text for sentence in [*sentences, "AUD 1001.15", "AUD 1.15"])
    assert "PAYMENT1" not in text, "anybody may have written it"


def test_an_error_names_what_to_check(application: Application) -> None:
    pairs = [*FAILED, *(("errorField", name) for name in ("cvn", "expiryDateMonth", "expiryDateYear"))]
    words = Page(back(application, QUICK, pairs)).words
    assert words[0] == "Your payment was not made"
    assert "Please check the security number, the expiry date." in words


@pytest.mark.parametrize("status", ["Success", "Declined", "Error", "Whatever", ""])
def test_debitsuccess_is_never_confirmed(application: Application, status: str) -> None:
    answer = back(application, GYM, [("Status", status), ("Token", "TGhZfWjb"), ("Message", "")])
    assert (answer.status, title(answer)) == (200, "Your payment is not confirmed yet")
    assert b"TGhZfWjb" not in answer.body


def test_without_passwords_the_page_says_nothing_of_a_result(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    with serving(configured(tmp_path, valkey_server.url)) as application:
        pages = {back(application, QUICK, pairs).body for pairs in (signed(PAID), PAID, FAILED, [])}
        assert back(application, QUICK, signed(PAID)).status == 200
    assert len(pages) == 1
    assert b"The merchant will tell you the result" in pages.pop()
    assert jobs(redis) == []


# -- what is refused, and that it is on record


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", f"{QUICK}?{urlencode(PAID)}", 403, "signature_missing"),
        ("GET", f"{QUICK}?{urlencode([*PAID, ('hmac', 'x')])}", 403, "signature_refused"),
        ("GET", f"{QUICK}?a=%ff", 400, "request_malformed"),
        ("GET", f"{QUICK}?{urlencode(signed([*PAID, ('receiptNumber', '2')]))}", 400, "request_malformed"),
        ("GET", f"{QUICK}?{'x' * 9000}", 414, "query_too_long"),
        ("GET", QUICK, 403, "signature_missing"),
        ("GET", GYM, 400, "request_malformed"),
        ("POST", QUICK, 405, "method_refused"),
        ("PUT", GYM, 405, "method_refused"),
        ("OPTIONS", GYM, 405, "method_refused"),
        ("HEAD", f"{QUICK}?{urlencode(PAID)}", 403, "signature_missing"),
        ("GET", "/return/quickstream/nobody", 404, "unknown_endpoint"),
        ("GET", "/return/checkout/main", 404, "unknown_endpoint"),
        ("GET", "/return/paymentz/eu", 404, "unknown_endpoint"),
        ("GET", "/return/quickstream/%61cme", 404, "unknown_endpoint"),
        ("GET", "/return/quickstream/acme/", 404, "unknown_endpoint"),
        ("GET", "/return/", 404, "unknown_endpoint"),
    ],
)
def test_what_is_refused_has_a_page_and_a_record(
    redis: Redis, application: Application, method: str, path: str, status: int, reason: str
) -> None:
    answer = application.ask(method, path, {}, [End.UNTOUCHED])
    assert (answer.status, Page(answer).words[-1]) == (status, f"For support: {reason}")
    if status == 405:
        assert (answer.headers["allow"], answer.headers["connection"]) == ("GET, HEAD", "close")
    (record,) = eventually(lambda: listed(redis), what="a record")
    assert (record["reason"], record["status"], record["source"]) == (reason, status, "203.0.113.7")
    assert record["provider"].startswith("/return/")
    assert record["size"] == len(path.partition("?")[2])
    assert "1003548481" not in str(record)
    assert jobs(redis) == []


def test_head_is_answered_as_get_and_nobody_saw_anything(redis: Redis, application: Application) -> None:
    for method, token in (("HEAD", "T1"), ("GET", "T2")):
        assert back(application, GYM, [("Token", token)], method).status == 200
    eventually(lambda: "T2" in [saw.payment_id for saw in noted(redis)], what="the one that was seen")
    assert [saw.payment_id for saw in noted(redis)] == ["T2"]


def test_a_fault_of_ours_is_a_page_all_the_same(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(returned, "read", fails)
    with capture_logs() as logs:
        answer = back(application, QUICK, signed(PAID))
    assert (answer.status, title(answer)) == (500, "Thank you")
    assert [entry["event"] for entry in logs] == ["return_failed"]


# -- on to the merchant


def result_of(answer: Answer) -> str:
    assert answer.status == 303
    url = urlsplit(answer.headers["location"])
    assert (url.scheme, url.netloc, url.path) == ("https", "shop.example", "/paid")
    query = parse_qs(url.query)
    assert query["lang"] == ["en"]
    (result,) = query["result"]
    return result


def snippet() -> dict[str, Any]:
    """The verification that README shows, as a merchant would paste it."""
    (code,) = re.findall(r"```python\n(from hashlib.*?)```", README.read_text(), re.DOTALL)
    there: dict[str, Any] = {}
    exec(code.replace('os.environ["POSTBACK_RESULT_KEY"]', repr(NEW_KEY)), there)  # noqa: S102
    return there


def test_the_readmes_snippet_verifies_a_result(onward: Application) -> None:
    result = result_of(back(onward, QUICK, signed(PAID)))
    assert snippet()["verified_result"](result) == {
        "provider": "quickstream",
        "facility": "acme",
        "verified": True,
        "outcome": "approved",
        "payment_id": "ACMECOMM:1003548481",
        "receipt_number": "1003548481",
        "reference": "PAYMENT1",
        "customer_reference": "CUSTOMER1",
        "amount": "1001.15",
        "surcharge": "1.15",
        "currency": "AUD",
        "response_code": "08",
        "summary_code": "0",
    }


def test_a_result_that_was_changed_or_is_old_or_of_another_facility_is_none(
    onward: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = snippet()["verified_result"]
    result = result_of(back(onward, QUICK, signed(changed(summaryCode="1"))))
    payload, rest = result.split(".", 1)
    forged = json.loads(urlsafe_b64decode(payload + "==")) | {"outcome": "approved"}
    from itsdangerous.encoding import base64_encode

    assert verify(base64_encode(json.dumps(forged)).decode() + "." + rest) is None
    assert verify(result[:-1]) is None
    assert verify("") is None
    assert verify(result_of(back(onward, GYM, [("Token", "T1")]))) is None, "of another endpoint"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 299)
    assert verify(result)["outcome"] == "declined"
    monkeypatch.setattr(time, "time", lambda: now + 302)
    assert verify(result) is None


def test_a_result_is_read_in_any_language(onward: Application) -> None:
    """base64url of JSON, of the time, and of the HMAC over both; its key is the HMAC of the salt."""
    result = result_of(back(onward, QUICK, signed(PAID)))
    message, _, signature = result.rpartition(".")
    payload, _, _ = message.partition(".")
    assert json.loads(urlsafe_b64decode(payload + "=="))["receipt_number"] == "1003548481"
    key = hmac.digest(NEW_KEY.encode(), b"postback.result", "sha256")
    assert urlsafe_b64decode(signature + "=") == hmac.digest(key, message.encode(), "sha256")


def test_an_older_key_still_verifies() -> None:
    class Old:
        result_keys = secrets(RESULT_KEYS[0])

    both: Any = type("Both", (), {"result_keys": secrets(*RESULT_KEYS)})
    old: Any = Old
    assert return_result.serializer(both).loads(return_result.serializer(old).dumps({"a": 1})) == {"a": 1}


def test_a_question_is_passed_on(onward: Application) -> None:
    pairs = [*FAILED, ("errorField", "acceptSurcharge"), ("surchargeAmount", "1.15"), ("actionContextId", "ctx-1"),
             ("errorDescription", "Call 1800 SCAM"), ("customerReferenceNumber", "C1")]  # fmt: skip
    assert snippet()["verified_result"](result_of(back(onward, QUICK, pairs))) == {
        "provider": "quickstream",
        "facility": "acme",
        "verified": False,
        "outcome": "confirm",
        "reference": "PAYMENT1",
        "amount": "1001.15",
        "surcharge": "1.15",
        "currency": "AUD",
        "error_fields": ["acceptSurcharge"],
        "confirm": ["acceptSurcharge"],
        "action_context_id": "ctx-1",
    }


def test_debitsuccess_goes_on_unconfirmed(onward: Application) -> None:
    result = result_of(back(onward, GYM, [("Token", "T1"), ("Status", "Success"), ("Message", "x")]))
    assert json.loads(urlsafe_b64decode(result.split(".")[0] + "==")) == {
        "provider": "debitsuccess",
        "facility": "gym",
        "verified": False,
        "outcome": "unconfirmed",
        "payment_id": "T1",
        "reported": "Success",
    }


def test_nobody_is_sent_anywhere_without_a_proof(onward: Application) -> None:
    for pairs in (PAID, [*PAID, ("hmac", "x")], [("return_url", "https://evil.example")]):
        answer = back(onward, QUICK, pairs)
        assert answer.status == 403
        assert "location" not in answer.headers


# -- what is noted


def test_what_was_seen_is_noted_sealed_and_without_names(redis: Redis, application: Application) -> None:
    back(application, QUICK, signed(PAID))
    back(application, GYM, [("Token", "T1"), ("Status", "Success")])
    eventually(lambda: len(noted(redis)) == 2, what="two returns")
    quickstream, debitsuccess = noted(redis)
    assert (quickstream.verified, quickstream.outcome) == (True, ReturnOutcome.APPROVED)
    assert (debitsuccess.verified, debitsuccess.payment_id) == (False, "T1")
    raw = b"".join(job.args[0] for job in jobs(redis))
    assert not any(secret in raw for secret in (b"John Smith", b"456471", b"203.0.113"))


def test_what_was_seen_holds_no_card_number(redis: Redis, application: Application) -> None:
    typed = [(name, "4111 1111 1111 1111" if name == "customerReferenceNumber" else value) for name, value in PAID]
    answer = back(application, QUICK, signed(typed))
    assert answer.status == 200
    assert b"1111 1111" not in answer.body
    eventually(lambda: len(noted(redis)) == 1, what="a return")
    assert noted(redis)[0].customer_reference == "4111 11** **** 1111"
    figures = application.get("/metrics").body.decode()
    assert 'postback_card_numbers_masked_total{facility="acme",place="return",provider="quickstream"}' in figures


def test_many_returns_are_few_jobs(redis: Redis, application: Application) -> None:
    for number in range(100):
        assert back(application, GYM, [("Token", f"T{number}")]).status == 200
    eventually(lambda: len(noted(redis)) == 100, what="all of them")
    assert len(jobs(redis)) < 10


def test_while_redis_is_away_the_customer_gets_the_page_at_once(server: Valkey, tmp_path: Path) -> None:
    with serving(with_returns(tmp_path, server.url)) as application:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(20):
                assert title(back(application, QUICK, signed(PAID))) == "Your payment was approved"
        finally:
            server.process.send_signal(signal.SIGCONT)
        eventually(lambda: len(noted(server.client())) == 20, what="what was seen meanwhile")


def test_what_redis_did_not_take_waits_for_it(server: Valkey, tmp_path: Path) -> None:
    with serving(with_returns(tmp_path, server.url)) as application:
        server.kill()
        for number in range(5):
            assert back(application, GYM, [("Token", f"T{number}")]).status == 200
        eventually(lambda: application.get("/readyz").json["redis"] == "away", what="a Redis that is found away")
        server.start()
        eventually(lambda: len(noted(server.client())) == 5, what="what was seen meanwhile")


def test_what_waits_is_bounded(server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "AT_ONCE", 10_000.0)
    dropped = metrics.RETURNS_DROPPED._value.get()
    with serving(with_returns(tmp_path, server.url)) as application:
        server.kill()
        for number in range(KEEP + 50):
            assert back(application, GYM, [("Token", f"T{number}")]).status == 200
        assert metrics.RETURNS_DROPPED._value.get() - dropped > 0


# -- nothing of it harms a notification


def test_a_flood_of_returns_is_turned_away_and_notifications_pass(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returns, "AT_ONCE", 5.0)
    monkeypatch.setattr(returns, "PER_SECOND", 0.0)
    with serving(with_returns(tmp_path, valkey_server.url)) as application:
        answers = [back(application, GYM, [("Token", "T1")]) for _ in range(50)]
        assert [answer.status for answer in answers] == [200] * 5 + [429] * 45
        assert back(application, "/return/nobody/here", []).status == 429
        assert answers[-1].headers["retry-after"] == "3"
        assert Page(answers[-1]).words[-1] == "For support: returns_full"
        event = recorded("debitsuccess", "Customer.Schedule.Suspension.Added")
        assert application.post(event.path, event.headers, event.body).status == 200
    assert 1 <= len(listed(redis)) < 20


def test_room_comes_back_with_time_and_is_not_saved_up() -> None:
    now = [0.0]
    room = returns.Room(100, 200, lambda: now[0])
    assert [room.take() for _ in range(201)] == [True] * 200 + [False]
    now[0] += 0.125
    assert [room.take() for _ in range(13)] == [True] * 12 + [False]
    now[0] += 3600
    assert [room.take() for _ in range(201)] == [True] * 200 + [False]


def test_a_return_is_never_a_notification(redis: Redis, application: Application) -> None:
    back(application, QUICK, signed(PAID))
    eventually(lambda: jobs(redis), what="a job")
    assert kept(redis) == []
