"""How long an operator waits: every list, every search and every page over a million notifications, on both databases.

    python -m tests.bench.search --notifications 1000000

Fills an empty ledger by itself, asks each question several times and prints the medians in ms. Pages are asked of the
console as it is, over ASGI: its queries, what it asks Redis, and the making of the page. The first overview of a
console comes before its last day was counted; each of those times is of a new one, with connections of its own.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from receiver import logs
from receiver import settings as configuration
from receiver.notification import utc
from receiver.refusals import KEEP
from receiver.settings import Settings
from tests.console.conftest import PASSWORD, Browser
from tests.console.refusing import refuse
from tests.servers import running_postgres, running_valkey
from workers import attention
from workers.console import passwords
from workers.ledger import activity, database, pages, queries
from workers.ledger.documents import insert_new
from workers.ledger.queries import Filter
from workers.ledger.tables import notifications, payments

_ENDPOINTS = [("quickstream", "acme"), ("quickstream", "octane"), ("checkout", "main"), ("paymentz", "eu")]
_BATCH = 10_000
_TIMES = 9


def fill(engine: Engine, count: int, now: datetime) -> None:
    """`count` notifications of the last 30 days, half of them of the last, and two payments for three of them."""
    body = b"paymentAmount=12.50&" * 15
    began = int((now - timedelta(days=30)).timestamp() * 1000)
    last_day = int((now - timedelta(days=1)).timestamp() * 1000)
    half = count // 2
    for start in range(0, count, _BATCH):
        told, paid = [], []
        for n in range(start, min(start + _BATCH, count)):
            ms = began + n * 29 * 86_400_000 // half if n < half else last_day + (n - half) * 86_000_000 // half
            provider, facility = _ENDPOINTS[n * 7 % 10 % 4]
            state = (
                "failed" if n % 199 == 0 else "quarantined" if n % 211 == 0 else "held" if n % 997 == 0 else "processed"
            )
            payment_id = f"{facility.upper()}:{5_000_000_000 + n * 2 // 3}"
            hexa = f"{ms:012x}"
            told.append(
                {
                    "id": f"{hexa[:8]}-{hexa[8:]}-7000-8000-{n:012x}",
                    "provider": provider,
                    "facility": facility,
                    "dedupe_key": f"evt_{n:020}",
                    "fingerprint": f"{n:064x}",
                    "event_type": "payment",
                    "state": state,
                    "reason": "" if state == "processed" else "missing_field",
                    "detail": "",
                    "received_at": utc(ms * 1000),
                    "processed_at": utc(ms * 1000),
                    "source": "203.0.113.7",
                    "content_type": "application/x-www-form-urlencoded",
                    "headers": "{}",
                    "body": body,
                    "body_key": None,
                    "purged_at": None,
                    "verified": state != "held",
                    "deliveries": 1,
                    "conflicts": 1 if n % 5003 == 0 else 0,
                    "payment_id": payment_id if state == "processed" else None,
                    "event": None,
                }
            )
            if n % 3 != 1:
                paid.append(_payment(provider, facility, payment_id, n, utc(ms * 1000)))
        with engine.begin() as connection:
            insert_new(connection, notifications, told)
            insert_new(connection, payments, paid)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
        if engine.dialect.name == "postgresql":
            connection.execute(text("VACUUM ANALYZE"))


def _payment(provider: str, facility: str, payment_id: str, n: int, at: datetime) -> dict[str, Any]:
    row: dict[str, Any] = {column.name: None for column in payments.c}
    return row | {
        "provider": provider,
        "facility": facility,
        "payment_id": payment_id,
        "receipt_number": f"{5_000_000_000 + n * 2 // 3}",
        "state": ("captured", "captured", "captured", "declined", "refunded")[n % 5],
        "amount": 4995 if n % 10 == 0 else 1000 + n % 50_000,
        "currency": "AUD",
        "exponent": 2,
        "amount_refunded": 0,
        "reference": f"ORDER-{n:08}",
        "customer_reference": f"CUSTOMER-{n % 50_000:06}",
        "soft_decline": False,
        "occurred_at": at,
        "updated_at": at,
        "custom": "{}",
        "mismatch": n % 4001 == 0,
    }


def questions(engine: Engine, count: int, now: datetime) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What the console's pages ask, by name."""
    middle = count // 2
    day = timedelta(days=1)

    def told(**wanted: Any) -> Callable[[Any], Any]:
        return lambda connection: pages.page_notifications(connection, Filter(**wanted))

    def paid(**wanted: Any) -> Callable[[Any], Any]:
        return lambda connection: pages.page_payments(connection, Filter(**wanted))

    with queries.reading(engine) as connection:
        wanted = Filter(provider="quickstream", limit=1000)
        deep = pages.page_notifications(connection, wanted, None).next
        for _ in range(20):
            deep = pages.page_notifications(connection, wanted, deep).next
    yield "notifications", told()
    yield "notifications of a state", told(state="failed")
    yield "notifications of a provider", told(provider="quickstream")
    yield "notifications of a facility", told(facility="eu")
    yield "notifications of an endpoint and a state", told(provider="quickstream", facility="octane", state="held")
    yield "notifications of a day", told(since=now - 20 * day, until=now - 19 * day)
    yield (
        "failed notifications of a provider on a day",
        told(provider="checkout", state="failed", since=now - 20 * day, until=now - 19 * day),
    )
    yield (
        "notifications, 21,000 further on",
        lambda connection: pages.page_notifications(connection, Filter(provider="quickstream"), deep),
    )
    yield "payments", paid()
    yield "payments of a state", paid(state="refunded")
    yield "payments of a provider and a state", paid(provider="quickstream", state="declined")
    yield "payments of a day", paid(since=now - 20 * day, until=now - 19 * day)
    yield "payments that are not as expected", paid(mismatch=True)
    yield "payments of an endpoint that are not as expected", paid(mismatch=True, provider="paymentz", facility="eu")
    for name, ask in (("notifications", told), ("payments", paid)):
        yield f"{name} by receipt number", ask(search=f"{5_000_000_000 + middle}")
        yield f"{name} by the beginning of a receipt number", ask(search="50")
        yield f"{name} by reference", ask(search=f"ORDER-{middle // 3 * 3:08}")
        yield f"{name} by customer reference", ask(search="customer-000123")
        yield f"{name} by payment id", ask(search=f"ACME:{5_000_000_000 + middle}")
        yield f"{name} by amount", ask(search="49.95")
        yield f"{name} by a reference that nobody has", ask(search="NOBODY")
        yield (
            f"{name} by a reference and a state",
            ask(search="ORDER-", state="failed" if name == "notifications" else "refunded"),
        )
    yield "notifications by duplicate key", told(search=f"evt_{middle:020}")
    with queries.reading(engine) as connection:
        some = pages.page_notifications(connection, Filter(limit=1)).items[0]["id"]
    yield "notifications by id", told(search=some)
    hours = [(now - timedelta(hours=n)).replace(minute=0, second=0, microsecond=0) for n in range(24)]
    yield (
        "the last 24 hours of all endpoints",
        partial(activity.of_hours, starts=hours),
    )
    yield "what needs attention, counted", attention.counts
    for kind in attention.Kind:
        yield f"what needs attention: {kind.value}", partial(attention.page, kind=kind)
        yield (
            f"what needs attention at an endpoint: {kind.value}",
            partial(attention.page, kind=kind, provider="paymentz", facility="eu"),
        )


PAGES = {
    "overview": "/",
    "notifications": "/notifications",
    "notifications that failed": "/notifications?state=failed",
    "payments": "/payments",
    "payments by reference": "/payments?search=ORDER-000",
    "refused": "/refused",
    "needs attention": "/attention",
    "needs attention at an endpoint": "/attention?kind=failed&endpoint=paymentz/eu",
    "replays": "/replays",
    "reconciliations": "/reconciliations",
    "audit": "/audit",
}


def document(database_url: str, redis_url: str) -> dict[str, Any]:
    """A console's configuration, with the endpoints of the ledger."""
    keys: dict[str, dict[str, Any]] = {
        "quickstream": {"username": "u", "passwords": ["p"], "supplier_business_codes": ["ACME"]},
        "checkout": {"signature_keys": ["k"]},
        "paymentz": {"secure_keys": ["k"]},
    }
    return {
        "console": {"bind": "127.0.0.1:8081"},
        "queue": {"redis_url": redis_url},
        "store": {"database_url": database_url},
        "security": {
            "seal_keys": ["seal"],
            "operators": [{"name": "anna", "password_hash": passwords.make(PASSWORD, log_n=14, p=1)}],
        },
        "endpoint": [{"provider": name, "facility": facility, **keys[name]} for name, facility in _ENDPOINTS],
    }


def pages_of(settings: Settings) -> dict[str, float]:
    """The first overview of consoles that were just started, and each page of one that is at work."""
    found = {"page: overview, the first of a console": [_first(settings) for _ in range(_TIMES)]}
    console = Browser(settings)
    console.sign_in()
    console.site.activity.refresh()
    for name, path in PAGES.items():
        found[f"page: {name}"] = [_timed(console, path) for _ in range(_TIMES)]
    console.close()
    return {name: round(statistics.median(times), 1) for name, times in found.items()} | {
        "page: overview, the slowest first": round(max(found["page: overview, the first of a console"]), 1)
    }


def _first(settings: Settings) -> float:
    console = Browser(settings)
    # As it does beside the requests when it starts.
    console.site.renderer.load()
    console.sign_in()
    taken = _timed(console, "/")
    console.close()
    return taken


def _timed(console: Browser, path: str) -> float:
    """What a look within the same second has already is not counted."""
    console.site.health._latest = None
    began = time.perf_counter()
    answer = console.get(path)
    taken = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, (path, answer.text)
    return taken


def measure(engine: Engine, count: int, now: datetime) -> dict[str, float]:
    found = {}
    for name, ask in questions(engine, count, now):
        times = []
        for _ in range(_TIMES):
            began = time.perf_counter()
            with queries.reading(engine) as connection:
                ask(connection)
            times.append((time.perf_counter() - began) * 1000)
        found[name] = round(statistics.median(times), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notifications", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one database alone")
    arguments = parser.parse_args()
    count = arguments.notifications
    logs.configure("bench", logging.CRITICAL)
    now = datetime.now(UTC)
    results = {}
    with tempfile.TemporaryDirectory() as folder, running_postgres() as postgres_url, running_valkey() as valkey:
        with valkey.client() as redis:
            refuse(redis, KEEP)
        urls = {"sqlite": f"sqlite:///{Path(folder) / 'ledger.sqlite3'}", "postgresql": postgres_url}
        for name in [arguments.only] if arguments.only else urls:
            url = urls[name]
            database.migrate(url)
            engine = database.open_engine(url)
            began = time.perf_counter()
            fill(engine, count, now)
            print(f"{name}: filled in {time.perf_counter() - began:.0f} s", flush=True)
            results[name] = measure(engine, count, now)
            engine.dispose()
            settings = configuration.read(document(url, valkey.url), Path(folder))
            results[name] |= pages_of(settings)
    questions_ = next(iter(results.values()))
    width = max(map(len, questions_))
    for question in questions_:
        print(f"{question:{width}}" + "".join(f"  {of[question]:8.1f}" for of in results.values()))


if __name__ == "__main__":
    main()
