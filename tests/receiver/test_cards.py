"""Card numbers: none survives whatever surrounds it, nothing else is touched, and what is left reads as before.

Only test numbers that card schemes and gateways publish stand here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import UUID

import hypothesis
import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from receiver import cards
from receiver.errors import Quarantined
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint
from receiver.reading import form, json_object, xml
from tests.providers.test_paymentz import signed
from tests.receiver import cards_by_digit
from tests.support import CHECKOUT, DEBITSUCCESS, PAYMENTZ, QUICKSTREAM, Recorded, all_recorded, recorded

PUBLISHED = (
    *("4111111111111111", "4242424242424242", "4012888888881881", "4222222222222", "4000002760003184"),  # Visa
    *("5555555555554444", "5105105105105100", "2223003122003222", "5200828282828210"),  # Mastercard
    *("378282246310005", "371449635398431", "30569309025904", "38520000023237", "36227206271667"),  # Amex, Diners
    *("6011111111111117", "6011000990139424", "3530111333300000", "3566002020360505"),  # Discover, JCB
    *("6200000000000005", "6205500000000000004", "6759649826438453"),  # UnionPay, Maestro
)
ENDPOINTS: dict[str, Endpoint] = {e.provider: e for e in (QUICKSTREAM, CHECKOUT, DEBITSUCCESS, PAYMENTZ)}

numbers = st.sampled_from(PUBLISHED)
separators = st.sampled_from(["", " ", "-", "  ", " - ", "\t", "\N{NO-BREAK SPACE}", "\N{EN DASH}"])


@st.composite
def grouped(draw: st.DrawFn) -> str:
    """A card number as people write it: in groups of any length."""
    number = draw(numbers)
    cuts = sorted(draw(st.sets(st.integers(1, len(number) - 1), max_size=4)))
    between = draw(separators)
    return between.join(number[start:end] for start, end in pairwise([0, *cuts, len(number)]))


def left(body: bytes) -> list[str]:
    """Card numbers in `body`, looked for as plainly as can be: every run of groups, every part of it."""
    text = body.decode("utf-8", "replace")
    found = []
    for run in re.findall(r"[0-9](?:[ \t+\-\u00a0\u2010-\u2015]{0,3}[0-9])*", text):
        groups = re.findall("[0-9]+", run)
        for start in range(len(groups)):
            for end in range(start + 1, len(groups) + 1):
                number = "".join(groups[start:end])
                if len(number) > 19:
                    break
                if len(number) >= 13 and cards.is_card_number(number):
                    found.append(number)
    return found


@pytest.mark.parametrize("number", PUBLISHED)
def test_a_published_number_is_masked_to_six_and_four(number: str) -> None:
    masked, count = cards.masked(f"pan={number}&x=1".encode())
    assert (masked.decode(), count) == (f"pan={number[:6]}{'*' * (len(number) - 10)}{number[-4:]}&x=1", 1)


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111112",  # check digit
        "411111111111111",  # length of no issuer
        "41111111111111111111",  # 20 digits
        "14111111111111111",  # a longer run, whatever is in it
        "9999999999999995",  # no issuer
        "1741231329123457",  # microseconds since 1970
        "0",
        "",
    ],
)
def test_what_is_no_card_number_stays(number: str) -> None:
    assert not cards.is_card_number(number)
    assert cards.masked(f"a={number}&b=2".encode()) == (f"a={number}&b=2".encode(), 0)


def test_how_many_ids_look_like_card_numbers() -> None:
    # The rule names this figure: it is why `identifiers` exists.
    some = [str(4 * 10**15 + n * 982_451_653) for n in range(0, 10_000)]
    assert 900 < sum(map(cards.is_card_number, some)) < 1100


# -- whatever surrounds it


@given(grouped(), st.text(), st.text())
@example("4111111111111111", "100%", "")
@example("4111111111111111", "%E2", "%20")
@example("4111 1111 1111 1111", "5 ", " 12/27 737")
@example("4111111111111111", "4012888888 ", " 1881")
@example("378282246310005", "pan", "x")
@example("4111-1111-1111-1111", "\\u0034", "\\")
def test_none_survives_in_any_text(number: str, before: str, after: str) -> None:
    assume(not re.search(r"[0-9a-fA-F]$", before) or before[-1] not in "0123456789")
    assume(not after[:1].isdigit())
    assume(not re.search(r"[0-9a-fA-F]{16}", before + after))
    body = (before + number + after).encode("utf-8", "surrogatepass")
    masked, count = cards.masked(body)
    assert count >= 1
    assert len(masked) == len(body)
    assert left(masked) == []


@given(st.lists(st.one_of(grouped(), st.text(st.sampled_from("0123456789 -*ab"), max_size=12)), max_size=6))
def test_none_survives_beside_others(parts: list[str]) -> None:
    masked, _ = cards.masked(" ".join(parts).encode())
    assert left(masked) == []
    assert cards.masked(masked) == (masked, 0)


@given(grouped(), st.booleans())
def test_none_survives_in_a_form(number: str, plus: bool) -> None:
    encoded = quote_plus(number) if plus else quote(number, safe="")
    masked, count = cards.masked(f"a=1&pan={encoded}&b=2".encode())
    assert count == 1
    fields = form(masked)
    assert (fields.get("a"), fields.get("b")) == ("1", "2")
    assert re.sub("[^0-9*]", "", fields.get("pan")) == star(number)


@given(grouped())
def test_none_survives_with_every_byte_escaped(number: str) -> None:
    masked, count = cards.masked(("a=1&pan=" + "".join(f"%{byte:02X}" for byte in number.encode())).encode())
    assert (count, re.sub("[^0-9*]", "", form(masked).get("pan"))) == (1, star(number))
    escaped = "".join(f"\\u{ord(character):04x}" for character in number)
    masked, count = cards.masked(f'{{"pan":"{escaped}"}}'.encode())
    assert (count, re.sub("[^0-9*]", "", json.loads(masked)["pan"])) == (1, star(number))
    for pattern in ("&#{};", "&#x{:x};"):
        references = "".join(pattern.format(ord(character)) for character in number)
        masked, count = cards.masked(f"<a><pan>{references}</pan></a>".encode())
        assert (count, re.sub("[^0-9*]", "", xml(masked)[1].get("pan"))) == (1, star(number))


@given(grouped(), st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]))
def test_none_survives_in_xml_of_any_encoding(number: str, encoding: str) -> None:
    declared = encoding.rpartition("-")[0] if encoding.endswith("le") or encoding.endswith("be") else encoding
    head = "" if declared != encoding else f'<?xml version="1.0" encoding="{encoding}"?>'
    body = f"{head}<PaymentResponse><pan>{number}</pan></PaymentResponse>".encode(encoding)
    masked, count = cards.masked(body)
    assert (count, len(masked)) == (1, len(body))
    if head:
        assert re.sub("[^0-9*]", "", xml(masked)[1].get("pan")) == star(number)


@given(numbers)
def test_a_bare_json_number_stays_a_number(number: str) -> None:
    masked, count = cards.masked(b'{"a":[%b , -%b],"b":"x"}' % (number.encode(), number.encode()))
    read = msgspec.json.decode(masked)
    assert (count, read["b"]) == (2, "x")
    for value in (read["a"][0], -read["a"][1]):
        text = str(value)
        assert (text[:6], text[-4:], len(text)) == (number[:6], number[-4:], len(number))
        assert not cards.is_card_number(text)


def test_a_fraction_is_no_card_number() -> None:
    body = b'{"rate":0.4111111111111111,"text":"0.4111111111111111"}'
    assert cards.masked(body)[0] == b'{"rate":0.4111111111111111,"text":"0.411111******1111"}'


def star(number: str) -> str:
    digits = re.sub("[^0-9]", "", number)
    return digits[:6] + "*" * (len(digits) - 10) + digits[-4:]


# -- what is left alone


@given(st.text())
def test_texts_without_long_numbers_stay(text: str) -> None:
    assume(not re.search("[0-9].*" * 13, text, re.DOTALL))
    assert cards.masked_text(text) == text


@given(st.uuids())
@example(UUID("41111111-aaaa-4aaa-8aaa-411111111111"))
def test_uuids_stay(uuid: Any) -> None:
    assert cards.masked_text(f"id={uuid} {str(uuid).upper()}") == f"id={uuid} {str(uuid).upper()}"


@given(st.binary(min_size=16, max_size=64))
@example(bytes.fromhex("4111111111111111abcdefabcdefabcd"))
def test_digests_stay(data: bytes) -> None:
    assume(re.search("[a-f]", data.hex()))
    assert cards.masked_text(f'"{data.hex()}"') == f'"{data.hex()}"'


def test_a_uuid_of_digits_stays() -> None:
    assert cards.masked_text("41111111-1111-1111-4111-111111111111") == "41111111-1111-1111-4111-111111111111"


@pytest.mark.parametrize("request_", [r for name in PROVIDERS for r in all_recorded(name)], ids=lambda r: r.name)
def test_nothing_in_a_recorded_request_is_taken_for_one(request_: Recorded) -> None:
    message = request_.message()
    assert cards.masked_message(message, request_.provider, ENDPOINTS[request_.provider.name]) == (message, {})


@given(st.lists(grouped(), min_size=1, max_size=20), st.binary(max_size=30))
def test_any_bytes_around_keep_their_place(found: list[str], noise: bytes) -> None:
    body = noise.join(number.encode() for number in found)
    masked, _ = cards.masked(body)
    assert len(masked) == len(body)
    assert all(new == old or (bytes([old]).isdigit() or old in b"dD") for new, old in zip(masked, body, strict=True))


# -- what tells payments apart

NUMBER = "4111111111111111"
OTHER = "5555555555554444"


def said(provider: str, body: bytes) -> Iterator[Any]:
    """What identifies a delivery, and what is made of it."""
    endpoint, request = ENDPOINTS[provider], CASES[provider][0]
    message = msgspec.structs.replace(request.message(), body=body)
    masked, places = cards.masked_message(message, PROVIDERS[provider], endpoint)
    assert left(masked.body.replace(NUMBER.encode(), b"")) == []
    yield places
    for each in (message, masked):
        identity = PROVIDERS[provider].identify(each, endpoint)
        yield identity.dedupe_key, identity.event_type
    for each in (message, masked):
        event = PROVIDERS[provider].interpret(each, endpoint)
        yield (event.payment_id, event.receipt_number, event.action_id, event.amount, event.currency, event.token)


def with_field(body: bytes, name: str, value: str) -> bytes:
    """`body` with `value` in an existing field, as form, JSON or XML."""
    patterns = (
        (rf"(^|&)({name}=)[^&]*", rf"\g<1>\g<2>{value}"),
        (rf'("{name}"\s*:\s*")[^"]*', rf"\g<1>{value}"),
        (rf"(<{name}>)[^<]*", rf"\g<1>{value}"),
    )
    for pattern, replacement in patterns:
        changed, count = re.subn(pattern, replacement, body.decode(), count=1)
        if count:
            return changed.encode()
    raise AssertionError(name)


CASES = {
    "quickstream": (recorded("quickstream", "payment__form"), "receiptNumber", "customerReferenceNumber"),
    "checkout": (recorded("checkout", "payment_captured"), "action_id", "reference"),
    "debitsuccess": (recorded("debitsuccess", "casual_payment"), "PaymentFormToken", "Message"),
}


@pytest.mark.parametrize("provider", CASES)
def test_an_identifier_stays_and_a_field_beside_it_is_masked(provider: str) -> None:
    request, identifier, field = CASES[provider]
    body = with_field(with_field(request.body, identifier, NUMBER), field, OTHER)
    places, before, after, meant, means = said(provider, body)
    assert places == {"body": 1}
    assert before == after
    assert meant == means


def test_a_number_in_the_merchants_own_numbering_stays() -> None:
    request, _, field = CASES["quickstream"]
    own = msgspec.structs.replace(QUICKSTREAM, own_numbers=(field,))
    message = msgspec.structs.replace(request.message(), body=with_field(request.body, field, NUMBER))
    assert cards.masked_message(message, PROVIDERS["quickstream"], own) == (message, {})


def test_a_signed_field_stays_so_that_the_checksum_still_fits() -> None:
    request = recorded("paymentz", "capturesuccess")
    fields = json.loads(request.body) | {"merchantTransactionId": NUMBER, "bankReferenceId": OTHER}
    body = json.dumps(signed(fields)).encode()
    message = msgspec.structs.replace(request.message(), body=body)
    masked, places = cards.masked_message(message, PROVIDERS["paymentz"], PAYMENTZ)
    assert places == {"body": 1}
    assert PROVIDERS["paymentz"].interpret(masked, PAYMENTZ).reference == NUMBER


@pytest.mark.parametrize("name", ["x-eventname"])
def test_a_header_is_masked(name: str) -> None:
    message = recorded("debitsuccess", "Customer.Schedule.Suspension.Added").message()
    message = msgspec.structs.replace(message, headers={**message.headers, name: NUMBER, "x-traceid": OTHER})
    masked, places = cards.masked_message(message, PROVIDERS["debitsuccess"], DEBITSUCCESS)
    assert places == {"header": 1}
    assert (masked.headers[name], masked.headers["x-traceid"]) == ("411111******1111", OTHER)


def test_an_unreadable_body_is_masked_as_a_whole() -> None:
    body = b'{"id":"4111111111111111'
    message = msgspec.structs.replace(recorded("checkout", "payment_captured").message(), body=body)
    masked, places = cards.masked_message(message, PROVIDERS["checkout"], CHECKOUT)
    assert (masked.body, places) == (b'{"id":"411111******1111', {"body": 1})
    with pytest.raises(Quarantined):
        json_object(masked.body)


# That it ends. Digits that take the place of digits may make another number: two that overlapped made each other for
# ever, for 37 bytes in a Content-Type that anybody could send. Fuzzing found it.

ENDLESS = rb'{""""3872822111\u00201111\u002d1111 1'
shreds = st.sampled_from(
    [
        *(rb"\u0034", rb"\u0020", rb"\u002d", rb"\u2011", b"%34", b"&#52;", b" ", b"-", b'"', b"{", b".", b"\\", b","),
        *(b"4", b"1", b"0", b"1111", b"4111", b"3872822111", b"378282246310005", b"4111111111111111", b"5555444"),
    ]
)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a search goes on and on."""
    search, taken = cards._mask_all, {"so far": 0}

    def counted(body: bytearray, *arguments: Any) -> int:
        taken["so far"] += 1
        assert taken["so far"] < 10 + len(body), bytes(body)
        return search(body, *arguments)

    def masked(body: bytes, keep: Any = (), find: Any = cards.masked) -> tuple[bytes, int]:
        taken["so far"] = 0
        found: tuple[bytes, int] = find(body, keep)
        return found

    monkeypatch.setattr(cards, "_mask_all", counted)
    monkeypatch.setattr(cards, "masked", masked)


def test_two_numbers_that_would_make_each_other_end(turns: None) -> None:
    body, count = cards.masked(ENDLESS)
    assert (len(body), count) == (len(ENDLESS), 1)
    assert cards.masked_text(ENDLESS.decode()) == body.decode()


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=400)
@given(body=st.lists(shreds, min_size=4, max_size=40).map(lambda parts: b"{" + b"".join(parts)))
def test_every_search_ends_and_keeps_the_length(turns: None, body: bytes) -> None:
    masked, count = cards.masked(body)
    assert len(masked) == len(body)
    assert (masked == body) == (count == 0)
    assert cards.masked(masked) == (masked, 0)


# That it is quick: bodies are searched between two requests. What it finds is held against a search of one digit after
# the other, and a body of any length is one question to Python.

LARGE = 256 << 10
pieces = st.sampled_from(
    [
        *(
            b" ",
            b"-",
            b"+",
            b"\t",
            b"\x00",
            b"\x10 ",
            b" \x11",
            b"\x10",
            b"\xc2\xa0",
            b"\xa0",
            b"\xe2\x80\x90",
            b"\xe2\x80\xaf",
        ),
        *(
            b"%20",
            b"%2b",
            b"%2D",
            b"%09",
            b"%C2%a0",
            b"%e2%80%93",
            rb"\u0009",
            rb"\u002b",
            rb"\u00A0",
            rb"\u2011",
            rb"\t",
        ),
        *(b"&#32;", b"&#x20;", b"&#x2D;", b"&#8210;", b"&#x2015;", b"&#160;", b"&#xa0;", b"\xe2\x80", b"\xc2"),
        *(
            b"%33",
            b"%34",
            rb"\u0034",
            rb"\u0035",
            b"&#52;",
            b"&#53;",
            b"&#x34;",
            b"&#x35;",
            b"%00",
            b"%41",
            b"%25",
            b"%3",
        ),
        *(
            rb"\u00",
            rb"\u0041",
            b"&#65;",
            b"&#x;",
            b"&#",
            b"%",
            b"\\",
            b";",
            b"u",
            b"x",
            b"a",
            b"f",
            b"&",
            b"=",
            b"<",
            b"*",
        ),
        *(b'"', b'\\"', b"{", b"[", b",", b".", b"\n", b"\xff", b"\x01", b"\x02", b"\x03", b"\x0f", b"!"),
        *(
            b"a" * 31,
            b"abcdef0123456789abcdef0123456789",
            b"41111111-1111-1111-4111-111111111111",
            b"-1111-4111-",
            b"4" * 20,
        ),
        *(
            b"4",
            b"1",
            b"0",
            b"1111",
            b"4111",
            b"60",
            b"34",
            b"3782822463",
            b"10005",
            b"5602210000000009",
            b"6069850000000007",
        ),
        *(number.encode() for number in PUBLISHED),
    ]
)


@hypothesis.settings(max_examples=600)
@given(
    body=st.tuples(st.sampled_from([b"", b"{", b"[", b"<"]), st.lists(pieces, max_size=40)).map(
        lambda parts: parts[0] + b"".join(parts[1])
    ),
    keep=st.lists(st.one_of(st.sampled_from(PUBLISHED), st.text("0123456789 a", max_size=40)), max_size=3),
    long=st.booleans(),
)
@example(rb"\u00a&#54;\u0030%37384\u0030\u00A0350\x10 45\u0032\u00357&#x2D;7".replace(rb"\x10", b"\x10"), [], False)
def test_it_finds_what_a_search_of_one_digit_after_the_other_finds(body: bytes, keep: list[str], long: bool) -> None:
    # Among many characters numbers that are kept are looked for in another way.
    more = [body.decode("latin-1") * 40] if long else []
    assert cards.masked(body, [*keep, *more]) == cards_by_digit.masked(body, [*keep, *more])


def test_prefixes_and_lengths_are_those_of_the_ranges() -> None:
    for low, high, _ in cards._RANGES:
        for edge in (int(low) - 1, int(low), int(high), int(high) + 1):
            for length in range(12, 21):
                numbers = [f"{edge}{rest:0>{length - len(low)}}" for rest in range(10)]
                expected = [n for n in numbers if cards_by_digit.is_card_number(n)] if length > 12 else []
                assert [n for n in numbers if cards.is_card_number(n)] == expected


@pytest.mark.parametrize("unit", ["4", "4 ", "%34", "%34%20", "\\u0034", "&#52;", "4   ", "1234567890123&", "%411"])
def test_a_body_full_of_digits_is_not_looked_at_one_by_one(unit: str) -> None:
    asked = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal asked
        asked += event in ("call", "c_call")

    body = (unit * LARGE)[:LARGE].encode()
    sys.setprofile(count)
    try:
        cards.masked(body, ["4" * 5000])
    finally:
        sys.setprofile(None)
    assert asked < 2000
