"""Names of traces as anybody may write them, and an envelope that workers of another version can read."""

from __future__ import annotations

import msgspec
import pytest
from opentelemetry import trace

from receiver.notification import ENVELOPE_VERSION, Envelope, open_batch
from receiver.tracing import parent_of
from tests.workers.material import SEAL, envelope

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_named_trace_is_gone_on_with() -> None:
    parent = parent_of(f"00-{TRACE}-{SPAN}-01")
    assert parent is not None
    named = trace.get_current_span(parent).get_span_context()
    assert (f"{named.trace_id:032x}", f"{named.span_id:016x}", named.trace_flags) == (TRACE, SPAN, 1)
    assert named.is_remote


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-01-more", f"01-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01"),
        *(
            f" 00-{TRACE}-{SPAN}-01",
            f"00-{TRACE}-{SPAN}-01\n",
            "00-" + "\N{ARABIC-INDIC DIGIT ONE}" * 32 + f"-{SPAN}-01",
        ),
    ],
)
def test_what_names_no_trace_begins_one(text: str) -> None:
    assert parent_of(text) is None


def test_workers_read_envelopes_of_the_version_before_and_after() -> None:
    before = msgspec.defstruct(
        "Before",
        [(field.name, field.type) for field in msgspec.structs.fields(Envelope) if field.name != "trace"],
        array_like=True,
    )
    now = envelope(trace=f"00-{TRACE}-{SPAN}-01")
    # An older worker, and what an older accept process had sealed.
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(now), type=before)
    assert read.dedupe_key == now.dedupe_key  # type: ignore[attr-defined]
    sealed = SEAL.seal(msgspec.msgpack.encode((ENVELOPE_VERSION, [read])))
    assert open_batch(sealed, SEAL) == [msgspec.structs.replace(now, trace="")]
