"""Untrusted bodies: whatever the bytes are, they become fields within limits or `Quarantined`, and nothing else."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from receiver import reading
from receiver.errors import Quarantined, Reason
from receiver.reading import (
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_NAME,
    MAX_PARTS,
    Fields,
    Json,
    NumberText,
    form,
    json_object,
    json_pairs,
    xml,
)

NEVER = re.compile(b"(?!)")
"""For the quick look that refuses before the parser could."""

READERS: list[Callable[[bytes], Any]] = [form, xml, json_object, json_pairs]
JSON_READERS = READERS[2:]


def refused(reader: Callable[[bytes], Any], body: bytes) -> str:
    """The detail of the quarantine; fails when `reader` takes the body."""
    with pytest.raises(Quarantined) as caught:
        reader(body)
    assert caught.value.reason is Reason.UNREADABLE_BODY
    return caught.value.detail


def texts_of(value: Any) -> list[str]:
    """Every text and name that a reader lets through."""
    if isinstance(value, str):
        return [str(value)]
    if isinstance(value, Json):
        return texts_of(value.value)
    if isinstance(value, Fields):
        return texts_of(value.values)
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    return [text for part in value for text in texts_of(part)] if isinstance(value, list | tuple) else []


@given(body=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@pytest.mark.parametrize("reader", READERS)
def test_any_bytes_are_read_or_quarantined(reader: Callable[[bytes], Any], body: bytes) -> None:
    try:
        value = reader(body)
    except Quarantined:
        return
    for text in texts_of(value):
        assert "\0" not in text
        text.encode()


@given(text=st.text(st.characters(codec=None), min_size=1, max_size=20))
@pytest.mark.parametrize("reader", JSON_READERS)
def test_any_json_escapes_leave_text_that_can_be_stored(reader: Callable[[bytes], Any], text: str) -> None:
    body = json.dumps({text: [{"deep": text}]}).encode()
    assert b"\\u" in body or text.isascii()
    try:
        value = reader(body)
    except Quarantined:
        assert reader is json_object
        assert "\0" in text or any(0xD800 <= ord(letter) < 0xE000 for letter in text)
        return
    for part in texts_of(value):
        assert "\0" not in part
        part.encode()


@given(body=st.from_regex(rb"<a>[^\0]{0,40}</a>", fullmatch=True))
def test_any_element_is_read_or_quarantined(body: bytes) -> None:
    try:
        root, _ = xml(body)
    except Quarantined:
        return
    assert root == "a"


# ---- forms


def test_form_decodes_as_browsers_encode() -> None:
    fields = form(b"customNote=Zo%C3%AB+%26+Co%3A+100%25&createdDateTime=06+Mar+2025+14%3a22%3A09&plus=%2B")
    assert fields.get("customNote") == "Zoë & Co: 100%"
    assert fields.get("createdDateTime") == "06 Mar 2025 14:22:09"
    assert fields.get("plus") == "+"


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"a=1&a=2&a=1", {"a": ["1", "2", "1"]}),
        (b"a=&b", {"a": [""], "b": [""]}),
        (b"&&a=1&", {"a": ["1"]}),
        (b"=x", {"": ["x"]}),
        (b"a=b=c", {"a": ["b=c"]}),
        (b"a=%zz%4", {"a": ["%zz%4"]}),
        (b"a=%2500", {"a": ["%00"]}),
        ("ключ=значение".encode(), {"ключ": ["значение"]}),
        (b"", {}),
    ],
)
def test_form_keeps_every_occurrence(body: bytes, values: dict[str, list[str]]) -> None:
    assert form(body).values == values


@pytest.mark.parametrize(
    "body", [b"a=Jos%E9", b"a=Jos\xe9", b"%FF=1", b"a=%ED%A0%80", b"a=%C0%80", b"a=" + "é".encode("utf-16-le")]
)
def test_form_must_be_utf8(body: bytes) -> None:
    refused(form, body)


@pytest.mark.parametrize("body", [b"a=x%00y", b"%00=1", b"a=x\0y", b"\0", b"a=%%00"])
def test_form_with_nul_is_quarantined(body: bytes) -> None:
    assert refused(form, body) == "the form has a NUL character"


def test_form_has_a_limit_of_fields() -> None:
    assert len(form(b"&".join(b"a%d=1" % n for n in range(MAX_FIELDS))).values) == MAX_FIELDS
    assert str(MAX_FIELDS) in refused(form, b"&".join([b"a=1"] * (MAX_FIELDS + 1)))


@pytest.mark.parametrize(
    ("reader", "body"),
    [
        (form, b"%s=1"),
        (form, b"a=1&%s=2&%s=3"),
        (form, b"%s"),
        (xml, b"<R><%s>1</%s></R>"),
        (json_pairs, b'{"a":1,"%s":2}'),
    ],
)
def test_names_have_a_longest(reader: Callable[[bytes], Any], body: bytes) -> None:
    reader(body.replace(b"%s", b"n" * MAX_NAME))
    assert str(MAX_NAME) in refused(reader, body.replace(b"%s", b"n" * (MAX_NAME + 1)))


def test_get_takes_equal_repeats_and_refuses_different_ones() -> None:
    fields = form(b"same=+1+&different=1&blank=&same=+1+&different=2&blank=1")
    assert fields.get("same") == "1"
    assert fields.get("absent") == ""
    for name in ("different", "blank"):
        with pytest.raises(Quarantined) as caught:
            fields.get(name)
        assert caught.value.reason is Reason.CONTRADICTORY_FIELDS
        assert caught.value.detail == f"{name} occurs with different values"


@pytest.mark.parametrize("pairs", [[], [("name", "")], [("name", " \t")]])
def test_need_refuses_absent_and_blank(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Quarantined) as caught:
        Fields(pairs).need("name")
    assert caught.value.reason is Reason.MISSING_FIELD


# ---- XML


def test_xml_reads_flat_documents() -> None:
    root, fields = xml(b"<PaymentResponse><a>1</a><b/><a>2</a><c> x &amp; y </c></PaymentResponse>")
    assert root == "PaymentResponse"
    assert list(fields.names) == ["a", "b", "c"]
    assert [fields.all(name) for name in ("a", "b", "c", "d")] == [["1", "2"], [""], [" x & y "], []]
    assert fields.values == {"a": ["1", "2"], "b": [""], "c": [" x & y "]}


def test_xml_ignores_namespaces_comments_instructions_and_cdata() -> None:
    body = b'<p:R xmlns:p="urn:x"><?go now?><p:a>6<!-- -->2<?go?>4<![CDATA[.0]]>0</p:a><!-- --></p:R>'
    root, fields = xml(body)
    assert root == "R"
    assert fields.values == {"a": ["624.00"]}


@pytest.mark.parametrize(
    "body",
    [
        "<?xml version='1.0' encoding='ISO-8859-1'?><R><a>José</a></R>".encode("latin-1"),
        "<?xml version='1.0' encoding='windows-1252'?><R><a>José</a></R>".encode("cp1252"),
        "<?xml version='1.0'?><R><a>José</a></R>".encode(),
        "<R><a>José</a></R>".encode("utf-8-sig"),
        "<R><a>José</a></R>".encode("utf-16"),
        b"<R><a>Jos&#233;</a></R>",
    ],
)
def test_xml_obeys_its_own_declaration(body: bytes) -> None:
    assert xml(body)[1].get("a") == "José"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<R>",
        b"<R><a></R>",
        b"<R/><R/>",
        b"<R/>\0",
        b"<R><a>\xff</a></R>",
        b"<?xml version='1.0' encoding='no-such-charset'?><R/>",
        b"<R><a>&undeclared;</a></R>",
        b"<!-- only -->",
        b"<a x='1' x='2'/>",
        b"receiptNumber=7004100001",
        b'{"receiptNumber": "7004100001"}',
    ],
)
def test_xml_must_be_well_formed(body: bytes) -> None:
    assert refused(xml, body) == "the body is not well-formed XML"


@pytest.mark.parametrize(
    "body",
    [
        b"<R><a>x\0y</a></R>",
        b"<R><a>&#0;</a></R>",
        b"<R><a>&#xD800;</a></R>",
        b"<R><a>\xed\xa0\x80</a></R>",
        b"\xff\xfe" + "<R><a>\0</a></R>".encode("utf-16-le"),
        b"\xff\xfe" + "<R><a>\ud800</a></R>".encode("utf-16-le", "surrogatepass"),
        b"<?xml version='1.0' encoding='UTF-7'?><R><a>+AAA-</a></R>",
        b"<?xml version='1.0' encoding='UTF-7'?><R><a>+2AA-</a></R>",
    ],
)
def test_xml_lets_no_nul_and_no_surrogate_through(body: bytes) -> None:
    refused(xml, body)


def _laughs(place: bytes) -> bytes:
    entities = b'<!ENTITY l0 "lollollol">' + b"".join(
        b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10)
    )
    return b"<!DOCTYPE R [" + entities + b"]>" + place


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE R><R><a>1</a></R>",
        b"<!DOCTYPE R []><R><a>1</a></R>",
        b"<!DOCTYPE R SYSTEM 'http://192.0.2.1/x.dtd'><R><a>1</a></R>",
        b"<!DOCTYPE R PUBLIC '-//X//Y' 'file:///dev/zero'><R><a>1</a></R>",
        b'<!DOCTYPE R [<!ENTITY e "1">]><R><a>&e;</a></R>',
        b'<!DOCTYPE R [<!ENTITY e SYSTEM "file:///etc/hostname">]><R><a>&e;</a></R>',
        b'<!DOCTYPE R [<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;]><R><a>1</a></R>',
        b'<!DOCTYPE R [<!ATTLIST R x CDATA "default">]><R><a>1</a></R>',
        "<!DOCTYPE R><R><a>1</a></R>".encode("utf-16"),
        _laughs(b"<R><a>&l9;</a></R>"),
        _laughs(b"<R x='&l9;'><a>1</a></R>"),
        b'<!DOCTYPE R [<!ENTITY a "&b;"><!ENTITY b "&a;">]><R><a>&a;</a></R>',
        b'<!DOCTYPE R [<!ENTITY e "' + b"x" * 50_000 + b'">]><R><a>' + b"&e;" * 20_000 + b"</a></R>",
    ],
)
@pytest.mark.parametrize("looks_before", [True, False])
def test_xml_with_a_document_type_is_never_expanded(
    body: bytes, looks_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not looks_before:
        monkeypatch.setattr(reading, "_DOCUMENT_TYPE", NEVER)
    refused(xml, body)


@pytest.mark.parametrize(
    "prolog", ["", "\n ", "<?xml version='1.0'?>", "<?xml version='1.0'?>\n<!-- <R> -->", "<?a?><?b?>"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_xml_with_a_document_type_never_reaches_the_parser(
    prolog: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("receiver.reading.etree.fromstring", reached)
    refused(xml, f"{prolog}<!DOCTYPE R><R><a>1</a></R>".encode(encoding))


@pytest.mark.parametrize("entity", ['"here"', "SYSTEM '{}'"])
def test_the_parser_itself_expands_nothing(entity: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("here")
    document = f"<!DOCTYPE R [<!ENTITY e {entity.format(file.as_uri())}>]><R><a>1&e;</a></R>"
    root = etree.fromstring(document.encode(), reading._XML)
    assert "here" not in str(list(root.itertext()))


def test_the_parser_itself_loads_no_document_type(tmp_path: Path) -> None:
    file = tmp_path / "x.dtd"
    file.write_text('<!ENTITY e "here"><!ELEMENT R ANY>')
    root = etree.fromstring(f'<!DOCTYPE R SYSTEM "{file.as_uri()}"><R><a>1</a></R>'.encode(), reading._XML)
    assert root.getroottree().docinfo.externalDTD is None


def test_xml_may_speak_of_a_document_type() -> None:
    body = b"<!-- <!DOCTYPE R> --><R><a><![CDATA[<!DOCTYPE R>]]></a><b>1<!-- <!DOCTYPE R> --></b></R>"
    assert xml(body)[1].values == {"a": ["<!DOCTYPE R>"], "b": ["1"]}


@pytest.mark.parametrize("subset", ["SYSTEM '{}'", "[<!ENTITY e SYSTEM '{}'>]", "[<!ENTITY % e SYSTEM '{}'> %e;]"])
@pytest.mark.parametrize("looks_before", [True, False])
def test_xml_never_opens_a_connection(subset: str, looks_before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not looks_before:
        monkeypatch.setattr(reading, "_DOCUMENT_TYPE", NEVER)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        refused(xml, f"<!DOCTYPE R {subset.format(address)}><R><a>&e;</a></R>".encode())
        refused(xml, f"<!DOCTYPE R {subset.format(address)}><R><a>1</a></R>".encode())
        with pytest.raises(BlockingIOError):
            server.accept()


def test_xml_depth_is_limited() -> None:
    refused(xml, b"<a>" * 100_000)
    refused(xml, b"<a>" * 1_000 + b"</a>" * 1_000)


def test_xml_has_a_limit_of_elements() -> None:
    assert len(xml(b"<R>" + b"<a>1</a>" * MAX_FIELDS + b"</R>")[1].values["a"]) == MAX_FIELDS
    for element in (b"<a/>", b"<a>1</a>"):
        assert str(MAX_FIELDS) in refused(xml, b"<R>" + element * (MAX_FIELDS + 1) + b"</R>")


def test_xml_depth_and_elements_are_limited_below_the_fields_too() -> None:
    def nested(depth: int) -> bytes:
        return b"<a>" * depth + b"</a>" * depth

    xml(nested(MAX_DEPTH))
    assert refused(xml, nested(MAX_DEPTH + 1)) == f"the XML is nested deeper than {MAX_DEPTH} levels"
    xml(b"<R><a>" + b"<b/>" * (MAX_FIELDS - 1) + b"</a></R>")
    assert str(MAX_FIELDS) in refused(xml, b"<R><a>" + b"<b/>" * MAX_FIELDS + b"</a></R>")


def test_xml_long_texts_are_limited_by_the_parser() -> None:
    refused(xml, b"<R><a>" + b"x" * 10_100_000 + b"</a></R>")


@pytest.mark.parametrize("value", [b"1<x/>48.75", b"<x/>148.75", b"<x>1</x>48.75", b"148.75<x/>"])
def test_xml_that_mixes_text_and_elements_is_quarantined(value: bytes) -> None:
    assert refused(xml, b"<R><amount>" + value + b"</amount></R>") == "the XML mixes text and elements"


def test_xml_elements_within_an_element_are_no_value() -> None:
    _, fields = xml(b"<R><address>\n <street>x</street>\n <town>y</town>\n</address><a>1</a></R>")
    assert fields.get("address") == ""
    assert fields.get("street") == ""
    assert fields.get("a") == "1"


# What a document is made of, right or wrong, and what is easily taken for it.
_PIECES = st.sampled_from(
    [
        *(
            "<",
            ">",
            "</",
            "/>",
            "/",
            "<R",
            "<a",
            "</a",
            "<R>",
            "</R>",
            "<a>",
            "</a>",
            "<b>",
            "</b>",
            "<R2>",
            "</ R>",
            "</R >",
            "<a x='1'>",
        ),
        *(
            " ",
            "\n    ",
            "\t",
            "\r",
            "\r\n",
            "\x0b",
            "\x0c",
            "\x00",
            "\x1f",
            "\x7f",
            "\x85",
            "\xa0",
            "\u2028",
            "\ufeff",
        ),
        *("1", "624.00", "a", "R", "é", "\ufffe", "\U0001f600", "]]>", "&", "&amp;", "&#49;", "=", '"', "'", "?", "!"),
        *("<!--", "-->", "<![CDATA[", "<?go?>", "<!DOCTYPE R>", "<x:a>", "</x:a>", "<a-b>", "</a-b>", "<é>", "</é>"),
        '<?xml version="1.0" encoding="UTF-8"?>',
    ]
)
_WHITE = st.sampled_from(["", "\n", "\n    ", " \t\r\n"])
_PLAIN_TEXTS = st.text(
    st.characters(codec="utf-8").filter(lambda one: one.isprintable() and one not in "<>&"), max_size=9
)


@st.composite
def plain_documents(draw: st.DrawFn) -> str:
    declared = draw(st.sampled_from(["", '<?xml version="1.0" encoding="UTF-8"?>', " \n"]))
    names = draw(st.lists(st.sampled_from(["a", "b", "customTitle", "Line2"]), max_size=5))
    elements = [f"<{name}>{draw(_PLAIN_TEXTS)}</{name}>{draw(_WHITE)}" for name in names]
    return f"{declared}<R>{draw(_WHITE)}{''.join(elements)}</R>{draw(_WHITE)}"


@st.composite
def nearly_plain_documents(draw: st.DrawFn) -> str:
    document = draw(plain_documents())
    at = draw(st.integers(0, len(document)))
    return document[:at] + draw(_PIECES) + document[at + draw(st.integers(0, 3)) :]


def read(reader: Callable[[bytes], tuple[str, Fields]], body: bytes) -> object:
    try:
        root, fields = reader(body)
    except Quarantined as refusal:
        return refusal.detail
    return root, fields.values


@given(plain_documents().map(str.encode))
def test_plain_xml_needs_no_parser(body: bytes) -> None:
    plain = reading._plain(body)
    assert plain is not None
    assert (plain[0], plain[1].values) == read(reading._parsed, body)


@given((nearly_plain_documents() | st.lists(_PIECES, max_size=12).map("".join)).map(str.encode))
def test_xml_that_is_read_without_the_parser_reads_as_with_it(body: bytes) -> None:
    if reading._plain(body) is not None:
        assert read(xml, body) == read(reading._parsed, body)


@pytest.mark.parametrize(
    "body",
    [
        b"<R><a>1</b></R>",
        b"<R><a>1</a></S>",
        b"<R><a>1</a>",
        b"<R><a>1</a></R><R>",
        b"<R><a>]]></a></R>",
        b"<R><a>\x01</a></R>",
        b"<R><a>\xff</a></R>",
        "<R><a>\ufffe</a></R>".encode(),
        b"<R><a>1</a>\x0c</R>",
        b"<R></a></R>",
        b"<R><a>1<a></R>",
        b"<R><R>1</R>",
        b"<R><a</a></R>",
        b"<R><a</a><b>></b></R>",
        b' <?xml version="1.0" encoding="UTF-8"?><R><a>1</a></R>',
    ],
)
def test_nearly_plain_xml_is_still_refused(body: bytes) -> None:
    assert refused(xml, body) == "the body is not well-formed XML"


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"<R><a>1&#48;</a></R>", ["10"]),
        (b"<R><a>1\r\n2</a></R>", ["1\n2"]),
        (b"<R><a>1></a></R>", ["1>"]),
        (b"<R>beside<a>1</a>it</R>", ["1"]),
        (b"<R><a>1</a><b/></R>", ["1"]),
        (b"<R><a x='2'>1</a></R>", ["1"]),
        (b"<R><a>1</a ></R >", ["1"]),
        ("<?xml version='1.0' encoding='ISO-8859-1'?><R><a>é</a></R>".encode("latin-1"), ["é"]),
        (b"<R><a>" + b"1" * 8_192 + b"</a></R>", ["1" * 8_192]),
    ],
)
def test_nearly_plain_xml_is_read_by_the_parser(body: bytes, values: list[str]) -> None:
    assert reading._plain(body) is None
    assert xml(body)[1].all("a") == values


# ---- JSON


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b'{"a":1}{',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":"\x01"}',
        b'{"a":"x\0y"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"\xed\xa0\x80":1}',
        b'{"a":"\\x41"}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32-le"),
    ],
)
def test_json_must_be_an_object_in_utf8(reader: Callable[[bytes], Any], body: bytes) -> None:
    refused(reader, body)


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("bomb", [b"[", b'{"a":', b'[{"a":'])
def test_json_bombs_are_quarantined(reader: Callable[[bytes], Any], bomb: bytes) -> None:
    refused(reader, bomb * 100_000)
    closing = bomb[::-1].translate(bytes.maketrans(b"[{", b"]}"), b'":a')
    refused(reader, b'{"x":' + bomb * 100_000 + b"1" + closing * 100_000 + b"}")


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_depth_is_limited(reader: Callable[[bytes], Any], opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> bytes:
        return b'{"x":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"

    reader(nested(MAX_DEPTH))
    assert str(MAX_DEPTH) in refused(reader, nested(MAX_DEPTH + 1))


def test_json_that_is_read_before_it_is_proven_has_a_limit_of_parts() -> None:
    body = b'{"x":[%b]}' % b",".join([b"1"] * (MAX_PARTS - 1))
    assert len(json_pairs(body)[0][1]) == MAX_PARTS - 1
    assert str(MAX_PARTS) in refused(json_pairs, body.replace(b"[1", b"[1,1"))


def test_json_may_be_wide() -> None:
    body = json.dumps({"items": [{"n": n} for n in range(MAX_DEPTH * 3)]}).encode()
    assert len(json_object(body).value["items"]) == MAX_DEPTH * 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"x\\u0000y"}',
        b'{"\\u0000":1}',
        b'{"a":[{"b":["\\u0000"]}]}',
        b'{"a":{"\\u0000":1}}',
        b'{"a":"\\\\\\u0000"}',
    ],
)
def test_json_object_with_nul_is_quarantined(body: bytes) -> None:
    assert refused(json_object, body) == "the JSON has a NUL character"


def test_json_object_takes_a_backslash_before_what_looks_like_an_escape() -> None:
    assert json_object(b'{"a":"\\\\u0000"}').text("a") == "\\u0000"


@pytest.mark.parametrize("half", [b"\\ud800", b"\\ude00", b"\\ud800x", b"\\ud800\\u0041", b"\\ude00\\ud83d"])
def test_json_object_with_half_a_surrogate_pair_is_quarantined(half: bytes) -> None:
    refused(json_object, b'{"a":"' + half + b'"}')
    refused(json_object, b'{"' + half + b'":1}')


def test_json_pairs_replaces_what_cannot_be_stored() -> None:
    # Its bodies are proven by their content and posted once: quarantine would make a refusal of it.
    assert json_pairs(b'{"a\\u0000":"\\ud800 x \\ude00","b":["\\u0000",{"\\ud83d":"\\ud83d\\ude00"}]}') == [
        ("a\ufffd", "\ufffd x \ufffd"),
        ("b", ["\ufffd", [("\ufffd", "😀")]]),
    ]


def test_of_repeated_names_the_last_counts_for_json_object() -> None:
    assert json_object(b'{"a":1,"a":2}').integer("a") == 2


def test_json_pairs_keeps_repeated_names_in_their_order() -> None:
    assert json_pairs(b'{"a":"1","A":"2","a":"3"}') == [("a", "1"), ("A", "2"), ("a", "3")]


def test_json_pairs_has_a_limit_of_members() -> None:
    def members(count: int) -> bytes:
        return b"{" + b",".join([b'"a":1'] * count) + b"}"

    assert len(json_pairs(members(MAX_FIELDS))) == MAX_FIELDS
    assert str(MAX_FIELDS) in refused(json_pairs, members(MAX_FIELDS + 1))


def test_json_pairs_takes_a_byte_order_mark() -> None:
    assert json_pairs(b'\xef\xbb\xbf{"a":1}') == [("a", 1)]


@pytest.mark.parametrize("number", ["100.0", "100.00", "1e5", "1E-400", "1e999999999", "0.1", "-0.0"])
def test_fractions_keep_the_text_that_was_sent(number: str) -> None:
    body = f'{{"a":{number}}}'.encode()
    assert json_object(body).text("a") == number
    assert isinstance(json_object(body).value["a"], NumberText)
    assert json_pairs(body) == [("a", number)]


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**64, 10**18, -(10**18)])
def test_huge_integers_are_text_and_no_integers(number: int) -> None:
    body = f'{{"a":{number}}}'.encode()
    assert json_object(body).integer("a") is None
    assert json_object(body).text("a") == str(number)
    [(_, value)] = json_pairs(body)
    assert value == str(number)


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_integers_that_python_does_not_read_break_nothing(digits: int) -> None:
    body = b'{"a":' + b"9" * digits + b"}"
    refused(json_object, body)
    [(_, value)] = json_pairs(body)
    assert len(value) == digits


@pytest.mark.parametrize(
    ("value", "integer"),
    [
        ("5", 5),
        ("0", 0),
        ("-5", -5),
        ('"5"', 5),
        ('"005"', 5),
        (str(10**18 - 1), 10**18 - 1),
        (f'"{10**18 - 1}"', 10**18 - 1),
        (f'"{10**18}"', None),
        ('"-5"', None),
        ('"5.0"', None),
        ("5.0", None),
        ('" 5"', None),
        ('"٥"', None),  # noqa: RUF001
        ('"²"', None),
        ('""', None),
        ("true", None),
        ("null", None),
        ("[5]", None),
        ('{"a":5}', None),
    ],
)
def test_integer(value: str, integer: int | None) -> None:
    assert json_object(f'{{"a":{value}}}'.encode()).integer("a") == integer


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"x"', "x"),
        ('" x "', "x"),
        ('""', None),
        ('"  "', None),
        ("5", "5"),
        ("true", "true"),
        ("false", "false"),
        ("null", None),
        ("[]", None),
        ("{}", None),
    ],
)
def test_text(value: str, text: str | None) -> None:
    assert json_object(f'{{"a":{value}}}'.encode()).text("a") == text


def test_paths_that_lead_nowhere_are_none() -> None:
    value = json_object(b'{"a":{"b":{"c":"x"}},"list":[1],"text":"t"}')
    assert value.text("a", "b", "c") == "x"
    assert value.node("a", "b").text("c") == "x"
    assert value.object("a") == {"b": {"c": "x"}}
    for path in (("a", "x", "c"), ("list", "0"), ("text", "t"), ("absent",), ("a", "b", "c", "d")):
        assert value.text(*path) is None
        assert value.integer(*path) is None
        assert value.object(*path) == {}
