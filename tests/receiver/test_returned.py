"""What a browser return says: the provider page's traps, with vectors that OpenJDK made and those of the samples."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Reason, Refused
from receiver.notification import BrowserReturn, ReturnOutcome
from receiver.returned import ERROR_FIELDS, MAX_QUERY, read
from receiver.signing import return_digest
from tests.support import DEBITSUCCESS, QUICKSTREAM, SAMPLES, secrets

Pairs = list[tuple[str, str]]

QUICK = msgspec.structs.replace(QUICKSTREAM, hmac_passwords=secrets("return-password", "next-password"))
PAID: Pairs = [
    ("communityCode", "ACMECOMM"),
    ("supplierBusinessCode", "ACME"),
    ("paymentAmount", "1001.15"),
    ("surchargeAmount", "1.15"),
    ("receiptNumber", "1003548481"),
    ("responseCode", "08"),
    ("responseDescription", "Honour with identification"),
    ("summaryCode", "0"),
    ("createdDateTime", "20 Jun 2012 15:04"),
    ("settlementDate", "20120620"),
    ("cardholderName", "John Smith"),
    ("maskedCardNumber", "456471xxxxxxx004"),
    ("cardScheme", "VISA"),
    ("expiryDateMonth", "01"),
    ("expiryDateYear", "2016"),
    ("customerReferenceNumber", "CUSTOMER1"),
    ("paymentReference", "PAYMENT1"),
    ("customTitle", "Dr"),
]
FAILED: Pairs = [
    ("action", "Error"),
    ("communityCode", "ACMECOMM"),
    ("supplierBusinessCode", "ACME"),
    ("paymentAmount", "1001.15"),
    ("paymentReference", "PAYMENT1"),
]


def signed(pairs: Pairs, password: str = "next-password") -> Pairs:
    return [*pairs, ("hmac", return_digest(pairs, *secrets(password)))]


def changed(**fields: str) -> Pairs:
    return [(name, fields.get(name, value)) for name, value in PAID] + [
        (name, value) for name, value in fields.items() if name not in dict(PAID)
    ]


def said(pairs: Pairs, endpoint: Any = QUICK) -> BrowserReturn:
    found = read(urlencode(pairs).encode(), endpoint)
    assert found is not None
    return found


def refusal(query: bytes | Pairs, endpoint: Any = QUICK) -> Refused:
    with pytest.raises(Refused) as caught:
        read(query if isinstance(query, bytes) else urlencode(query).encode(), endpoint)
    return caught.value


# -- QuickStream, typical flow


def test_a_proven_return() -> None:
    returned = said(signed(PAID))
    assert len(returned.digest) == 64
    assert msgspec.structs.replace(returned, id="", returned_at=0, digest="") == BrowserReturn(
        id="",
        provider="quickstream",
        facility="acme",
        returned_at=0,
        digest="",
        verified=True,
        outcome=ReturnOutcome.APPROVED,
        payment_id="ACMECOMM:1003548481",
        receipt_number="1003548481",
        reference="PAYMENT1",
        customer_reference="CUSTOMER1",
        amount=100115,
        surcharge=115,
        currency="AUD",
        response_code="08",
        summary_code="0",
    )


@pytest.mark.parametrize("password", ["return-password", "next-password"])
def test_old_and_new_password_prove(password: str) -> None:
    assert said(signed(PAID, password)).verified


@pytest.mark.parametrize(
    ("summary", "outcome"),
    [("0", "approved"), ("1", "declined"), ("2", "pending"), ("3", "failed"), ("", "pending"), ("9", "pending")],
)
def test_the_summary_code_decides_and_2_is_an_open_outcome(summary: str, outcome: str) -> None:
    assert said(signed(changed(summaryCode=summary))).outcome == outcome


def test_the_payment_is_that_of_the_notification() -> None:
    pairs = [pair for pair in PAID if pair[0] != "communityCode"]
    assert said(signed(pairs)).payment_id == "1003548481"


def test_a_return_that_is_loaded_again_is_the_same_and_another_is_not() -> None:
    first, again = said(signed(PAID)), said(list(reversed(signed(PAID))))
    assert (first.digest, first.id) != (said(signed(changed(customTitle="Ms"))).digest, again.id)
    assert first.digest == again.digest


# -- the traps of the vendor's method


@pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not on this machine")
def test_the_shared_vectors_prove_returns() -> None:
    vectors = json.loads((SAMPLES / "quickstream" / "hmac_vectors.SELF-GENERATED.json").read_bytes())["vectors"]
    for vector in vectors:
        endpoint = msgspec.structs.replace(
            QUICKSTREAM, hmac_passwords=secrets(vector["password"]), supplier_business_codes=("SUPP",)
        )
        pairs = [(name, value) for name, value in vector["params"]] + [("hmac", vector["hmac_sha256_hex"])]
        if vector["id"] == "doc-example-inputs":
            assert said(pairs, endpoint).verified
        else:
            # Proven, and then of no business: a wrong digest would be `signature_refused`.
            assert refusal(pairs, endpoint).reason is Reason.REQUEST_MALFORMED, vector["id"]
        assert refusal([*pairs, ("more", "")], endpoint).reason is Reason.SIGNATURE_REFUSED


@pytest.mark.parametrize(
    "query",
    [
        # %20 and +, upper-case and lower-case hex, escaped and bare: the proof is over the decoded values.
        urlencode(signed(changed(customNote="~* a&b é€😀")), quote_via=quote).encode(),
        urlencode(signed(changed(customNote="~* a&b é€😀"))).encode(),
        urlencode(signed(changed(customNote="~* a&b é€😀"))).replace("%2A", "*").replace("%C3", "%c3").encode(),
    ],
)
def test_trap_20_and_21_the_encoding_of_the_redirect_itself_does_not_count(query: bytes) -> None:
    returned = read(query, QUICK)
    assert returned is not None
    assert returned.verified


def test_empty_values_count() -> None:
    assert said(signed([*PAID, ("customEmpty", "")])).verified
    dropped = signed([*PAID, ("customEmpty", "")])
    assert refusal([pair for pair in dropped if pair[1]]).reason is Reason.SIGNATURE_REFUSED


def test_trap_22_repeated_names_keep_their_order_and_no_variant_is_tried() -> None:
    twice = [("customTag", "b"), *PAID, ("customTag", "a")]
    assert said(signed(twice)).verified
    *rest, digest = signed(twice)
    assert refusal([("customTag", "a"), *rest[1:-1], ("customTag", "b"), digest]).reason is Reason.SIGNATURE_REFUSED


def test_parameters_of_the_merchants_own_return_url_are_proven_too() -> None:
    assert said(signed([("basket", "17"), *PAID])).verified
    assert refusal([("basket", "18"), *signed([("basket", "17"), *PAID])[1:]]).reason is Reason.SIGNATURE_REFUSED


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (PAID, Reason.SIGNATURE_MISSING),
        ([*PAID, ("hmac", "")], Reason.SIGNATURE_MISSING),
        ([], Reason.SIGNATURE_MISSING),
        ([*PAID, ("hmac", "0" * 64)], Reason.SIGNATURE_REFUSED),
        ([*PAID, ("hmac", "\u00e9€")], Reason.SIGNATURE_REFUSED),
        ([*signed(PAID), signed(PAID)[-1]], Reason.SIGNATURE_REFUSED),
        ([*changed(paymentAmount="1.00"), signed(PAID)[-1]], Reason.SIGNATURE_REFUSED),
        (signed(PAID, "another"), Reason.SIGNATURE_REFUSED),
        ([*PAID, ("HMAC", signed(PAID)[-1][1])], Reason.SIGNATURE_MISSING),
    ],
)
def test_what_is_not_proven_is_refused(pairs: Pairs, reason: Reason) -> None:
    assert refusal(pairs).reason is reason


def test_a_return_for_another_business_of_the_community_is_refused() -> None:
    assert refusal(signed(changed(supplierBusinessCode="OTHER"))).reason is Reason.REQUEST_MALFORMED


@pytest.mark.parametrize("name", ["receiptNumber", "summaryCode", "paymentAmount", "supplierBusinessCode"])
def test_a_proven_return_that_contradicts_itself_is_refused(name: str) -> None:
    refused = refusal(signed([*PAID, (name, "another")]))
    assert (refused.reason, refused.detail) == (Reason.REQUEST_MALFORMED, f"{name} occurs with different values.")


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        (b"a=\xff", "The query is not UTF-8."),
        (b"a=%ff", "The query is not UTF-8."),
        # Half a surrogate pair: %3F in Java, an exception in Python.
        (b"a=%ED%A0%80", "The query is not UTF-8."),
        (b"a=%00", "The query has a NUL character."),
        (b"&".join([b"a=1"] * 201), "The query has more than 200 fields."),
    ],
)
def test_trap_21_a_query_that_is_none(query: bytes, detail: str) -> None:
    for endpoint in (QUICK, DEBITSUCCESS):
        refused = refusal(query, endpoint)
        assert (refused.reason, refused.status, refused.detail) == (Reason.REQUEST_MALFORMED, 400, detail)


def test_a_query_that_is_too_long() -> None:
    longest = b"a=" + b"x" * (MAX_QUERY - 2)
    assert refusal(longest).reason is Reason.SIGNATURE_MISSING
    assert (refusal(longest + b"x").reason, refusal(longest + b"x").status) == (Reason.QUERY_TOO_LONG, 414)


@given(st.binary(max_size=200))
def test_any_query_is_answered(query: bytes) -> None:
    for endpoint in (QUICK, DEBITSUCCESS):
        with suppress(Refused):
            returned = read(query, endpoint)
            assert returned is not None
            assert not returned.verified


@pytest.mark.parametrize("pairs", [signed(PAID), PAID, FAILED, []])
def test_without_a_password_nothing_is_believed(pairs: Pairs) -> None:
    assert read(urlencode(pairs).encode(), QUICKSTREAM) is None


# -- QuickStream, error flow


def test_trap_19_an_error_without_hmac_is_shown_and_never_verified() -> None:
    returned = said([*FAILED, ("errorField", "cvn"), ("errorDescription", "Call 1800 SCAM")])
    assert (returned.verified, returned.outcome, returned.error_fields) == (False, "error", ("cvn",))
    assert (returned.payment_id, returned.reference, returned.amount) == (None, "PAYMENT1", 100115)
    assert "SCAM" not in repr(returned)


@pytest.mark.parametrize("more", [("receiptNumber", "1"), ("summaryCode", "0"), ("responseCode", "00"), ("hmac", "")])
def test_an_error_that_speaks_of_a_payment_needs_its_proof(more: tuple[str, str]) -> None:
    """Else anybody could turn a payment into an error by leaving its proof out."""
    assert refusal([*FAILED, more]).reason is Reason.SIGNATURE_MISSING


def test_a_proven_error_is_proven() -> None:
    assert said(signed([*FAILED, ("errorField", "bsb")])).verified
    assert refusal([*FAILED, ("hmac", "0" * 64)]).reason is Reason.SIGNATURE_REFUSED


@pytest.mark.parametrize(
    ("names", "outcome", "fields"),
    [
        (["acceptSurcharge"], "confirm", ("acceptSurcharge",)),
        (["ignoreDuplicate"], "confirm", ("ignoreDuplicate",)),
        (["acceptSurcharge", "ignoreDuplicate"], "confirm", ("acceptSurcharge", "ignoreDuplicate")),
        (["acceptSurcharge", "cvn", "cvn"], "error", ("acceptSurcharge", "cvn")),
        (["<script>", "ACCEPTSURCHARGE"], "error", ()),
        ([], "error", ()),
        (sorted(ERROR_FIELDS), "error", tuple(sorted(ERROR_FIELDS))),
    ],
)
def test_surcharge_and_duplicate_are_questions(names: list[str], outcome: str, fields: tuple[str, ...]) -> None:
    returned = said([*FAILED, *(("errorField", name) for name in names), ("actionContextId", "Ab1-_.=")])
    assert (returned.outcome, returned.error_fields, returned.action_context_id) == (outcome, fields, "Ab1-_.=")


@pytest.mark.parametrize("context_id", ["", "<b>", "x" * 201, "a b", "é"])
def test_a_context_id_is_passed_on_only_when_it_can_be_one(context_id: str) -> None:
    assert said([*FAILED, ("actionContextId", context_id)]).action_context_id is None


def test_an_error_of_another_business_is_refused() -> None:
    other = [(name, "OTHER" if name == "supplierBusinessCode" else value) for name, value in FAILED]
    assert refusal(other).reason is Reason.REQUEST_MALFORMED


# -- Debitsuccess


@pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not on this machine")
def test_the_vendors_callback_urls() -> None:
    urls = (SAMPLES / "debitsuccess" / "callback_urls_doc.txt").read_text().split()
    found = [read(url.partition("?")[2].encode(), DEBITSUCCESS) for url in urls]
    assert [each.reported for each in found if each] == [
        "Declined", "Success", "Error", "ContractPrefixInvalid", "Failure", "TokenExpired",
    ]  # fmt: skip
    assert {(each.verified, each.outcome) for each in found if each} == {(False, ReturnOutcome.UNCONFIRMED)}


@pytest.mark.parametrize(("status", "reported"), [("success", "Success"), ("Paid <b>", None), ("", None)])
def test_debitsuccess_proves_nothing_whatever_it_says(status: str, reported: str | None) -> None:
    returned = said([("Status", status), ("Token", "TGhZfWjb"), ("Message", "<b>")], DEBITSUCCESS)
    assert (returned.verified, returned.outcome, returned.reported) == (False, "unconfirmed", reported)
    assert (returned.payment_id, returned.amount) == ("TGhZfWjb", None)


@pytest.mark.parametrize("token", ["", "x" * 101, "a b", "<b>", "é"])
def test_debitsuccess_without_a_token(token: str) -> None:
    assert refusal([("Status", "Success"), ("Token", token)], DEBITSUCCESS).reason is Reason.REQUEST_MALFORMED


def test_debitsuccess_with_two_tokens() -> None:
    refused = refusal([("Token", "a"), ("Token", "b")], DEBITSUCCESS)
    assert refused.detail == "Token occurs with different values."
