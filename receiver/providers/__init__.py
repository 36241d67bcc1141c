"""The senders that Postback knows. This is the only list; see README.md here for how to add one."""

from __future__ import annotations

from receiver.providers import checkout, debitsuccess, paymentz, quickstream
from receiver.providers.base import Provider

PROVIDERS: dict[str, Provider] = {
    module.PROVIDER.name: module.PROVIDER for module in (quickstream, checkout, debitsuccess, paymentz)
}
