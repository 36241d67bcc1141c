"""The way of one batch behind the queue: `Pipeline.process` is the walk.

The same steps run for a replay, from the stored raw bytes, with today's code.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from receiver import logs, metrics
from receiver.errors import LedgerAway, Quarantined, Reason, Refused
from receiver.notification import BrowserReturn, Envelope, Expectation, PaymentEvent, open_batch
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Message
from receiver.signing import Seal
from workers.ledger.bodies import Bodies
from workers.ledger.ledger import Interpreted, Ledger, Recorded
from workers.ledger.rows import purged, stored_envelope

log = logs.get("workers.pipeline")

# What lies with our configuration or with a fault of ours, and says nothing of the notification.
_OURS = frozenset({Reason.WEAK_PROOF, Reason.OTHER_BUSINESS, Reason.UNKNOWN_ENDPOINT, Reason.INTERPRETATION_FAILED})


class Pipeline:
    """Steps 9 to 12. `endpoints` by (provider, facility)."""

    def __init__(self, endpoints: Mapping[tuple[str, str], Endpoint], ledger: Ledger, seal: Seal) -> None:
        self._endpoints = endpoints
        self._ledger = ledger
        self._seal = seal

    def process(self, *sealed: bytes) -> Recorded:
        """Batches, in one transaction. Raises `BatchError` for one that cannot be opened, `LedgerAway` while the
        database is away."""
        opened = [envelope for batch in sealed for envelope in open_batch(batch, self._seal)]  # 9 open
        # A batch that reached Redis although it seemed not to comes from the spool too, perhaps into the same turn.
        return self.record(list({envelope.id: envelope for envelope in opened}.values()))

    def record(self, envelopes: Sequence[Envelope]) -> Recorded:
        """Steps 10 to 12, also for what no sender posted: rows of a settlement file. Raises `LedgerAway`."""
        interpreted = [self.interpret(envelope) for envelope in envelopes]  # 10 interpret
        return self._record(interpreted)  # 11 record, 12 done

    def expect(self, *announced: Expectation) -> Recorded:
        """Records what the merchant announced, and releases what was held for it, in one transaction. Raises
        `LedgerAway`; of several together also what one of them causes."""
        try:
            recorded = self._ledger.expect(announced, self.judge)
        except LedgerAway:
            raise
        except Exception:
            if len(announced) > 1:
                raise
            log.exception("release_failed", provider=announced[0].provider, facility=announced[0].facility)
            reason = traceback.format_exc()
            # The expectation must not be lost for a notification of which nothing can be stored.
            recorded = self._ledger.expect(announced, lambda envelope, _: _failed(envelope, reason))
        report(recorded)
        return recorded

    def note_returns(self, returns: Sequence[BrowserReturn]) -> None:
        """Notes what customers saw. Raises `LedgerAway`; nothing else, as nothing depends on it."""
        try:
            self._ledger.note_returns(returns)
        except LedgerAway:
            raise
        except Exception:
            log.exception("returns_not_noted", returns=len(returns))

    def interpret(self, envelope: Envelope) -> Interpreted:
        """What today's code makes of an envelope. Never raises: what cannot be interpreted is kept as such."""
        if envelope.verified and envelope.quarantine:
            return Interpreted(envelope, "quarantined", envelope.quarantine, envelope.detail)
        endpoint = self._endpoints.get((envelope.provider, envelope.facility))
        if endpoint is None:
            return _unknown_endpoint(envelope)
        try:
            if not envelope.verified:
                return _held(envelope)
            event = PROVIDERS[envelope.provider].interpret(_message(envelope), endpoint)
        except (Quarantined, Refused) as doubt:
            return Interpreted(envelope, "quarantined", doubt.reason, doubt.detail)
        except Exception:
            log.exception("interpretation_failed", id=envelope.id, provider=envelope.provider)
            return _failed(envelope, traceback.format_exc())
        return Interpreted(envelope, "processed", event=event)

    def judge(self, envelope: Envelope, expectation: Expectation) -> Interpreted:
        """What a held notification is, now that `expectation` is known. Never raises."""
        endpoint = self._endpoints.get((envelope.provider, envelope.facility))
        if endpoint is None:
            return _unknown_endpoint(envelope)
        try:
            PROVIDERS[envelope.provider].authenticate(_message(envelope), endpoint, expectation)
        except (Quarantined, Refused) as doubt:
            return Interpreted(envelope, "quarantined", doubt.reason, doubt.detail)
        except Exception:
            log.exception("proof_failed", id=envelope.id, provider=envelope.provider)
            return _failed(envelope, traceback.format_exc())
        return self.interpret(msgspec.structs.replace(envelope, verified=True))

    def interpret_again(self, row: Any, expectation: Expectation | None = None) -> Interpreted:
        """What today's code and configuration make of a stored notification, from its raw body. Raises
        `BodyLocked` when that is encrypted and no key opens it, and nothing else.

        What was never proven is judged by `expectation`, the one of its token, or stays as it is without. What has no
        body any more stays as it is too. Of what was quarantined, the duplicate key is the one that today's code gives.
        """
        if purged(row):
            return _as_stored(row, self._ledger.bodies)
        envelope = stored_envelope(row, self._ledger.bodies)
        if not envelope.verified:
            return (
                self.judge(envelope, expectation) if expectation is not None else _as_stored(row, self._ledger.bodies)
            )
        endpoint = self._endpoints.get((envelope.provider, envelope.facility))
        if endpoint is None:
            return _unknown_endpoint(envelope)
        try:
            # The accept side has looked with the code of its day.
            identity = PROVIDERS[envelope.provider].identify(_message(envelope), endpoint)
        except Quarantined as doubt:
            return Interpreted(envelope, "quarantined", doubt.reason, doubt.detail)
        except Exception:
            log.exception("interpretation_failed", id=envelope.id, provider=envelope.provider)
            return _failed(envelope, traceback.format_exc())
        if row.state == "quarantined":
            envelope = msgspec.structs.replace(
                envelope,
                dedupe_key=identity.dedupe_key,
                event_type=identity.event_type,
                fingerprint=identity.fingerprint,
            )
        return self.interpret(envelope)

    def _record(self, interpreted: Sequence[Interpreted]) -> Recorded:
        try:
            recorded = self._ledger.record(interpreted, self.judge)
        except LedgerAway:
            raise
        except Exception:
            log.exception("batch_split", notifications=len(interpreted))
            return self._record_each(interpreted)
        report(recorded)
        return recorded

    def _record_each(self, interpreted: Sequence[Interpreted]) -> Recorded:
        """One bad notification never holds up its batch: each is tried alone, and what fails then is kept as failed.
        One that cannot even be kept as failed raises, after all others were recorded."""
        together = Recorded()
        unrecorded: Exception | None = None
        for item in interpreted:
            try:
                recorded = self._record_one(item)
            except LedgerAway:
                raise
            except Exception as error:
                log.exception("notification_not_recorded", id=item.envelope.id, provider=item.envelope.provider)
                unrecorded = error
                continue
            report(recorded)
            together.add(recorded)
        if unrecorded is not None:
            raise unrecorded
        return together

    def _record_one(self, item: Interpreted) -> Recorded:
        try:
            return self._ledger.record([item], self.judge)
        except LedgerAway:
            raise
        except Exception:
            log.exception("notification_failed", id=item.envelope.id, provider=item.envelope.provider)
            return self._ledger.record([_failed(item.envelope, traceback.format_exc())])


def takes_back(before: str, again: Interpreted) -> bool:
    """Whether what was processed is not believed any more, because of what it says itself. A key or an endpoint that is
    configured no longer, or a fault of ours, does not undo what was proven and read once."""
    return before == "processed" and again.state != "processed" and again.reason not in _OURS


def _message(envelope: Envelope) -> Message:
    return Message(envelope.content_type, envelope.headers, envelope.body)


def _held(envelope: Envelope) -> Interpreted:
    """A notification whose token the accept side did not know. Raises `Refused` when it can never be proven."""
    token = PROVIDERS[envelope.provider].token_of(_message(envelope))
    if token is None:
        raise Refused(Reason.TOKEN_MISSING, "Nothing in it can be proven by a registered token.")
    return Interpreted(envelope, "held", Reason.TOKEN_UNKNOWN, "The token is not registered yet.", token=token)


def _as_stored(row: Any, bodies: Bodies) -> Interpreted:
    """What was made of it before. The envelope's body may be gone."""
    event = msgspec.json.decode(row.event, type=PaymentEvent) if row.event else None
    token = row.payment_id if row.state == "held" else None
    return Interpreted(stored_envelope(row, bodies), row.state, row.reason, row.detail, event=event, token=token)


def _failed(envelope: Envelope, reason: str) -> Interpreted:
    return Interpreted(envelope, "failed", Reason.INTERPRETATION_FAILED, reason)


def _unknown_endpoint(envelope: Envelope) -> Interpreted:
    detail = "The endpoint is not in this worker's configuration."
    return Interpreted(envelope, "failed", Reason.UNKNOWN_ENDPOINT, detail)


def report(recorded: Recorded) -> None:
    """Counts and logs what a transaction did, after it was committed."""
    for labels, count in Counter(
        (item.envelope.provider, item.envelope.facility, item.state) for item in recorded.new
    ).items():
        metrics.RECORDED.labels(*labels).inc(count)
    for item in recorded.new:
        if item.state == "failed":
            log.error("notification_failed", id=item.envelope.id, provider=item.envelope.provider, reason=item.reason)
    for envelope in recorded.duplicates:
        metrics.REPEATED.labels(envelope.provider, envelope.facility, "duplicate").inc()
    for envelope in recorded.conflicts:
        metrics.REPEATED.labels(envelope.provider, envelope.facility, "conflict").inc()
        log.warning("notification_conflict", id=envelope.id, provider=envelope.provider, facility=envelope.facility)
    for provider, facility, notification_id in recorded.released:
        metrics.RELEASED.labels(provider, facility).inc()
        log.info("notification_released", id=notification_id, provider=provider, facility=facility)
    for mismatch in recorded.mismatches:
        metrics.MISMATCHES.labels(mismatch.provider, mismatch.facility).inc()
        log.error(
            "payment_mismatch",
            provider=mismatch.provider,
            facility=mismatch.facility,
            # Not the payment's id, which may be a token.
            reference=mismatch.reference,
            differs=mismatch.differs,
        )
