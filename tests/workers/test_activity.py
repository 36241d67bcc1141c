"""What each endpoint did in an hour."""

from __future__ import annotations

from datetime import timedelta

from receiver.notification import new_id, now_us, utc
from tests.workers.material import envelope, event, processed
from workers.ledger import activity, queries
from workers.ledger.ledger import Interpreted, Ledger


def test_each_hour_counts_what_came_in_it(ledger: Ledger) -> None:
    now = now_us()
    begins = utc(now) - timedelta(minutes=30)
    before = now - 3_600_000_000
    said = event()
    ledger.record(
        [
            processed("a", said, id=new_id(now)),
            processed("b", said, id=new_id(now), facility="other"),
            processed("old", said, id=new_id(before)),
            Interpreted(envelope("q", id=new_id(now)), "quarantined", "unreadable_body"),
            Interpreted(envelope("f", id=new_id(now)), "failed", "interpretation_failed"),
        ]
    )
    ledger.record([processed("a", said, id=new_id(now)), processed("a", said, id=new_id(now), fingerprint="f2")])
    ledger.record([processed("b", said, id=new_id(now), facility="other"), processed("old", said, id=new_id(before))])
    with queries.reading(ledger.engine) as connection:
        later = begins + timedelta(hours=2)
        hours = activity.of_hours(connection, [begins, later])
        counts = hours[begins]
        assert hours[later] == activity.of_hours(connection, [later])[later] == {}
        assert activity.of_hours(connection, []) == {}
    assert counts == {
        ("checkout", "main"): {"accepted": 1, "failed": 2, "duplicates": 2},
        ("checkout", "other"): {"accepted": 1, "failed": 0, "duplicates": 1},
    }
