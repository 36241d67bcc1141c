"""How fast a replay is beside the worker, and how long live notifications wait for it, on both databases.

    python -m tests.bench.replay

Records 10,000 card payments as the worker does, makes them fail, replays them, and meanwhile records a live
notification every 50 ms through a real queue and a real worker.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, delete, select, text, update

from receiver.job import RECORD_BATCH, enqueue
from receiver.notification import new_id, now_us
from receiver.settings import Replay as Limits
from receiver.signing import Seal
from tests.servers import eventually, running_postgres, running_valkey
from tests.support import recorded, secrets
from tests.workers.material import delivered, envelope, sealed
from tests.workers.test_replay import ANNA, KEYS, Desk
from tests.workers.test_runner import queue_of, work
from workers.audit import Audit
from workers.ledger import database
from workers.ledger.tables import notifications, payments
from workers.replay import Chosen, Replays
from workers.replay_runner import waker

COUNT = 10_000
_BATCH = 500


def batches(name: str = "k") -> list[bytes]:
    request = recorded("checkout", "payment_captured")
    known = msgspec.json.decode(request.body)["data"]["id"].encode()
    found = []
    for start in range(0, COUNT, _BATCH):
        bodies = [request.body.replace(known, f"pay_{name}{n:025}".encode()) for n in range(start, start + _BATCH)]
        found.append(
            sealed(*(delivered(request, body=b, dedupe_key=f"{name}{start + n}") for n, b in enumerate(bodies)))
        )
    return found


def break_all(engine: Engine) -> None:
    with engine.begin() as connection:
        values = {"state": "failed", "reason": "interpretation_failed", "event": None, "payment_id": None}
        connection.execute(update(notifications).where(notifications.c.dedupe_key.startswith("k")).values(values))
        connection.execute(delete(payments).where(payments.c.payment_id.startswith("pay_k")))
    if engine.dialect.name == "postgresql":
        # As autovacuum does within a minute.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def measure(url: str, redis: Any, redis_url: str, folder: Path) -> dict[str, float]:
    engine = database.open_engine(url)
    desk = Desk(engine)
    # As many others, which stay as they are.
    for batch in batches("o"):
        desk.pipeline.process(batch)
    began = time.perf_counter()
    for batch in batches():
        desk.pipeline.process(batch)
    working = COUNT / (time.perf_counter() - began)
    break_all(engine)
    limits = Limits(approve_above=COUNT)
    asking = Replays(desk.ledger, desk.pipeline, Audit(KEYS), limits, lambda replay_id: None)
    replay_id = asking.create(ANNA, Chosen(state="failed"), "measured")["id"]
    began = time.perf_counter()
    desk.run(replay_id)
    replaying = COUNT / (time.perf_counter() - began)
    assert desk.shown(replay_id)["outcomes"] == {"new_payment": COUNT}
    break_all(engine)
    waits = live_waits(desk, redis, redis_url, url, folder)
    engine.dispose()
    return {
        "worker, 1/s": round(working),
        "replay, 1/s": round(replaying),
        "replay / worker": round(replaying / working, 2),
        "live during a replay, median ms": round(statistics.median(waits) * 1000),
        "live during a replay, longest ms": round(max(waits) * 1000),
    }


def live_waits(desk: Desk, redis: Any, redis_url: str, url: str, folder: Path) -> list[float]:
    document = {
        "data_dir": str(folder),
        "queue": {"redis_url": redis_url},
        "store": {"database_url": url},
        "security": {"seal_keys": ["old-seal-key", "new-seal-key"]},
        "endpoint": [{"provider": "checkout", "facility": "main", "signature_keys": ["k"]}],
    }
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(document, folder))
    worker.start()
    try:
        return _waits(desk, redis)
    finally:
        worker.kill()
        worker.join(10)


def _waits(desk: Desk, redis: Any) -> list[float]:
    limits = Limits(approve_above=COUNT)
    asking = Replays(
        desk.ledger,
        desk.pipeline,
        Audit(KEYS),
        limits,
        waker(redis, Seal(secrets("old-seal-key", "new-seal-key"), "replay")),
    )
    queue = queue_of(redis)
    _live(desk, queue)
    replay_id = asking.create(ANNA, Chosen(state="failed"), "measured")["id"]
    eventually(lambda: desk.shown(replay_id)["done"] > 0)
    waits = []
    while desk.shown(replay_id)["state"] == "running":
        waits.append(_live(desk, queue))
        time.sleep(0.05)
    return waits


def _live(desk: Desk, queue: Any) -> float:
    """Seconds from the queue into the ledger."""
    came = envelope(new_id(now_us()), id=new_id(now_us()), quarantine="missing_field", detail="x")
    pipeline = queue.connection.pipeline()
    began = time.perf_counter()
    enqueue(queue, pipeline, RECORD_BATCH, new_id(now_us()), sealed(came), "live")
    pipeline.execute()
    query = select(notifications.c.id).where(notifications.c.id == came.id)

    def recorded_now() -> bool:
        with desk.engine.connect() as connection:
            return connection.execution_options(reading=True).execute(query).first() is not None

    while not recorded_now():
        time.sleep(0.002)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_postgres() as postgres, running_valkey() as valkey:
        urls = {"sqlite": f"sqlite:///{Path(folder) / 'ledger.sqlite3'}", "postgresql": postgres}
        for name, url in urls.items():
            database.migrate(url)
            redis = valkey.client()
            redis.flushall()
            print(name, measure(url, redis, valkey.url, Path(folder)), flush=True)
            redis.close()


if __name__ == "__main__":
    main()
