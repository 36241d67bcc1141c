"""Replays by real workers: the job in the queue, a worker that is killed in the middle, a word that was lost."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from sqlalchemy import Engine, delete, update

from receiver.settings import Replay as Limits
from receiver.signing import Seal
from tests.servers import Valkey, eventually
from tests.support import recorded, secrets
from tests.workers.material import delivered, envelope, rows, sealed, states
from tests.workers.test_replay import ANNA, Desk
from tests.workers.test_runner import Workers, put, queue_of
from workers import jobs, runner
from workers.audit import Audit
from workers.ledger.tables import notifications, payments, replays
from workers.replay import Chosen, Replays
from workers.replay_runner import RUN_REPLAY, ReplayRunner, replay_of, wake_stalled, waker

KEYS = secrets("old-seal-key", "new-seal-key")
SEAL = Seal(KEYS, "replay")
MANY = 1000


@pytest.fixture
def desk(engine: Engine, redis: Redis) -> Desk:
    """Whose word goes into a real queue."""
    desk = Desk(engine)
    desk.replays = Replays(desk.ledger, desk.pipeline, Audit(KEYS), Limits(approve_above=MANY), waker(redis, SEAL))
    return desk


@pytest.fixture
def workers(redis: Redis, valkey_server: Valkey, database_url: str, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(valkey_server.url, database_url, tmp_path)
    # Slow enough to be killed in the middle.
    started._document["replay"] = {"per_second": 400}
    yield started
    started.kill_all()


def failed(desk: Desk, count: int) -> None:
    """`count` captured payments that a fault of ours made fail."""
    request = recorded("checkout", "payment_captured")
    payment_id = msgspec.json.decode(request.body)["data"]["id"].encode()
    for start in range(0, count, 500):
        bodies = [request.body.replace(payment_id, f"pay_{n:026}".encode()) for n in range(start, start + 500)]
        came = [delivered(request, body=body, dedupe_key=f"k{start + n}") for n, body in enumerate(bodies)]
        desk.pipeline.process(sealed(*came))
    with desk.engine.begin() as connection:
        values = {"state": "failed", "reason": "interpretation_failed", "event": None, "payment_id": None}
        connection.execute(update(notifications).values(values))
        connection.execute(delete(payments))


def test_a_replay_that_is_killed_goes_on_and_does_nothing_twice(desk: Desk, workers: Workers, engine: Engine) -> None:
    failed(desk, MANY)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    worker = workers.start()
    eventually(lambda: 0 < desk.shown(replay_id)["done"] < MANY, what="the middle of the replay")
    worker.kill()
    worker.join(10)
    state = desk.shown(replay_id)
    assert state["state"] == "running"
    assert state["done"] == len(desk.results(replay_id)) < MANY
    assert list(states(engine).values()).count("processed") == state["done"]
    workers.start()
    eventually(lambda: desk.shown(replay_id)["state"] == "done", 60, "the end of the replay")
    # One that was done twice would say `unchanged`.
    assert desk.shown(replay_id)["outcomes"] == {"new_payment": MANY}
    assert (len(desk.results(replay_id)), len(rows(engine, payments))) == (MANY, MANY)
    assert {row.deliveries for row in rows(engine, notifications)} == {1}


def test_what_comes_meanwhile_is_recorded_before_the_replay_ends(
    desk: Desk, workers: Workers, redis: Redis, engine: Engine
) -> None:
    failed(desk, MANY)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    workers.start()
    eventually(lambda: desk.shown(replay_id)["done"] > 0)
    put(queue_of(redis), sealed(envelope("live", quarantine="missing_field", detail="x")))
    eventually(lambda: "live" in states(engine), what="the live notification")
    assert desk.shown(replay_id)["state"] == "running"
    eventually(lambda: desk.shown(replay_id)["state"] == "done", 60)
    eventually(lambda: not redis.keys("rq:job:*"), what="an empty queue")


def test_a_paused_replay_leaves_the_queue_and_is_resumed(desk: Desk, workers: Workers, redis: Redis) -> None:
    failed(desk, MANY)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    workers.start()
    eventually(lambda: desk.shown(replay_id)["done"] > 0)
    done = desk.replays.pause(ANNA, replay_id)["done"]
    eventually(lambda: not redis.keys("rq:job:*"), what="an empty queue")
    assert desk.shown(replay_id)["done"] == done < MANY
    desk.replays.resume(ANNA, replay_id)
    eventually(lambda: desk.shown(replay_id)["state"] == "done", 60)
    assert desk.shown(replay_id)["outcomes"] == {"new_payment": MANY}


def test_a_word_that_was_lost_is_said_again(
    desk: Desk, redis: Redis, engine: Engine, logged: Sequence[MutableMapping[str, Any]]
) -> None:
    failed(desk, 500)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    queue = queue_of(redis)
    wakes = ReplayRunner(desk.ledger, desk.pipeline, Audit(KEYS), 1000)

    def jobs_of_it() -> int:
        return [replay_of(job) for job in queue.get_job_ids()].count(replay_id)

    assert jobs_of_it() == 1
    redis.flushall()
    wake_stalled(queue, wakes, SEAL)
    assert jobs_of_it() == 0
    with engine.begin() as connection:
        connection.execute(update(replays).values(changed_at=datetime.now(UTC) - timedelta(minutes=1)))
    for _ in range(2):
        wake_stalled(queue, wakes, SEAL)
        assert jobs_of_it() == 1
    assert [event["replay"] for event in logged if event["event"] == "replay_woken"] == [replay_id]


def test_a_replay_that_is_asked_for_while_redis_is_away_is_not_lost(
    desk: Desk, engine: Engine, logged: Sequence[MutableMapping[str, Any]]
) -> None:
    failed(desk, 500)
    away = Redis.from_url("unix:///nowhere/valkey.sock")
    desk.replays = Replays(desk.ledger, desk.pipeline, Audit(KEYS), Limits(approve_above=500), waker(away, SEAL))
    made = desk.replays.create(ANNA, Chosen(state="failed"), "mended")
    assert desk.shown(made["id"])["state"] == "running"
    assert [event["event"] for event in logged if event["event"] == "replay_not_told"]


def test_a_word_of_somebody_else_is_set_aside(
    desk: Desk, redis: Redis, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(desk, 500)
    replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
    redis.flushall()
    queue = queue_of(redis)
    job_id = put(queue, Seal(secrets("forged"), "replay").seal(replay_id.encode()), RUN_REPLAY)
    here = jobs.Context(desk.pipeline, Seal(KEYS, "expectation"), Seal(KEYS, "returns"), desk.runner, SEAL)
    monkeypatch.setattr(jobs, "context", here)
    worker = runner.BatchWorker(redis, desk.ledger)
    worker.work(burst=True)
    assert queue.failed_job_registry.get_job_ids() == [job_id]
    assert desk.shown(replay_id)["done"] == 0
