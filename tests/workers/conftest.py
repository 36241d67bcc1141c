"""Fixtures of the worker side."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.mailbox import Hookbox, Mailbox


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What this process logs, as event dictionaries."""
    with capture_logs() as events:
        yield events


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox().running() as box:
        yield box


@pytest.fixture
def hookbox() -> Iterator[Hookbox]:
    with Hookbox().running() as box:
        yield box
