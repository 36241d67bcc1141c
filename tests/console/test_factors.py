"""One-time passwords against the vectors of their RFCs, and what the ledger makes of a code."""

from __future__ import annotations

from base64 import b32decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, delete, select, update

from receiver.errors import SealBroken
from receiver.signing import Secret
from tests.console.conftest import both_databases
from tests.servers import eventually
from tests.workers.material import waits_for_a_lock
from workers.console import totp
from workers.console.factors import RECOVERY_CODES, SecondFactors, Taken
from workers.ledger.database import migrate, open_engine
from workers.ledger.tables import second_factors

RFC_SECRET = b"12345678901234567890"
SECRET = b"a-secret-of-20-bytes"
NOW = 1_800_000_000.0
STEP = int(NOW) // totp.STEP
OLD, NEW = Secret(b"old-seal-key", ""), Secret(b"new-seal-key", "")


@pytest.mark.parametrize(
    ("counter", "code"),
    list(
        enumerate(("755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"))
    ),
)
def test_the_vectors_of_rfc_4226(counter: int, code: str) -> None:
    assert totp.code(RFC_SECRET, counter) == code


@pytest.mark.parametrize(
    ("now", "digits"),
    [(59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924"),
     (2000000000, "69279037"), (20000000000, "65353130")],
)  # fmt: skip
def test_the_vectors_of_rfc_6238(now: int, digits: str) -> None:
    """They have eight digits, of which apps show the last six."""
    assert totp.code(RFC_SECRET, now // totp.STEP) == digits[-6:]
    assert totp.fitting(RFC_SECRET, digits[-6:], now) == now // totp.STEP


def test_clocks_may_differ_by_one_step() -> None:
    fitting = [
        shift for shift in range(-4, 5) if totp.fitting(SECRET, totp.code(SECRET, STEP + shift), NOW) is not None
    ]
    assert fitting == [-1, 0, 1]


@pytest.mark.parametrize("given", ["", "0", "00000", "0000000", "\N{ARABIC-INDIC DIGIT ONE}" * 6, "-1", "000000"])
def test_what_fits_no_step(given: str) -> None:
    assert totp.fitting(SECRET, given, NOW) is None


def test_what_an_app_reads() -> None:
    text = totp.text(SECRET)
    assert b32decode(text.replace(" ", "")) == SECRET
    assert {len(group) for group in text.split()} == {4}
    assert totp.uri(SECRET, "sam@example.com", "Postback pay.example.com") == (
        f"otpauth://totp/Postback%20pay.example.com:sam%40example.com?secret={text.replace(' ', '')}"
        "&issuer=Postback%20pay.example.com"
    )
    made = {totp.generate() for _ in range(100)}
    assert ({len(each) for each in made}, len(made)) == ({20}, 100)


# -- in the ledger


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine(store: str) -> Iterator[Engine]:
    migrate(store)
    found = open_engine(store)
    yield found
    found.dispose()


def factors(engine: Engine, *keys: Secret, clock: Clock | None = None) -> SecondFactors:
    return SecondFactors(engine, keys or (OLD,), clock or Clock())


def enrolled(engine: Engine, name: str = "anna", step: int = STEP - 2) -> list[str]:
    with engine.begin() as connection:
        return factors(engine).enrol(connection, name, SECRET, step)


def take(engine: Engine, given: str, name: str = "anna", by: SecondFactors | None = None) -> Taken | None:
    with engine.begin() as connection:
        return (by or factors(engine)).take(connection, name, given)


@both_databases
def test_a_code_counts_once(engine: Engine) -> None:
    assert take(engine, totp.code(SECRET, STEP)) is None, "nothing is enrolled"
    enrolled(engine)
    clock = Clock()
    by = factors(engine, clock=clock)
    assert take(engine, totp.code(SECRET, STEP + 7), by=by) is None
    code = totp.code(SECRET, STEP)
    assert take(engine, f" {code[:3]} {code[3:]} ", "ANNA", by) == Taken(False, RECOVERY_CODES)
    assert take(engine, code, by=by) is None, "replayed"
    assert take(engine, totp.code(SECRET, STEP - 1), by=by) is None, "older than the one that counted"
    assert take(engine, totp.code(SECRET, STEP + 1), by=by), "a clock that is ahead"
    clock.now += totp.STEP
    assert take(engine, totp.code(SECRET, STEP + 1), by=by) is None, "the same a step later"
    clock.now += totp.STEP
    assert take(engine, totp.code(SECRET, STEP + 2), by=by)
    assert take(engine, totp.code(SECRET, STEP + 2), "oscar", by) is None


@both_databases
@pytest.mark.parametrize("kind", ["of the device", "for recovery"])
def test_of_two_consoles_with_one_code_one_has_it(engine: Engine, store: str, kind: str) -> None:
    codes = enrolled(engine)
    given = codes[3] if kind == "for recovery" else totp.code(SECRET, STEP)
    other = open_engine(store)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            assert factors(engine).take(connection, "anna", given)
            second = pool.submit(take, other, given)
            if store.startswith("postgresql"):
                # It has read the row as it was before.
                eventually(lambda: waits_for_a_lock(engine) or second.done())
            assert not second.done()
        assert second.result(30) is None
    other.dispose()


@both_databases
def test_recovery_codes_are_of_single_use(engine: Engine) -> None:
    codes = enrolled(engine)
    assert len(set(codes)) == RECOVERY_CODES
    for number, code in enumerate(codes, 1):
        given = code.lower() if number % 2 else code.replace("-", " ")
        assert take(engine, given, "oscar") is None
        assert take(engine, given) == Taken(True, RECOVERY_CODES - number)
        assert take(engine, given) is None
    assert take(engine, totp.code(SECRET, STEP)) == Taken(False, 0), "the device is not concerned"
    assert take(engine, "x" * 10_000) is None


@both_databases
def test_a_device_is_replaced_and_taken_off(engine: Engine) -> None:
    known = factors(engine)
    assert known.device("anna") == ""
    codes = enrolled(engine)
    first = known.device("Anna")
    enrolled(engine)
    assert first != known.device("anna") != ""
    assert take(engine, codes[0]) is None, "those of the device before"
    with engine.begin() as connection:
        known.take_off(connection, "anna")
    assert known.device("anna") == ""
    assert take(engine, totp.code(SECRET, STEP)) is None


def test_whoever_reads_the_ledger_makes_no_code(engine: Engine) -> None:
    codes = enrolled(engine)
    with engine.begin() as connection:
        row = connection.execute(select(second_factors)).one()
    for secret in (SECRET, *(code.replace("-", "").encode() for code in codes)):
        assert secret not in row.sealed
    enrolled(engine, "oscar")
    with engine.begin() as connection:
        rows = connection.execute(select(second_factors.c.sealed)).scalars().all()
    assert len({bytes(each[-100:]) for each in rows}) == 2


def test_whoever_writes_the_ledger_gives_nobody_a_device(engine: Engine) -> None:
    enrolled(engine, "oscar")
    enrolled(engine)
    with engine.begin() as connection:
        stolen = connection.scalar(select(second_factors.c.sealed).where(second_factors.c.name == "oscar"))
    assert stolen is not None
    for forged in (b"", b"x", stolen, stolen[:-1]):
        with engine.begin() as connection:
            connection.execute(update(second_factors).where(second_factors.c.name == "anna").values(sealed=forged))
        with pytest.raises(SealBroken):
            factors(engine).device("anna")
        with pytest.raises(SealBroken):
            take(engine, totp.code(SECRET, STEP))


def test_a_code_that_counts_seals_the_row_with_the_newest_key(engine: Engine) -> None:
    enrolled(engine)
    assert take(engine, totp.code(SECRET, STEP - 1), by=factors(engine, OLD, NEW))
    with pytest.raises(SealBroken):
        factors(engine, OLD).device("anna")
    assert take(engine, totp.code(SECRET, STEP), by=factors(engine, NEW))


def test_a_row_that_was_deleted_is_no_device(engine: Engine) -> None:
    enrolled(engine)
    with engine.begin() as connection:
        connection.execute(delete(second_factors))
    assert factors(engine).device("anna") == ""
