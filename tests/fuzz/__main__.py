"""``python -m tests.fuzz [--seconds N | --runs N] [target ...]``: looks for bytes that break a target.

libFuzzer, through atheris, changes the seeds so that they reach further into our code.
Each target runs in a process of its own, as many at a time as there are cores, and gets its share of the time. What
breaks one is left in `--findings` with the traceback on the terminal: mend it, and put the file into
``tests/fuzz/findings/TARGET/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.corpus import seeds
from tests.fuzz.targets import TARGETS

LONGEST = 4096
"""Bytes of an input: what is longer says little more, and takes its time."""
SLOWEST = 5
"""Seconds that one input may take; as much is a finding too."""

_RUNS = re.compile(r"^stat::number_of_executed_units: *(\d+)", re.MULTILINE)
_COVERED = re.compile(r"\bcov: (\d+)")


class Outcome(NamedTuple):
    target: str
    runs: int
    covered: int
    """Edges of our code that were reached."""
    found: str
    """What libFuzzer said of a finding; "" without one."""


ONE = (sys.executable, "-m", "tests.fuzz.one")


def main(arguments: Sequence[str]) -> int:
    wanted = _wanted(arguments)
    outcomes = []
    print(f"{'target':24}{'runs':>12}{'edges':>8}")
    with ThreadPoolExecutor(wanted.at_once) as pool:
        for outcome in pool.map(partial(_fuzz, wanted=wanted), wanted.targets):
            found = "FOUND" if outcome.found else ""
            print(f"{outcome.target:24}{outcome.runs:12,}{outcome.covered:8,}  {found}", flush=True)
            outcomes.append(outcome)
    print(f"{'all':24}{sum(outcome.runs for outcome in outcomes):12,}")
    if wanted.json:
        wanted.json.write_text(json.dumps([outcome._asdict() for outcome in outcomes], indent=1) + "\n")
    for outcome in outcomes:
        if outcome.found:
            print(f"\n{outcome.target}:\n{outcome.found}", file=sys.stderr)
    return 1 if any(outcome.found or not outcome.runs for outcome in outcomes) else 0


def _wanted(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Looks for bytes that break a reader.")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"one of {', '.join(TARGETS)}; all without one")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--seconds", type=int, help="of fuzzing in all (60)")
    amount.add_argument("--runs", type=int, help="of each target")
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)), help="targets (one for each core)")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what reached further, for the next run")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where findings are left")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args(arguments)
    given.targets = given.targets or list(TARGETS)
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"there is no target {unknown.pop()}; there are {', '.join(TARGETS)}")
    return given


def _fuzz(target: str, wanted: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="postback-fuzz-") as folder:
        begun = Path(folder) / "seeds"
        begun.mkdir()
        for number, seed in enumerate(seeds(target)):
            (begun / f"{number:04}").write_bytes(seed)
        kept = (wanted.corpus or Path(folder) / "corpus") / target
        kept.mkdir(parents=True, exist_ok=True)
        wanted.findings.mkdir(parents=True, exist_ok=True)
        share = max(1, (wanted.seconds or 60) // len(wanted.targets))
        limit = f"-runs={wanted.runs}" if wanted.runs else f"-max_total_time={share}"
        options = [
            limit,
            f"-max_len={LONGEST}",
            f"-timeout={SLOWEST}",
            f"-artifact_prefix={wanted.findings}/{target}-",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        command = [*ONE, target, *options, str(kept), str(begun)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    runs = sum(map(int, _RUNS.findall(done.stdout)))
    covered = max(map(int, _COVERED.findall(done.stdout)), default=0)
    return Outcome(target, runs, covered, done.stdout[-4000:] if done.returncode else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
