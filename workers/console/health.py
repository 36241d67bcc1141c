"""Whether all is well, asked at most once a second however many look."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Engine

from receiver.settings import Settings
from workers.console.latest import Latest
from workers.health import examine


class Health(Latest[dict[str, Any]]):
    """The health object, a second old at the most."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__(partial(examine, settings, engine))
