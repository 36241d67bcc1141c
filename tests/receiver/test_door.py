"""Who goes when too many connections are open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from receiver.door import Door
from receiver.settings import networks
from receiver.source import TrustedProxies

PROXIES = TrustedProxies(networks(["10.0.0.0/8"], "trusted_proxies"))


@dataclass(eq=False)
class Guest:
    began: float
    waits: bool = True
    gone: bool = field(default=False)
    looks: int = field(default=0)

    def hang_up(self) -> None:
        self.gone = True

    def look(self) -> None:
        self.looks += 1


def fill(door: Door, peers: list[str], waits: bool = True) -> list[Guest]:
    guests = [Guest(float(number), waits) for number, _ in enumerate(peers)]
    assert [door.enter(guest, peer) for guest, peer in zip(guests, peers, strict=True)] == [True] * len(peers)
    return guests


def test_the_one_that_kept_us_waiting_longest_makes_room() -> None:
    door = Door(3, 3)
    first, second, third = fill(door, ["203.0.113.1", "203.0.113.2", "203.0.113.3"])
    first.began = 9.0
    assert door.enter(Guest(10.0), "203.0.113.4")
    assert [first.gone, second.gone, third.gone] == [False, True, False]


def test_who_waits_for_our_answer_is_never_hung_up_on() -> None:
    door = Door(2, 2)
    answered, waiting = fill(door, ["203.0.113.1", "203.0.113.2"], waits=False)
    assert not door.enter(Guest(9.0), "203.0.113.3")
    waiting.waits = True
    assert door.enter(Guest(9.0), "203.0.113.3")
    assert [answered.gone, waiting.gone] == [False, True]


def test_an_address_that_has_its_share_makes_room_for_itself() -> None:
    door = Door(100, 2)
    other, first, second = fill(door, ["203.0.113.9", "203.0.113.1", "203.0.113.1"])
    assert door.enter(Guest(9.0), "203.0.113.1")
    assert [other.gone, first.gone, second.gone] == [False, True, False]


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("203.0.113.1", "::ffff:203.0.113.1", True),
        ("203.0.113.1", "203.0.113.2", False),
    ],
)
def test_what_counts_as_one_address(one: str, another: str, same: bool) -> None:
    door = Door(100, 1)
    (guest,) = fill(door, [one])
    assert door.enter(Guest(9.0), another)
    assert guest.gone is same


def test_behind_a_proxy_of_ours_everybody_has_one_address() -> None:
    door = Door(10, 2, PROXIES.trusts)
    guests = fill(door, ["10.0.0.1"] * 9)
    (stranger,) = fill(door, ["203.0.113.1"])
    assert door.enter(Guest(99.0), "10.0.0.1")
    assert [guest.gone for guest in guests] == [False] * 9
    assert stranger.gone


def test_a_crowd_makes_room_for_several_at_once() -> None:
    door = Door(200, 200)
    guests = fill(door, ["203.0.113.1"] * 200)
    assert door.enter(Guest(999.0), "203.0.113.2")
    assert [guest.gone for guest in guests] == [True] * 4 + [False] * 196


def test_who_left_has_left_room_and_nothing_is_remembered() -> None:
    door = Door(2, 1)
    (guest,) = fill(door, ["203.0.113.1"])
    door.leave(guest)
    door.leave(guest)
    assert not door._of_one
    (again,) = fill(door, ["203.0.113.1"])
    assert not again.gone
    refused = Guest(9.0)
    again.waits = False
    assert not door.enter(refused, "203.0.113.1")
    door.leave(refused)
    assert door._of_one == {"203.0.113.1": 1}


def test_everybody_is_looked_at_until_nobody_is_left() -> None:
    async def scenario() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        door = Door(10, 10)
        guests = fill(door, ["203.0.113.1", "203.0.113.2"])
        for _ in guests:
            door.keep_looking(loop, 0.001)
        first, second = guests
        async with asyncio.timeout(20):
            while first.looks < 2:
                await asyncio.sleep(0)
            door.leave(first)
            before, seen = first.looks, second.looks
            while second.looks < seen + 2:
                await asyncio.sleep(0)
            door.leave(second)
            while door._next_look:
                await asyncio.sleep(0)
            (third,) = fill(door, ["203.0.113.3"])
            door.keep_looking(loop, 0.001)
            while not third.looks:
                await asyncio.sleep(0)
        return first.looks - before, second.looks - first.looks

    after_leaving, between = asyncio.run(scenario())
    assert after_leaving == 0
    assert between == 2
