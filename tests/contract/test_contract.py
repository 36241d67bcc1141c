"""One suite for every sender, over HTTP, through a real queue, a real worker and a real ledger.

Each test takes a fresh request of the sender's simulator and looks at the answer, and then at what became of it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from receiver.providers import PROVIDERS
from tests.contract.conftest import NAMES
from tests.contract.subjects import Subject, prefix
from tests.live.installation import Installation
from tests.servers import eventually
from workers.ledger.tables import notifications, repeats
from workers.simulator.base import Outgoing


def send(installation: Installation, outgoing: Outgoing) -> httpx.Response:
    """Sends as the sender would, after the merchant registered what it expects."""
    if outgoing.expect is not None:
        path = outgoing.path.replace("/notify/", "/expect/")
        assert installation.expect(path, outgoing.expect).status_code == 201
    return installation.post(outgoing.path, outgoing.body, outgoing.headers)


def stored(engine: Engine, notification_id: str) -> Any:
    """The ledger's row of an answered id, or of the notification that it repeats, once it is there."""

    def look() -> Any:
        with engine.connect().execution_options(reading=True) as connection:
            original = select(repeats.c.notification_id).where(repeats.c.id == notification_id).scalar_subquery()
            return connection.execute(
                select(notifications).where((notifications.c.id == notification_id) | (notifications.c.id == original))
            ).first()

    return eventually(look, what=f"notification {notification_id}")


def total(engine: Engine) -> int:
    with engine.connect().execution_options(reading=True) as connection:
        return connection.scalar(select(func.count()).select_from(notifications)) or 0


def assert_refused(response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    assert set(response.json()) == {"error", "detail"}
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Basic ")


def test_every_provider_has_a_subject(all_subjects: dict[str, Subject]) -> None:
    assert {subject.provider for subject in all_subjects.values()} == set(PROVIDERS)
    assert set(all_subjects) == set(NAMES)


def test_good(installation: Installation, engine: Engine, subject: Subject) -> None:
    outgoing = subject.make(-1)
    response = send(installation, outgoing)
    assert response.status_code == 200
    assert response.json()["status"] == "accepted"
    row = stored(engine, response.json()["id"])
    assert (row.state, row.verified, row.body, row.deliveries) == ("processed", True, outgoing.body, 1)


# The secret of a casual payment belongs to that payment and is never changed.
@pytest.mark.parametrize("subject", [name for name in NAMES if name != "debitsuccess casual"], indirect=True)
def test_old_and_new_secret(installation: Installation, engine: Engine, subject: Subject) -> None:
    for which in (0, -1):
        response = send(installation, subject.make(which))
        assert (response.status_code, response.json()["status"]) == (200, "accepted")
        assert stored(engine, response.json()["id"]).state == "processed"


@pytest.mark.parametrize("kind", ["wrong", "empty", "prefix", "longer", "non-ascii"])
def test_bad_proof(installation: Installation, engine: Engine, subject: Subject, kind: str) -> None:
    outgoing = subject.make(-1)
    proof = subject.proof(outgoing)
    given = {
        "wrong": proof[:-2] + ("AA" if not proof.endswith("AA") else "BB"),
        "empty": "",
        "prefix": prefix(proof),
        "longer": proof + "a",
        "non-ascii": "é" * 64,
    }[kind]
    before = total(engine)
    assert_refused(send(installation, subject.with_proof(outgoing, given)), 403)
    # The same request with its own proof is accepted: it was the proof that was refused.
    response = send(installation, outgoing)
    assert response.status_code == 200
    stored(engine, response.json()["id"])
    assert total(engine) == before + 1


def test_missing_proof(installation: Installation, subject: Subject) -> None:
    assert_refused(send(installation, subject.with_proof(subject.make(-1), None)), subject.missing_status)


# The other proofs do not cover the body: what it says is checked against what was expected.
@pytest.mark.parametrize("subject", ["checkout", "paymentz"], indirect=True)
def test_tampered_body(installation: Installation, subject: Subject) -> None:
    assert subject.tamper is not None
    assert_refused(send(installation, subject.tamper(subject.make(-1))), 403)


def test_truncated_body(installation: Installation, engine: Engine, subject: Subject) -> None:
    outgoing = subject.make(-1)
    response = send(installation, replace(outgoing, body=outgoing.body[: len(outgoing.body) // 2]))
    if subject.truncated_refused:
        assert_refused(response, 403)
    else:
        assert (response.status_code, response.json()["status"]) == (200, "quarantined")
        row = stored(engine, response.json()["id"])
        assert (row.state, row.body) == ("quarantined", outgoing.body[: len(outgoing.body) // 2])
    # And the whole one counts as if nothing had been.
    response = send(installation, outgoing)
    assert response.json()["status"] == "accepted"
    assert stored(engine, response.json()["id"]).state == "processed"


def test_empty_body(installation: Installation, subject: Subject) -> None:
    assert_refused(send(installation, replace(subject.make(-1), body=b"")), 400)


@given(body=st.binary(min_size=1, max_size=400))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(installation: Installation, subject: Subject, body: bytes) -> None:
    outgoing = subject.make(-1)
    response = installation.post(outgoing.path, body, outgoing.headers)
    assert response.status_code in (200, 403)
    if response.status_code == 200:
        assert response.json()["status"] == "quarantined"


# The other senders name no types.
@pytest.mark.parametrize("subject", ["checkout", "debitsuccess event", "paymentz"], indirect=True)
def test_unknown_type(installation: Installation, engine: Engine, subject: Subject) -> None:
    assert subject.unknown_type is not None
    response = send(installation, subject.unknown_type())
    assert (response.status_code, response.json()["status"]) == (200, "accepted")
    row = stored(engine, response.json()["id"])
    assert row.state == "processed"
    assert "eleported" in row.event_type


def test_duplicate(installation: Installation, engine: Engine, subject: Subject) -> None:
    outgoing = subject.make(-1)
    first, second = (send(installation, outgoing) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    stored(engine, second.json()["id"])
    row = stored(engine, first.json()["id"])
    assert (row.id, row.deliveries, row.conflicts) == (first.json()["id"], 2, 0)


def test_forty_duplicates_in_parallel(installation: Installation, engine: Engine, subject: Subject) -> None:
    outgoing = subject.make(-1)
    first = send(installation, outgoing)
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: installation.post(outgoing.path, outgoing.body, outgoing.headers), range(40)))
    assert [answer.status_code for answer in answers] == [200] * 40
    assert len({answer.json()["id"] for answer in answers}) == 40
    for answer in answers:
        stored(engine, answer.json()["id"])
    row = stored(engine, first.json()["id"])
    assert (row.deliveries, row.conflicts) == (41, 0)
