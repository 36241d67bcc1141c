"""Every word that a sender's tables know is recorded as a request, and every such request gives its state."""

from __future__ import annotations

import pytest

from receiver.errors import Quarantined
from receiver.notification import PaymentEvent
from receiver.providers import PROVIDERS, checkout, debitsuccess, paymentz, quickstream, quickstream_settlement
from tests.states import OTHERWISE, QUARANTINED, STATES
from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM, Recorded, all_recorded
from workers.ledger.payments import fold

ENDPOINTS = {"quickstream": QUICKSTREAM, "checkout": CHECKOUT, "debitsuccess": DEBITSUCCESS, "paymentz": PAYMENTZ}

# All keys of every table by which a module decides.
TABLES = {
    "quickstream": {*quickstream.EFFECTS},
    "checkout": {*checkout.EFFECTS, *checkout.NO_EFFECT, *checkout.LEGACY, *checkout.FLAGS},
    "debitsuccess": {*debitsuccess.EFFECTS, *debitsuccess.EVENTS.values()},
    "paymentz": {*paymentz.EFFECTS, *paymentz.SUCCESSES, *paymentz.FAILURES, *paymentz.PAYOUTS},
}

# Rows of a file, which nobody posts: tests/workers/test_reconcile.py.
NOT_POSTED = {"quickstream": {quickstream_settlement.EVENT_TYPE}}

FIXTURES = [fixture for name in PROVIDERS for fixture in all_recorded(name)]


def word_of(provider: str, event: PaymentEvent) -> str:
    """The word by which the module decided."""
    if provider == "quickstream":
        return event.summary_code or ""
    if event.event_type == debitsuccess.CASUAL:
        return str(event.custom["status"]).lower()
    return event.event_type


def interpreted(fixture: Recorded) -> PaymentEvent | None:
    """None for what is quarantined."""
    try:
        return fixture.provider.interpret(fixture.message(), ENDPOINTS[fixture.provider.name])
    except Quarantined:
        return None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_word_of_every_table_has_a_fixture_and_a_state(provider: str) -> None:
    events = [interpreted(fixture) for fixture in all_recorded(provider)]
    covered = {word_of(provider, event) for event in events if event is not None}
    assert TABLES[provider] - covered == set()
    assert TABLES[provider] == STATES[provider].keys()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_declared_type_has_a_fixture(provider: str) -> None:
    events = [interpreted(fixture) for fixture in all_recorded(provider)]
    declared = PROVIDERS[provider].event_types - NOT_POSTED.get(provider, set())
    assert declared <= {event.event_type for event in events if event is not None}


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: f"{fixture.provider.name}-{fixture.name}")
def test_every_fixture_gives_its_state(fixture: Recorded) -> None:
    provider, variant = fixture.provider.name, fixture.name.partition("__")[2]
    event = interpreted(fixture)
    if variant in QUARANTINED.get(provider, {}):
        with pytest.raises(Quarantined) as caught:
            fixture.provider.interpret(fixture.message(), ENDPOINTS[provider])
        assert caught.value.reason is QUARANTINED[provider][variant]
        return
    assert event is not None
    payment = fold([event])
    word = STATES[provider][word_of(provider, event)]
    state = OTHERWISE.get(provider, {}).get(fixture.name, word)
    assert (payment and payment.state.value) == state


def test_no_exception_is_left_of_a_fixture_that_is_gone() -> None:
    names = {provider: {fixture.name for fixture in all_recorded(provider)} for provider in PROVIDERS}
    for provider, known in OTHERWISE.items():
        assert known.keys() <= names[provider]
    for provider, reasons in QUARANTINED.items():
        assert reasons.keys() <= {name.partition("__")[2] for name in names[provider]}
    assert STATES.keys() == TABLES.keys() == PROVIDERS.keys()
