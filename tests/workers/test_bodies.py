"""Raw bodies at rest: sealed under the newest key, opened under any, and never in the place of another row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from receiver import settings
from receiver.errors import BodyLocked, BodyPurged, ConfigurationError
from receiver.notification import Envelope
from tests.support import EXPECTED_CASUAL, recorded, secrets
from tests.workers import material
from tests.workers.material import MOMENT, delivered, envelope, only_payment, processed, rows
from workers.ledger import queries
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Ledger, open_ledger
from workers.ledger.rows import stored_envelope
from workers.ledger.tables import notifications, repeats

OLD, NEW = secrets("old-body-key-" + "o" * 32, "new-body-key-" + "n" * 32)
BODY = b"paymentAmount=156.50&customerReferenceNumber=REF"


class Row:
    def __init__(self, stored: dict[str, Any], row_id: str = "1", purged_at: Any = None) -> None:
        self.id, self.purged_at = row_id, purged_at
        self.body, self.body_key = stored["body"], stored["body_key"]


def encrypted(engine: Engine) -> Ledger:
    return Ledger(engine, Bodies([OLD, NEW]))


def recorded_as(ledger: Ledger, *envelopes: Envelope) -> None:
    for each in envelopes:
        ledger.record(
            [
                processed(
                    each.dedupe_key,
                    material.event(),
                    **{"id": each.id, "body": each.body, "fingerprint": each.fingerprint},
                )
            ]
        )


# -- sealing


@given(st.binary(max_size=2000))
def test_what_is_sealed_opens_and_shows_nothing(body: bytes) -> None:
    bodies = Bodies([NEW])
    stored = bodies.stored(body, "1", "checkout", "main")
    assert len(stored["body"]) == len(body) + 28
    assert len(body) < 4 or body not in stored["body"]
    assert bodies.opened(Row(stored), "checkout", "main") == body
    assert bodies.stored(body, "1", "checkout", "main")["body"] != stored["body"]


def test_the_newest_key_seals_and_every_key_opens() -> None:
    before, after = Bodies([OLD]), Bodies([OLD, NEW])
    old, new = before.stored(BODY, "1", "a", "b"), after.stored(BODY, "1", "a", "b")
    assert (old["body_key"], new["body_key"]) == after.key_ids
    assert after.opened(Row(old), "a", "b") == after.opened(Row(new), "a", "b") == BODY
    with pytest.raises(BodyLocked, match=f"needs the key {new['body_key']}: not in security.body_keys"):
        before.opened(Row(new), "a", "b")


def test_without_keys_bodies_are_plain_and_stay_readable_with_keys() -> None:
    plain = Bodies().stored(BODY, "1", "a", "b")
    assert plain == {"body": BODY, "body_key": None}
    assert Bodies([NEW]).opened(Row(plain), "a", "b") == BODY
    with pytest.raises(BodyLocked):
        Bodies().opened(Row(Bodies([NEW]).stored(BODY, "1", "a", "b")), "a", "b")


@pytest.mark.parametrize(
    ("row_id", "provider", "facility"), [("2", "checkout", "main"), ("1", "paymentz", "main"), ("1", "checkout", "x")]
)
def test_a_body_in_another_row_does_not_open(row_id: str, provider: str, facility: str) -> None:
    bodies = Bodies([NEW])
    moved = Row(bodies.stored(BODY, "1", "checkout", "main"), row_id)
    with pytest.raises(BodyLocked, match="was altered, or is that of another row"):
        bodies.opened(moved, provider, facility)


@given(st.integers(0, 27 + len(BODY)), st.integers(1, 255))
def test_one_changed_byte_is_enough(place: int, change: int) -> None:
    bodies = Bodies([NEW])
    stored = bodies.stored(BODY, "1", "a", "b")
    altered = bytearray(stored["body"])
    altered[place] ^= change
    with pytest.raises(BodyLocked):
        bodies.opened(Row(stored | {"body": bytes(altered)}), "a", "b")


@pytest.mark.parametrize("cut", [b"", b"x", b"x" * 12, b"x" * 27])
def test_a_body_that_was_cut_does_not_open(cut: bytes) -> None:
    stored = Bodies([NEW]).stored(BODY, "1", "a", "b")
    with pytest.raises(BodyLocked):
        Bodies([NEW]).opened(Row(stored | {"body": cut}), "a", "b")


def test_no_error_and_no_representation_shows_a_key() -> None:
    bodies = Bodies([NEW])
    with pytest.raises(BodyLocked) as caught:
        bodies.opened(Row(Bodies([OLD]).stored(BODY, "1", "a", "b")), "a", "b")
    assert all(NEW.reveal().decode() not in text for text in (repr(bodies), str(caught.value), str(bodies.key_ids)))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    assert Bodies().stored(BODY, "1", "a", "b")["body"] == BODY
    with pytest.raises(ConfigurationError, match=r"postback-receiver\[encrypt\]"):
        Bodies([NEW])


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    document = {"security": {"seal_keys": ["seal"], "body_keys": ["x" * 32, "y" * 31]}}
    with pytest.raises(ConfigurationError, match=r"security.body_keys\[1\]: must have at least 32 characters"):
        settings.read(document, tmp_path)


def test_the_configured_ledger_encrypts(tmp_path: Path) -> None:
    document = {"data_dir": "var", "security": {"seal_keys": ["seal"], "body_keys": ["x" * 32]}}
    ledger = open_ledger(settings.read(document, tmp_path))
    assert len(ledger.bodies.key_ids) == 1
    ledger.engine.dispose()


def test_every_process_opens_the_ledger_of_its_configuration() -> None:
    # A ledger that is made without the configured keys would store bodies plain.
    root = Path(__file__).parents[2] / "workers"
    made = [path.name for path in root.rglob("*.py") if "Ledger(open_engine(" in path.read_text()]
    assert made == ["ledger.py"]


# -- in the ledger


def test_nothing_of_a_body_is_in_the_ledger_and_all_of_it_comes_back(engine: Engine) -> None:
    ledger = encrypted(engine)
    first = envelope("k1", body=b"first body")
    conflict = envelope("k1", body=b"other body", fingerprint="f2")
    recorded_as(ledger, first, conflict)
    [row], [repeat] = rows(engine, notifications), rows(engine, repeats)
    assert {row.body_key, repeat.body_key} == {ledger.bodies.key_ids[-1]}
    assert b"body" not in row.body
    assert b"body" not in repeat.body
    assert stored_envelope(row, ledger.bodies).body == b"first body"
    with queries.reading(engine) as connection:
        shown = queries.show_notification(connection, first.id, ledger.bodies)
    assert shown is not None
    assert (shown["body"], shown["repeats"][0]["body"]) == ("first body", "other body")


def test_a_repeat_of_a_sealed_body_is_told_by_its_fingerprint(engine: Engine) -> None:
    ledger = encrypted(engine)
    for _ in range(2):
        recorded_as(ledger, envelope("k1", body=b"same"))
    recorded_as(ledger, envelope("k1", body=b"other", fingerprint="f2"))
    assert material.counted(engine) == [("k1", 3, 1)]


def test_an_stored_envelope_a_row_is_the_one_that_was_recorded(engine: Engine) -> None:
    ledger = encrypted(engine)
    came = delivered(recorded("checkout", "payment_captured"))
    material.pipeline(ledger).process(material.sealed(came))
    assert stored_envelope(rows(engine, notifications)[0], ledger.bodies) == came


def test_what_was_held_is_released_out_of_a_sealed_body(engine: Engine) -> None:
    ledger = encrypted(engine)
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    material.pipeline(ledger).process(material.sealed(casual))
    material.pipeline(ledger).expect(EXPECTED_CASUAL)
    assert only_payment(engine).state == "captured"


def test_what_is_held_without_its_key_stays_held(engine: Engine, logged: list[Any]) -> None:
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    material.pipeline(encrypted(engine)).process(material.sealed(casual))
    material.pipeline(Ledger(engine, Bodies([OLD]))).expect(EXPECTED_CASUAL)
    assert material.states(engine) == {casual.dedupe_key: "held"}
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["held_body_missing"]
    # The expectation is there: with the key it is released by whatever speaks of it next.
    material.pipeline(encrypted(engine)).expect(EXPECTED_CASUAL)
    assert only_payment(engine).state == "captured"


def test_without_the_key_the_rest_is_still_shown(engine: Engine) -> None:
    first = envelope("k1", body=b"first body")
    recorded_as(encrypted(engine), first)
    with queries.reading(engine) as connection:
        shown = queries.show_notification(connection, first.id, Bodies())
    assert shown is not None
    assert shown["body"] is None
    assert "not in security.body_keys" in shown["body_note"]
    assert shown["event"]["payment_id"] == "p1"


def test_a_purged_body_says_when(engine: Engine) -> None:
    recorded_as(Ledger(engine), envelope("k1"))
    with engine.begin() as connection:
        connection.execute(update(notifications).values(body=b"", purged_at=MOMENT))
    [row] = rows(engine, notifications)
    assert stored_envelope(row, Bodies()).body == b""
    with pytest.raises(BodyPurged, match=f"The raw body of {row.id} was purged at 2025-03-06T03:22:09Z."):
        Bodies().opened(row, row.provider, row.facility)


def test_a_purged_one_that_is_held_stays_held(engine: Engine) -> None:
    casual = delivered(recorded("debitsuccess", "casual_payment"), verified=False)
    material.pipeline(Ledger(engine)).process(material.sealed(casual))
    with engine.begin() as connection:
        connection.execute(update(notifications).values(body=b"", purged_at=MOMENT))
    material.pipeline(Ledger(engine)).expect(EXPECTED_CASUAL)
    assert material.states(engine) == {casual.dedupe_key: "held"}
