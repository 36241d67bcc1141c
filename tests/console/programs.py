"""Programs that ask the API, and what they are told."""

from __future__ import annotations

from typing import Any

import httpx

from tests.console.conftest import Browser

KEYS = {role: f"{role}-key-of-thirty-two-characters" for role in ("viewer", "operator", "approver")}


def keys() -> list[dict[str, str]]:
    """For `security.api_keys`: one of each role."""
    return [{"name": f"shop-{role}", "key": key, "role": role} for role, key in KEYS.items()]


class Client:
    """Asks as a program does."""

    def __init__(self, browser: Browser, key: str | None = KEYS["viewer"]) -> None:
        self.browser = browser
        self.key = key

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key is not None else {}
        return self.browser.send(method, f"/api/v1{path}", headers | more.pop("headers", {}), **more)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: Any, role: str = "operator", **headers: str) -> httpx.Response:
        self.key = KEYS[role]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, json=body, headers=named)


def problem(answer: httpx.Response, status: int, reason: str) -> None:
    """One problem of RFC 9457, and nothing else."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    said = answer.json()
    assert (said["status"], said["reason"], said["type"]) == (status, reason, f"urn:postback:problem:{reason}")
    assert said["detail"].endswith(".")
    assert set(said) == {"type", "title", "status", "detail", "reason"}
