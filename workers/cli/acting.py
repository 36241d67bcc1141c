"""Who acts on the command line, and commands that change something."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workers.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from receiver.settings import Settings
    from workers.attention import Attention
    from workers.audit import Actor, Audit
    from workers.replay import Replays


def actor() -> Actor:
    """The user of the operating system, by the id of the process: what the environment says is told as well, and
    believed not."""
    import pwd

    from workers.audit import Actor

    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid-{uid}"
    origin = f"command on {socket.gethostname()}, uid {uid}"
    if sudo := os.environ.get("SUDO_USER"):
        origin += f", says sudo by {sudo}"
    return Actor(name, origin)


@contextmanager
def replays_of(config: Path | None) -> Iterator[Replays]:
    """What operators may do with replays. Logs stay silent: a result says more, and bodies are nobody's business."""
    from workers.replay import open_replays

    settings = options.settings(config)
    require_ledger(settings)
    quiet()
    found = open_replays(settings)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def attending(config: Path | None) -> Iterator[Attention]:
    """What operators may settle."""
    from workers.attention import Attention

    with audited(config) as (engine, audit):
        yield Attention(engine, audit)


@contextmanager
def audited(config: Path | None) -> Iterator[tuple[Engine, Audit]]:
    """The ledger, and the trail of what is done to it."""
    from workers.audit import Audit
    from workers.ledger.database import open_engine, url

    settings = options.settings(config)
    require_ledger(settings)
    quiet()
    engine = open_engine(url(settings))
    try:
        yield engine, Audit(settings.security.seal_keys)
    finally:
        engine.dispose()


def require_ledger(settings: Settings) -> None:
    """Raises `LedgerAway` before the ledger was ever made: to look at it must not make an empty one."""
    from receiver.errors import LedgerAway

    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        raise LedgerAway("it does not exist yet; `postback up` or `postback migrate` makes it.")


def quiet() -> None:
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def workers_alive(config: Path | None) -> int:
    """0 also while Redis is away: nothing is done then."""
    from redis.exceptions import RedisError

    from receiver.connection import connect
    from receiver.health import queue_state

    redis = connect(options.settings(config))
    try:
        return int(queue_state(redis)["workers"])
    except (RedisError, OSError):
        return 0
    finally:
        redis.close()
