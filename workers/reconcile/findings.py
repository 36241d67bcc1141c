"""What a run over a settlement file found, as it is told, kept and counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import msgspec

from receiver import cards, metrics
from workers.ledger.reconciliations import KEPT_FINDINGS, Reconciliations
from workers.reconcile.compare import Kind


def storable_name(file_name: str) -> str:
    """The name of a file, of any bytes, as the ledger and a terminal take it; card numbers in it are masked."""
    text = cards.masked_text(file_name.encode("utf-8", "replace").decode())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)[-255:]


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `line` is None for what is missing in the file; amounts are decimal texts."""

    kind: Kind
    line: int | None
    receipt_number: str | None
    payment_id: str | None = None
    here: str | None = None
    in_file: str | None = None
    entered: bool = False
    """Whether the row was put into the ledger by this run."""
    detail: str = ""

    def as_object(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Result:
    """One run. `id` is that of its record; None when nothing was written."""

    provider: str
    facility: str
    file_name: str
    digest: str
    first_day: date | None
    """First and last settlement date that the file covers; None when it covers no day."""
    last_day: date | None
    began_at: datetime
    id: str | None = None
    rows: int = 0
    matched: int = 0
    """Rows that agree with the ledger in all that they say."""
    entered: int = 0
    findings: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Findings by kind."""

    def counted(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "matched": self.matched,
            "entered": self.entered,
            "findings": self.findings,
            "counts": msgspec.json.encode(dict(sorted(self.counts.items()))).decode(),
        }

    def as_object(self) -> dict[str, Any]:
        shown = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return shown | {"counts": dict(sorted(self.counts.items()))}


class Findings:
    """Tells each finding once it comes, and keeps them with the run's record, in batches. Without a record it is a dry
    run: nothing is kept and nothing is counted for the alarms."""

    def __init__(self, result: Result, records: Reconciliations, tell: Callable[[Finding], None]) -> None:
        self._result = result
        self._records = records
        self._tell = tell
        self._waiting: list[dict[str, Any]] = []

    def add(self, finding: Finding) -> None:
        result = self._result
        result.findings += 1
        result.counts[finding.kind.value] += 1
        if result.id is not None:
            if result.findings <= KEPT_FINDINGS:
                self._waiting.append({"number": result.findings, **finding.as_object(), "kind": finding.kind.value})
            metrics.SETTLEMENT_FINDINGS.labels(result.provider, result.facility, finding.kind.value).inc()
        self._tell(finding)

    def keep(self) -> None:
        """Writes what waits. Raises `LedgerAway`."""
        if self._waiting and self._result.id is not None:
            self._records.add(self._result.id, self._waiting)
        self._waiting = []
