"""Order, repeats and gaps: whatever way a history comes, the payment is the one that it tells of."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from receiver.notification import Envelope
from receiver.providers import PROVIDERS
from tests.workers.histories import HISTORIES, History, endpoint_of
from tests.workers.material import envelope, pipeline, rows, sealed
from workers.ledger.ledger import Ledger
from workers.ledger.payments import fold
from workers.ledger.revision import Revision
from workers.ledger.tables import notifications, payments
from workers.rebuild import Rebuild

PROVIDER = st.sampled_from(sorted(HISTORIES))
# Whole seeds: histories of two disputes are rare among choices that hypothesis draws one by one.
RANDOM = st.integers(0, 2**32 - 1).map(Random)


def test_every_sender_has_histories() -> None:
    assert HISTORIES.keys() == PROVIDERS.keys()


@settings(max_examples=400)
@given(PROVIDER, RANDOM)
def test_a_history_gives_the_payment_that_it_tells_of(provider: str, random: Random) -> None:
    history = HISTORIES[provider](random)
    payment = fold(history.events(), history.expectation)
    if history.state is None:
        assert payment is None
        return
    assert payment is not None
    assert (payment.state, payment.amount, payment.amount_refunded) == (
        history.state,
        history.amount,
        history.refunded,
    )
    assert not payment.mismatch


@settings(max_examples=300)
@given(PROVIDER, RANDOM, st.data())
def test_any_order_and_any_repeats_give_the_same_payment(provider: str, random: Random, data: st.DataObject) -> None:
    history = HISTORIES[provider](random)
    events = history.events()
    again = data.draw(st.lists(st.sampled_from(events), max_size=5))
    retold = data.draw(st.permutations(events + again))
    assert fold(retold, history.expectation) == fold(events, history.expectation)


@settings(max_examples=300)
@given(PROVIDER, RANDOM, st.data())
def test_a_part_that_is_completed_later_gives_the_same_payment(
    provider: str, random: Random, data: st.DataObject
) -> None:
    history = HISTORIES[provider](random)
    events = history.events()
    early = data.draw(st.lists(st.sampled_from(range(len(events))), unique=True))
    part = [events[index] for index in early]
    fold(part, history.expectation)
    rest = [event for index, event in enumerate(events) if index not in early]
    assert fold(part + rest, history.expectation) == fold(events, history.expectation)


# -- the same through the real ledger, on both databases


def deliveries(history: History) -> list[Envelope]:
    """What the accept side hands on, one envelope for each."""
    provider = PROVIDERS[history.provider]
    endpoint = endpoint_of(history.provider)
    found = []
    for message in history.messages:
        identity = provider.identify(message, endpoint)
        found.append(
            envelope(
                identity.dedupe_key,
                provider=provider.name,
                facility=endpoint.facility,
                content_type=message.content_type,
                body=message.body,
                event_type=identity.event_type,
                fingerprint=identity.fingerprint,
                verified=history.expectation is None,
            )
        )
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_gives_the_same_payments_in_any_order(ledger: Ledger, engine: Engine, seed: int) -> None:
    random = Random(seed)
    told = [HISTORIES[provider](random) for provider in HISTORIES for _ in range(12)]
    walk = pipeline(ledger)
    coming: list[Envelope | History] = [each for history in told for each in deliveries(history)]
    # A sender posts again what was not answered in time: the same bytes under another id.
    coming += [msgspec.structs.replace(each, id=envelope().id) for each in random.choices(_envelopes(coming), k=30)]
    coming += [history for history in told if history.expectation is not None]
    random.shuffle(coming)
    while coming:
        batch = [coming.pop() for _ in range(min(len(coming), random.randrange(1, 9)))]
        for history in batch:
            if isinstance(history, History) and history.expectation is not None:
                walk.expect(history.expectation)
        walk.process(sealed(*_envelopes(batch)))
    found = {(row.provider, row.payment_id): row for row in rows(engine, payments)}
    wanted = {(history.provider, _payment_id(history)): history for history in told if history.state is not None}
    assert found.keys() == wanted.keys()
    for key, history in wanted.items():
        row = found[key]
        assert (row.state, row.amount, row.amount_refunded) == (history.state, history.amount, history.refunded), key
    assert {row.state for row in rows(engine, notifications)} == {"processed"}
    assert {row.conflicts for row in rows(engine, notifications)} == {0}
    revision = Revision(engine)
    assert list(Rebuild(revision, pipeline(revision), write=False).findings()) == []


def _envelopes(coming: list[Envelope | History]) -> list[Envelope]:
    return [each for each in coming if isinstance(each, Envelope)]


def _payment_id(history: History) -> str:
    (found,) = {event.payment_id for event in history.events() if event.payment_id}
    return found
