"""Measures Postback beside its peers in one run on one machine, prints a table and writes a JSON file.

``python -m tests.bench`` takes about a quarter of an hour; ``--quick`` a minute or two, as CI runs it, without
thresholds. Quote the ratios: absolute figures of a shared machine do not hold. With
``pip install 'hookrelay[fastapi,redis]'`` that peer is measured as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import machine, requests, workload
from tests.bench.workload import Bench

CONNECTIONS = (1, 64, 256)
ROUNDS = 3
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="short loads, a small backlog, no growth")
    arguments.add_argument(
        "--only", choices=["accept", "worker", "growth", "start"], action="append", help="these parts alone"
    )
    arguments.add_argument("--seconds", type=int, default=0, help="length of one load")
    arguments.add_argument("--postgres", action="store_true", help="growth on PostgreSQL instead of SQLite")
    arguments.add_argument("--json", type=Path, help="where the results go")
    given = arguments.parse_args()
    machine.require_wrk()
    seconds = given.seconds or (1 if given.quick else 3)
    rounds = 1 if given.quick else ROUNDS
    results: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.described(),
        "fsync": {
            "postback": "always, before the answer",
            "naive, hookrelay": "always, before the answer",
            "others": "none",
        },
    }
    parts = given.only or ["start", "accept", "worker", *([] if given.quick else ["growth"])]
    with tempfile.TemporaryDirectory(prefix="postback-bench-") as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        if "start" in parts:
            results["start"] = workload.start_times(bench)
        if "accept" in parts:
            results["accept"] = accept(bench, seconds, CONNECTIONS[:2] if given.quick else CONNECTIONS, rounds)
        if "worker" in parts:
            results["worker"] = worker(bench, 2_000 if given.quick else 50_000, 0 if given.quick else 30)
        if "growth" in parts:
            results["growth"] = growth(bench, seconds, given.postgres)
    results["ratios"] = ratios(results)
    show(results)
    path = given.json or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Written to {path}.")


def accept(bench: Bench, seconds: int, connections: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Each server under the same loads, one after the other and in several rounds, of which the medians count: what
    else the machine does changes from minute to minute, and then hits all alike."""
    rows = []
    peers = [peer for peer in workload.PEERS if peer != "hookrelay" or find_spec("hookrelay")]
    for number in connections:
        kinds = list(requests.KINDS) if number == 64 else ["quickstream form"]
        seen: dict[str, list[dict[str, Any]]] = {}
        for nth in range(rounds):
            for peer in peers:
                seen.setdefault(peer, []).append(workload.peer_load(bench, peer, number, seconds))
            for kind in kinds:
                # What was stored and how long that took is looked at once.
                load = workload.postback_load(bench, kind, number, seconds, drain=nth == 0)
                seen.setdefault(kind, []).append(load)
        for loads in seen.values():
            rows.append(_medians(loads))
            _progress(rows[-1])
    return rows


def _medians(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several: medians of what was measured, sums of what was counted."""
    row = dict(loads[0])
    for name in ("per_second", "p50_ms", "p99_ms", "cpu_us"):
        row[name] = median(load[name] for load in loads)
    for name in ("refused", "errors"):
        row[name] = sum(load[name] for load in loads)
    return row | {"rounds": " ".join(f"{load['per_second']:.0f}" for load in loads)}


def worker(bench: Bench, backlog: int, sustained_seconds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"backlog": backlog}
    for store in ("sqlite", "postgresql"):
        found[store] = workload.drain(bench, store, backlog)
        _progress({"what": f"drain {store}", **found[store]})
    found["stock rq"] = workload.stock_worker(bench, min(backlog, 500))
    _progress({"what": "stock rq", **found["stock rq"]})
    if sustained_seconds:
        found["keeps up"] = workload.keeps_up(bench, sustained_seconds)
        _progress({"what": "keeps up", **found["keeps up"]})
    return found


def growth(bench: Bench, seconds: int, postgres: bool) -> list[dict[str, Any]]:
    rows = []
    for processes in (1, 2):
        rows.append(workload.postback_load(bench, "quickstream form", 64, seconds, processes=processes))
        rows[-1]["what"] += f", {processes} accept processes"
        _progress(rows[-1])
    rows += workload.grown(bench, seconds, (0, 100_000, 1_000_000), "postgresql" if postgres else "sqlite", _progress)
    return rows


def ratios(results: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    rows = results.get("accept", [])

    def row(what: str, connections: int) -> dict[str, Any] | None:
        return next((r for r in rows if r["what"] == what and r["connections"] == connections), None)

    for number in CONNECTIONS:
        ours, hello, naive = row("quickstream form", number), row("starlette", number), row("naive", number)
        if not (ours and hello and naive):
            continue
        found[f"form / Route at {number}"] = ours["per_second"] / hello["per_second"]
        found[f"form / naive at {number}"] = ours["per_second"] / naive["per_second"]
        found[f"p99 form / Route at {number}"] = ours["p99_ms"] / hello["p99_ms"]
        found[f"p50 form - Route in ms at {number}"] = ours["p50_ms"] - hello["p50_ms"]
        for kind in requests.KINDS:
            if kind != "quickstream form" and (other := row(kind, number)):
                found[f"{kind} / form at {number}"] = other["per_second"] / ours["per_second"]
    drained = results.get("worker", {})
    if "stock rq" in drained:
        for store in ("sqlite", "postgresql"):
            found[f"worker on {store} / stock rq"] = drained[store]["per_second"] / drained["stock rq"]["per_second"]
    return {name: round(value, 3) for name, value in found.items()}


def show(results: dict[str, Any]) -> None:
    console = Console(width=170)
    rows = results.get("accept", []) + results.get("growth", [])
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(title="Under load", box=None)
        for column in columns:
            table.add_column(column.replace("_", " "), justify="left" if column == "what" else "right")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console.print(table)
    for part in ("start", "worker", "ratios"):
        if part in results:
            table = Table("what", "figure", title=part, box=None)
            for name, value in results[part].items():
                table.add_row(name, json.dumps(value) if isinstance(value, dict) else _cell(value))
            console.print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def _progress(row: dict[str, Any]) -> None:
    print("  " + ", ".join(f"{name} {_cell(value)}" for name, value in row.items()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
