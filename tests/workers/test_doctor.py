"""Every setting is looked at: a value that cannot be meant stops the start, and `postback doctor` says what this
machine lacks for one that can."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from receiver import settings as configuration
from receiver.errors import ConfigurationError
from receiver.providers import PROVIDERS
from receiver.settings import Settings
from receiver.signing import Secret
from workers.cli import machine, operate, sources

BASE: dict[str, Any] = {
    "security": {"seal_keys": ["a-seal-key"], "operators": [{"name": "o", "password_hash": "$scrypt$" + "x" * 40}]},
}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "quickstream": {"username": "u", "passwords": ["p-1"], "supplier_business_codes": ["A"]},
    "checkout": {"signature_keys": ["k-1"]},
    "debitsuccess": {},
    "paymentz": {"secure_keys": ["k-1"]},
}

WRONG: dict[str, Any] = {
    "data_dir": 5,
    "endpoint": {"provider": "checkout"},
    "receive.bind": "somewhere",
    "receive.processes": 0,
    "receive.trusted_proxies": ["0.0.0.0/0"],
    "receive.forwarded_header": "X-Real-IP",
    "receive.max_body": "5MiB",
    "receive.body_timeout": 0,
    "receive.max_spool": "much",
    "receive.max_connections": 1,
    "receive.max_connections_per_address": 0,
    "receive.max_held": -1,
    "receive.max_held_per_address": -1,
    "receive.max_refused": 0,
    "receive.max_refused_per_address": 0,
    "work.metrics_bind": "8082",
    "console.bind": "localhost",
    "console.public_url": "http://console.example.com",
    "console.trusted_proxies": ["::/0"],
    "console.sign_in_header": "X User",
    "console.idle_minutes": 0,
    "console.session_hours": 0,
    "console.max_upload": "0B",
    "console.breached_passwords": "nowhere",
    "console.second_factor": "sometimes",
    "queue.redis_url": "",
    "queue.durability": "lax",
    "queue.replicas": 1,
    "store.database_url": "env:POSTBACK_IS_NOT_SET",
    "replay.approve_above": -1,
    "replay.per_second": 0,
    "retention.bodies": "0d",
    "retention.unresolved": "soon",
    "retention.repeats": "1d",
    "retention.returns": "0h",
    "retention.refusals": "0w",
    "alarms.look_every": 0,
    "alarms.confirm": -1,
    "alarms.calm": -1,
    "alarms.quiet": "never",
    "alarms.time_zone": "Sydney",
    "alarms.workers": "no",
    "alarms.holidays": "AU",
    "alarms.public_name": "https://pay.example.com/x",
    "alarms.email.server": "smtp",
    "alarms.email.sender": "nobody",
    "alarms.email.to": [],
    "alarms.email.tls": "never",
    "alarms.email.username": 5,
    "alarms.email.password": "",
    "alarms.webhook.url": "ftp://example.com",
    "alarms.webhook.secrets": [],
    "tracing.endpoint": "collector",
    "tracing.sample": 2.0,
    "security.seal_keys": [],
    "security.body_keys": ["short-key"],
    "security.api_keys": [""],
    "security.operators.name": "a b",
    "security.operators.password_hash": "plain-text",
    "security.operators.role": "king",
    "security.api_clients.name": "a b",
    "security.api_clients.key": "short-key",
    "security.api_clients.role": "king",
    "endpoint.facility": "a/b",
    "endpoint.environment": "staging",
    "endpoint.allowed_sources": [],
    "endpoint.proposed_sources": [],
    "endpoint.own_numbers": "paymentReference",
    "endpoint.return_url": "javascript:x",
    "endpoint.result_keys": ["short-key"],
    "endpoint.username": "a:b",
    "endpoint.passwords": [],
    "endpoint.hmac_passwords": ["changeme"],
    "endpoint.supplier_business_codes": [],
    "endpoint.currency": "dollar",
    "endpoint.community_code": "a:b",
    "endpoint.settlement_folder": 5,
    "endpoint.settlement_headings": {"Receipt No.": "Receipt"},
    "endpoint.settlement_split": "yes",
    "endpoint.signature_keys": [],
    "endpoint.authorization_keys": ["<key>"],
    "endpoint.event_tokens": ["${TOKEN}"],
    "endpoint.secure_keys": [],
}
"""A value of each setting that cannot be meant."""

WHOLE: dict[str, Any] = {
    "alarms.email": {"server": "smtp.example.com:587", "sender": "a@example.com", "to": ["b@example.com"]},
    "alarms.webhook": {"url": "https://example.com/x", "secrets": [f"whsec_{'A' * 32}"]},
}
"""Tables whose keys need each other."""


def leaves(kind: Any, place: str = "", only: type | None = None) -> Iterator[str]:
    """The settings of a table and those below it; those that are, or list, `only` this kind."""
    for each in msgspec.structs.fields(kind):
        kinds = [part for part in (each.type, *getattr(each.type, "__args__", ())) if isinstance(part, type)]
        tables = [part for part in kinds if issubclass(part, msgspec.Struct)]
        if tables:
            yield from leaves(tables[0], f"{place}{each.name}.", only)
        elif only is None or only in kinds:
            yield place + each.name


def every_setting() -> set[str]:
    endpoints = {leaf for provider in PROVIDERS.values() for leaf in leaves(provider.endpoint, "endpoint.")}
    return {*leaves(Settings), *endpoints}


def with_value(key: str, value: Any) -> dict[str, Any]:
    """A document that is right but for this."""
    document: dict[str, Any] = {**BASE, "security": dict(BASE["security"])}
    *tables, name = key.split(".")
    if not tables:
        return {**document, name: value}
    if key.startswith("endpoint."):
        (provider, *_) = [each for each in PROVIDERS if name in leaf_names(each)]
        return {**document, "endpoint": [{"provider": provider, "facility": "f", **ENDPOINTS[provider], name: value}]}
    if key.startswith("security.api_clients."):
        client = {"name": "shop", "key": "k" * 32, "role": "viewer", name: value}
        return {**document, "security": {**document["security"], "api_keys": [client]}}
    if key.startswith("security.operators."):
        operator = {**BASE["security"]["operators"][0], name: value}
        return {**document, "security": {**document["security"], "operators": [operator]}}
    table = document
    for position, each in enumerate(tables):
        start = WHOLE.get(".".join(tables[: position + 1]), {})
        table[each] = {**start, **table.get(each, {})}
        table = table[each]
    table[name] = value
    return document


def leaf_names(provider: str) -> set[str]:
    return set(leaves(PROVIDERS[provider].endpoint))


def read(document: dict[str, Any], folder: Path) -> Settings:
    return configuration.read(document, folder)


def test_every_setting_has_a_value_that_is_refused() -> None:
    assert set(WRONG) == every_setting()


@pytest.mark.parametrize("key", WRONG)
def test_a_value_that_cannot_be_meant_stops_the_start_and_names_the_setting(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(with_value(key, WRONG[key]), tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(key.partition(".")[0])
    assert key.rpartition(".")[2] in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def secret_settings() -> list[str]:
    """Every setting that is a secret, or a list of them."""
    tables = [("", Settings), *(("endpoint.", provider.endpoint) for provider in PROVIDERS.values())]
    return sorted({leaf for place, kind in tables for leaf in leaves(kind, place, only=Secret)})


def test_every_secret_is_looked_at() -> None:
    secrets = secret_settings()
    assert {"security.seal_keys", "queue.redis_url", "endpoint.passwords", "endpoint.secure_keys"} <= set(secrets)
    assert len(secrets) >= 16


@pytest.mark.parametrize("key", secret_settings())
def test_no_secret_may_be_absent_empty_blank_or_what_a_template_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.delenv("POSTBACK_NOT_SET", raising=False)
    monkeypatch.setenv("POSTBACK_EMPTY", "")
    monkeypatch.setenv("POSTBACK_BLANK", " \t\n")
    monkeypatch.setenv("POSTBACK_DEFAULT", "changeme")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "default").write_text("your-secret-key\n")
    listed = isinstance(WRONG[key], list)
    for value, said in NO_SECRETS.items():
        with pytest.raises(ConfigurationError) as caught:
            read(with_value(key, [value] if listed else value), tmp_path)
        sentence = str(caught.value)
        assert sentence.endswith(f": {said}."), value
        assert sentence.startswith(key.partition(".")[0])


NO_SECRETS = {
    "env:POSTBACK_NOT_SET": "the environment variable POSTBACK_NOT_SET is not set",
    "file:nowhere": "the file cannot be read (No such file or directory)",
    **dict.fromkeys(("", " ", "\t\r\n", "\u00a0", "\u2003", "env:POSTBACK_EMPTY"), "the secret is empty"),
    **dict.fromkeys(("env:POSTBACK_BLANK", "file:empty"), "the secret is empty"),
    **dict.fromkeys(
        ("\u200b", "\ufeff", "...", "changeme", "Default", "${QS_PASSWORD}"), "the secret is a placeholder"
    ),
    **dict.fromkeys(("env:POSTBACK_DEFAULT", "file:default"), "the secret is a placeholder"),
}


# -- which addresses may send

IN_USE = ["34.246.107.175/32", "52.209.35.130/32", "54.246.243.142/32"]
COMING = ["4.159.40.224/28", "135.116.97.64/28"]
WESTPAC = "192.170.86.153/32"
BEFORE, DUE = date(2026, 11, 28), date(2027, 1, 11)


@pytest.mark.parametrize(
    ("key", "given", "today", "expected"),
    [
        ("allowed_sources", [*IN_USE, *COMING], BEFORE, [("ok", "has all ranges that Checkout.com documents")]),
        ("allowed_sources", IN_USE, BEFORE, [("note", "asks to allow them before 2027-01-11")]),
        ("allowed_sources", IN_USE, DUE, [("fault", "from which Checkout.com sends since 2027-01-11")]),
        # A list on trial refuses nothing.
        ("proposed_sources", IN_USE, DUE, [("note", "from which Checkout.com sends since 2027-01-11")]),
        (
            "allowed_sources",
            [*IN_USE, *COMING, "203.0.113.0/24"],
            BEFORE,
            [("note", "has 203.0.113.0/24, which is not")],
        ),
        ("allowed_sources", [*IN_USE[1:], *COMING], BEFORE, [("note", "lacks 34.246.107.175/32, documented on")]),
        ("allowed_sources", ["127.0.0.1/32"], DUE, []),
    ],
)
def test_addresses_of_checkout_com_are_held_against_its_documents(
    tmp_path: Path, key: str, given: list[str], today: date, expected: list[tuple[str, str]]
) -> None:
    assert_said(tmp_path, {"provider": "checkout", **ENDPOINTS["checkout"], key: given}, today, expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([WESTPAC], [("ok", "has what Westpac QuickStream documents for production, and no others")]),
        (["192.170.86.0/24"], [("ok", "has what Westpac QuickStream documents for production, and no others")]),
        (
            ["203.0.113.0/24", WESTPAC],
            [("note", "has 203.0.113.0/24, which is not what Westpac QuickStream documents")],
        ),
        (
            ["203.39.159.31/32"],
            [("note", f"lacks {WESTPAC}, which Westpac"), ("note", "has 203.39.159.31/32, which is not what Westpac")],
        ),
        (["127.0.0.0/8"], []),
    ],
)
def test_addresses_of_other_senders_are_held_against_their_documents(
    tmp_path: Path, given: list[str], expected: list[tuple[str, str]]
) -> None:
    endpoint = {"provider": "quickstream", **ENDPOINTS["quickstream"], "allowed_sources": given}
    assert_said(tmp_path, endpoint, BEFORE, expected)
    assert_said(tmp_path, {"provider": "paymentz", **ENDPOINTS["paymentz"], "allowed_sources": given}, BEFORE, [])


def assert_said(folder: Path, endpoint: dict[str, Any], today: date, expected: list[tuple[str, str]]) -> None:
    settings = read({**BASE, "endpoint": [{"facility": "f", **endpoint}]}, folder)
    said = [
        (each.verdict, each.detail)
        for each in sources.examine(settings, today)
        if "nothing can be said" not in each.detail
    ]
    assert [verdict for verdict, _ in said] == [verdict for verdict, _ in expected], said
    assert all(part in detail for (_, part), (_, detail) in zip(expected, said, strict=True)), said


# -- what the machine must have


def found(settings: Settings, folder: Path) -> dict[str, str]:
    return {finding.detail: finding.verdict for finding in machine.examine(settings, folder)}


def test_a_machine_that_has_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "key").write_text("a-seal-key")
    (tmp_path / "key").chmod(0o640)
    endpoint = {"provider": "quickstream", "facility": "f", "settlement_folder": "in", **ENDPOINTS["quickstream"]}
    document = {**BASE, "security": {**BASE["security"], "seal_keys": ["file:key"]}, "endpoint": [endpoint]}
    assert found(read({**document, "console": {"max_upload": "1KiB"}}, tmp_path), tmp_path) == {}


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"receive.bind": "192.0.2.1:80"}, "note", "receive.bind: 192.0.2.1:80 is no address of this machine"),
    ({"work.metrics_bind": "127.0.0.1:8080"}, "note", "work.metrics_bind: is the same as receive.bind; only one"),
    ({"console.bind": "127.0.0.1:8080"}, "note", "console.bind: is the same as receive.bind; only one"),
    ({"receive.processes": 64}, "note", "receive.processes: 64 on "),
    ({"endpoint.settlement_folder": "nowhere"}, "fault", "settlement_folder: "),
    ({"console.max_upload": "999999999GiB"}, "note", "console.max_upload: "),
]


@pytest.mark.parametrize(("given", "verdict", "begins"), CASES, ids=lambda each: ",".join(each) if each else "")
def test_what_a_machine_lacks(tmp_path: Path, given: dict[str, Any], verdict: str, begins: str) -> None:
    ((key, value),) = given.items()
    said = [(detail, of) for detail, of in found(read(with_value(key, value), tmp_path), tmp_path).items()]
    assert [of for detail, of in said if detail.startswith(begins)] == [verdict], said


@pytest.mark.parametrize(("mode", "verdict"), [(0o644, "note"), (0o606, "fault"), (0o660, None)])
def test_files_of_secrets_are_for_few(tmp_path: Path, mode: int, verdict: str | None) -> None:
    (tmp_path / "key").write_text("a-seal-key")
    (tmp_path / "key").chmod(mode)
    said = found(read(with_value("security.seal_keys", ["file:key"]), tmp_path), tmp_path)
    assert [of for detail, of in said.items() if detail.startswith("file:key: ")] == ([verdict] if verdict else [])


def test_nobody_who_may_sign_in(tmp_path: Path) -> None:
    said = found(read({"security": {"seal_keys": ["a-seal-key"]}}, tmp_path), tmp_path)
    assert any(detail.startswith("security.operators: there is none") for detail in said)


def test_a_small_share_of_traces_is_not_none(tmp_path: Path) -> None:
    document = {**BASE, "tracing": {"endpoint": "http://127.0.0.1:4318", "sample": 0.001}}
    assert operate._tracing(read(document, tmp_path)).detail == "0.1% of the traces are kept"


def test_too_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: Callable[[int], tuple[int, int]] = lambda _: (1024, 4096)  # noqa: E731
    monkeypatch.setattr(resource, "getrlimit", limits)
    said = found(read(BASE, tmp_path), tmp_path)
    assert any(detail.startswith("receive.max_connections: here a process may have 4096 files") for detail in said)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = found(read(with_value("endpoint.settlement_folder", "in"), tmp_path), tmp_path)
    assert said[f"settlement_folder: this user may not write in {tmp_path / 'in'}"] == "fault"
