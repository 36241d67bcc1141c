"""Sending messages: when again, and when no more."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from receiver import logs
from receiver.settings import Settings
from workers.alarms.messages import Message

log = logs.get("workers.alarms")

PAUSES = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)
"""Seconds after each try that failed; after the last, a day after the first, it is given up."""


class Undelivered(Exception):
    """A try failed. The text says why in a few words, and quotes nothing of what was sent."""


class Channel(Protocol):
    @property
    def name(self) -> str: ...

    def send(self, message: Message, now: datetime) -> None:
        """Raises `Undelivered`."""

    def reach(self) -> None:
        """Whether it could be sent to; nothing is. Raises `Undelivered`."""


def channels(settings: Settings) -> dict[str, Channel]:
    """Those that are configured, by name."""
    found: list[Channel] = []
    if settings.alarms.email is not None:
        from workers.alarms.mail import Mail

        found.append(Mail(settings.alarms.email))
    if settings.alarms.webhook is not None:
        from workers.alarms.hook import Hook

        found.append(Hook(settings.alarms.webhook))
    return {channel.name: channel for channel in found}


def tried(message: Message, channel: Channel | None, now: datetime) -> Message:
    """The message after another try."""
    if channel is None:
        # It was taken out of the configuration.
        return msgspec.structs.replace(message, done_at=now, fault="There is no such channel any more.")
    try:
        channel.send(message, now)
    except Undelivered as undelivered:
        return _failed(message, str(undelivered), now)
    except Exception as error:
        log.exception("alarm_send_failed", channel=channel.name)
        return _failed(message, type(error).__name__, now)
    return msgspec.structs.replace(message, tries=message.tries + 1, done_at=now, fault=None)


def _failed(message: Message, fault: str, now: datetime) -> Message:
    failed = msgspec.structs.replace(message, tries=message.tries + 1, fault=fault[:200])
    if message.tries >= len(PAUSES):
        log.error("alarm_given_up", channel=message.channel, id=message.id, tries=failed.tries, fault=failed.fault)
        return msgspec.structs.replace(failed, done_at=now)
    log.warning("alarm_undelivered", channel=message.channel, id=message.id, tries=failed.tries, fault=failed.fault)
    return failed
