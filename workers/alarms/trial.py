"""A message that only tries whether a channel works."""

from __future__ import annotations

import socket
from datetime import datetime

from workers.alarms.messages import Content, Message, Said, message


def trial(channel: str, now: datetime, console: str | None) -> Message:
    said = Said(
        alarm="test",
        kind="test",
        subject="",
        sentence="Alarms of Postback arrive here.",
        means="Somebody tried whether this channel works: postback alarms test.",
        do="Nothing.",
        raised_at=now,
        cleared_at=None,
        times=1,
        host=socket.gethostname(),
        console=console,
    )
    return message(channel, Content(type="alarm.test", timestamp=now, data=said), now)
