"""Measures Postback beside its peers in one run on one machine, prints a table and writes a JSON file.

``python -m tests.bench`` takes about half an hour; ``--quick`` a minute or two, as CI runs it, without thresholds.
Quote the ratios: absolute figures of a shared machine do not hold. With ``pip install 'hookrelay[fastapi,redis]'`` that
peer is measured as well.
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
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import machine, requests, workload
from tests.bench.workload import Bench

CONNECTIONS = (1, 64, 256)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="short loads, a small backlog, no growth")
    arguments.add_argument("--only", choices=["accept", "worker", "growth", "start"], help="one part alone")
    arguments.add_argument("--seconds", type=int, default=0, help="length of one load")
    arguments.add_argument("--postgres", action="store_true", help="growth on PostgreSQL instead of SQLite")
    arguments.add_argument("--json", type=Path, help="where the results go")
    given = arguments.parse_args()
    machine.require_wrk()
    seconds = given.seconds or (1 if given.quick else 5)
    results: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.described(),
        "fsync": {
            "postback": "always, before the answer",
            "naive, hookrelay": "always, before the answer",
            "others": "none",
        },
    }
    parts = [given.only] if given.only else ["start", "accept", "worker", *([] if given.quick else ["growth"])]
    with tempfile.TemporaryDirectory(prefix="postback-bench-") as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        if "start" in parts:
            results["start"] = workload.start_times(bench)
        if "accept" in parts:
            results["accept"] = accept(bench, seconds, CONNECTIONS[:2] if given.quick else CONNECTIONS)
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


def accept(bench: Bench, seconds: int, connections: tuple[int, ...]) -> list[dict[str, Any]]:
    """Each server under the same loads, in turn at each number of connections, so that drift hits all alike."""
    rows = []
    for number in connections:
        for peer in workload.PEERS:
            if peer == "hookrelay" and find_spec("hookrelay") is None:
                continue
            rows.append(workload.peer_load(bench, peer, number, seconds))
        kinds = requests.KINDS if number == 64 else {"quickstream form": None}
        for kind in kinds:
            rows.append(workload.postback_load(bench, kind, number, seconds))
            _progress(rows[-1])
        # Once more behind everything else: the two readings of the hello world show how much the machine drifted.
        rows.append(workload.peer_load(bench, "starlette", number, seconds) | {"what": "starlette again"})
    return rows


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
        again = row("starlette again", number)
        if not (ours and hello and naive and again):
            continue
        hello_rate = (hello["per_second"] + again["per_second"]) / 2
        hello_p99 = (hello["p99_ms"] + again["p99_ms"]) / 2
        found[f"form / Route at {number}"] = ours["per_second"] / hello_rate
        found[f"form / naive at {number}"] = ours["per_second"] / naive["per_second"]
        found[f"p99 form / Route at {number}"] = ours["p99_ms"] / hello_p99
        found[f"p50 form - Route in ms at {number}"] = ours["p50_ms"] - (hello["p50_ms"] + again["p50_ms"]) / 2
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
