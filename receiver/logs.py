"""Logs: one JSON object a line on standard error, readable lines on a terminal. Event names are constants; what
changes is a field. Secrets, credentials and bodies are never fields."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(process: str) -> None:
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
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Their per-job and per-connection lines say nothing that ours do not.
    for chatty in ("rq.worker", "rq.job", "rq.registry", "uvicorn.error", "uvicorn.access", "alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def get(name: str) -> Any:
    return structlog.get_logger(name)
