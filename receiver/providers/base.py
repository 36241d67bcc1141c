"""The shape of a provider: one module of pure functions and tables that ends in ``PROVIDER = Provider(...)``.

A provider sees plain data and never a request, Redis or the ledger. Every field is required, so that a provider
without `authenticate` cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec

from receiver.notification import Expectation, PaymentEvent
from receiver.signing import Secret

Environment = Literal["test", "production"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="provider"):
    """The settings that every ``[[endpoint]]`` has; each provider adds its own."""

    facility: str
    environment: Environment = "production"
    allowed_sources: tuple[str, ...] | None = None
    """CIDRs instead of the sender's documented addresses."""
    proposed_sources: tuple[str, ...] | None = None
    """CIDRs on trial: nothing is refused by them, but what they would refuse is counted."""
    own_numbers: tuple[str, ...] = ()
    """Fields that hold the merchant's own numbers, which are no card numbers even when they look like them."""

    @property
    def provider(self) -> str:
        return str(self.__struct_config__.tag)

    @property
    def path(self) -> str:
        return f"{self.provider}/{self.facility}"


class ReturnEndpoint(Endpoint, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of senders whose payment page sends the customer's browser back to us."""

    return_url: str | None = None
    """Where the customer is sent on to, with a signed result; None shows a page of our own."""
    result_keys: tuple[Secret, ...] = ()
    """Sign that result, for this endpoint's merchant alone."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One delivery as a provider sees it. `headers` has the provider's proof and kept headers, names in lower case."""

    content_type: str
    """The media type in lower case, without parameters; "" when absent."""
    headers: Mapping[str, str]
    body: bytes


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What the accept side learns of a body: `dedupe_key` is the same for every delivery of the same notification,
    `fingerprint` is the same as long as they say the same."""

    dedupe_key: str
    event_type: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Provider:
    name: str
    """Module, key, URL segment, settings and fixtures all have this name."""
    display: str
    endpoint: type[Endpoint]
    required_secrets: tuple[tuple[str, ...], ...]
    """Groups of settings of which each needs at least one secret: without it nothing could be proven."""
    sources: Mapping[Environment, tuple[str, ...]]
    """The sender's documented addresses; an empty tuple where it documents none."""
    proof_headers: tuple[str, ...]
    """Headers that carry credentials: read for the proof, never kept."""
    kept_headers: tuple[str, ...]
    """Headers without secrets that `identify` and `interpret` need."""
    secret_fields: frozenset[str]
    """Body fields (lower case) that are never shown."""
    identifiers: Callable[[Message, Any], list[str]]
    """Values of a body that tell payments apart or are signed, and of `own_numbers`: never taken for card numbers.
    Raises `Quarantined` for what cannot be read."""
    not_stored_status: int
    """The status that makes this sender send again."""
    event_types: frozenset[str]
    """Every type that `interpret` knows; others are kept without an effect."""
    answer_within: timedelta
    """How long after a payment was registered without an end its notification is overdue."""
    exponent: Callable[[str], int]
    """Decimals of a currency by the sender's own table."""
    check_headers: Callable[[Message, Any], None]
    """What the headers alone can prove, before the body is read. Raises `Refused`."""
    token_of: Callable[[Message], str | None]
    """The token under which the proof was registered beforehand; None when the endpoint's own secrets prove all."""
    authenticate: Callable[[Message, Any, Expectation | None], None]
    """What the body must prove. Raises `Refused`."""
    identify: Callable[[Message, Any], Identity]
    """Raises `Quarantined` for what cannot be read or believed."""
    interpret: Callable[[Message, Any], PaymentEvent]
    """Raises `Quarantined` as `identify` does."""


def no_token(message: Message) -> None:
    """For senders that prove all their notifications with the endpoint's own secrets."""


def headers_prove_nothing(message: Message, endpoint: Endpoint) -> None:
    """For senders whose proof is in the body or over it."""


def headers_prove_all(message: Message, endpoint: Endpoint, expected: Expectation | None) -> None:
    """For senders whose whole proof was checked before the body was read."""
