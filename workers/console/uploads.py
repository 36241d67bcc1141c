"""Settlement files that operators give, by the page or through the API: each is reconciled in a thread of its own, and
may be asked how far it is.

What goes on here is this process's alone and ends with it. The ledger has what counts: the record of the run, its
findings and its entries in the audit trail. A run that was interrupted stays "not finished", and its file may be given
again, as rows are entered only once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any, BinaryIO

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from receiver import logs
from receiver.errors import LedgerAway, NotDone, Reason
from receiver.notification import new_id, now_us
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings
from workers.audit import Actor
from workers.ledger import idempotency
from workers.ledger.ledger import Ledger
from workers.ledger.queries import reading
from workers.reconcile.findings import Finding, Result, storable_name
from workers.reconcile.reader import Busy, Unreadable
from workers.reconcile.run import Books, Days, reconcile

log = logs.get("workers.console.uploads")

FINDINGS_SHOWN = 500
KEPT = 50
"""Uploads that are remembered: the newest."""
AT_ONCE = 4
"""Files that are received at the same moment, by pages and API together."""
ANSWER_WITHIN = 2.0
"""Seconds that an answer waits for the end of a run; after them it says where to see how far it is."""
STOPS_WITHIN = 1.0
"""Seconds that the end of the process waits for a run to notice."""

Once = tuple[str, str]
"""An ``Idempotency-Key``, and the digest of what was asked for with it."""

_STAYS = "What it had entered stays, and is entered only once when you give the file again."


class _Stopped(Exception):
    """The process is to end."""


@dataclass(slots=True)
class Upload:
    """One file. `result` or `refused` is there once it has `ended`."""

    endpoint: QuickStreamEndpoint
    file_name: str
    by: str
    write: bool
    """Not for a dry run."""
    id: str = field(default_factory=lambda: new_id(now_us()))
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    run_id: str | None = None
    """Of its record in the ledger, once there is one."""
    share: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)
    """The first of them."""
    result: Result | None = None
    refused: NotDone | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def tell(self, finding: Finding) -> None:
        if len(self.findings) < FINDINGS_SHOWN:
            self.findings.append(finding.as_object())

    def refuse(self, reason: Reason, sentence: str) -> None:
        self.refused = NotDone(reason, sentence)


class Uploads:
    """Those of one process. Of two runs of an endpoint at once, here or anywhere, `reconcile` refuses the second."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._books = Books.of(settings, ledger)
        self._endpoints = {each.path: each for each in settings.endpoint if isinstance(each, QuickStreamEndpoint)}
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Upload, threading.Thread]] = OrderedDict()
        self._stopping = threading.Event()
        self._received = 0

    @property
    def paths(self) -> list[str]:
        """Of the endpoints whose bank has a settlement file."""
        return list(self._endpoints)

    def endpoint(self, path: str) -> QuickStreamEndpoint:
        """Raises `NotDone` (`parameter_refused`)."""
        if not self._endpoints:
            sentence = "No endpoint has a settlement file: only those of QuickStream have."
            raise NotDone(Reason.PARAMETER_REFUSED, sentence)
        if path not in self._endpoints:
            raise NotDone(Reason.PARAMETER_REFUSED, f"Choose whose file it is: {', '.join(self._endpoints)}.")
        return self._endpoints[path]

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While a file comes, in the event loop. Raises `NotDone` (`uploads_full`)."""
        if self._received >= AT_ONCE:
            raise NotDone(Reason.UPLOADS_FULL, "Too many files are being received; please try again in a moment.")
        self._received += 1
        try:
            yield
        finally:
            self._received -= 1

    def begin(
        self,
        endpoint: QuickStreamEndpoint,
        content: IO[bytes],
        file_name: str,
        actor: Actor,
        *,
        write: bool,
        days: Days = (None, None),
        once: Once | None = None,
    ) -> Upload:
        """Starts the run, which reads the file `content` by a handle of its own. Raises `NotDone`
        (`parameter_refused`) for days in the wrong order."""
        if days[0] is not None and days[1] is not None and days[0] > days[1]:
            raise NotDone(Reason.PARAMETER_REFUSED, "The first day must not be after the last one.")
        upload = Upload(endpoint, storable_name(file_name), actor.name, write)
        # The caller's is closed with its request, and the run may take longer.
        content.flush()
        own = os.fdopen(os.dup(content.fileno()), "rb")
        thread = threading.Thread(
            target=self._run, args=(upload, own, actor, days, once), name="reconciliation", daemon=True
        )
        with self._lock:
            self._known[upload.id] = upload, thread
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        thread.start()
        return upload

    def get(self, upload_id: str) -> Upload | None:
        with self._lock:
            return self._known[upload_id][0] if upload_id in self._known else None

    def made_with(self, actor: Actor, once: Once) -> str | None:
        """The id of the run that `actor` began with this key. Raises `NotDone` (`idempotency_key_reused`)."""
        with reading(self._books.ledger.engine) as connection:
            return idempotency.used(connection, actor.name, *once)

    def of_run(self, run_id: str) -> Upload | None:
        with self._lock:
            return next((upload for upload, _ in self._known.values() if upload.run_id == run_id), None)

    def close(self) -> None:
        """Stops what runs, between two pieces of the file."""
        self._stopping.set()
        with self._lock:
            threads = [thread for _, thread in self._known.values()]
        for thread in threads:
            thread.join(STOPS_WITHIN)

    def _run(self, upload: Upload, content: BinaryIO, actor: Actor, days: Days, once: Once | None) -> None:
        def progress(share: float) -> None:
            upload.share = share
            if self._stopping.is_set():
                raise _Stopped

        def begun(connection: Connection, run_id: str) -> None:
            if once is not None:
                _use(connection, actor, once, run_id)
            upload.run_id = run_id

        try:
            with content:
                upload.result = reconcile(
                    self._books,
                    upload.endpoint,
                    content,
                    upload.file_name,
                    actor,
                    write=upload.write,
                    days=days,
                    tell=upload.tell,
                    progress=progress,
                    begun=begun,
                )
        except Unreadable as fault:
            reason = Reason.ALREADY_RECONCILING if isinstance(fault, Busy) else Reason.FILE_REFUSED
            upload.refuse(reason, fault.sentences)
            log.warning(
                "settlement_upload_refused",
                facility=upload.endpoint.facility,
                file=upload.file_name,
                operator=actor.name,
                detail=str(fault),
            )
        except NotDone as refused:
            upload.refused = refused
        except LedgerAway:
            upload.refuse(Reason.LEDGER_AWAY, f"The ledger does not answer. {_STAYS}")
        except _Stopped:
            upload.refuse(Reason.STOPPING, f"The console is being stopped. {_STAYS}")
        except Exception:
            log.exception("settlement_upload_failed", facility=upload.endpoint.facility, file=upload.file_name)
            sentence = f"A fault of ours; it is in the log of the console with its traceback. {_STAYS}"
            upload.refuse(Reason.FAULT, sentence)
        finally:
            upload.ended.set()


def _use(connection: Connection, actor: Actor, once: Once, run_id: str) -> None:
    try:
        idempotency.use(connection, actor.name, *once, run_id)
    except IntegrityError:
        # It was asked for at the same moment, and was first.
        sentence = "A file was given with this Idempotency-Key just now."
        raise NotDone(Reason.ALREADY_RECONCILING, sentence) from None
