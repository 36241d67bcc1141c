"""One run over one settlement file: `reconcile` is what the command, the watched folder and the console call.

Rows that tell the ledger something new go the way of a notification: the pipeline interprets and records them under
their own unique key, so that a file that is read twice enters nothing twice. Figures that differ are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from typing import BinaryIO

from sqlalchemy import Connection

from receiver import logs, metrics
from receiver.errors import LedgerAway
from receiver.notification import new_id, now_us
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings
from receiver.signing import Seal
from workers.audit import Action, Actor, Audit
from workers.ledger.ledger import Ledger, open_ledger
from workers.ledger.queries import reading
from workers.ledger.reconciliations import Reconciliations, only_community
from workers.pipeline import Pipeline
from workers.reconcile.findings import Finding, Findings, Result, storable_name
from workers.reconcile.missing import missing_in_file, paid_payments
from workers.reconcile.reader import Busy, Changed, Line, Reader, Unreadable
from workers.reconcile.rows import BATCH, Rows, known_payments
from workers.reconcile.seen import Seen
from workers.reconcile.survey import Survey, survey

log = logs.get("workers.reconcile")

Days = tuple[date | None, date | None]
"""First and last settlement date, where the rows do not say."""
Begun = Callable[[Connection, str], object]
"""Gets the transaction that begins the record of a run, and the id of the run."""

# Shares of the whole, for the progress.
_SURVEYED = 0.4
_COMPARED = 0.9


@dataclass(frozen=True, slots=True)
class Books:
    """What runs work with."""

    ledger: Ledger
    pipeline: Pipeline
    audit: Audit

    @classmethod
    def of(cls, settings: Settings, ledger: Ledger) -> Books:
        pipeline = Pipeline(settings.endpoints, ledger, Seal(settings.security.seal_keys, "batch"))
        return cls(ledger, pipeline, Audit(settings.security.seal_keys))


@contextmanager
def ready(settings: Settings) -> Iterator[Books]:
    """The books of a configuration, for a process that reconciles. Raises `LedgerAway` before the ledger was ever
    made."""
    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        raise LedgerAway("it does not exist yet; `postback up` or `postback migrate` makes it.")
    ledger = open_ledger(settings)
    try:
        yield Books.of(settings, ledger)
    finally:
        ledger.engine.dispose()


def reconcile(
    books: Books,
    endpoint: QuickStreamEndpoint,
    content: BinaryIO,
    file_name: str,
    actor: Actor,
    *,
    write: bool = True,
    days: Days = (None, None),
    tell: Callable[[Finding], None] = lambda finding: None,
    progress: Callable[[float], None] = lambda share: None,
    now: datetime | None = None,
    begun: Begun = lambda connection, run_id: None,
) -> Result:
    """Compares a file with the ledger, enters what the ledger did not know, and keeps a record of the run.

    `content` must be seekable, as it is read twice. `tell` gets each finding as it comes, `progress` the share that is
    done. The audit trail has `actor`, once when the run begins and once with its result; `begun` is called in the
    transaction of the first. Without `write` nothing at all is written, and nothing counted.

    Raises `Unreadable` for a file that cannot be taken, before anything is written (but for `Changed`), and
    `LedgerAway`.
    """
    try:
        with Reconciliations(books.ledger.engine).alone(endpoint.provider, endpoint.facility) as alone:
            if not alone:
                raise Busy("Another settlement file is being reconciled at the moment.")
            run = _Run(books, endpoint, content, actor, write=write, tell=tell, progress=progress, begun=begun)
            result = run.run(storable_name(file_name), days, now or datetime.now(UTC))
    except Unreadable:
        if write:
            metrics.SETTLEMENT_FILES.labels(endpoint.provider, endpoint.facility, "refused").inc()
        raise
    if write:
        _say(endpoint, result)
    return result


def _say(endpoint: QuickStreamEndpoint, result: Result) -> None:
    outcome = "differs" if result.findings else "agrees"
    metrics.SETTLEMENT_FILES.labels(endpoint.provider, endpoint.facility, outcome).inc()
    log.info(
        "settlement_file_reconciled",
        facility=endpoint.facility,
        file=result.file_name,
        rows=result.rows,
        entered=result.entered,
        findings=result.findings,
    )


class _Run:
    def __init__(
        self,
        books: Books,
        endpoint: QuickStreamEndpoint,
        content: BinaryIO,
        actor: Actor,
        *,
        write: bool,
        tell: Callable[[Finding], None],
        progress: Callable[[float], None],
        begun: Begun,
    ) -> None:
        self._books = books
        self._engine = books.ledger.engine
        self._actor = actor
        self._endpoint = endpoint
        self._content = content
        self._write = write
        self._tell = tell
        self._progress = progress
        self._begun = begun
        self._records = Reconciliations(self._engine)
        self._end = content.seek(0, 2)
        self._size = max(self._end, 1)

    def run(self, file_name: str, days: Days, now: datetime) -> Result:
        covers = survey(self._reader(), self._endpoint, now, lambda at: self._progress(at / self._size * _SURVEYED))
        covers.first_day, covers.last_day = days[0] or covers.first_day, days[1] or covers.last_day
        community = self._endpoint.community_code or self._only_community()
        self._require_own(covers, community)
        if self._content.seek(0, 2) != self._end:
            raise Unreadable("The file is still being written: give it again when it is whole.")
        result = self._begin(file_name, covers, now)
        findings = Findings(result, self._records, self._tell)
        seen = Seen()
        try:
            self._compare(
                Rows(
                    self._engine,
                    self._books.pipeline,
                    self._endpoint,
                    community,
                    result,
                    findings,
                    seen,
                    write=self._write,
                ),
                covers.digest,
            )
            with reading(self._engine) as connection:
                for finding in missing_in_file(connection, self._endpoint, covers, seen):
                    findings.add(finding)
        finally:
            seen.close()
        findings.keep()
        if result.id is not None:
            self._records.finish(result.id, result.counted(), lambda connection: self._account(connection, result))
        self._progress(1.0)
        return result

    def _only_community(self) -> str | None:
        with reading(self._engine) as connection:
            return only_community(connection, self._endpoint.provider, self._endpoint.facility)

    def _reader(self) -> Reader:
        return Reader(self._content, self._endpoint.settlement_headings, self._endpoint.currency)

    def _compare(self, rows: Rows, digest: str) -> None:
        """Raises `Changed` when the file is not the one any more that has this digest."""
        reader = self._reader()
        try:
            for lines in _batches(iter(reader)):
                assert reader.columns is not None
                rows.batch(lines, reader.columns)
                self._progress(_SURVEYED + min(reader.position / self._size, 1.0) * (_COMPARED - _SURVEYED))
            unchanged = reader.digest == digest
        except Unreadable:
            # It was readable a moment ago.
            unchanged = False
        if not unchanged:
            raise Changed(
                f"The file changed while it was read, and {rows.entered} of its rows were entered before that was seen:"
                " give it again when it is whole."
            )

    def _require_own(self, covers: Survey, community: str | None) -> None:
        """Without a column of business codes only the receipts can say whose file it is. Raises `Unreadable`."""
        if covers.has_business or not covers.businesses or covers.first_day is None or covers.last_day is None:
            return
        with reading(self._engine) as connection:
            for lines in _batches(iter(self._reader())):
                receipts = [line.row.of_payment for line in lines if line.row is not None]
                if known_payments(connection, self._endpoint, community, receipts):
                    return
            if next(paid_payments(connection, self._endpoint, covers.first_day, covers.last_day), None):
                raise Unreadable(
                    f"This file seems to be of another facility: {self._endpoint.path} has payments of "
                    f"{covers.covered}, but none with a receipt of the file."
                )

    def _begin(self, file_name: str, covers: Survey, now: datetime) -> Result:
        endpoint = self._endpoint
        result = Result(
            endpoint.provider, endpoint.facility, file_name, covers.digest, covers.first_day, covers.last_day, now
        )
        if self._write:
            result.id = new_id(now_us())
            names = ("id", "provider", "facility", "file_name", "digest", "first_day", "last_day", "began_at")
            values = {name: getattr(result, name) for name in names}
            self._records.begin(values, lambda connection: self._account(connection, result, begun=True))
        return result

    def _account(self, connection: Connection, result: Result, *, begun: bool = False) -> None:
        """Who, which file, and in the end what came of it."""
        facts: dict[str, object] = {"endpoint": self._endpoint.path, "file": result.file_name, "sha256": result.digest}
        if begun:
            self._begun(connection, result.id or "")
        else:
            facts |= {name: getattr(result, name) for name in ("rows", "matched", "entered", "findings")}
            facts["counts"] = dict(result.counts)
        action = Action.RECONCILIATION_BEGUN if begun else Action.RECONCILED
        self._books.audit.add(connection, self._actor, action, result.id or "", facts=facts)


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    while batch := list(islice(lines, BATCH)):
        yield batch
