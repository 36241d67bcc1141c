"""The envelope, its id and its seal."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import BatchError, NewerEnvelope, SealBroken
from receiver.notification import (
    ENVELOPE_VERSION,
    Effect,
    Envelope,
    PaymentEvent,
    PaymentState,
    new_id,
    now_us,
    open_batch,
    seal_batch,
    utc,
)
from receiver.signing import Seal
from tests.support import secrets

SEAL = Seal(secrets("k1", "k2"), "batch")
NOW = 1_741_231_329_123_456

ENVELOPES = st.builds(
    Envelope,
    id=st.just(new_id(NOW)),
    provider=st.just("quickstream"),
    facility=st.text(max_size=10),
    received_at=st.integers(0, 2**60),
    source=st.ip_addresses().map(str),
    content_type=st.text(max_size=20),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    body=st.binary(max_size=50),
    verified=st.booleans(),
    dedupe_key=st.text(max_size=20),
    event_type=st.text(max_size=20),
    fingerprint=st.text(max_size=20),
    quarantine=st.text(max_size=5),
    detail=st.text(max_size=5),
)


def envelope(body: bytes = b"a=1") -> Envelope:
    return Envelope(
        id=new_id(NOW),
        provider="quickstream",
        facility="acme",
        received_at=NOW,
        source="203.0.113.7",
        content_type="application/x-www-form-urlencoded",
        headers={},
        body=body,
        verified=True,
        dedupe_key="ACMECOMM:7004100001",
        event_type="payment",
        fingerprint="f" * 64,
        quarantine="",
        detail="",
    )


# ---- ids and time


@given(us=st.integers(0, 253_402_300_799_999_999))
def test_ids_are_uuids_of_version_7(us: int) -> None:
    text = new_id(us)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == us // 1000
    # RQ takes no other letters in the names of jobs.
    assert re.fullmatch(r"[0-9a-f-]{36}", text)


def test_all_random_bits_of_an_id_are_random() -> None:
    """Of the first of each millisecond; but for one bit that is left free for counting."""
    numbers = [uuid.UUID(new_id(NOW + ms * 1000)).int for ms in range(300)]
    assert len(set(numbers)) == len(numbers)
    ones = zeros = 0
    for number in numbers:
        ones |= number
        zeros |= ~number
    random_bits = (0xFFF << 64) | ((1 << 61) - 1)
    assert ones & random_bits == random_bits
    assert zeros & random_bits == random_bits


def test_ids_sort_by_the_millisecond_of_arrival() -> None:
    ids = [new_id(NOW + ms * 1000) for ms in range(300)]
    assert ids == sorted(ids)


@given(us=st.integers(0, 253_402_300_799_999_999))
def test_times_are_aware_and_keep_their_microseconds(us: int) -> None:
    moment = utc(us)
    assert moment.tzinfo is UTC
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (moment.resolution) == us


def test_now_is_now() -> None:
    assert abs((utc(now_us()) - datetime.now(UTC)).total_seconds()) < 60


# ---- batches


@given(envelopes=st.lists(ENVELOPES, max_size=4))
def test_a_batch_opens_as_it_was_sealed(envelopes: list[Envelope]) -> None:
    assert open_batch(seal_batch(envelopes, SEAL), SEAL) == envelopes


def test_a_batch_holds_any_body_and_512_of_them() -> None:
    envelopes = [envelope(bytes(range(256)) * 32) for _ in range(512)]
    assert open_batch(seal_batch(envelopes, SEAL), SEAL) == envelopes


def test_an_envelope_is_never_changed() -> None:
    with pytest.raises(AttributeError):
        envelope().body = b"other"  # type: ignore[misc]


def test_a_batch_of_an_older_seal_key_opens() -> None:
    sealed = seal_batch([envelope()], Seal(secrets("k1"), "batch"))
    assert len(open_batch(sealed, SEAL)) == 1


@pytest.mark.parametrize("stranger", [Seal(secrets("k3"), "batch"), Seal(secrets("k1", "k2"), "session")])
def test_a_batch_that_we_did_not_seal_is_broken(stranger: Seal) -> None:
    with pytest.raises(SealBroken):
        open_batch(seal_batch([envelope()], stranger), SEAL)


def test_an_altered_batch_is_broken() -> None:
    sealed = seal_batch([envelope(b"paymentAmount=1.00")], SEAL)
    for altered in (sealed.replace(b"1.00", b"9.00"), sealed[1:], sealed[:-9], b"", b"."):
        with pytest.raises(SealBroken):
            open_batch(altered, SEAL)


def test_a_newer_envelope_waits_for_a_newer_worker() -> None:
    for later in (b"\x91\xa1x", b"\x80", b"\xa1x"):
        message = msgspec.msgpack.encode((ENVELOPE_VERSION + 1, msgspec.Raw(later)))
        with pytest.raises(NewerEnvelope, match=f"version {ENVELOPE_VERSION + 1}"):
            open_batch(SEAL.seal(message), SEAL)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        msgspec.msgpack.encode("text"),
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode([ENVELOPE_VERSION]),
        msgspec.msgpack.encode(["1", []]),
        msgspec.msgpack.encode([ENVELOPE_VERSION, "text"]),
        msgspec.msgpack.encode([ENVELOPE_VERSION, [[]]]),
        msgspec.msgpack.encode([ENVELOPE_VERSION, [["id", "quickstream"]]]),
        # A text that is not UTF-8, where the id should be.
        b"\x92\x01\x91\x9e\xa1\xff",
        # Cut in the middle of an envelope.
        msgspec.msgpack.encode([ENVELOPE_VERSION, [envelope()]])[:-10],
        msgspec.msgpack.encode([ENVELOPE_VERSION, [envelope()]]) + b"\x00",
    ],
)
def test_a_sealed_message_that_is_no_batch_is_broken(message: bytes) -> None:
    with pytest.raises(SealBroken):
        open_batch(SEAL.seal(message), SEAL)


def test_an_envelope_with_a_later_field_still_opens() -> None:
    fields = msgspec.to_builtins(envelope(), builtin_types=(bytes,))
    [opened] = open_batch(SEAL.seal(msgspec.msgpack.encode((ENVELOPE_VERSION, [[*fields, "added later"]]))), SEAL)
    assert opened.dedupe_key == "ACMECOMM:7004100001"
    assert opened.detail == ""


@given(message=st.binary(max_size=60))
def test_any_sealed_bytes_are_a_batch_or_a_batch_error(message: bytes) -> None:
    for sealed in (SEAL.seal(message), message):
        try:
            open_batch(sealed, SEAL)
        except BatchError:
            continue


# ---- events


def test_the_states_are_those_that_users_rely_on() -> None:
    words = "pending authorised captured declined failed expired cancelled voided partially_refunded refunded disputed"
    assert " ".join(PaymentState) == words


def test_events_share_no_custom_fields() -> None:
    first, second = PaymentEvent(event_type="payment"), PaymentEvent(event_type="payment")
    first.custom["customTitle"] = "Dr"
    assert second.custom == {}
    assert second.effect is Effect.NONE
