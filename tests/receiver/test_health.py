"""Is the process up, can it do its job, and what do its figures say."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker

from receiver import counted
from receiver.connection import QUEUE, Serializer, connect
from receiver.health import queue_state
from receiver.job import RECORD_BATCH, enqueue
from receiver.notification import new_id, now_us
from tests.asgi import Answer, Application
from tests.receiver.serving import configured, serving
from tests.servers import Valkey, eventually, running_valkey
from tests.support import recorded

QUICKSTREAM = recorded("quickstream", "payment__form")
CHECKOUT = recorded("checkout", "payment_captured__no_reference")


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def notify(application: Application, padding: int = 0) -> Answer:
    body = QUICKSTREAM.body + b"&customPad=" + b"x" * padding
    headers = {name: QUICKSTREAM.headers[name] for name in ("authorization", "content-type")}
    return application.post(QUICKSTREAM.path, headers, body)


def ready(application: Application, **wanted: Any) -> dict[str, Any]:
    """Waits until `/readyz` says all of `wanted`."""

    def look() -> dict[str, Any]:
        answer = application.get("/readyz")
        body: dict[str, Any] = answer.json
        assert answer.status == (503 if body["status"] == "not ready" else 200)
        return body if {key: body.get(key) for key in wanted} == wanted else {}

    return eventually(look, what=f"readiness {wanted}")


def test_livez(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, valkey_server.url)) as application:
        answer = application.get("/livez")
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        assert application.ask("HEAD", "/livez").status == 200


def test_ready(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, valkey_server.url)) as application:
        answer = application.get("/readyz")
        assert (answer.status, answer.json) == (200, {"status": "ready", "redis": "up", "spool_batches": 0})


def test_degraded_while_the_spool_stands_in_and_not_ready_when_it_is_full(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url, max_spool="128KiB")) as application:
        server.kill()
        assert notify(application).status == 200
        body = ready(application, status="degraded", redis="away", spool_batches=1)
        assert body["fault"].startswith("Redis does not ")
        assert application.get("/livez").status == 200
        while notify(application, 15_000).status == 200:
            continue
        while notify(application).status == 200:
            continue
        body = ready(application, status="not ready", redis="away")
        assert body["spool_fault"].startswith("The spool ")
        server.start()
        assert ready(application, status="ready") == {"status": "ready", "redis": "up", "spool_batches": 0}


def test_a_full_disk_is_told_before_the_first_notification_is_lost(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url, max_spool="128KiB")) as application:
        server.kill()
        while notify(application, 9_000).status == 200:
            continue
        assert ready(application, status="not ready")["redis"] == "away"


def test_not_ready_while_redis_is_not_durable(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url)) as application:
        client = server.client()
        client.config_set("appendonly", "no")
        body = ready(application, status="not ready")
        assert body["fault"] == (
            "Redis is not durable: appendonly is not yes, so nothing is written before the answer."
        )
        assert notify(application).status == 200, "the spool is a disk"
        client.config_set("appendonly", "yes")
        ready(application, status="ready", spool_batches=0)
        client.close()


def test_a_start_without_redis(server: Valkey, tmp_path: Path) -> None:
    server.kill()
    with serving(configured(tmp_path, server.url)) as application:
        assert notify(application).status == 200
        assert application.get("/readyz").json["status"] == "degraded"
        server.start()
        ready(application, status="ready", spool_batches=0)


NAMES = {
    *("postback_accepted_total", "postback_refused_total", "postback_not_stored_total"),
    *("postback_answer_seconds_bucket", "postback_commit_seconds_bucket", "postback_batch_size_bucket"),
    *("postback_spool_batches", "postback_queue_batches", "postback_queue_oldest_seconds", "postback_redis_up"),
    *("postback_workers", "postback_queue_answers"),
}


def figures(application: Application) -> dict[str, str]:
    answer = application.get("/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: value for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics(server: Valkey, tmp_path: Path) -> None:
    with serving(configured(tmp_path, server.url)) as application:
        notify(application)
        application.post(QUICKSTREAM.path)
        application.post(CHECKOUT.path, {"authorization": "x"})
        found = figures(application)
        assert {name.partition("{")[0] for name in found} >= NAMES
        assert found['postback_not_stored_total{facility="acme",provider="quickstream"}'] is not None
        assert (found["postback_redis_up"], found["postback_queue_batches"], found["postback_workers"]) == (
            *("1.0", "1.0", "0.0"),
        )
        assert 0 <= float(found["postback_queue_oldest_seconds"]) < 60
        assert found['postback_commit_seconds_count{to="redis"}'] != "0.0"
        # But for the setting of that name.
        assert not any("authorization" in name.replace("authorization_keys[", "") for name in found)
        server.kill()
        assert figures(application)["postback_redis_up"] == "0.0"
        unknown = figures(application)
        assert (unknown["postback_queue_answers"], unknown["postback_queue_batches"]) == ("0.0", "NaN")
        assert notify(application).status == 200
        eventually(lambda: figures(application)["postback_spool_batches"] == "1.0", what="the figure")


def test_figures_that_are_just_gathered_hold_up_nobody_else(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures_of = tmp_path / "metrics"
    figures_of.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(figures_of))
    waits, undisturbed = threading.Event(), counted.undisturbed

    def noted(folder: Path) -> AbstractContextManager[None]:
        waits.set()
        return undisturbed(folder)

    monkeypatch.setattr(counted, "undisturbed", noted)
    with serving(configured(tmp_path, valkey_server.url)) as application:
        with (figures_of / "gathering.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            asked = application.begin("GET", "/metrics")
            assert waits.wait(30)
            assert notify(application).status == 200
            assert not asked.done()
        answer = asked.result(30)
        assert answer is not None
        assert answer.status == 200


def test_the_state_of_the_queue(redis: Redis) -> None:
    assert queue_state(redis) == {"batches": 0, "oldest_seconds": 0.0, "set_aside": 0, "workers": 0}
    queue = Queue(QUEUE, connection=redis, serializer=Serializer)
    for age in (90, 30):
        pipeline = redis.pipeline()
        enqueue(queue, pipeline, RECORD_BATCH, new_id(now_us() - age * 1_000_000), b"sealed", "")
        pipeline.execute()
    alive, gone, ahead = (SimpleWorker([queue], connection=redis, serializer=Serializer) for _ in range(3))
    for worker in (alive, gone, ahead):
        worker.register_birth()  # type: ignore[no-untyped-call]
    redis.hset(gone.key, "last_heartbeat", "2020-01-01T00:00:00.000000Z")
    # It died before the clock was set back.
    redis.hset(ahead.key, "last_heartbeat", "2099-01-01T00:00:00.000000Z")
    redis.zadd(queue.failed_job_registry.key, {"a": 1})
    state = queue_state(redis)
    assert 89 < state.pop("oldest_seconds") < 120
    assert state == {"batches": 2, "set_aside": 1, "workers": 1}


def test_jobs_that_are_not_ours_have_no_age(redis: Redis) -> None:
    redis.rpush("rq:queue:notifications", "no-uuid-at-all")
    assert queue_state(redis)["oldest_seconds"] == 0.0


def test_no_state_without_redis(server: Valkey, tmp_path: Path) -> None:
    server.kill()
    client = connect(configured(tmp_path, server.url))
    with pytest.raises(RedisError):
        queue_state(client)
    client.close()
