"""What ``postback up --demo`` adds: sample payments of every sender, shown as soon as they are in the ledger."""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from pathlib import Path
from typing import Any

from receiver.errors import LedgerAway
from receiver.settings import Settings
from workers.cli import output, payments, simulate
from workers.cli.ledger import opened_with
from workers.ledger import pages, queries
from workers.simulator import SENDERS
from workers.simulator.run import run

_EACH = 3
_SHOWN_WITHIN = 30.0


def start(settings: Settings, path: Path) -> None:
    """Sends and shows from a thread of its own, so that the processes are looked after meanwhile."""
    threading.Thread(target=_demonstrate, args=(settings, path), daemon=True, name="demo").start()


def _demonstrate(settings: Settings, path: Path) -> None:
    print("Sending sample notifications as each sender would ...", flush=True)
    before = _count(settings)
    asyncio.run(_send(settings))
    deadline = time.monotonic() + _SHOWN_WITHIN
    providers = {endpoint.provider for endpoint in settings.endpoint}
    while time.monotonic() < deadline:
        shown = _payments(settings)
        if len(shown) >= before + _EACH * len(providers) and {row["provider"] for row in shown} >= providers:
            break
        time.sleep(0.1)
    shown = _payments(settings)
    output.table(shown[:20], payments.COLUMNS, empty="No payments arrived; `postback doctor` may say why.")
    print(f"\nSee them again:   postback payments list --config {shlex.quote(str(path))}")
    if line := curl_line(settings, path):
        print(f"Send your own:    {line}")
    print("", flush=True)


async def _send(settings: Settings) -> None:
    api_key = settings.security.api_keys[-1] if settings.security.api_keys else None
    async with asyncio.TaskGroup() as group:
        for name, sender in SENDERS.items():
            endpoints = [endpoint for endpoint in settings.endpoint if endpoint.provider == name]
            if endpoints:
                address = simulate.base_url(settings)
                sending = run(sender, endpoints[0], base_url=address, count=_EACH, api_key=api_key, speed=60)
                group.create_task(sending)


def _payments(settings: Settings) -> list[dict[str, Any]]:
    try:
        with opened_with(settings) as connection:
            return list(pages.every_payment(connection, queries.Filter(limit=1000)))
    except LedgerAway:
        return []


def _count(settings: Settings) -> int:
    return len(_payments(settings))


def curl_line(settings: Settings, path: Path) -> str | None:
    """A command that posts a QuickStream payment with the password of the configuration, which it does not show."""
    for endpoint in settings.endpoint:
        if endpoint.provider != "quickstream" or not endpoint.passwords[-1].origin.startswith("file:"):
            continue
        file = path.parent / endpoint.passwords[-1].origin.removeprefix("file:")
        fields = {
            "communityCode": "DEMO",
            "supplierBusinessCode": endpoint.supplier_business_codes[0],
            "receiptNumber": "1000000001",
            "paymentReference": "MY-FIRST",
            "paymentAmount": "12.50",
            "surchargeAmount": "0.00",
            "responseCode": "00",
            "summaryCode": "0",
            "successFlag": "true",
        }
        body = "&".join(f"{name}={value}" for name, value in fields.items())
        return (
            f'curl -u "{endpoint.username}:$(cat {shlex.quote(str(file))})" -d "{body}" '
            f"{simulate.base_url(settings)}/notify/{endpoint.path}"
        )
    return None
