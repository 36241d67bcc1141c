"""Settlement files that operators give: each is reconciled in a thread of its own, while its page shows how far it is.

What goes on here is this process's alone and ends with it. The ledger has what counts: the record of the run, its
findings and its entries in the audit trail. A run that was interrupted stays "not finished", and its file may be given
again, as rows are entered only once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO

from receiver import logs
from receiver.errors import LedgerAway
from receiver.notification import new_id, now_us
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.settings import Settings
from workers.audit import Actor
from workers.ledger.ledger import Ledger
from workers.reconcile.findings import Finding, Result, storable_name
from workers.reconcile.reader import Busy, Unreadable
from workers.reconcile.run import Books, Days, reconcile

log = logs.get("workers.console.uploads")

FINDINGS_SHOWN = 500
KEPT = 50
"""Uploads that are remembered: the newest."""
STOPS_WITHIN = 1.0
"""Seconds that the end of the process waits for a run to notice."""

_STAYS = "What it had entered stays, and is entered only once when you give the file again."


class _Stopped(Exception):
    """The process is to end."""


@dataclass(slots=True)
class Upload:
    """One file. `result` or `refusal` is there once it has `ended`."""

    endpoint: QuickStreamEndpoint
    file_name: str
    by: str
    write: bool
    """Not for a dry run."""
    id: str = field(default_factory=lambda: new_id(now_us()))
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    share: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)
    """The first of them."""
    result: Result | None = None
    refusal: str = ""
    status: int = 200
    """Of an answer that tells the refusal."""
    ended: threading.Event = field(default_factory=threading.Event)

    def tell(self, finding: Finding) -> None:
        if len(self.findings) < FINDINGS_SHOWN:
            self.findings.append(finding.as_object())

    def refuse(self, status: int, sentence: str) -> None:
        self.refusal, self.status = sentence, status


class Uploads:
    """Those of one process. Of two runs of an endpoint at once, here or anywhere, `reconcile` refuses the second."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._books = Books.of(settings, ledger)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Upload, threading.Thread]] = OrderedDict()
        self._stopping = threading.Event()

    def begin(
        self,
        endpoint: QuickStreamEndpoint,
        content: BinaryIO,
        file_name: str,
        actor: Actor,
        *,
        write: bool,
        days: Days = (None, None),
    ) -> Upload:
        """Starts the run; `content` is closed at its end."""
        upload = Upload(endpoint, storable_name(file_name), actor.name, write)
        thread = threading.Thread(
            target=self._run, args=(upload, content, actor, days), name="reconciliation", daemon=True
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

    def close(self) -> None:
        """Stops what runs, between two pieces of the file."""
        self._stopping.set()
        with self._lock:
            threads = [thread for _, thread in self._known.values()]
        for thread in threads:
            thread.join(STOPS_WITHIN)

    def _run(self, upload: Upload, content: BinaryIO, actor: Actor, days: Days) -> None:
        def progress(share: float) -> None:
            upload.share = share
            if self._stopping.is_set():
                raise _Stopped

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
                )
        except Unreadable as fault:
            upload.refuse(409 if isinstance(fault, Busy) else 422, fault.sentences)
            log.warning(
                "settlement_upload_refused",
                facility=upload.endpoint.facility,
                file=upload.file_name,
                operator=actor.name,
                detail=str(fault),
            )
        except LedgerAway:
            upload.refuse(503, f"The ledger does not answer. {_STAYS}")
        except _Stopped:
            upload.refuse(503, f"The console is being stopped. {_STAYS}")
        except Exception:
            log.exception("settlement_upload_failed", facility=upload.endpoint.facility, file=upload.file_name)
            upload.refuse(500, f"A fault of ours; it is in the log of the console with its traceback. {_STAYS}")
        finally:
            upload.ended.set()
