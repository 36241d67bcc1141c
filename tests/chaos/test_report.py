"""The report of a long run goes on whatever was killed just then."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from tests.chaos.__main__ import _state
from tests.chaos.place import Place
from tests.live.installation import Installation


def test_a_process_that_is_gone_ends_no_report(tmp_path: Path) -> None:
    place = Place("sqlite", Random(1))
    shutil.rmtree(place.folder)
    place.installation = Installation(tmp_path)
    place.installation.process = subprocess.Popen([sys.executable, "-c", ""])
    place.installation.process.wait()
    # Its id is free, as that of a killed one that was waited for: it has no children any more.
    place.pids = lambda role: place.installation.pids(role)  # type: ignore[method-assign]
    assert asyncio.run(_state(place)).startswith("up 0 MiB 0 files, serve 0 MiB")
    place.installation.client.close()
