"""The configuration file: what it may say, and that every fault is named by its key and never by a value."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from receiver import settings
from receiver.errors import ConfigurationError
from receiver.providers import PROVIDERS
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings, allowed_networks, host_and_port, read

SECRET = "hunter2-Recognisable"
HMAC = 'hmac_passwords = ["token"]\n'

FILE = """
data_dir = "var"

[receive]
bind = "127.0.0.1:8080"
processes = 1
trusted_proxies = ["10.0.0.0/8", "::1/128"]
max_body = "256KiB"

[console]
bind = "[::1]:8081"

[queue]
redis_url = "env:TEST_REDIS_URL"
durability = "relaxed"

[store]
database_url = "postgresql+psycopg://postback@localhost/postback"

[security]
seal_keys = ["env:TEST_SEAL_KEY", "file:secrets/seal"]
operators = [{ name = "ops", password_hash = "$scrypt$ln=15,r=8,p=3$c2FsdA$aGFzaA" }]
api_keys = ["literal-api-key"]

[[endpoint]]
provider = "quickstream"
facility = "acme"
environment = "production"
username = "acme"
passwords = ["old", "new"]
hmac_passwords = ["token"]
supplier_business_codes = ["ACME"]
currency = "AUD"

[[endpoint]]
provider = "quickstream"
facility = "Octane.2-x_y"
environment = "test"
allowed_sources = ["203.0.113.0/24", "2001:db8::7"]
username = "octane"
passwords = ["p"]
supplier_business_codes = ["TCB"]

[[endpoint]]
provider = "checkout"
facility = "main"
signature_keys = ["k"]
authorization_keys = []

[[endpoint]]
provider = "debitsuccess"
facility = "gym"
event_tokens = []

[[endpoint]]
provider = "paymentz"
facility = "eu"
secure_keys = ["k"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_REDIS_URL", "redis://localhost:6379/3")
    monkeypatch.setenv("TEST_SEAL_KEY", "seal-key-1\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "seal").write_bytes(b"seal-key-2\r\n")
    return tmp_path


def load(folder: Path, text: str | bytes) -> Settings:
    path = folder / "postback.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return settings.load(path)


def fault(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigurationError) as error:
        load(folder, text)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None, "a traceback would show the value"
    return str(error.value)


def revealed(secrets: Any) -> list[bytes]:
    return [secret.reveal() for secret in secrets]


def test_a_whole_file(folder: Path) -> None:
    loaded = load(folder, FILE)
    assert loaded.data_dir == folder / "var"
    assert (loaded.receive.bind, loaded.console.bind) == ("127.0.0.1:8080", "[::1]:8081")
    assert (loaded.receive.max_body, loaded.receive.max_spool) == (262144, 1 << 30)
    assert (loaded.receive.body_timeout, loaded.receive.max_held, loaded.receive.processes) == (10, 1000, 1)
    assert loaded.queue.redis_url is not None
    assert loaded.queue.redis_url.reveal() == b"redis://localhost:6379/3"
    assert loaded.queue.durability == "relaxed"
    assert revealed(loaded.security.seal_keys) == [b"seal-key-1", b"seal-key-2"]
    assert revealed(loaded.security.api_keys) == [b"literal-api-key"]
    (operator,) = loaded.security.operators
    assert (operator.name, operator.role) == ("ops", "viewer")
    assert operator.password_hash is not None
    assert operator.password_hash.reveal().startswith(b"$scrypt$")
    assert (loaded.console.public_url, loaded.console.sign_in_header, loaded.console.trusted_proxies) == (
        None,
        None,
        (),
    )
    assert (loaded.console.idle_minutes, loaded.console.session_hours) == (30, 12)
    assert loaded.console.max_upload == 512 << 20
    assert list(loaded.endpoints) == [
        ("quickstream", "acme"),
        ("quickstream", "Octane.2-x_y"),
        ("checkout", "main"),
        ("debitsuccess", "gym"),
        ("paymentz", "eu"),
    ]
    acme = loaded.endpoints["quickstream", "acme"]
    assert isinstance(acme, QuickStreamEndpoint)
    assert (acme.path, acme.username, revealed(acme.passwords)) == ("quickstream/acme", "acme", [b"old", b"new"])


def test_sources_are_the_sender_s_own_unless_the_file_has_others(folder: Path) -> None:
    endpoints = load(folder, FILE).endpoints

    def sources(provider: str, facility: str) -> list[str]:
        return [str(n) for n in allowed_networks(endpoints[provider, facility], PROVIDERS[provider])]

    assert sources("quickstream", "acme") == ["192.170.86.153/32"]
    assert sources("quickstream", "Octane.2-x_y") == ["203.0.113.0/24", "2001:db8::7/128"]
    assert sources("paymentz", "eu") == []


def test_a_file_with_no_more_than_it_needs(folder: Path) -> None:
    loaded = load(folder, "[security]\nseal_keys = ['k']\n")
    assert loaded.queue.redis_url is None
    assert loaded.store.database_url is None
    assert (loaded.queue.durability, loaded.endpoint, loaded.data_dir) == ("strict", (), folder / "var")


def test_no_example_of_the_readme_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration with each variable set to its own name, to the reference, to the words of a template."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert example is not None
    names = sorted(set(re.findall(r'"env:(\w+)"', example[1])))
    assert len(names) >= 5
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "cko").write_text("a-key-of-the-tests")
    path = tmp_path / "postback.toml"
    path.write_text(example[1])
    for name in names:
        monkeypatch.setenv(name, "a-secret-of-the-tests")
    settings.load(path)
    for name in re.findall(r'^[^#\n]*"env:(\w+)"', example[1], re.MULTILINE):
        for unset in ("", " ", name, f"env:{name}", f"${{{name}}}", "changeme"):
            monkeypatch.setenv(name, unset)
            with pytest.raises(ConfigurationError, match=r"^[\w.\[\]]+: the secret is [a-z ;:A-Z]+\.$"):
                settings.load(path)
        monkeypatch.setenv(name, "a-secret-of-the-tests")


def test_no_secret_is_shown_by_accident(folder: Path) -> None:
    text = FILE.replace('["old", "new"]', f'["{SECRET}"]').replace('["literal-api-key"]', f'["{SECRET}"]')
    assert SECRET not in repr(load(folder, text))


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [("256KiB", 262144), ("1B", 1), ("4 MiB", 4 << 20), ("512B", 512)],
)
def test_sizes(folder: Path, written: str, bytes_: int) -> None:
    assert load(folder, FILE.replace("256KiB", written)).receive.max_body == bytes_


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:80", "::1", 80),
        ("localhost:0", "localhost", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),  # noqa: S104
    ],
)
def test_bind(bind: str, host: str, port: int) -> None:
    assert host_and_port(bind, "receive.bind") == (host, port)


@pytest.mark.parametrize(
    "bind",
    ["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "h:-1", "h:65536", "h:8080x", "h:\u0668\u0660", "h:" + "9" * 5000],
)
def test_bad_bind(bind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^receive\.bind: must be host:port, such as 127\.0\.0\.1:8080\.$"):
        host_and_port(bind, "receive.bind")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"env:TEST_SEAL_KEY", ', '"env:POSTBACK_NOT_SET", ',
         "security.seal_keys[0]: the environment variable POSTBACK_NOT_SET is not set."),
        ('"env:TEST_SEAL_KEY", ', '"env:", ', "security.seal_keys[0]: the environment variable is not set."),
        ('"env:TEST_SEAL_KEY", ', '"env:TEST_EMPTY", ', "security.seal_keys[0]: the secret is empty."),
        ('"env:TEST_SEAL_KEY", ', '"env:TEST_BLANK", ', "security.seal_keys[0]: the secret is empty."),
        ('"env:TEST_SEAL_KEY", ', '"env:TEST_LATIN1", ', "security.seal_keys[0]: the secret is not UTF-8."),
        ('"file:secrets/seal"', '"file:secrets/none"',
         "security.seal_keys[1]: the file cannot be read (No such file or directory)."),
        ('"file:secrets/seal"', '"file:secrets"', "security.seal_keys[1]: the file cannot be read (Is a directory)."),
        ('"file:secrets/seal"', '"file:a\\u0000b"', "security.seal_keys[1]: the file cannot be read."),
        ('"file:secrets/seal"', '"file:empty"', "security.seal_keys[1]: the secret is empty."),
        ('"file:secrets/seal"', '"file:latin1"', "security.seal_keys[1]: the file is not UTF-8."),
        ('["old", "new"]', '["old", ""]', "endpoint[0].passwords[1]: the secret is empty."),
        ('["old", "new"]', '["old", " \\t"]', "endpoint[0].passwords[1]: the secret is empty."),
        ('["old", "new"]', '["changeme"]', "endpoint[0].passwords[0]: the secret is a placeholder."),
        ('["old", "new"]', '[" ... "]', "endpoint[0].passwords[0]: the secret is a placeholder."),
        *(
            ('["old", "new"]', f"['{placeholder}']", "endpoint[0].passwords[0]: the secret is a placeholder.")
            for placeholder in (
                *("ChangeMe", "CHANGE_ME!", "password", "Secret", "your-secret-key", "default", "TODO", "***", "null"),
                *("${QS_PASSWORD}", "{{ password }}", "<your password>", "$(cat secret)", "%(password)s"),
            )
        ),
        *(
            (
                '["old", "new"]',
                f"['{name}']",
                "endpoint[0].passwords[0]: the secret is only the name of one; write env:NAME or file:PATH.",
            )
            for name in ("QS_PASSWORD", "POSTBACK_SEAL_KEY")
        ),
        ('["old", "new"]', "[]", "endpoint[0].passwords: at least one secret is needed."),
        ('["old", "new"]', '"old"', "endpoint[0].passwords: Expected `array`, got `str`."),
        ('["old", "new"]', "[5]", "endpoint[0].passwords[0]: must be a text: env:NAME, file:PATH or a literal."),
        ('passwords = ["old", "new"]\n', "", "endpoint[0].passwords: is missing."),
        ('signature_keys = ["k"]\n', "", "endpoint[2].signature_keys: at least one secret is needed."),
        ('secure_keys = ["k"]', "secure_keys = []", "endpoint[4].secure_keys: at least one secret is needed."),
        ('username = "acme"\n', "", "endpoint[0].username: is missing."),
        ('username = "acme"', 'username = " "',
         "endpoint[0].username: must not be empty and has no colon in Basic credentials."),
        ('username = "acme"', 'username = "a:b"',
         "endpoint[0].username: must not be empty and has no colon in Basic credentials."),
        ('["ACME"]', "[]", "endpoint[0].supplier_business_codes: at least one code is needed."),
        ('currency = "AUD"', 'currency = "aud"', "endpoint[0].currency: must be three capital letters, such as AUD."),
        ('"203.0.113.0/24"', '"203.0.113.7/24"',
         "endpoint[1].allowed_sources[0]: is not a CIDR such as 203.0.113.0/24."),
        ('"2001:db8::7"', '"2001:db8::7/129"', "endpoint[1].allowed_sources[1]: is not a CIDR such as 203.0.113.0/24."),
        ('["203.0.113.0/24", "2001:db8::7"]', "[]",
         "endpoint[1].allowed_sources: is empty; leave it out for the documented addresses."),
        ('"::1/128"', '"::1/x"', "receive.trusted_proxies[1]: is not a CIDR such as 203.0.113.0/24."),
        ('"::1/128"', '"0.0.0.0/0"', "receive.trusted_proxies[1]: must not be every address."),
        ('"::1/128"', '"::/0"', "receive.trusted_proxies[1]: must not be every address."),
        ('"::1/128"', "7", "receive.trusted_proxies[1]: Expected `str`, got `int`."),
        ('facility = "Octane.2-x_y"', 'facility = "acme"',
         "endpoint[1]: provider and facility are the same as another endpoint's."),
        ('facility = "acme"', 'facility = "a/b"', "endpoint[0].facility: use letters, digits, '.', '_' and '-' only."),
        ('facility = "acme"', 'facility = ".."', "endpoint[0].facility: use letters, digits, '.', '_' and '-' only."),
        ('facility = "acme"', 'facility = "a\\n"', "endpoint[0].facility: use letters, digits, '.', '_' and '-' only."),
        ('facility = "acme"\n', "", "endpoint[0].facility: is missing."),
        ('provider = "checkout"', 'provider = "stripe"',
         "endpoint[2].provider: must be one of quickstream, checkout, debitsuccess, paymentz."),
        ('provider = "checkout"', 'provider = ["checkout"]',
         "endpoint[2].provider: must be one of quickstream, checkout, debitsuccess, paymentz."),
        ('provider = "checkout"\n', "",
         "endpoint[2].provider: must be one of quickstream, checkout, debitsuccess, paymentz."),
        ('environment = "test"', 'environment = "sandbox"',
         "endpoint[1].environment: is not one of the allowed words."),
        ('"relaxed"', '"off"', "queue.durability: is not one of the allowed words."),
        ('"relaxed"', "true", "queue.durability: Expected `str`, got `bool`."),
        ('event_tokens = []', 'event_token = []', "endpoint[3].event_token: is not a known key."),
        ('event_tokens = []', 'signature_keys = ["k"]', "endpoint[3].signature_keys: is not a known key."),
        ('data_dir = "var"', 'datadir = "var"', "datadir: is not a known key."),
        ("[console]", "[consoles]", "consoles: is not a known key."),
        ("[console]", "[console.x]", "console.x: is not a known key."),
        ('bind = "[::1]:8081"', 'port = 1', "console.port: is not a known key."),
        ('bind = "[::1]:8081"', '[tracing]\nendpoint = "collector:4317"',
         "tracing.endpoint: must be an address such as http://127.0.0.1:4318/v1/traces."),
        ('bind = "[::1]:8081"', '[tracing]\nendpoint = "http://user:secret@collector/v1/traces"',
         "tracing.endpoint: must be an address such as http://127.0.0.1:4318/v1/traces."),
        ('bind = "[::1]:8081"', "[tracing]\nsample = 1.5", "tracing.sample: must be between 0 and 1."),
        ('bind = "[::1]:8081"', '[work]\nmetrics_bind = "8082"',
         "work.metrics_bind: must be host:port, such as 127.0.0.1:8080."),
        ("{ name =", "{ admin = true, name =", "security.operators[0].admin: is not a known key."),
        ('{ name = "ops", ', "{ ", "security.operators[0].name: is missing."),
        ('{ name = "ops", ', '{ name = "a b", ',
         "security.operators[0].name: use letters, digits, '@', '.', '_', '+' and '-' only."),
        ('password_hash = "$scrypt$ln=15,r=8,p=3$c2FsdA$aGFzaA"', 'password_hash = "hunter2"',
         "security.operators[0].password_hash: is no scrypt or argon2id hash; see `postback operator`."),
        (', password_hash = "$scrypt$ln=15,r=8,p=3$c2FsdA$aGFzaA"', "",
         "security.operators[0].password_hash: is missing; `postback operator add` makes one."),
        ('{ name = "ops", ',
         '{ name = "Ops", password_hash = "$scrypt$ln=15,r=8,p=3$c2FsdA$aGFzaA" }, { name = "ops", ',
         "security.operators[1].name: is the same as another operator's."),
        ('{ name = "ops", ', '{ name = "ops", role = "admin", ',
         "security.operators[0].role: is not one of the allowed words."),
        ('bind = "[::1]:8081"', 'bind = "0.0.0.0:8081"',
         "console.public_url: is needed when console.bind is not a loopback address."),
        ('bind = "[::1]:8081"', 'public_url = "http://console.example.com"',
         "console.public_url: must be https, but for a loopback address."),
        ('bind = "[::1]:8081"', 'public_url = "https://console.example.com/postback"',
         "console.public_url: must be an address without a path, https://console.example.com."),
        ('bind = "[::1]:8081"', 'public_url = "https://[::1"',
         "console.public_url: must be an address without a path, https://console.example.com."),
        ('bind = "[::1]:8081"', 'sign_in_header = "X-Remote-User"',
         "console.trusted_proxies: at least one is needed with console.sign_in_header."),
        ('bind = "[::1]:8081"', 'sign_in_header = "X Remote"',
         "console.sign_in_header: must be the name of a header, such as X-Remote-User."),
        ('bind = "[::1]:8081"', 'trusted_proxies = ["0.0.0.0/0"]',
         "console.trusted_proxies[0]: must not be every address."),
        ('bind = "[::1]:8081"', "idle_minutes = 0", "console.idle_minutes: must be between 1 and 1440."),
        ('bind = "[::1]:8081"', "session_hours = 169", "console.session_hours: must be between 1 and 168."),
        ('bind = "[::1]:8081"', 'max_upload = "0B"', "console.max_upload: must be 1B or more."),
        ('seal_keys = ["env:TEST_SEAL_KEY", "file:secrets/seal"]', "", "security.seal_keys: is missing."),
        ('["env:TEST_SEAL_KEY", "file:secrets/seal"]', "[]", "security.seal_keys: at least one key is needed."),
        ('"127.0.0.1:8080"', '"8080"', "receive.bind: must be host:port, such as 127.0.0.1:8080."),
        ('"127.0.0.1:8080"', "8080", "receive.bind: Expected `str`, got `int`."),
        ('"[::1]:8081"', '"[::1]:x"', "console.bind: must be host:port, such as 127.0.0.1:8080."),
        ('"256KiB"', '"256kb"', "receive.max_body: must be a size such as 256KiB."),
        ('"256KiB"', "262144", "receive.max_body: must be a size such as 256KiB."),
        ('"256KiB"', '"-1B"', "receive.max_body: must be a size such as 256KiB."),
        ('"256KiB"', '"0B"', "receive.max_body: must be between 1B and 4MiB."),
        ('"256KiB"', '"5MiB"', "receive.max_body: must be between 1B and 4MiB."),
        ("processes = 1", "processes = 0", "receive.processes: must be between 1 and 64."),
        ("processes = 1", 'processes = "1"', "receive.processes: Expected `int`, got `str`."),
        ("processes = 1", "processes = true", "receive.processes: Expected `int`, got `bool`."),
        ("processes = 1", "processes = 1.5", "receive.processes: Expected `int`, got `float`."),
        ("processes = 1", "body_timeout = 0", "receive.body_timeout: must be between 1 and 300 seconds."),
        ("processes = 1", "max_held = -1", "receive.max_held: must be 0 or more."),
        (HMAC, HMAC + 'return_url = "https://shop.example/paid"\n',
         "endpoint[0].result_keys: at least one key is needed for return_url."),
        (HMAC, f'return_url = "https://shop.example/paid"\nresult_keys = ["{"k" * 32}"]\n',
         "endpoint[0].hmac_passwords: at least one is needed for return_url."),
        (HMAC, f'result_keys = ["{"k" * 32}", "{SECRET}"]\n',
         "endpoint[0].result_keys[1]: must have at least 32 characters, as `openssl rand -hex 32` makes them."),
        ('event_tokens = []', 'return_url = "https://shop.example/paid"',
         "endpoint[3].result_keys: at least one key is needed for return_url."),
        ('signature_keys = ["k"]\n', 'return_url = "https://shop.example/paid"\n',
         "endpoint[2].return_url: is not a known key."),
        ('data_dir = "var"', 'data_dir = ""', "data_dir: must be a path."),
        ('data_dir = "var"', 'data_dir = "a\\u0000"', "data_dir: must be a path."),
        ('data_dir = "var"', "data_dir = 1979-05-27", "data_dir: must be a path."),
        ("[console]", "[console]\nbind = 07:32:00\n[console2]", "console.bind: Expected `str`, got `time`."),
    ],
)  # fmt: skip
def test_faults(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, sentence: str) -> None:
    monkeypatch.setenv("TEST_EMPTY", "")
    monkeypatch.setenv("TEST_BLANK", " \t\n")
    monkeypatch.setenv("TEST_LATIN1", os.fsdecode(b"p\xe4ss"))
    (folder / "empty").write_bytes(b"\n")
    (folder / "latin1").write_bytes(b"p\xe4ss")
    assert FILE.count(old) >= 1
    text = FILE.replace(old, new, 1)
    if "consoles" in sentence or "console2" in new:
        text = text.replace('bind = "[::1]:8081"', "")
    assert fault(folder, text) == sentence


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("https://shop.example/paid?lang=en", True),
        ("https://shop.example:8443", True),
        ("http://localhost:3000/paid", True),
        ("http://127.0.0.1/", True),
        ("http://shop.example/paid", False),
        ("http://localhost.evil.example/", False),
        ("javascript:alert(1)", False),
        ("//shop.example/paid", False),
        ("/paid", False),
        ("", False),
        ("https://", False),
        ("https://user:pass@shop.example/", False),
        ("https://shop.example/#paid", False),
        ("https://shop.example/a b", False),
        ("https://shop.example/\\r\\nSet-Cookie: a=1", False),
        ("https://shöp.example/", False),
        ("https://shop.example:99999/", False),
        ("https://[::1", False),
    ],
)
def test_where_customers_may_be_sent(folder: Path, url: str, usable: bool) -> None:
    text = FILE.replace(HMAC, f'{HMAC}return_url = "{url}"\nresult_keys = ["{"k" * 32}"]\n', 1)
    if usable:
        assert load(folder, text).endpoint[0].return_url == url
    else:
        sentence = "endpoint[0].return_url: must be an address such as https://shop.example/paid."
        assert fault(folder, text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "security: is missing."),
        ("endpoint = 5\n[security]\nseal_keys=['k']", "endpoint: write each one as [[endpoint]]."),
        ("[endpoint]\n[security]\nseal_keys=['k']", "endpoint: write each one as [[endpoint]]."),
        ("endpoint = ['x']\n[security]\nseal_keys=['k']", "endpoint[0]: Expected `object`, got `str`."),
        ("security = 5", "security: Expected `object`, got `int`."),
        ("a = " + "9" * 5000, "{path} is not valid TOML."),
        ("a = " + "[" * 100_000, "{path} is not valid TOML."),
        (b"a = '\xff'", "{path} is not UTF-8."),
        (b"\xff\xfe[\x00s\x00", "{path} is not UTF-8."),
    ],
)
def test_faults_of_the_whole_file(folder: Path, text: str | bytes, sentence: str) -> None:
    assert fault(folder, text) == sentence.format(path=folder / "postback.toml")


@pytest.mark.parametrize("text", ["a = ", "a = 1\nb = 'x\n", "a = 1\na = 2\n", "a = 2026-13-99", "[a\n", "= 1"])
def test_a_syntax_error_is_placed(folder: Path, text: str) -> None:
    sentence = fault(folder, text).removeprefix(f"{folder / 'postback.toml'} is not valid TOML ")
    assert re.fullmatch(r"\(at (line \d+, column \d+|end of document)\)\.", sentence)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as missing:
        settings.load(tmp_path / "none.toml")
    assert str(missing.value) == f"{tmp_path}/none.toml does not exist; `postback init` writes a starter file."
    with pytest.raises(ConfigurationError) as directory:
        settings.load(tmp_path)
    assert str(directory.value) == f"{tmp_path} cannot be read: Is a directory."


def test_which_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTBACK_CONFIG", raising=False)
    assert settings.find(None) == Path("postback.toml")
    monkeypatch.setenv("POSTBACK_CONFIG", "")
    assert settings.find(None) == Path("postback.toml")
    monkeypatch.setenv("POSTBACK_CONFIG", "/etc/postback.toml")
    assert settings.find(None) == Path("/etc/postback.toml")
    assert settings.find(Path("mine.toml")) == Path("mine.toml")


DOCUMENT: dict[str, Any] = {
    "data_dir": "var",
    "receive": {
        "bind": "127.0.0.1:8080",
        "processes": 1,
        "trusted_proxies": ["10.0.0.0/8"],
        "max_body": "256KiB",
        "body_timeout": 10,
        "max_spool": "1GiB",
        "max_held": 1000,
    },
    "console": {
        "bind": "127.0.0.1:8081",
        "public_url": "https://console.example.com",
        "trusted_proxies": ["10.0.0.0/8"],
        "sign_in_header": "X-Remote-User",
        "idle_minutes": 30,
        "session_hours": 12,
        "max_upload": "512MiB",
    },
    "queue": {"redis_url": "redis://localhost", "durability": "strict"},
    "store": {"database_url": "sqlite:///x"},
    "alarms": {
        "look_every": 5,
        "confirm": 10,
        "calm": 30,
        "quiet": "4h",
        "time_zone": "Australia/Sydney",
        "holidays": ["AU-NSW"],
        "public_name": "pay.example.com",
        "email": {
            "server": "smtp.example.com:587",
            "tls": "starttls",
            "username": "u",
            "password": "p",
            "sender": "a@example.com",
            "to": ["b@example.com"],
        },
        "webhook": {"url": "https://example.com/x", "secrets": [f"whsec_{'A' * 32}"]},
    },
    "security": {
        "seal_keys": ["k"],
        "operators": [{"name": "o", "password_hash": "$scrypt$ln=15,r=8,p=3$c2FsdA$aGFzaA", "role": "viewer"}],
        "api_keys": ["k"],
    },
    "endpoint": [
        {
            "provider": "quickstream",
            "facility": "acme",
            "environment": "test",
            "allowed_sources": ["203.0.113.0/24"],
            "username": "acme",
            "passwords": ["p"],
            "hmac_passwords": ["p"],
            "supplier_business_codes": ["ACME"],
            "currency": "AUD",
        },
        {"provider": "checkout", "facility": "m", "signature_keys": ["k"], "authorization_keys": ["k"]},
        {"provider": "debitsuccess", "facility": "g", "event_tokens": ["k"]},
        {"provider": "paymentz", "facility": "e", "secure_keys": ["k"]},
    ],
}

WRONG: list[Any] = [
    SECRET,
    f" {SECRET}:8080",
    f"{SECRET}/24",
    f"env:{SECRET}",
    f"env:{SECRET.lower()}",
    f"file:{SECRET}",
    f"file:/dev/null/{SECRET}",
    f"file:{SECRET}\0",
    f"{SECRET}\0",
    [SECRET],
    [[SECRET]],
    [{"x": SECRET}],
    {"x": SECRET},
    f"{SECRET}KiB",
    [f"env:{SECRET}"],
    [f"file:{SECRET}"],
    [5, SECRET],
    1.5,
    True,
    -1,
    2**70,
    [],
    {},
    "",
    [""],
    date(2026, 1, 1),
    datetime(2026, 1, 1),  # noqa: DTZ001
    time(1, 2),
    float("nan"),
]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key and every list element of the document, the tables themselves included."""
    children: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@pytest.mark.parametrize("place", list(places(DOCUMENT)), ids=lambda place: ".".join(map(str, place)))
def test_a_secret_in_the_wrong_place_is_never_printed(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    read(copy.deepcopy(DOCUMENT), tmp_path)
    refused = 0
    for wrong in WRONG:
        document = copy.deepcopy(DOCUMENT)
        parent: Any = document
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = wrong
        if sentence := sentence_of(document, tmp_path):
            refused += 1
            assert SECRET.lower() not in sentence.lower()
            assert sentence.startswith(str(place[0])), (wrong, sentence)
            assert "\n" not in sentence
    assert refused >= 10


def sentence_of(document: dict[str, Any], folder: Path) -> str:
    try:
        read(document, folder)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("line", [f"{SECRET}", f"x = {SECRET}", f"x = '{SECRET}", f'x = "{SECRET}\\q"', f"[{SECRET} x"])
def test_a_syntax_error_does_not_print_the_line(folder: Path, line: str) -> None:
    assert SECRET not in fault(folder, f"a = 1\n{line}\n")


def test_an_unknown_key_is_named_and_its_value_is_not(folder: Path) -> None:
    assert fault(folder, f'sceret = "{SECRET}"\n{FILE}') == "sceret: is not a known key."


def test_settlement_files_of_an_endpoint(folder: Path) -> None:
    own = 'settlement_folder = "caf"\nsettlement_headings = { Beleg = "Receipt Number" }\ncommunity_code = "ACMECOM"\n'
    endpoint = load(folder, FILE.replace(HMAC, HMAC + own, 1)).endpoints["quickstream", "acme"]
    assert isinstance(endpoint, QuickStreamEndpoint)
    assert endpoint.settlement_folder == folder / "caf"
    assert endpoint.settlement_headings == {"Beleg": "Receipt Number"}
    assert not endpoint.settlement_split
    wrong = {
        'settlement_headings = { Beleg = "Quittung" }\n': "endpoint[0].settlement_headings",
        'community_code = "A:B"\n': "endpoint[0].community_code",
        "settlement_folder = 1\n": "endpoint[0].settlement_folder",
    }
    for line, key in wrong.items():
        assert fault(folder, FILE.replace(HMAC, HMAC + line, 1)).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("look_every", 0, "alarms.look_every: must be between 1 and 60 seconds."),
        ("confirm", -1, "alarms.confirm: must be between 0 and 3600 seconds."),
        ("calm", 86_401, "alarms.calm: must be between 0 and 86400 seconds."),
        ("quiet", "0h", "alarms.quiet: must be above zero."),
        ("time_zone", "Sydney", "alarms.time_zone: must be a time zone such as Australia/Sydney."),
        ("time_zone", "../etc/passwd", "alarms.time_zone: must be a time zone such as Australia/Sydney."),
        ("holidays", ["NZ", "nsw"], "alarms.holidays[1]: must be a country or a part of one: NZ, AU-NSW."),
        ("public_name", "https://pay.example.com",
         "alarms.public_name: must be host:port, such as 127.0.0.1:8080."),
        ("public_name", "pay.example.com/x",
         "alarms.public_name: must be a name such as pay.example.com or pay.example.com:443."),
        ("email.server", "smtp.example.com", "alarms.email.server: must be host:port, such as 127.0.0.1:8080."),
        ("email.tls", "none", "alarms.email.tls: must be starttls or implicit, but for a loopback address."),
        ("email.tls", "off", "alarms.email.tls: is not one of the allowed words."),
        ("email.password", None, "alarms.email.password: username and password belong together."),
        ("email.sender", "Postback <a@b.c>", "alarms.email.sender: must be a mail address."),
        ("email.to", [], "alarms.email.to: at least one mail address is needed."),
        ("email.to", ["a@b.c", "a@b.c\r\nBcc: x@y.z"], "alarms.email.to[1]: must be a mail address."),
        ("webhook.url", "http://hooks.example.com/x",
         "alarms.webhook.url: must be https, but for a loopback address, without credentials."),
        ("webhook.url", "https://u:p@hooks.example.com/x",
         "alarms.webhook.url: must be https, but for a loopback address, without credentials."),
        ("webhook.secrets", [], "alarms.webhook.secrets: at least one is needed."),
        ("webhook.secrets", [f"whsec_{'A' * 32}", SECRET],
         "alarms.webhook.secrets[1]: must be whsec_ and then 24 to 64 bytes in base64, as"
         ' `echo "whsec_$(openssl rand -base64 32)"` makes them.'),
        ("webhook.secrets", ["changeme"], "alarms.webhook.secrets[0]: the secret is a placeholder."),
        ("mail", {}, "alarms.mail: is not a known key."),
    ],
)  # fmt: skip
def test_alarms(tmp_path: Path, place: str, value: Any, sentence: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    table = document["alarms"]
    *tables, key = place.split(".")
    for name in tables:
        table = table[name]
    table.pop(key, None)
    if value is not None:
        table[key] = value
    assert sentence_of(document, tmp_path) == sentence


def test_alarms_to_this_machine_need_no_tls(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["alarms"]["email"] |= {"server": "127.0.0.1:25", "tls": "none"}
    document["alarms"]["webhook"]["url"] = "http://127.0.0.1:9000/x"
    document["alarms"]["public_name"] = "pay.example.com:8443"
    alarms = read(document, tmp_path).alarms
    assert alarms.public_name is not None
    assert settings.public_address(alarms.public_name) == ("pay.example.com", 8443)
    assert settings.public_address("pay.example.com") == ("pay.example.com", 443)
