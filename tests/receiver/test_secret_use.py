"""Which secret proved a request is counted, for every sender; Redis learns when, and no secret."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from receiver import metrics
from receiver.errors import Refused
from receiver.secret_use import SEEN, Uses, listed, name_of, older
from receiver.settings import Settings
from receiver.signing import Secret, require_basic, require_hmac_sha256, require_static
from tests.receiver.serving import configured
from tests.support import EXPECTED_CASUAL, recorded, secrets

PROVEN = {
    "checkout": ("payment_captured__no_reference", "signature_keys"),
    "debitsuccess": ("Customer.Schedule.Suspension.Added", "event_tokens"),
    "paymentz": ("authsuccessful", "secure_keys"),
    "quickstream": ("payment__form", "passwords"),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return configured(tmp_path, "redis://nowhere")


@pytest.mark.parametrize("provider", PROVEN)
def test_the_secret_that_proved_it_is_counted_once(settings: Settings, provider: str) -> None:
    fixture, setting = PROVEN[provider]
    request = recorded(provider, fixture)
    (endpoint,) = (each for each in settings.endpoint if each.provider == provider)
    if provider == "checkout":
        endpoint = msgspec.structs.replace(endpoint, authorization_keys=())
    request.provider.check_headers(request.message(), endpoint)
    request.provider.authenticate(request.message(), endpoint, EXPECTED_CASUAL)
    assert sum(secret.used for secret in getattr(endpoint, setting)) == 1
    used = [each.place for each in listed(settings) if each.secret.used]
    assert used == [f"{setting}[{[secret.used for secret in getattr(endpoint, setting)].index(1)}]"]


def test_what_is_refused_counts_for_none() -> None:
    both = secrets("one", "two")
    with pytest.raises(Refused):
        require_static("three", both, "X")
    with pytest.raises(Refused):
        require_hmac_sha256("00", b"", both, "X")
    with pytest.raises(Refused):
        # The right password of another user.
        require_basic("Basic YjpvbmU=", "a", both)
    assert [secret.used for secret in both] == [0, 0]


def test_redis_is_told_when_and_nothing_else(settings: Settings, redis: Redis) -> None:
    uses = Uses(settings, redis)
    asyncio.run(uses.write())
    first, second = settings.endpoint[0].passwords
    assert all(each.since is not None and not each.ever for each in older(settings, redis))
    first.used += 3
    uses.hand_on()
    asyncio.run(uses.write())
    (told,) = (each for each in older(settings, redis) if each.listed.secret is first)
    assert told.ever
    assert told.listed.place == "passwords[0]"
    kept = redis.dump(SEEN)
    for each in listed(settings):
        assert each.secret.reveal() not in kept  # type: ignore[operator]
    assert second.used == 0
    figure = metrics.SECRET_MATCHED.labels("quickstream", "acme", "passwords[0]")
    assert figure._value.get() >= 3


def test_a_changed_seal_key_forgets_nothing(settings: Settings, redis: Redis) -> None:
    asyncio.run(Uses(settings, redis).write())
    keys = (*settings.security.seal_keys, Secret(b"a newer seal key"))
    changed = msgspec.structs.replace(settings, security=msgspec.structs.replace(settings.security, seal_keys=keys))
    assert all(each.since is not None for each in older(changed, redis))
    assert name_of(keys[0], keys[0]) != name_of(keys[0], keys[-1])


def test_a_redis_that_is_away_is_told_later(settings: Settings, redis: Redis) -> None:
    away = Redis(port=1, socket_timeout=1)
    uses = Uses(settings, away)
    asyncio.run(uses.write())
    away.close()
    uses._redis = redis
    assert older(settings, redis)[0].since is None
    asyncio.run(uses.write())
    assert older(settings, redis)[0].since is not None
