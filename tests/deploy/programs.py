"""Programs that judge what deploy/ has."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.servers import absent


def program(name: str) -> str:
    """One that came with the tests, or that the machine has. Skips the test, or fails it in CI, without one."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        absent(name, FileNotFoundError(f"{name} is not installed"))
        raise AssertionError
    return found
