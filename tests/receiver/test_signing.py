"""Proofs: only the right secret passes, every junk is a refusal, and nothing that fails is an unhandled error."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Reason, Refused, SealBroken
from receiver.signing import (
    Seal,
    Secret,
    canonical_return,
    digest,
    matches,
    require_basic,
    require_hmac_sha256,
    require_return_hmac,
    require_static,
    return_digest,
)
from tests.support import SAMPLES, secrets

PASSWORDS = secrets("old:pässword", "new:pässword")
KEYS = secrets("old-key", "schlüssel-€")
BODY = b'{"id":"evt_1"}'
# All that a Python text can hold, lone surrogates included.
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)


def basic(credentials: str | bytes, scheme: str = "Basic") -> str:
    raw = credentials.encode() if isinstance(credentials, str) else credentials
    return f"{scheme} {b64encode(raw).decode()}"


def signature(key: str, body: bytes = BODY) -> str:
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


# ---- secrets


def test_a_secret_shows_only_its_origin() -> None:
    secret = Secret(b"hidden-value", "env:QS_PASSWORD")
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}", f"{secret!r:>40}"):
        assert "hidden" not in shown
        assert "env:QS_PASSWORD" in shown
    assert secret.reveal() == b"hidden-value"
    assert not hasattr(secret, "__dict__")


def test_an_empty_secret_cannot_exist() -> None:
    with pytest.raises(ValueError, match=r"The secret from env:QS_PASSWORD is empty\."):
        Secret(b"", "env:QS_PASSWORD")


@pytest.mark.parametrize("given", [b"old-key", "schlüssel-€".encode()])
def test_matches_any_of_the_secrets(given: bytes) -> None:
    assert matches(given, KEYS)


@pytest.mark.parametrize(
    "given", [b"", b"old-ke", b"old-keyy", b"OLD-KEY", b"old-key\0", b"old-key\n", b"old-keyschl", b"\xff"]
)
def test_matches_neither_prefixes_nor_variants(given: bytes) -> None:
    assert not matches(given, KEYS)


@pytest.mark.parametrize("given", [b"", b"x"])
def test_no_secrets_match_nothing(given: bytes) -> None:
    assert not matches(given, ())


# ---- Basic credentials


@pytest.mark.parametrize("password", ["old:pässword", "new:pässword"])
@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_basic_takes_old_and_new_password(password: str, scheme: str) -> None:
    require_basic(basic(f"acme:{password}", scheme), "acme", PASSWORDS)


def test_basic_takes_more_than_one_space_behind_the_scheme() -> None:
    require_basic(basic("acme:new:pässword").replace(" ", "   "), "acme", PASSWORDS)


def test_basic_user_names_may_be_non_ascii() -> None:
    require_basic(basic("açmé:x"), "açmé", secrets("x"))


def test_basic_without_the_header_is_a_challenge() -> None:
    with pytest.raises(Refused) as caught:
        require_basic(None, "acme", PASSWORDS)
    assert caught.value.reason is Reason.CREDENTIALS_MISSING
    assert caught.value.status == 401


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        " ",
        "Basic",
        "Basic ",
        "Basic  ",
        "Bearer x",
        basic("acme:new:pässword", "Bearer"),
        basic("acme:new:pässword", "Digest"),
        basic("acme:new:pässword", "BasicX"),
        basic("acme:new:pässword").replace(" ", "\t"),
        basic("acme:new:pässword").replace(" ", ""),
        basic("acme:new:pässword")[:-1],
        basic("acme:new:pässword") + "!",
        basic("acme:new:pässword").replace("Y", "Y ", 1),
        "Basic ====",
        "Basic é",
        "Basic \udc80",
        "Basic €",
        "Basic \0",
        "Basic acme:new:pässword",
        basic(""),
        basic(":"),
        basic("acme"),
        basic("acme:"),
        basic(":new:pässword"),
        basic("acme:new"),
        basic("acme:new:"),
        basic("acme:new:pässwor"),
        basic("acme:new:pässword "),
        basic("acme:new:pässword\0"),
        basic("Acme:new:pässword"),
        basic("other:new:pässword"),
        basic("acme:new:password"),
        basic("new:pässword:acme"),
        basic("acme:new:pässword".encode("latin-1")),
        basic(b"\xff\xfe:\xff"),
    ],
)
def test_basic_refuses_everything_else(authorization: str) -> None:
    with pytest.raises(Refused) as caught:
        require_basic(authorization, "acme", PASSWORDS)
    assert caught.value.reason is Reason.CREDENTIALS_REFUSED
    assert caught.value.status == 403
    assert "pässword" not in str(caught.value)


@given(authorization=ANY_TEXT | ANY_TEXT.map(lambda text: f"Basic {text}") | st.binary().map(basic))
def test_basic_refuses_any_junk(authorization: str) -> None:
    with pytest.raises(Refused):
        require_basic(authorization, "acme", PASSWORDS)


@given(user=st.text(st.characters(codec="utf-8", exclude_characters=":")), password=st.text(min_size=1))
def test_basic_splits_at_the_first_colon(user: str, password: str) -> None:
    require_basic(basic(f"{user}:{password}"), user, secrets(password))


def test_basic_without_any_password_lets_nobody_in() -> None:
    for credentials in ("acme:", "acme:x", ":"):
        with pytest.raises(Refused):
            require_basic(basic(credentials), "acme", ())


# ---- a static header


def test_static_takes_any_of_the_secrets_as_servers_read_them() -> None:
    for secret in KEYS:
        require_static(secret.reveal().decode("latin-1"), KEYS, "Authorization")


@pytest.mark.parametrize("given", [None, "", "old-ke", "old-key ", "Old-key", "schlüssel-€", "?", "\ud800"])
def test_static_refuses_everything_else(given: str | None) -> None:
    with pytest.raises(Refused) as caught:
        require_static(given, KEYS, "Authorization")
    assert caught.value.reason is Reason.CREDENTIALS_REFUSED
    assert caught.value.status == 403
    assert "Authorization" in caught.value.detail


@given(given=ANY_TEXT)
def test_static_refuses_any_junk(given: str) -> None:
    with pytest.raises(Refused):
        require_static(given, KEYS, "Authorization")


@pytest.mark.parametrize("text", ["?", "??????", "\\u20ac"])
def test_static_does_not_take_a_replacement_for_the_letter_it_replaces(text: str) -> None:
    with pytest.raises(Refused):
        require_static("€" * len(text), secrets(text), "Authorization")


# ---- HMAC over the body


@pytest.mark.parametrize("key", ["old-key", "schlüssel-€"])
def test_hmac_takes_old_and_new_key_in_either_case(key: str) -> None:
    require_hmac_sha256(signature(key), BODY, KEYS, "Cko-Signature")
    require_hmac_sha256(signature(key).upper(), BODY, KEYS, "Cko-Signature")


@pytest.mark.parametrize("given", [None, ""])
def test_hmac_must_be_there(given: str | None) -> None:
    with pytest.raises(Refused) as caught:
        require_hmac_sha256(given, BODY, KEYS, "Cko-Signature")
    assert caught.value.reason is Reason.SIGNATURE_MISSING
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "given",
    [
        signature("other-key"),
        signature("old-ke"),
        signature("old-key", BODY + b" "),
        signature("old-key", b""),
        signature("old-key")[:-1],
        signature("old-key") + "0",
        " " + signature("old-key"),
        "sha256=" + signature("old-key"),
        hashlib.sha256(BODY).hexdigest(),
        hmac.new(b"old-key", BODY, hashlib.sha1).hexdigest(),
        b64encode(bytes.fromhex(signature("old-key"))).decode(),
        "é",
        "€",
        "\ud800",
    ],
)
def test_hmac_refuses_everything_else(given: str) -> None:
    with pytest.raises(Refused) as caught:
        require_hmac_sha256(given, BODY, KEYS, "Cko-Signature")
    assert caught.value.reason is Reason.SIGNATURE_REFUSED


@given(given=ANY_TEXT, body=st.binary(max_size=50))
def test_hmac_refuses_any_junk(given: str, body: bytes) -> None:
    with pytest.raises(Refused):
        require_hmac_sha256(given, body, KEYS, "Cko-Signature")


def test_hmac_without_keys_refuses_even_the_empty_key() -> None:
    with pytest.raises(Refused):
        require_hmac_sha256(signature(""), BODY, (), "Cko-Signature")


# ---- the browser return. Digests by java.net.URLEncoder and javax.crypto.Mac of OpenJDK 17.

RETURNS = [
    (
        "return-password",
        [
            ("supplierBusinessCode", "ACME"),
            ("receiptNumber", "7004100001"),
            ("communityCode", "ACMECOMM"),
            ("paymentAmount", "148.75"),
        ],
        "communityCode=ACMECOMM&paymentAmount=148.75&receiptNumber=7004100001&supplierBusinessCode=ACME",
        "81d48efc780f73af11b316e718c746a7cae54639c8e1319407fad20f6615ca4a",
    ),
    (
        "pässword:€",
        [("customNote", "~* tilde & star"), ("CustomFirst", "A"), ("customName", "Zoë 😀")],
        "CustomFirst=A&customName=Zo%C3%AB+%F0%9F%98%80&customNote=%7E*+tilde+%26+star",
        "7f1f37b34d900b9bde12a1f4a94a07a237ded34ca794730296866c997009562d",
    ),
    (
        "return-password",
        [("customTag", "second"), ("customTag", "first"), ("Zebra", "1"), ("apple", "")],
        "Zebra=1&apple=&customTag=second&customTag=first",
        "970f1f961072f69239a70cea59156685a30fff900fb1536feae393ebf3d3c77b",
    ),
    (
        "return-password",
        [("customAll", "".join(map(chr, range(1, 128))))],
        "customAll=%01%02%03%04%05%06%07%08%09%0A%0B%0C%0D%0E%0F%10%11%12%13%14%15%16%17%18%19%1A%1B%1C%1D%1E%1F"
        "+%21%22%23%24%25%26%27%28%29*%2B%2C-.%2F0123456789%3A%3B%3C%3D%3E%3F%40ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        "%5B%5C%5D%5E_%60abcdefghijklmnopqrstuvwxyz%7B%7C%7D%7E%7F",
        "4998970717d4dfc2f4a3aa135d323a0e1dbae1be652a41d0b280db5753890529",
    ),
]
PAIRS = RETURNS[0][1]
RETURN_KEYS = secrets("return-password", "next-password")


@pytest.mark.parametrize(("password", "pairs", "canonical", "expected"), RETURNS)
def test_return_digests_are_those_of_java(
    password: str, pairs: list[tuple[str, str]], canonical: str, expected: str
) -> None:
    assert canonical_return(pairs) == canonical
    assert return_digest(pairs, *secrets(password)) == expected
    require_return_hmac([*pairs, ("hmac", expected)], secrets("other", password))


@pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not on this machine")
def test_return_digests_of_the_shared_vectors() -> None:
    vectors = json.loads((SAMPLES / "quickstream" / "hmac_vectors.SELF-GENERATED.json").read_bytes())["vectors"]
    assert len(vectors) == 5
    for vector in vectors:
        pairs = [(name, value) for name, value in vector["params"]]
        assert canonical_return(pairs) == vector["canonical"], vector["id"]
        assert return_digest(pairs, *secrets(vector["password"])) == vector["hmac_sha256_hex"], vector["id"]


@given(pairs=st.lists(st.tuples(st.sampled_from(["a", "B", "~*", "hmac"]), st.text(max_size=5)), max_size=6))
def test_canonical_returns_are_stable_and_leave_the_hmac_out(pairs: list[tuple[str, str]]) -> None:
    text = canonical_return(pairs)
    assert text.isascii()
    assert "~" not in text
    names = [part.partition("=")[0] for part in text.split("&")] if text else []
    assert "hmac" not in names
    kept = [pair for pair in pairs if pair[0] != "hmac"]
    # Of one name the order is that of arrival, whatever stands between.
    assert canonical_return(sorted(kept, key=lambda pair: pair[0])) == text
    assert all(first <= second for first, second in pairwise(name.replace("%7E", "~") for name in names))


@pytest.mark.parametrize("pairs", [PAIRS, [*PAIRS, ("hmac", "")], []])
def test_a_return_without_hmac_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as caught:
        require_return_hmac(pairs, RETURN_KEYS)
    assert caught.value.reason is Reason.SIGNATURE_MISSING


@pytest.mark.parametrize(
    "given",
    [
        [RETURNS[0][3].upper()],
        [RETURNS[0][3][:-1]],
        [RETURNS[0][3] + " "],
        [RETURNS[1][3]],
        ["", RETURNS[0][3]],
        [RETURNS[0][3], RETURNS[0][3]],
        [RETURNS[0][3], "x"],
        ["€"],
        ["\ud800"],
    ],
)
def test_a_return_with_another_hmac_is_refused(given: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        require_return_hmac([*PAIRS, *(("hmac", value) for value in given)], RETURN_KEYS)
    assert caught.value.reason is Reason.SIGNATURE_REFUSED


@pytest.mark.parametrize(
    "pairs",
    [
        [*PAIRS[:3], ("paymentAmount", "1.00")],
        [*PAIRS, ("responseCode", "00")],
        PAIRS[:3],
        [*PAIRS, ("customNote", "\ud800")],
        [*PAIRS, ("\udfff", "")],
    ],
)
def test_an_altered_return_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as caught:
        require_return_hmac([*pairs, ("hmac", RETURNS[0][3])], RETURN_KEYS)
    assert caught.value.reason is Reason.SIGNATURE_REFUSED


def test_a_return_needs_a_password() -> None:
    with pytest.raises(Refused):
        require_return_hmac([*PAIRS, ("hmac", RETURNS[0][3])], ())


# ---- digests


def test_a_digest_keeps_its_parts_apart() -> None:
    parts = [(), (b"",), (b"", b""), (b"ab",), (b"a", b"b"), (b"b", b"a"), (b"", b"ab"), (b"ab", b"")]
    assert len({digest(*each) for each in parts}) == len(parts)
    assert digest(b"ab") == digest(b"ab")
    assert len(digest(b"ab")) == 64


# ---- the seal


def seal(*keys: str, purpose: str = "batch") -> Seal:
    return Seal(secrets(*keys), purpose)


@pytest.mark.parametrize("message", [b"", b"x", b"a.b.c", b"\x00\xff" * 1000, b"."])
def test_a_seal_opens_what_it_sealed(message: bytes) -> None:
    assert seal("k").open(seal("k").seal(message)) == message


def test_seal_keys_rotate_without_a_gap() -> None:
    before, during, after = seal("k1"), seal("k1", "k2"), seal("k2")
    assert during.open(before.seal(b"m")) == b"m"
    assert after.open(during.seal(b"m")) == b"m"
    for closed, sealed in ((before, during.seal(b"m")), (after, before.seal(b"m"))):
        with pytest.raises(SealBroken):
            closed.open(sealed)


def test_a_seal_of_another_purpose_opens_nothing() -> None:
    with pytest.raises(SealBroken):
        seal("k", purpose="session").open(seal("k").seal(b"m"))


def test_non_ascii_seal_keys_work() -> None:
    assert seal("schlüssel-€").open(seal("alt", "schlüssel-€").seal(b"m")) == b"m"
    with pytest.raises(SealBroken):
        seal("schlussel-€").open(seal("schlüssel-€").seal(b"m"))


@given(message=st.binary(max_size=60), position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_an_altered_message_never_opens_as_another(message: bytes, position: int, flip: int) -> None:
    sealed = bytearray(seal("k").seal(message))
    sealed[position % len(sealed)] ^= flip
    try:
        opened = seal("k").open(bytes(sealed))
    except SealBroken:
        return
    # The signature's last letter has two bits that mean nothing.
    assert opened == message
    assert position % len(sealed) >= len(message)


@given(sealed=st.binary(max_size=80))
def test_junk_is_a_broken_seal(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        seal("k").open(sealed)


def test_a_cut_or_bare_message_is_a_broken_seal() -> None:
    sealed = seal("k").seal(b"message")
    for cut in (sealed[:-5], sealed[3:], b"message", b"message.", sealed + b"." + sealed, sealed.replace(b".", b"")):
        with pytest.raises(SealBroken):
            seal("k").open(cut)
