"""What it costs to keep a history by month (deploy/postgresql/partition.sql), beside one that is whole.

    python -m tests.bench.months --notifications 1000000

Fills two ledgers of one PostgreSQL with the same 24 months, does the same in both by turns, so that whatever else the
machine does meets both, and prints the medians in ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import md5
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from sqlalchemy import Engine, make_url

from receiver.notification import Effect, Envelope, PaymentEvent, new_id, now_us
from tests.servers import running_postgres
from workers import attention
from workers.ledger import database, pages, purging, queries
from workers.ledger.ledger import Interpreted, Ledger, events_of
from workers.ledger.purging import Task, What
from workers.ledger.queries import Filter

_SCRIPT = Path(__file__).parents[2] / "deploy" / "postgresql" / "partition.sql"
_BATCH = 128
_BODY = b"paymentAmount=12.50&" * 20
_MONTHS = timedelta(days=730)
_LEDGERS = ("whole", "months")
_FILL = """
INSERT INTO notifications (id, provider, facility, dedupe_key, fingerprint, event_type, state, reason, detail,
    received_at, processed_at, source, content_type, headers, body, verified, deliveries, conflicts, payment_id, event)
SELECT left(hex, 8) || '-' || right(hex, 4) || '-7000-8000-' || lpad(to_hex(n), 12, '0'), 'checkout',
    CASE WHEN n % 3 = 0 THEN 'main' ELSE 'second' END, 'evt_' || md5(n::text), md5(n::text) || md5(n::text),
    'payment_captured', CASE WHEN n % 500 = 0 THEN 'failed' ELSE 'processed' END, '', '', to_timestamp(ms / 1000.0),
    to_timestamp(ms / 1000.0), '203.0.113.7', 'application/json', '{{}}', convert_to(repeat('paymentAmount=12.50&', 20),
    'UTF8'), true, 1, 0, 'pay_' || md5((n / 2)::text), '{event}'
FROM (SELECT n, ms, lpad(to_hex(ms), 12, '0') AS hex
    FROM (SELECT n, {begin} + n * {step}::bigint AS ms FROM generate_series(1, {count}) AS n) AS times) AS made
"""


def execute(engine: Engine, statements: str) -> None:
    """As psql does it, however long it takes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(statements)


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def partition(engine: Engine) -> None:
    """As it would be, had it been done two years ago and kept up since."""
    then = _SCRIPT.read_text().replace("now()", f"(now() - interval '{_MONTHS.days + 31} days')")
    execute(engine, f"{then}; SELECT postback_add_months(27)")


def fill(engine: Engine, count: int) -> None:
    begin = int((datetime.now(UTC) - _MONTHS).timestamp() * 1000)
    step = int(_MONTHS.total_seconds() * 1000) // count
    event = msgspec.json.encode(_said("p1")).decode()
    execute(engine, _FILL.format(begin=begin, step=step, count=count, event=event))


def _said(payment_id: str) -> PaymentEvent:
    return PaymentEvent(effect=Effect.CAPTURED, event_type="payment_captured", payment_id=payment_id, amount=10)


class Questions:
    """What is asked of a ledger with `count` notifications, by name."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine, self._count = engine, count
        self._ledger = Ledger(engine)
        self._random = Random(1)

    def all(self) -> dict[str, Callable[[], object]]:
        return {
            f"a batch of {_BATCH} new ones": self._new(_BATCH),
            "a new one alone": self._new(1),
            f"a batch of {_BATCH} repeats of any age": self._repeats(_BATCH),
            "a repeat alone": self._repeats(1),
            "first page": self._page(Filter()),
            "first page of a state": self._page(Filter(state="failed")),
            "first page of an endpoint": self._page(Filter(provider="checkout", facility="main")),
            "first page of a provider with two": self._page(Filter(provider="checkout")),
            "a day a year ago": self._page(
                Filter(
                    since=datetime.now(UTC) - timedelta(days=365),
                    until=datetime.now(UTC) - timedelta(days=364),
                )
            ),
            "a search": self._page(Filter(search="evt_abc1")),
            "a payment's notifications": self._of_payment,
            "what needs attention": self._attention,
            "a piece of a purge": self._purge,
        }

    def _new(self, size: int) -> Callable[[], object]:
        def do() -> object:
            return self._ledger.record([self._item(f"{self._random.getrandbits(128):032x}") for _ in range(size)])

        return do

    def _repeats(self, size: int) -> Callable[[], object]:
        def do() -> object:
            known = [self._random.randrange(1, self._count) for _ in range(size)]
            items = [self._item(_hex(n), "main" if n % 3 == 0 else "second") for n in known]
            recorded = self._ledger.record(items)
            assert len(recorded.duplicates) == len(items)
            return recorded

        return do

    def _item(self, key: str, facility: str = "main") -> Interpreted:
        received_at = now_us()
        envelope = Envelope(
            id=new_id(received_at),
            provider="checkout",
            facility=facility,
            received_at=received_at,
            source="203.0.113.7",
            content_type="application/json",
            headers={},
            body=_BODY,
            verified=True,
            dedupe_key=f"evt_{key}",
            event_type="payment_captured",
            fingerprint=key + key,
            quarantine="",
            detail="",
        )
        return Interpreted(envelope, "processed", event=_said(f"new_{key}"))

    def _page(self, wanted: Filter) -> Callable[[], object]:
        def do() -> object:
            with queries.reading(self._engine) as connection:
                return pages.page_notifications(connection, wanted)

        return do

    def _of_payment(self) -> object:
        payment = f"pay_{_hex(self._random.randrange(1, self._count // 2))}"
        with queries.reading(self._engine) as connection:
            return events_of(connection, [("checkout", "main", payment)])

    def _attention(self) -> object:
        with queries.reading(self._engine) as connection:
            return attention.counts(connection)

    def _purge(self) -> object:
        task = Task(What.BODIES, datetime.now(UTC) - timedelta(days=400))
        return purging.purge_piece(self._engine, task, lambda connection, purged: None)


def _hex(number: int) -> str:
    return md5(str(number).encode(), usedforsecurity=False).hexdigest()


def by_turns(asked: Sequence[dict[str, Callable[[], object]]], times: int) -> Iterator[tuple[str, list[float]]]:
    """Each question with its median in ms for each ledger; who goes first changes."""
    for name in asked[0]:
        taken: list[list[float]] = [[] for _ in asked]
        for turn in range(times + 2):
            order = list(enumerate(asked))
            for position, questions in order if turn % 2 else reversed(order):
                taken[position].append(seconds(questions[name]))
        # The first two make plans and fill caches.
        yield name, [statistics.median(each[2:]) * 1000 for each in taken]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.months")
    parser.add_argument("--notifications", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=21)
    given = parser.parse_args()
    with running_postgres() as url:
        server = database.open_engine(url)
        engines = []
        for name in _LEDGERS:
            execute(server, f"CREATE DATABASE {name}")
            of_ledger = make_url(url).set(database=name).render_as_string(hide_password=False)
            database.migrate(of_ledger)
            engines.append(database.open_engine(of_ledger))
        whole, months = engines
        partition(months)
        for name, engine in zip(_LEDGERS, engines, strict=True):
            print(f"{name}: filled in {seconds(partial(fill, engine, given.notifications)):.0f} s")
            execute(engine, "VACUUM ANALYZE")
        asked = [Questions(engine, given.notifications).all() for engine in engines]
        print(f"{'':40} {'whole':>8} {'months':>8}  ms")
        for name, (first, second) in by_turns(asked, given.times):
            print(f"{name:40} {first:8.2f} {second:8.2f}")
        month = (datetime.now(UTC) - timedelta(days=400)).strftime("%Y_%m")
        for name, engine, table in (("whole", whole, "notifications"), ("months", months, f"notifications_{month}")):
            print(f"VACUUM {name}: {seconds(partial(execute, engine, f'VACUUM {table}')):.2f} s")
        print(f"partitioning what is whole: {seconds(partial(execute, whole, _SCRIPT.read_text())):.1f} s")
        for engine in (server, *engines):
            engine.dispose()


if __name__ == "__main__":
    main()
