"""A console in this process, with a ledger and a queue server of its own, asked as a browser would ask."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from redis import Redis
from structlog.testing import capture_logs

from receiver import settings as configuration
from receiver.settings import Settings
from tests import ledgers
from tests.servers import Valkey
from workers.console import passwords
from workers.console.app import build
from workers.console.site import Site
from workers.ledger import database

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What this process logs, as event dictionaries."""
    with capture_logs() as events:
        yield events


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for browser in list(Browser.opened):
        browser.close()


@pytest.fixture(scope="session")
def password_hash() -> str:
    """Of `PASSWORD`, as cheap as a hash may be."""
    return passwords.make(PASSWORD, log_n=14, p=1)


both_databases = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
"""For the tests that show most of what a page or the API asks the ledger."""


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger: SQLite, unless a test is for both databases. `CONSOLE_STORE=postgresql` has all of
    them on PostgreSQL, which takes too long for every change."""
    if getattr(request, "param", os.environ.get("CONSOLE_STORE", "sqlite")) == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        ledgers.empty(url)
        return url
    return ledgers.new_file(tmp_path / "ledger.sqlite3")


@pytest.fixture
def document(valkey_server: Valkey, redis: Redis, password_hash: str, store: str, tmp_path: Path) -> dict[str, Any]:
    """A configuration with an operator of each role, for a test to change before it opens the console."""
    return {
        "data_dir": str(tmp_path / "var"),
        "console": {"bind": "127.0.0.1:8081"},
        "queue": {"redis_url": valkey_server.url},
        "store": {"database_url": store},
        "security": {
            "seal_keys": ["old-seal-key", "new-seal-key"],
            "operators": [
                {"name": "vera", "password_hash": password_hash},
                {"name": "oscar", "password_hash": password_hash, "role": "operator"},
                {"name": "anna", "password_hash": password_hash, "role": "approver"},
            ],
        },
        "endpoint": [
            {"provider": "checkout", "facility": "main", "signature_keys": ["cko-new-key"]},
            {"provider": "paymentz", "facility": "eu", "secure_keys": ["pz-new-key"]},
        ],
    }


@pytest.fixture
def settings(document: dict[str, Any], tmp_path: Path) -> Settings:
    return settings_of(document, tmp_path)


def settings_of(document: dict[str, Any], folder: Path) -> Settings:
    """With a ledger that is up to date."""
    settings = configuration.read(document, folder)
    if not database.url(settings).startswith("postgresql"):
        # The one that all tests share is made already.
        ledgers.new(settings)
    return settings


class Browser:
    """Keeps cookies, follows nothing, and finds the token of the page that it looks at."""

    opened: ClassVar[list[Browser]] = []
    """Whose consoles have connections; `closed` closes them after each test."""

    def __init__(self, settings: Settings, address: str = "203.0.113.9", base: str = "http://127.0.0.1:8081") -> None:
        self.app = build(settings)
        self.opened.append(self)
        self._transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 50000))
        self._base = base
        self.cookies = httpx.Cookies()

    @property
    def site(self) -> Site:
        """What the console's process has."""
        site: Site = self.app._app.state.site  # type: ignore[attr-defined]
        return site

    def close(self) -> None:
        self.opened.remove(self)
        self.site.uploads.close()
        self.site.engine.dispose()
        self.site.replays.close()
        self.site.redis.close()

    def send(self, method: str, path: str, headers: Any = None, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            client = httpx.AsyncClient(transport=self._transport, base_url=self._base, cookies=self.cookies)
            async with client:
                answer = await client.request(method, path, headers=headers, **more)
                self.cookies = client.cookies
                return answer

        return asyncio.run(ask())

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.send("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, fields: dict[str, Any], **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", path, named, data=fields)

    def token(self, path: str = "/") -> str:
        """The form token of a page."""
        found = re.search(r'name="token" value="([^"]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def sign_in(self, name: str = "anna", password: str = PASSWORD, wish: str = "/") -> httpx.Response:
        fields = {"token": self.token("/sign-in"), "name": name, "password": password, "next": wish}
        return self.post("/sign-in", fields)

    @property
    def cookie(self) -> str | None:
        return self.cookies.get("postback-session")

    def show(self, cookie: str | None) -> None:
        """Has this cookie from now on, and no other."""
        self.cookies = httpx.Cookies({"postback-session": cookie or ""})


@pytest.fixture
def browser(settings: Settings) -> Browser:
    return Browser(settings)
