"""Good notifications in the midst of a flood: ``python -m tests.bench.flood`` (needs wrk).

Everything comes from loopback and from one address: 500 connections that send heads and bodies a byte at a time and
come again when they are hung up on, wrk with as many unproven requests as 64 connections can send, and 50 proven
notifications a second, whose answers are timed from the opening of their own connection. The unproven ones are of all
kinds; or, `--of closing`, each of them on a new connection, or, `--of tokens`, Debitsuccess payments that nobody knows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

from tests.bench import machine, requests
from tests.bench.workload import Bench, Installation

SLOW = 500
BAD_CONNECTIONS = 64
GOOD_PER_SECOND = 50
BAD_KINDS = 1000

_SLOW_ONES = (
    b"POST /notify/checkout/main HTTP/1.1\r\nHost: localhost\r\nX-Padding: " + b"a" * 500,
    b"POST /notify/checkout/main HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"{" * 500,
)


# Both keep the length, as some proofs stand in the body.
_PROOF = re.compile(rb'((?:Basic|Cko-Signature:|X-Token:|"checksum":) "?)([^"\r]+)')
_OTHERWISE = bytes.maketrans(b"abcdef0123456789", b"bcdefa1234567890")
_PROOF_NAME = re.compile(rb"(Authorizatio|Cko-Signatur|X-Toke|checksu)\w")


def bad(number: int) -> bytes:
    """A request that is refused: a wrong address, a wrong proof, no proof, or no HTTP at all."""
    good = list(requests.KINDS.values())[number % len(requests.KINDS)](f"9{number:011d}")
    kind = number // len(requests.KINDS) % 4
    if kind == 0:
        return good.replace(b"POST /notify/", b"POST /notify/x")
    if kind == 3:
        return good.replace(b"Host: ", b"Host : ")
    if kind == 1:
        return _PROOF.sub(lambda proof: proof[1] + proof[2].translate(_OTHERWISE), good)
    return _PROOF_NAME.sub(rb"\1x", good)


def closing(number: int) -> bytes:
    """The same, each with the wish for a new connection after it."""
    return bad(number).replace(b"Content-Length:", b"Connection: close\r\nContent-Length:", 1)


def unknown_token(number: int) -> bytes:
    """A Debitsuccess payment whose token nobody registered: it has to be looked up before it is refused."""
    body = json.dumps({"PaymentFormToken": f"form{number}", "WebhookToken": f"hook{number}", "Status": "Cleared"})
    return requests.request("debitsuccess/gym", {"Content-Type": "application/json"}, body.encode())


FLOODS = {"mixed": bad, "closing": closing, "tokens": unknown_token}


async def slow_client(port: int) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for byte in random.choice(_SLOW_ONES):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(random.uniform(0.1, 2)):
                            if not await reader.read(1000):
                                break
            finally:
                writer.close()
        await asyncio.sleep(0.05)


async def good_client(port: int, seconds: float, series: int) -> tuple[list[float], Counter[str]]:
    """Milliseconds to each answer, and what was answered."""
    waits: list[float] = []
    answers: Counter[str] = Counter()
    makers = list(requests.KINDS.values())

    async def one(number: int) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(makers[number % len(makers)](f"{series:03d}{number:09d}"))
                answer = await reader.readuntil(b"\r\n")
                writer.close()
            answers[answer[9:12].decode()] += 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            answers[type(error).__name__] += 1
        waits.append((time.perf_counter() - began) * 1000)

    running = []
    end = time.perf_counter() + seconds
    for number in count():
        if time.perf_counter() > end:
            break
        running.append(asyncio.create_task(one(number)))
        await asyncio.sleep(1 / GOOD_PER_SECOND)
    await asyncio.gather(*running)
    return waits, answers


async def measure(bench: Bench, port: int, pid: int, flood_of: str, seconds: int) -> dict[str, Any]:
    file = bench.folder / "bad"
    with file.open("wb") as written:
        for number in range(BAD_KINDS):
            request = FLOODS[flood_of](number)
            written.write(b"%d\n%s" % (len(request), request))
    quiet, _ = await good_client(port, min(5, seconds), 1)
    slow = [asyncio.create_task(slow_client(port)) for _ in range(SLOW)]
    await asyncio.sleep(2)
    before = machine.cpu_seconds(pid)
    flood = asyncio.create_task(asyncio.to_thread(machine.load, port, bench.script, file, BAD_CONNECTIONS, seconds + 2))
    await asyncio.sleep(1)
    waits, answers = await good_client(port, seconds, 2)
    seen = await flood
    used = machine.cpu_seconds(pid) - before
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    return {
        "flood of": flood_of,
        "good": len(waits),
        "answers": dict(answers),
        "quiet p99 ms": _percentile(quiet, 99),
        "p50 ms": _percentile(waits, 50),
        "p99 ms": _percentile(waits, 99),
        "longest ms": round(max(waits), 1),
        "bad per second": round(seen.per_second),
        "bad sent": seen.requests + seen.errors,
        "bad refused": seen.bad_status,
        "bad accepted": seen.requests - seen.bad_status,
        "bad unanswered": seen.errors,
        "processor us per request": round(used / (seen.requests + len(waits)) * 1e6),
        "slow connections": SLOW,
        **machine.described(),
    }


def _percentile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) - 1, len(values) * percent // 100)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--of", choices=FLOODS, default="mixed", help="what the flood consists of")
    asked = parser.parse_args()
    machine.require_wrk()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        with Installation(bench) as installation:
            pid = installation.serve()
            installation.work()
            found = asyncio.run(measure(bench, installation.port, pid, asked.of, asked.seconds))
            installation.drained()
            found["kept"] = installation.stored()[0]
            held = installation.settings.receive.max_held_per_address if asked.of == "tokens" else 0
    print(json.dumps(found, indent=2))
    if found["bad accepted"] > held:
        sys.exit("Requests that prove nothing were accepted.")


if __name__ == "__main__":
    main()
