"""A console that takes settlement files, and runs over them that wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from workers.console import uploads
from workers.reconcile.run import reconcile

LIMIT = 4 << 10
"""Bytes of the largest file."""


def with_settlement(document: dict[str, Any]) -> dict[str, Any]:
    """The configuration with two endpoints whose bank has a settlement file."""
    document["console"]["max_upload"] = f"{LIMIT}B"
    document["endpoint"] += [
        {
            "provider": "quickstream",
            "facility": facility,
            "username": facility,
            "passwords": ["p"],
            "supplier_business_codes": ["ACME"],
        }
        for facility in ("acme", "other")
    ]
    return document


class Held:
    """A run that waits in the middle until it is let go on; `fault` is how it then ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.fault: Exception | None = None
        monkeypatch.setattr("workers.console.uploads.reconcile", self)
        monkeypatch.setattr(uploads, "ANSWER_WITHIN", 0.0)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        options["progress"](0.375)
        while not self.go_on.wait(0.01):
            options["progress"](0.375)
        if self.fault:
            raise self.fault
        return reconcile(*arguments, **options)
