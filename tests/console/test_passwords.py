"""Hashes of passwords, and the delay on guessing them."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from receiver.errors import ConfigurationError
from workers.console import guessing, passwords
from workers.console.guessing import Guesses, TooManyTries

CHEAP = PasswordHasher(time_cost=5, memory_cost=7168, parallelism=1)
HERE, THERE = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")


def test_a_hash_of_its_own_each_time() -> None:
    one, other = passwords.make("p\N{SNOWMAN}", log_n=14, p=1), passwords.make("p\N{SNOWMAN}", log_n=14, p=1)
    assert one != other
    passwords.require_good(one, "x")
    assert passwords.verify("p\N{SNOWMAN}", one)
    assert not passwords.verify("p", one)
    assert not passwords.verify("", one)


def test_the_cost_of_new_hashes() -> None:
    assert passwords.make("x").startswith("$scrypt$ln=15,r=8,p=3$")


def test_argon2_hashes_of_other_systems() -> None:
    stored = CHEAP.hash("secret")
    passwords.require_good(stored, "x")
    assert passwords.verify("secret", stored)
    assert not passwords.verify("Secret", stored)


@pytest.mark.parametrize(
    "stored",
    ["", "x", "$scrypt$", "$scrypt$ln=15,r=8,p=3$AAAA$AAAA", "$2b$12$" + "a" * 53,
     "$scrypt$ln=10,r=8,p=1$" + "A" * 22 + "$" + "A" * 43, "$scrypt$ln=30,r=8,p=1$" + "A" * 22 + "$" + "A" * 43,
     "$scrypt$ln=15,r=1,p=1$" + "A" * 22 + "$" + "A" * 43, "$argon2id$", "$argon2id$v=19$m=1,t=1,p=1$AAAA$AAAA",
     PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("x", salt=bytes(16))],
)  # fmt: skip
def test_hashes_that_cannot_be_used(stored: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^operators\[0\]: is ") as error:
        passwords.require_good(stored, "operators[0]")
    assert stored == "" or stored not in str(error.value)


@pytest.mark.parametrize(
    "password",
    [
        *(
            "123456789012",
            "987654321098",
            "111111111111",
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "abcdefghijkl",
            "121212121212",
        ),
        *("password1234", "Password123!!", "passwordpassword", "iloveyou1234", "qwerty123456", "qwertyuiop123"),
        *("1qaz2wsx3edc", "1q2w3e4r5t6y", "Winter2026!!", "Postback2026!", "operator-admin-17", "QuickStream-1998"),
        *("janejanejane", "jane.doe.2026", "DoeJane-password", "p@ssw0rd-jane", "            "),
    ],
)
def test_what_is_guessed_first(password: str) -> None:
    assert passwords.is_guessed_first(password, "jane.doe")


@pytest.mark.parametrize(
    "password",
    [
        "a long password",
        "correct horse battery staple",
        "tr0ub4dor&3x",
        "Ein langer Satz.",
        "pässwörter-öäü",
        "密码是一句很长的话没有人知道",
    ],
)
def test_what_is_not_guessed_first(password: str) -> None:
    assert not passwords.is_guessed_first(password, "jane.doe")


@pytest.mark.parametrize(("length", "fits"), [(11, False), (12, True), (64, True), (1024, True), (1025, False)])
def test_lengths(length: int, fits: bool) -> None:
    password = ("many odd words " * 100)[:length]
    assert passwords.fault(password, "jane", None) == ("" if fits else "A password has between 12 and 1024 characters.")
    # None of it is cut off.
    if fits:
        stored = passwords.make(password, log_n=14, p=1)
        assert [passwords.verify(each, stored) for each in (password, password[:-1])] == [True, False]


def test_generated_passwords() -> None:
    made = {passwords.generate() for _ in range(50)}
    assert len(made) == 50
    assert not any(passwords.is_guessed_first(password, "jane.doe") for password in made)
    assert all(len(password) == 23 for password in made)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b":17\n", b":2\r\n"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 50])
def test_what_was_stolen(tmp_path: Path, number: int, end: bytes) -> None:
    words = [f"stolen {each}" for each in range(number)]
    sha1 = [hashlib.sha1(word.encode(), usedforsecurity=False).hexdigest() for word in words]
    digests = sorted(digest.upper().encode() for digest in sha1)
    (tmp_path / "list").write_bytes(b"".join(digest + end for digest in digests))
    assert all(passwords.is_breached(word, tmp_path / "list") for word in words)
    assert not any(passwords.is_breached(f"own {each}", tmp_path / "list") for each in range(200))
    # The last line of a file that somebody cut.
    (tmp_path / "list").write_bytes(b"".join(digest + end for digest in digests).rstrip())
    assert all(passwords.is_breached(word, tmp_path / "list") for word in words)


def test_a_list_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^console.breached_passwords: .* cannot be read \("):
        passwords.fault("a long password", "jane", tmp_path / "none")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tries(guesses: Guesses, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address = HERE) -> float:
    """Seconds to wait; 0 when a try was let in."""
    try:
        guesses.attempt(name, address)
    except TooManyTries as error:
        return error.seconds
    return 0


def test_the_wait_doubles_up_to_a_limit(clock: Clock) -> None:
    guesses = Guesses(["anna"], clock)
    for _ in range(guessing.FREE_FOR_NAME):
        assert tries(guesses, "anna") == 0
    waits = []
    for _ in range(9):
        waits.append(tries(guesses, "Anna"))
        clock.now += waits[-1]
        assert tries(guesses, "anna") == 0
    assert waits == [15, 30, 60, 120, 240, 480, 900, 900, 900]


def test_what_comes_too_soon_makes_the_wait_no_longer(clock: Clock) -> None:
    guesses = Guesses(["anna"], clock)
    for _ in range(guessing.FREE_FOR_NAME):
        tries(guesses, "anna")
    clock.now += 10
    assert [tries(guesses, "anna") for _ in range(50)] == [5] * 50


def test_success_forgives_the_name_and_not_the_address(clock: Clock) -> None:
    guesses = Guesses(["anna", "eve"], clock)
    for number in range(guessing.FREE_FOR_ADDRESS - 1):
        assert tries(guesses, f"name{number}") == 0
        assert tries(guesses, "eve", HERE if number % 9 == 8 else THERE) == 0
        guesses.succeeded("eve", HERE if number % 9 == 8 else THERE)
    assert tries(guesses, "eve") == 0
    assert tries(guesses, "anna") > 0, "an account of one's own is no way around"


def test_failures_are_forgotten(clock: Clock) -> None:
    guesses = Guesses(["anna"], clock)
    for _ in range(guessing.FREE_FOR_NAME - 1):
        tries(guesses, "anna")
    clock.now += guessing.FORGOTTEN_AFTER + 1
    assert [tries(guesses, "anna") for _ in range(guessing.FREE_FOR_NAME)] == [0] * guessing.FREE_FOR_NAME


def test_memory_is_bounded_and_operators_stay(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "REMEMBERED", 50)
    guesses = Guesses(["anna"], clock)
    for _ in range(guessing.FREE_FOR_NAME):
        tries(guesses, "anna")
    for number in range(200):
        tries(guesses, f"n{number}", ipaddress.ip_address(f"198.51.100.{number}"))
    assert len(guesses._names) == len(guesses._addresses) == len(guesses._pairs) == 50
    assert guesses._operators["anna"].failures == guessing.FREE_FOR_NAME


def elsewhere(number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(0x0A000000 + number)


def test_nobody_locks_an_operator_out_from_elsewhere(clock: Clock) -> None:
    guesses = Guesses(["anna"], clock)
    assert tries(guesses, "anna") == 0
    guesses.succeeded("anna", HERE)
    for number in range(1000):
        tries(guesses, "anna", elsewhere(number % 100))
    assert tries(guesses, "anna", THERE) > 0, "an address that is new to this name"
    assert tries(guesses, "Anna") == 0
    # A wrong password of one's own still counts, where it was given.
    assert [tries(guesses, "anna") > 0 for _ in range(guessing.FREE_FOR_NAME)] == [False] * 4 + [True]


@pytest.mark.parametrize("name", ["anna", "nobody"])
def test_many_addresses_guess_a_name_no_faster(clock: Clock, name: str) -> None:
    """Nor does it help them when the operator signs in meanwhile."""
    guesses = Guesses(["anna"], clock)
    tried = 0
    for number in range(0, 24 * 3600, 5):
        clock.now += 5
        tried += tries(guesses, name, elsewhere(number)) == 0
        if number % 3600 == 0:
            guesses.attempt("anna", HERE)
            guesses.succeeded("anna", HERE)
    assert tried <= guessing.FREE_EVERYWHERE + 24 * 3600 / guessing.LONGEST_WAIT + 24


def test_known_addresses_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "KNOWN", 10)
    guesses = Guesses(["anna"], clock)
    for number in range(40):
        guesses.attempt("anna", elsewhere(number))
        guesses.succeeded("anna", elsewhere(number))
        guesses.succeeded("nobody", elsewhere(number))
    assert list(guesses._known) == ["anna"]
    assert list(guesses._known["anna"]) == [str(elsewhere(number)) for number in range(30, 40)]


def test_an_ipv6_network_is_one_address(clock: Clock) -> None:
    guesses = Guesses([], clock)
    for number in range(guessing.FREE_FOR_ADDRESS):
        assert tries(guesses, f"n{number}", ipaddress.ip_address(f"2001:db8::{number:x}")) == 0
    assert tries(guesses, "x", ipaddress.ip_address("2001:db8::ffff:1")) > 0
    assert tries(guesses, "x", ipaddress.ip_address("2001:db8:0:1::1")) == 0
