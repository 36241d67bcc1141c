"""The shape of a simulated sender: it proves its requests as the real one would, and sends again by its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, ready to send. `path` is relative to the receiver's address."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    expect: Mapping[str, str] | None = None
    """The body of the ``POST /expect/...`` that the merchant sends first; None where nothing is registered."""
    back: str | None = None
    """Path and query with which the customer's browser comes back from this payment; None where nobody does."""


@dataclass(frozen=True, slots=True)
class RetryRule:
    """The sender's documented rule: seconds to wait before each further attempt, and what it counts as success."""

    delays: tuple[float, ...]
    successes: frozenset[int]
    timeout: float


@dataclass(frozen=True, slots=True)
class Sender:
    name: str
    retry: RetryRule
    payment: Callable[[Any, Random, int, str | None], list[Outgoing]]
    """``(endpoint, random, serial, format)`` gives the notifications of one invented payment in their order.
    `serial` is unique within a run; `format` is ``form`` or ``xml`` for senders that have both."""
