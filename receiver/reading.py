"""Reading untrusted bodies: forms, XML and JSON, all within limits.

Every way in which bytes can fail to be what they claim ends here in `Quarantined`; nothing else leaves this module.
Values stay text until a provider asks for them by name. No text that leaves it holds U+0000 or half a surrogate pair:
PostgreSQL has no place for the first, no encoder for the second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from lxml import etree

from receiver.errors import Quarantined, Reason

MAX_FIELDS = 200
MAX_DEPTH = 32
MAX_NAME = 255
"""Characters of a field's name, in bodies whose names go on with their values."""
MAX_DIGITS = 18
"""Of what is read as an integer: more would not fit a 64-bit column."""
MAX_PARTS = 5000
"""Commas and brackets of a JSON body whose names may repeat: Python reads these bodies, before they are proven."""

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")

# What is refused for its document type is refused before the parser looks, which takes a third of a second for 256 KiB
# of attribute lists; in an encoding that is no plain text but for NULs, after it.
_DOCUMENT_TYPE = re.compile(rb"[\xef\xbb\xbf\xfe\xff]*+(?>\s++|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)
# Entities, DTDs, network and huge trees are off: none of the senders uses them, and each has been an attack (XXE,
# billion laughs). Comments and processing instructions carry no fields.
_XML = etree.XMLParser(
    resolve_entities=False,
    load_dtd=False,
    dtd_validation=False,
    no_network=True,
    huge_tree=False,
    remove_comments=True,
    remove_pis=True,
    # White space between elements, that is; what stands alone in an element is its value.
    remove_blank_text=True,
)

# What is longer goes to the parser, so that the frames that are remembered stay small.
_LONGEST_PLAIN = 8_192
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
_NAME, _SPACE = "[A-Za-z][A-Za-z0-9]*+", r"[ \t\r\n]*+"
_END = re.compile(f"</({_NAME})>")
_FRAME = re.compile(f"{_SPACE}<({_NAME})>{_SPACE}((?:</{_NAME}>{_SPACE})*)</\\1>{_SPACE}")


class Fields:
    """Named text values of a form or a flat XML document. Raises `Quarantined` for a name that is none.

    Most names occur once, so that is what is quick: `repeated` has all occurrences of those that do not.
    """

    __slots__ = ("_first", "repeated")

    def __init__(self, pairs: Sequence[Sequence[str]]) -> None:
        """Of each of `pairs` the first is the name and the last the value, as `str.partition` has them as well."""
        first = {pair[0]: pair[-1] for pair in pairs}
        repeated: dict[str, list[str]] = {}
        if len(first) < len(pairs):
            for pair in pairs:
                repeated.setdefault(pair[0], []).append(pair[-1])
            repeated = {name: values for name, values in repeated.items() if len(values) > 1}
            first |= {name: values[0] for name, values in repeated.items()}
        # All names together are seldom as long as one may be.
        if len("".join(first)) > MAX_NAME and max(map(len, first)) > MAX_NAME:
            raise Quarantined(Reason.UNREADABLE_BODY, f"a name is longer than {MAX_NAME} characters")
        self._first = first
        self.repeated = repeated

    def get(self, name: str) -> str:
        """The field's value without surrounding white space, or "" when it is absent or blank.

        Raises `Quarantined` when the field occurs with two different values: neither can be believed.
        """
        if self.repeated and len(set(self.repeated.get(name, ()))) > 1:
            raise Quarantined(Reason.CONTRADICTORY_FIELDS, f"{name} occurs with different values")
        return self._first.get(name, "").strip()

    def texts(self, names: Iterable[str]) -> list[str]:
        """What `get` gives for each of `names`."""
        if self.repeated:
            return [self.get(name) for name in names]
        first = self._first
        return [first.get(name, "").strip() for name in names]

    def need(self, name: str) -> str:
        """The field's value; raises `Quarantined` when it is absent or blank."""
        value = self.get(name)
        if not value:
            raise Quarantined(Reason.MISSING_FIELD, f"{name} is missing")
        return value

    @property
    def names(self) -> Iterable[str]:
        """Every name once, in their order."""
        return self._first

    def all(self, name: str) -> list[str]:
        """All values of a name as sent, in their order."""
        if name in self.repeated:
            return self.repeated[name]
        return [self._first[name]] if name in self._first else []

    @property
    def values(self) -> dict[str, list[str]]:
        """Every name with all its values as sent, in their order."""
        return {name: self.repeated.get(name, [value]) for name, value in self._first.items()}


def form(body: bytes) -> Fields:
    """Fields of an ``application/x-www-form-urlencoded`` body in UTF-8. Blank values count."""
    try:
        text = body.decode()
        # Most forms escape nothing but the colons of a time, and a colon makes no escape with what is around it.
        text = text.replace("+", " ").replace("%3A", ":")
        escaped = "%" in text
        if "\0" in text or (escaped and "%00" in text):
            raise Quarantined(Reason.UNREADABLE_BODY, "the form has a NUL character")
        parts = text.split("&")
        if len(parts) > MAX_FIELDS:
            raise Quarantined(Reason.UNREADABLE_BODY, f"the form has more than {MAX_FIELDS} fields")
        pairs = [part.partition("=") for part in parts if part]
        if escaped:
            pairs = [_unescaped(pair) if "%" in pair[0] or "%" in pair[2] else pair for pair in pairs]
        return Fields(pairs)
    except UnicodeDecodeError:
        raise Quarantined(Reason.UNREADABLE_BODY, "the form is not UTF-8") from None


def _unescaped(pair: tuple[str, str, str]) -> tuple[str, str, str]:
    name, sign, value = pair
    return unquote_to_bytes(name).decode(), sign, unquote_to_bytes(value).decode()


def xml(body: bytes) -> tuple[str, Fields]:
    """Root name and the fields below it, of a flat XML document. The document's own encoding declaration counts.

    XML knows neither U+0000 nor surrogates as characters, so the parser refuses both in any encoding.
    """
    return _plain(body) or _parsed(body)


def _plain(body: bytes) -> tuple[str, Fields] | None:
    """What the parser would give, of a document as the senders write it: elements with plain names and no attributes,
    each with a text that can be printed and escapes nothing. None for any other, right or wrong.

    A QuickStream payment takes 5 us so and 9 with lxml, which makes an object of each element first. Nothing is decided
    here that the parser would decide otherwise: tests and a fuzz target hold the two against each other.
    """
    if len(body) > _LONGEST_PLAIN:
        return None
    try:
        document = body.decode().removeprefix(_DECLARATION)
    except UnicodeDecodeError:
        return None
    # In turn an element's tag with its text, and the tag at its end with the white space behind it.
    parts = document.split("<")
    if len(parts) % 2 == 0 or document.count(">") != len(parts) - 1:
        return None
    elements = [part.partition(">") for part in parts[2:-1:2]]
    frame = _frame("<".join([*parts[:2], *parts[3::2], parts[-1]]))
    if frame is None or frame[1] != [element[0] for element in elements]:
        return None
    text = "".join([element[2] for element in elements])
    if not text.isprintable() or ">" in text or "&" in text:
        return None
    return frame[0], Fields(elements)


@lru_cache(maxsize=64)
def _frame(text: str) -> tuple[str, list[str]] | None:
    """The names of the root and of all elements in it, of a document without the beginnings and texts of these; the
    same again and again from each sender."""
    match = _FRAME.fullmatch(text)
    if match is None:
        return None
    names = _END.findall(match[2])
    return (match[1], names) if len(names) <= MAX_FIELDS else None


def _parsed(body: bytes) -> tuple[str, Fields]:
    """What `xml` gives, of any document."""
    if b"<!DOCTYPE" in (plain := body.replace(b"\x00", b"")) and _DOCUMENT_TYPE.match(plain):
        raise Quarantined(Reason.UNREADABLE_BODY, "the XML has a document type declaration")
    try:
        root = etree.fromstring(body, _XML)
    except (etree.XMLSyntaxError, ValueError):
        raise Quarantined(Reason.UNREADABLE_BODY, "the body is not well-formed XML") from None
    if root is None:
        raise Quarantined(Reason.UNREADABLE_BODY, "the XML has no root element")
    if root.getroottree().docinfo.internalDTD is not None:
        raise Quarantined(Reason.UNREADABLE_BODY, "the XML has a document type declaration")
    if len(root) > MAX_FIELDS:
        raise Quarantined(Reason.UNREADABLE_BODY, f"the XML has more than {MAX_FIELDS} elements")
    children = list(root)
    pairs = [(child.tag, child.text or "") for child in children]
    if any(map(len, children)):
        _require_limits(root)
        _require_no_mixture(root)
    if "}" in "".join([tag for tag, _ in pairs]):
        pairs = [(_local_name(tag), text) for tag, text in pairs]
    return _local_name(root.tag), Fields(pairs)


def _require_limits(root: Any) -> None:
    """Raises `Quarantined` for elements within elements without end: the parser itself takes 256 levels."""
    level, depth, elements = [root], 0, 0
    while level:
        # Counted before one of them is made an object of Python.
        depth, elements = depth + 1, elements + sum(map(len, level))
        if depth > MAX_DEPTH:
            raise Quarantined(Reason.UNREADABLE_BODY, f"the XML is nested deeper than {MAX_DEPTH} levels")
        if elements > MAX_FIELDS:
            raise Quarantined(Reason.UNREADABLE_BODY, f"the XML has more than {MAX_FIELDS} elements")
        level = [inner for element in level for inner in element]


def _require_no_mixture(root: Any) -> None:
    """Raises `Quarantined` for text beside elements: "1<x/>00.00" would read as 1."""
    for child in root:
        texts = (child.text, *(inner.tail for inner in child))
        if len(child) and any(text and not text.isspace() for text in texts):
            raise Quarantined(Reason.UNREADABLE_BODY, "the XML mixes text and elements")


def _local_name(tag: str) -> str:
    return tag.rpartition("}")[2]


class NumberText(str):
    """A JSON number, as the exact text that was sent: ``100.0`` and ``100.00`` are different when they are hashed."""


class Json:
    """A JSON value that is read by path. What is absent, null or of another type reads as None, never as an error:
    the senders leave fields out and change types, and a notification must not be lost for that."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def node(self, *path: str) -> Json:
        return Json(self._at(path))

    def _at(self, path: tuple[str, ...]) -> Any:
        value = self.value
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def text(self, *path: str) -> str | None:
        """Text at `path`; a number or boolean reads as its JSON text, blank text as None."""
        value = self._at(path)
        if isinstance(value, str):
            return value.strip() or None
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, int) else None

    def integer(self, *path: str) -> int | None:
        """Integer at `path`, of at most `MAX_DIGITS` digits; digits in a text count as well."""
        value = self._at(path)
        if isinstance(value, int) and not isinstance(value, bool):
            return value if abs(value) < 10**MAX_DIGITS else None
        if isinstance(value, str) and len(value) <= MAX_DIGITS and value.isascii() and value.isdigit():
            return int(value)
        return None

    def object(self, *path: str) -> dict[str, Any]:
        value = self._at(path)
        return value if isinstance(value, dict) else {}


_JSON = msgspec.json.Decoder(float_hook=NumberText)


def json_object(body: bytes) -> Json:
    """A JSON object; of repeated names the last counts, as the signature covers the bytes."""
    try:
        value = _JSON.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise Quarantined(Reason.UNREADABLE_BODY, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Quarantined(Reason.UNREADABLE_BODY, "the body is not a JSON object")
    # The closer looks take longer than the decoder, on the accept side's hot path. Half a surrogate pair was refused by
    # the decoder already, and U+0000 by all but its escape.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _require_depth(value)
    if b"\\u0000" in body and b"\\u0000" in body.replace(rb"\\", b""):
        _settled(value, MAX_DEPTH, _refuse_unstorable)
    return Json(value)


def below(level: Iterable[Any]) -> list[Any]:
    """The JSON objects and arrays directly within those of `level`."""
    children = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return [child for child in children if isinstance(child, dict | list)]


def _require_depth(value: Any) -> None:
    """Raises `Quarantined` below `MAX_DEPTH` levels of a JSON value."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = below(level)
        if not level:
            return
    raise Quarantined(Reason.UNREADABLE_BODY, f"the JSON is nested deeper than {MAX_DEPTH} levels")


def json_pairs(body: bytes) -> list[tuple[str, Any]]:
    """The members of a JSON object in their order, repeated names included: for bodies whose names may repeat.

    What cannot be stored is replaced here and not quarantined: these bodies carry their own proof, so one that is not
    read is refused, and their sender posts once.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise Quarantined(Reason.UNREADABLE_BODY, f"the JSON has more than {MAX_PARTS} parts")
    try:
        # Decoded here: json would take UTF-16 and surrogates in UTF-8 as well.
        text = body.decode("utf-8-sig")
        pairs = json.loads(
            text, object_pairs_hook=_Pairs, parse_float=NumberText, parse_int=_integer, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise Quarantined(Reason.UNREADABLE_BODY, "the body is not JSON") from None
    if not isinstance(pairs, _Pairs):
        raise Quarantined(Reason.UNREADABLE_BODY, "the body is not a JSON object")
    if len(pairs) > MAX_FIELDS:
        raise Quarantined(Reason.UNREADABLE_BODY, f"the JSON has more than {MAX_FIELDS} members")
    if any(len(name) > MAX_NAME for name, _ in pairs):
        raise Quarantined(Reason.UNREADABLE_BODY, f"a name is longer than {MAX_NAME} characters")
    return list(_settled(pairs, MAX_DEPTH, _replace_unstorable))


class _Pairs(list[tuple[str, Any]]):
    """An object's members, told apart from a JSON array."""


def _integer(digits: str) -> int | NumberText:
    # int() itself refuses more than 4300 digits.
    return int(digits) if len(digits) <= MAX_DIGITS else NumberText(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_unstorable(text: str) -> str:
    if _NOT_STORABLE.search(text):
        raise Quarantined(Reason.UNREADABLE_BODY, "the JSON has a NUL character")
    return text


def _replace_unstorable(text: str) -> str:
    return _NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _settled(value: Any, left: int, storable: Callable[[str], str]) -> Any:
    """`value` with its texts and names as `storable` gives them; raises `Quarantined` below `left` levels."""
    if isinstance(value, NumberText):
        return value
    if isinstance(value, str):
        return storable(value)
    if not isinstance(value, dict | list):
        return value
    if left == 0:
        raise Quarantined(Reason.UNREADABLE_BODY, f"the JSON is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {storable(name): _settled(child, left - 1, storable) for name, child in value.items()}
    if isinstance(value, _Pairs):
        return _Pairs((storable(name), _settled(child, left - 1, storable)) for name, child in value)
    return [_settled(child, left - 1, storable) for child in value]
