"""One run: ``python -m tests.chaos --minutes N --seed S``. Exit 0 when nothing was lost and nothing counts twice."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from dataclasses import dataclass, field
from random import Random

import uvloop

from receiver import settings as configuration
from tests.chaos.audit import Findings, audit
from tests.chaos.client import Client
from tests.chaos.faults import Faults
from tests.chaos.journal import Journal
from tests.chaos.load import Counts, Load
from tests.chaos.place import Place
from tests.chaos.upkeep import Use, Watch, leaks, measure

WARM_UP = 10.0
STUCK_AFTER = 180.0
"""Seconds without a batch less on its way, at the end, after which it will never be drained."""
SHOWN = 20
REPORT_EVERY = 30.0


@dataclass(slots=True)
class Result:
    counts: Counts
    findings: Findings
    faults: dict[str, int]
    skipped: list[str]
    complaints: list[str] = field(default_factory=list)
    """What is wrong besides the ledger: not drained, set aside, leaks."""

    @property
    def good(self) -> bool:
        found = self.findings
        return not (found.lost or found.doubled or found.wrong or self.complaints or self.counts.forged_accepted)


async def run(options: argparse.Namespace) -> Result:
    place = Place(options.store, Random(f"links {options.seed}"))
    keep = True
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        result = await _run(place, options)
        keep = options.keep or not result.good
        return result
    finally:
        await place.close(keep)


async def _run(place: Place, options: argparse.Namespace) -> Result:
    await place.start()
    settings = configuration.load(place.installation.config)
    host, port = place.sender_link.here  # type: ignore[misc]
    client = Client(host, port, timeout=10.0)
    journal = Journal(place.folder / "journal.sqlite3")
    load = Load(settings.endpoints, client, journal, Random(f"load {options.seed}"))
    faults = Faults(place, Random(f"faults {options.seed}"))
    seconds = options.minutes * 60
    watch = Watch()
    helpers = [
        asyncio.create_task(place.look_after()),
        asyncio.create_task(watch.run(place)),
        asyncio.create_task(_report(load, faults, place)),
    ]
    try:
        sending = asyncio.create_task(load.run(options.rate, seconds))
        await asyncio.sleep(WARM_UP)
        before = measure(place)
        await faults.run(max(seconds - WARM_UP, 0), options.every)
        await sending
        await load.finish()
        complaints = await _drain(place)
    finally:
        for helper in helpers:
            helper.cancel()
        client.close()
    complaints += watch.complaints()
    complaints += await _leaks(place, before, load.counts.registered)
    if aside := place.set_aside():
        complaints.append(f"{aside} batches were set aside")
    # In a thread, as it goes through a link of this process.
    health = await asyncio.to_thread(place.installation.run, "health")
    if health.returncode:
        complaints.append(f"health: {health.stdout.strip()}")
    _say(f"{_uses(before, measure(place))}; the most of one process: {_uses(watch.most, None)}")
    findings = await asyncio.to_thread(audit, journal, place.database_url)
    journal.close()
    return Result(load.counts, findings, dict(faults.counts), faults.skipped, complaints)


async def _drain(place: Place) -> list[str]:
    """Waits until all is in the ledger, as long as it becomes less."""
    loop = asyncio.get_running_loop()
    least, since = sys.maxsize, loop.time()
    quiet = 0
    while quiet < 3:
        # A batch that is just being taken shows nowhere for an instant.
        left = await asyncio.to_thread(place.unfinished) if await place.ready() else None
        quiet = quiet + 1 if left is not None and not left.batches else 0
        if left is not None and left.batches < least:
            least, since = left.batches, loop.time()
        if loop.time() > since + STUCK_AFTER:
            return [f"not drained: {left or 'not ready'} after {STUCK_AFTER:.0f} s without one batch less"]
        await asyncio.sleep(0.5)
    return []


async def _leaks(place: Place, before: dict[str, Use], tokens: int) -> list[str]:
    """What is still too much some time after the last connection was closed."""
    await place.sender_link.stop()
    found: list[str] = []
    for _ in range(40):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(place.tidy)
        found = leaks(before, measure(place), tokens) + await asyncio.to_thread(place.left_over)
        if not found:
            break
    return found


async def _report(load: Load, faults: Faults, place: Place) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        await asyncio.sleep(REPORT_EVERY)
        counts = load.counts
        _say(
            f"{loop.time() - began:.0f} s: {counts.notifications} notifications, {counts.sent} sent,"
            f" {counts.acknowledged} acknowledged, {counts.gave_up} given up, {faults.counts.total()} faults;"
            f" {await _state(place)}"
        )


async def _state(place: Place) -> str:
    """Of the processes and of what is under way. At any moment one of them may have just been killed: that is no
    reason to stop reporting."""
    try:
        uses = _uses(measure(place), None)
        return f"{uses}; {await asyncio.to_thread(place.unfinished) or 'Valkey does not answer'}"
    except Exception as error:
        return f"not measured: {type(error).__name__}: {error}"


def _uses(before: dict[str, Use], after: dict[str, Use] | None) -> str:
    def shown(use: Use) -> str:
        return f"{use.memory >> 20} MiB {use.files} files"

    parts = []
    for role, use in before.items():
        parts.append(f"{role} {shown(use)}" + (f" -> {shown(after[role])}" if after else ""))
    return ", ".join(parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def figures(result: Result, options: argparse.Namespace) -> str:
    counts, findings = result.counts, result.findings
    kinds = ", ".join(f"{name} {number}" for name, number in sorted(result.faults.items()))
    skipped = f"; skipped {', '.join(result.skipped)}" if result.skipped else ""
    return (
        f"chaos store={options.store} seed={options.seed} minutes={options.minutes:g}"
        f" notifications={counts.notifications} sent={counts.sent} acknowledged={counts.acknowledged}"
        f" stored={findings.stored} payments={findings.payments} lost={len(findings.lost)}"
        f" doubled={len(findings.doubled)} wrong={len(findings.wrong) + len(result.complaints)}"
        f" given_up={counts.gave_up} forged={counts.forged} forged_accepted={counts.forged_accepted}"
        f" longest_without_200={counts.longest_without_200:.1f}s harness={_peak() >> 20}MiB"
        f" faults={sum(result.faults.values())} ({kinds}{skipped})"
    )


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rate", type=float, default=300.0, help="notifications a second")
    parser.add_argument("--every", type=float, default=4.0, help="seconds from one fault to the next, about")
    parser.add_argument("--keep", action="store_true", help="keep the folder also when all is well")
    options = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(run(options))
    except asyncio.CancelledError:
        _say("stopped")
        return 2
    for key in [*result.findings.lost, *result.findings.doubled, *result.findings.wrong][:SHOWN] + result.complaints:
        print(key)
    print(figures(result, options))
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
