"""Logs: one JSON object a line on standard error, readable lines on a terminal. Event names are constants; what
changes is a field. Secrets, credentials and bodies are never fields."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from receiver import cards


def without_cards(logger: Any, method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """The last look before a line is written: no card number in any value, tracebacks included."""
    return {name: _without_cards(value) for name, value in event.items()}


def _without_cards(value: Any) -> Any:
    if isinstance(value, str):
        # Of its own kind, as an enumeration would be shown by its value anyway.
        return cards.masked_text(value)
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        text = str(value)
        return value if (masked := cards.masked_text(text)) == text else masked
    if isinstance(value, dict):
        return {_without_cards(name): _without_cards(child) for name, child in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_cards(child) for child in value]
    return cards.masked_text(repr(value))


def configure(process: str, level: int = logging.INFO) -> None:
    """Sets up structlog and sends the standard library's records (uvicorn, RQ) the same way."""

    def name_process(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"process": process, **event}

    shared: list[Any] = [
        name_process,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if sys.stderr.isatty():
        # The prettier tracebacks show local variables, and with them bodies and secrets.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, without_cards, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their per-job and per-connection lines say nothing that ours do not.
    for chatty in ("rq.worker", "rq.job", "rq.registry", "uvicorn.error", "uvicorn.access", "alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


# A command that is no process of its own has not configured anything: structlog itself would print to standard output,
# and tracebacks with local variables, secrets among them.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_cards,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    cache_logger_on_first_use=False,
)


def get(name: str) -> Any:
    return structlog.get_logger(name)
