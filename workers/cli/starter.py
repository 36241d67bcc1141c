"""The starter configuration: every endpoint kind once, with generated secrets in files of their own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from receiver.errors import ConfigurationError
from receiver.settings import Role
from workers.console import entries, passwords

_SECRETS = {
    "seal_key": 32,
    "api_key": 24,
    "quickstream_password": 18,
    "quickstream_hmac_password": 18,
    "octane_password": 18,
    "checkout_signature_key": 24,
    "debitsuccess_event_token": 24,
    "paymentz_secure_key": 24,
}

_TEXT = """\
# Postback. A secret is "env:NAME", "file:PATH" (relative to this file) or, for tests, a literal.
# Every secret may be a list, oldest first: that is how one is changed without a gap.
data_dir = "var"                      # embedded Valkey, SQLite, spool

[receive]
bind = "127.0.0.1:8080"
processes = 1
trusted_proxies = []                  # CIDRs of your own proxies; forwarded headers count only from these
max_body = "256KiB"

[console]
bind = "127.0.0.1:8081"               # the operators' pages; behind a proxy with TLS also public_url = "https://..."

[queue]
# redis_url = "redis://..."           # absent: embedded Valkey under data_dir
# durability = "strict"               # refuses a Redis that answers before it has fsynced

[store]
# database_url = "postgresql+psycopg://..."   # absent: SQLite under data_dir

[security]
seal_keys = ["file:secrets/seal_key"]
api_keys = ["file:secrets/api_key"]

[[endpoint]]
provider = "quickstream"
facility = "acme"
environment = "test"
# This machine, for a first try. Without this line only the sender's documented addresses are allowed.
allowed_sources = ["127.0.0.0/8", "::1/128"]
username = "acme"
passwords = ["file:secrets/quickstream_password"]
hmac_passwords = ["file:secrets/quickstream_hmac_password"]  # proves GET /return/quickstream/acme
supplier_business_codes = ["ACME"]    # a notification for another business is quarantined
currency = "AUD"                      # QuickStream does not send one

# A facility that Octane (Telcoinabox) issued is a QuickStream facility with Octane's supplier business code.
[[endpoint]]
provider = "quickstream"
facility = "octane"
environment = "test"
allowed_sources = ["127.0.0.0/8", "::1/128"]
username = "octane"
passwords = ["file:secrets/octane_password"]
supplier_business_codes = ["OCTANE"]
currency = "AUD"

[[endpoint]]
provider = "checkout"
facility = "main"
signature_keys = ["file:secrets/checkout_signature_key"]

[[endpoint]]
provider = "debitsuccess"
facility = "gym"
event_tokens = ["file:secrets/debitsuccess_event_token"]

[[endpoint]]
provider = "paymentz"
facility = "eu"
secure_keys = ["file:secrets/paymentz_secure_key"]
"""


OPERATOR = "operator"
"""The name of the starter's only operator."""


def write(path: Path) -> str:
    """Writes `path` and the files beside it; gives the password of its operator, which is kept nowhere.

    Raises `ConfigurationError` rather than touch anything that exists.
    """
    password = passwords.generate()
    operator = entries.entry(OPERATOR, passwords.make(password), Role.APPROVER)
    folder = path.parent / "secrets"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, size in _SECRETS.items():
            file = folder / name
            if not file.exists():
                file.touch(mode=0o600)
                file.write_text(secrets.token_urlsafe(size) + "\n")
        # It holds a password's hash: for the eyes of whoever may read the secrets.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as configuration:
            configuration.write(
                f"{_TEXT}\n# Who may sign in to the console; `postback operator add` adds one.\n{operator}"
            )
    except FileExistsError:
        raise ConfigurationError(f"{path} exists already; nothing was written.") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
    return password
