"""The API over HTTP: what it answers, to whom, and how it says what is wrong."""

from __future__ import annotations

from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from redis import Redis
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from sqlalchemy import text

from receiver import settings as configuration
from receiver.errors import ConfigurationError
from receiver.notification import new_id, now_us
from tests.console.conftest import Browser, both_databases, settings_of
from tests.console.programs import KEYS, Client, keys, problem
from tests.console.refusing import refuse
from tests.workers.material import envelope, event, processed
from workers.console.api.routes import OPERATIONS
from workers.export import COLUMNS
from workers.ledger.ledger import Interpreted, Ledger

SECOND = "another-key-of-thirty-two-characters"


@pytest.fixture
def document(document: dict[str, Any]) -> dict[str, Any]:
    document["security"]["api_keys"] = ["only-for-expect", *keys()]
    return document


@pytest.fixture
def client(browser: Browser) -> Client:
    """Of a ledger with thirty notifications of as many payments, one in conflict, and three that failed."""
    ledger = Ledger(browser.site.engine)
    ledger.record(
        [
            processed(f"k{number}", event(payment_id=f"p/{number}", amount=1250, currency="AUD"), id=new_id(now_us()))
            for number in range(30)
        ]
    )
    ledger.record([processed("k0", event(payment_id="p/0"), id=new_id(now_us()), fingerprint="f2", body=b"{}")])
    for number in range(3):
        failed = envelope(f"bad{number}", id=new_id(now_us()), body=b"not json")
        ledger.record([Interpreted(failed, "failed", "interpretation_failed", "a fault")])
    return Client(browser)


@both_databases
@pytest.mark.parametrize(("path", "rows"), [("/notifications", 33), ("/payments", 30)])
def test_every_row_is_on_one_page(client: Client, path: str, rows: int) -> None:
    seen, cursor = [], ""
    while True:
        page = client.get(f"{path}?limit=7{cursor}").json()
        seen += [each.get("id") or each["payment_id"] for each in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert len(seen) == len(set(seen)) == rows


@both_databases
def test_filters_and_search(client: Client) -> None:
    assert len(client.get("/notifications?state=failed&provider=checkout").json()["items"]) == 3
    assert client.get("/notifications?until=2020-01-01T00:00:00Z").json()["items"] == []
    (found,) = client.get("/payments?search=p/29").json()["items"]
    assert found["payment_id"] == "p/29"


@both_databases
def test_one_of_each(client: Client) -> None:
    (conflict,) = (each for each in client.get("/notifications").json()["items"] if each["conflicts"])
    shown = client.get(f"/notifications/{conflict['id']}").json()
    assert [each["kind"] for each in shown["repeats"]] == ["conflict"]
    assert shown["received_at"].endswith("Z")
    payment = client.get(f"/payments/{conflict['provider']}/{conflict['facility']}/p/0").json()
    assert payment["amount"] == "12.50"
    assert len(payment["events"]) == 1
    needing = client.get("/attention?kind=failed").json()
    assert (needing["counts"]["failed"], needing["means"][:16]) == (3, "A fault of ours:")
    assert client.get("/health").json()["database"]["status"] == "up"
    for path in ("/refusals", "/replays", "/audit", "/reconciliations"):
        assert client.get(path).json()["items"] == []


def test_an_etag_saves_the_second_answer(client: Client) -> None:
    first = client.get("/payments")
    again = client.get("/payments", If_None_Match=f'"other", W/{first.headers["etag"]}')
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get("/payments?limit=3", If_None_Match=first.headers["etag"]).status_code == 200


def test_openapi_has_an_etag_too(client: Client) -> None:
    first = client.browser.get("/api/openapi.json")
    again = client.browser.get("/api/openapi.json", If_None_Match=first.headers["etag"])
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


@both_databases
def test_the_trail_is_verified(client: Client) -> None:
    client.post("/replays", {"state": "failed", "reason": "mended"})
    whole = client.get("/audit/verify").json()
    (entry,) = client.get("/audit").json()["items"]
    assert whole == {"entries": 1, "head": entry["hash"], "faults": []}
    postgresql = client.browser.site.engine.dialect.name == "postgresql"
    around = "SET LOCAL session_replication_role = replica" if postgresql else "DROP TRIGGER audit_keeps_update"
    with client.browser.site.engine.begin() as connection:
        connection.execute(text(around))
        connection.execute(text("UPDATE audit SET operator = 'somebody'"))
    assert client.get("/audit/verify").json()["faults"] == [{"number": 1, "what": "was changed"}]


@both_databases
def test_the_hours_of_the_overview(client: Client, redis: Redis) -> None:
    refuse(redis, 2)
    main, eu = client.get("/activity").json()["endpoints"]
    assert (main["provider"], main["facility"], eu["facility"]) == ("checkout", "main", "eu")
    hours = main["hours"]
    assert len(hours) == len(eu["hours"]) == 24
    assert [each["start"] for each in hours] == sorted(each["start"] for each in hours)
    sums = {kind: sum(each[kind] for each in hours) for kind in ("accepted", "duplicates", "refused", "failed")}
    assert sums == {"accepted": 30, "duplicates": 1, "refused": 2, "failed": 3}


def test_every_refusal_is_on_one_page(client: Client, redis: Redis) -> None:
    refuse(redis, 11)
    sizes, cursor = [], ""
    while True:
        page = client.get(f"/refusals?limit=2&reason=source_refused{cursor}").json()
        assert page["total"] == sum(each["refused"] for each in page["counts"])
        assert page["counts"][0] == page["counts"][0] | {"reason": "source_refused", "facility": "main"}
        sizes.append([each["size"] for each in page["items"]])
        if page["next"] is None:
            break
        refuse(redis, 1)
        cursor = f"&cursor={page['next']}"
    assert sizes == [[10, 8], [6, 4], [2, 0]]


@both_databases
def test_an_export_is_a_file_and_in_the_trail(client: Client) -> None:
    answer = client.get("/notifications/export?state=failed&reason=for+the+bank")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="notifications.csv"'
    heading, *lines = answer.text.splitlines()
    assert (heading, len(lines)) == (",".join(COLUMNS), 3)
    lines = client.get("/notifications/export?format=jsonl&search=p/2").text.splitlines()
    found = [msgspec.json.decode(line)["payment_id"] for line in lines]
    assert sorted(found) == ["p/2", *(f"p/{number}" for number in range(20, 30))]
    assert len(client.get("/notifications/export?format=jsonl&limit=7").text.splitlines()) == 7
    entries = client.get("/audit").json()["items"]
    assert [each["action"] for each in entries] == ["exported"] * 3
    assert (entries[2]["operator"], entries[2]["reason"]) == ("shop-viewer", "for the bank")
    assert entries[2]["facts"] == {"format": "csv", "state": "failed"}


_WRONG = [
    ("/none", 404, "unknown_page"),
    ("/", 404, "unknown_page"),
    ("/notifications/none", 404, "unknown_id"),
    ("/notifications/%00", 404, "unknown_id"),
    ("/payments/checkout/main/none", 404, "unknown_id"),
    ("/payments/checkout/main/a%0Ab", 404, "unknown_id"),
    ("/replays/none", 404, "unknown_id"),
    ("/replays/a%0Ab", 404, "unknown_id"),
    ("/reconciliations/none", 404, "unknown_id"),
    ("/notifications?stat=failed", 400, "parameter_refused"),
    ("/notifications?limit=1&limit=2", 400, "parameter_refused"),
    ("/notifications?limit=0", 400, "parameter_refused"),
    ("/notifications?limit=1001", 400, "parameter_refused"),
    ("/notifications?limit=x", 400, "parameter_refused"),
    ("/notifications?state=none", 400, "parameter_refused"),
    ("/notifications?provider=nobody", 400, "parameter_refused"),
    ("/notifications?since=yesterday", 400, "parameter_refused"),
    ("/notifications?since=2026-11-24T10:00:00", 400, "parameter_refused"),
    ("/notifications?search=%ff", 400, "parameter_refused"),
    ("/notifications?search=", 400, "parameter_refused"),
    ("/attention", 400, "parameter_refused"),
    ("/health?x=1", 400, "parameter_refused"),
    ("/notifications?cursor=x", 400, "cursor_malformed"),
    ("/payments?cursor=x", 400, "cursor_malformed"),
    ("/replays?cursor=x", 400, "cursor_malformed"),
    ("/audit?cursor=x", 400, "cursor_malformed"),
    ("/audit?cursor=kqFuoXg", 400, "cursor_malformed"),
    ("/refusals?cursor=x", 400, "cursor_malformed"),
    ("/refusals?cursor=kqFuoXg", 400, "cursor_malformed"),
    ("/notifications/export?format=xml", 400, "parameter_refused"),
    ("/notifications/export?cursor=x", 400, "parameter_refused"),
]


def test_what_cannot_be_meant_is_one_problem(client: Client) -> None:
    for path, status, reason in _WRONG:
        problem(client.get(path), status, reason)


def test_another_method(client: Client) -> None:
    answer = client.ask("DELETE", "/notifications")
    problem(answer, 405, "method_refused")
    assert "GET" in answer.headers["allow"]


def test_only_a_key_opens_it(client: Client, logged: list[MutableMapping[str, Any]]) -> None:
    client.browser.sign_in("anna")
    assert client.browser.get("/notifications").status_code == 200
    client.key = None
    answer = client.get("/notifications")
    problem(answer, 401, "credentials_missing")
    assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("only-for-expect", "none", "", KEYS["viewer"] + "x"):
        client.key = key
        problem(client.ask("GET", "/notifications"), 403, "credentials_refused")
        assert (logged[-1]["event"], logged[-1]["reason"]) == ("api_refused", "credentials_refused")
    client.key = None
    basic = {"Authorization": f"Basic {KEYS['viewer']}"}
    problem(client.ask("GET", "/notifications", headers=basic), 403, "credentials_refused")
    problem(client.post("/replays", {"state": "failed", "dry_run": True}, "viewer"), 403, "role_refused")
    assert (logged[-1]["client"], logged[-1]["path"]) == ("shop-viewer", "/api/v1/replays")


def test_a_dry_run_changes_nothing(client: Client) -> None:
    answer = client.post("/replays", {"state": "failed", "dry_run": True})
    assert (answer.status_code, answer.json()["total"]) == (200, 3)
    assert client.get("/replays").json()["items"] == client.get("/audit").json()["items"] == []


def test_the_same_key_gives_the_same_replay(client: Client) -> None:
    body = {"state": "failed", "reason": "mended"}
    first = client.post("/replays", body, Idempotency_Key="k 1")
    again = client.post("/replays", body, Idempotency_Key="k 1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert first.headers["location"] == f"/api/v1/replays/{first.json()['id']}"
    problem(client.post("/replays", body | {"reason": "x"}, Idempotency_Key="k 1"), 422, "idempotency_key_reused")
    # Another client's key is another key; and without one it is a second replay of the same.
    problem(client.post("/replays", body, "approver", Idempotency_Key="k 1"), 409, "already_in_replay")
    problem(client.post("/replays", body), 409, "already_in_replay")
    problem(client.post("/replays", body, Idempotency_Key="k" * 201), 400, "parameter_refused")
    (entry,) = client.get("/audit").json()["items"]
    assert (entry["operator"], entry["origin"], entry["reason"]) == ("shop-operator", "203.0.113.9", "mended")


@both_databases
def test_the_same_key_at_the_same_time(client: Client) -> None:
    body = {"state": "failed", "reason": "mended"}
    others = [Client(client.browser) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: each.post("/replays", body, Idempotency_Key="k"), others))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get("/audit").json()["items"]) == 1


@both_databases
def test_pause_resume_cancel(client: Client) -> None:
    made = client.post("/replays", {"state": "failed", "reason": "mended"}).json()
    path = f"/replays/{made['id']}"
    assert client.post(f"{path}/pause", {}).json()["state"] == "paused"
    problem(client.post(f"{path}/pause", {}), 409, "state_changed")
    assert client.post(f"{path}/resume", {}).json()["state"] == "running"
    problem(client.post(f"{path}/cancel", {}), 400, "reason_missing")
    assert client.post(f"{path}/cancel", {"reason": "wrong ones"}).json()["state"] == "cancelled"
    assert len(client.get(path).json()["results"]) == 3
    assert [each["action"] for each in client.get("/audit").json()["items"]] == [
        *("replay_cancelled", "replay_resumed", "replay_paused", "replay_created")
    ]


def test_another_client_approves(document: dict[str, Any], client: Client, tmp_path: Path) -> None:
    document["replay"] = {"approve_above": 1}
    document["security"]["api_keys"].append({"name": "second", "key": SECOND, "role": "approver"})
    asking = Client(Browser(settings_of(document, tmp_path)))
    made = asking.post("/replays", {"state": "failed", "reason": "mended"}, "approver").json()
    assert made["state"] == "waiting"
    path = f"/replays/{made['id']}/approve"
    problem(asking.post(path, {"reason": "yes"}, "approver"), 409, "second_operator_needed")
    problem(asking.post(path, {"reason": "yes"}, "operator"), 403, "role_refused")
    asking.key = SECOND
    approved = asking.ask("POST", path, json={"reason": "yes"}).json()
    assert (approved["state"], approved["approved_by"]) == ("running", "second")


@both_databases
def test_attention_is_settled_and_reopened(client: Client) -> None:
    (first, *_) = client.get("/attention?kind=failed").json()["items"]
    body = {"kind": "failed", "subjects": [{"subject": first["subject"]}], "reason": "asked the bank"}
    problem(client.post("/attention/resolve", body, "viewer"), 403, "role_refused")
    assert client.post("/attention/resolve", body).json() == {"settled": 1}
    problem(client.post("/attention/ignore", body), 409, "state_changed")
    shown = client.get(f"/notifications/{first['subject']}").json()
    assert shown["attention"]["failed"]["reason"] == "asked the bank"
    assert [each["what"] for each in shown["timeline"]] == ["received", "failed", "resolved"]
    (settled,) = client.get("/attention?kind=failed&settled=true").json()["items"]
    assert settled["resolution"]["operator"] == "shop-operator"
    assert client.post("/attention/reopen", body).json() == {"reopened": 1}
    assert client.get(f"/notifications/{first['subject']}").json()["attention"] == {"failed": None}
    assert client.get("/attention?kind=failed").json()["counts"]["failed"] == 3


_WRONG_REPLAYS: list[tuple[Any, int, str]] = [
    ({}, 400, "nothing_chosen"),
    ({"state": "failed"}, 400, "reason_missing"),
    ({"state": "held", "reason": "r"}, 400, "nothing_chosen"),
    ({"ids": ["none"], "reason": "r"}, 404, "unknown_id"),
    ({"ids": ["none"], "state": "failed", "reason": "r"}, 400, "request_malformed"),
    ({"state": "failed", "reason": "r", "dryrun": True}, 400, "request_malformed"),
    ({"state": "failed", "reason": 1}, 400, "request_malformed"),
    ({"since": "yesterday", "reason": "r"}, 400, "parameter_refused"),
    ([], 400, "request_malformed"),
]


def test_a_replay_that_cannot_be_meant(client: Client) -> None:
    for body, status, reason in _WRONG_REPLAYS:
        problem(client.post("/replays", body), status, reason)


def test_a_body_that_is_none(client: Client) -> None:
    client.key = KEYS["operator"]
    json = {"Content-Type": "application/json; charset=utf-8"}
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b'{"reason": "\\ud800"}'):
        problem(client.ask("POST", "/replays", content=body, headers=json), 400, "request_malformed")
    problem(client.ask("POST", "/replays", content=b"x" * (130 << 10), headers=json), 413, "body_too_large")
    problem(client.ask("POST", "/replays", content=b"{}"), 415, "media_type_refused")
    problem(client.ask("POST", "/replays", data={"state": "failed"}), 415, "media_type_refused")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"name": "a b", "key": "k" * 32}, "name: use letters"),
        ({"name": "VERA", "key": "k" * 32}, "the same as another key's or an operator's"),
        ({"name": "shop", "key": "k" * 31}, "at least 32 characters"),
        ({"name": "shop", "key": KEYS["viewer"]}, "the key is the same as another one"),
        ({"name": "shop", "key": "k" * 32, "role": "root"}, "role: is not one of the allowed words"),
        ({"name": "shop", "key": "env:NOT_SET_ANYWHERE"}, "environment variable"),
        ({"key": "k" * 32}, "name: is missing"),
        ({"name": "shop", "key": "k" * 32, "rol": "viewer"}, "rol: is not a known key"),
    ],
)
def test_a_key_that_cannot_be_used(
    document: dict[str, Any], tmp_path: Path, entry: dict[str, Any], sentence: str
) -> None:
    document["security"]["api_keys"].append(entry)
    with pytest.raises(ConfigurationError, match=r"security\.api_keys") as refused:
        configuration.read(document, tmp_path)
    assert sentence in str(refused.value)
    assert "k" * 31 not in str(refused.value)


def test_the_old_form_of_keys_stays(document: dict[str, Any], tmp_path: Path) -> None:
    security = settings_of(document, tmp_path).security
    assert [key.reveal() for key in security.api_keys] == [b"only-for-expect"]
    assert [(each.name, each.role) for each in security.api_clients] == [(f"shop-{role}", role) for role in KEYS]


def test_schemathesis_finds_nothing(client: Client) -> None:
    """It makes up requests from the OpenAPI document, right ones and wrong ones, and compares the answers with it."""
    host = {"Host": "127.0.0.1"}
    config = SchemathesisConfig.from_dict({"base-url": "http://127.0.0.1:8081"})
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", client.browser.app, config=config, headers=host)
    key = host | {"Authorization": f"Bearer {KEYS['approver']}"}
    tried = 0
    every: Any = schema.get_all_operations()
    for found in every:
        operation = found.ok()
        tried += 1

        @seed(1)
        @hypothesis(max_examples=10, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of([operation.as_strategy(mode) for mode in GenerationMode]))
        def holds(case: Any) -> None:
            # A cursor is opaque: one that is made up is none, which the document cannot say.
            case.call_and_validate(headers=key, excluded_checks=[positive_data_acceptance])

        holds()
    assert tried == len(OPERATIONS)
