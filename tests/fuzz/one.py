"""One target in this process: ``python -m tests.fuzz.one TARGET [libFuzzer's options]``."""

from __future__ import annotations

import logging
import sys

import atheris

# What is imported here tells libFuzzer where it has been. The readers' own libraries are too large, or not Python.
with atheris.instrument_imports(include=["receiver", "workers.reconcile", "urllib.parse", "json.decoder"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    logging.disable()
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
