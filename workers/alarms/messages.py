"""What is said about an alarm: the same words by mail and by webhook. No secret, no customer, nothing of a body."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from receiver.notification import microseconds, new_id
from workers.alarms.board import Alarm, Change
from workers.alarms.kinds import MEANINGS


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message by one channel. A repeated try has the same id, so that whoever gets it twice can tell."""

    id: str
    channel: str
    content: str
    """A `Content` as JSON: every try sends the same bytes."""
    made_at: datetime
    tries: int
    done_at: datetime | None = None
    fault: str | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The ``data`` of a message."""

    alarm: str
    """Its name, by which it is acknowledged."""
    kind: str
    subject: str
    sentence: str
    means: str
    do: str
    raised_at: datetime
    cleared_at: datetime | None
    times: int
    host: str
    console: str | None


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Type, time and data, as the Standard Webhooks rules propose a payload."""

    type: str
    """``alarm.raised``, ``alarm.repeated``, ``alarm.cleared``; ``alarm.test`` for a try."""
    timestamp: datetime
    data: Said


def made(changes: Sequence[Change], channels: Sequence[str], now: datetime, **where: Any) -> list[Message]:
    """A message to every channel of each change that is to be told. `where` are `host` and `console`."""
    return [
        message(channel, Content(type=f"alarm.{change.what}", timestamp=now, data=said(change.alarm, **where)), now)
        for change in changes
        if change.what is not None
        for channel in channels
    ]


def message(channel: str, content: Content, now: datetime) -> Message:
    text = msgspec.json.encode(content).decode()
    return Message(id=new_id(microseconds(now)), channel=channel, content=text, made_at=now, tries=0)


def said(alarm: Alarm, *, host: str, console: str | None) -> Said:
    meaning = MEANINGS[alarm.kind]
    return Said(
        alarm=alarm.name,
        kind=alarm.kind.value,
        subject=alarm.subject,
        sentence=alarm.sentence,
        means=meaning.means,
        do=meaning.do,
        raised_at=alarm.raised_at,
        cleared_at=alarm.cleared_at,
        times=alarm.times,
        host=host,
        console=console,
    )


def content(message: Message) -> Content:
    return msgspec.json.decode(message.content, type=Content)
