"""What is fuzzed: each target takes any bytes, and raises only what it must never raise.

A target lets pass the errors that `receiver.errors` names for its reader. All others are findings, and so is an answer
that cannot be: a proof without the secret, a text that no database takes, a row that no longer reads as it was stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote_plus

import msgspec
from sqlalchemy import BigInteger, SmallInteger, String, Table
from starlette.requests import Request

from receiver import cards, reading, return_page, returned
from receiver.errors import BatchError, NotDone, Quarantined, Refused
from receiver.expected import expectation_from
from receiver.notification import Envelope, Expectation, PaymentEvent, new_id, now_us, open_batch, seal_batch
from receiver.providers import PROVIDERS, paymentz, quickstream_settlement
from receiver.providers.base import Endpoint, Message, ReturnEndpoint
from receiver.providers.quickstream import ROW_HEADER
from receiver.reading import Fields, Json, form, json_object, json_pairs, xml
from receiver.settings import networks
from receiver.signing import Seal, Secret, return_digest
from receiver.source import TrustedProxies
from tests.fuzz import wire
from tests.support import CHECKOUT, DEBITSUCCESS, EXPECTED_CASUAL, PAYMENTZ, QUICKSTREAM, secrets
from workers.console import receiving
from workers.console.api import asked, operation
from workers.console.api.problems import Declined
from workers.console.api.routes import OPERATIONS
from workers.console.site import Trouble, read_form
from workers.ledger.bodies import Bodies
from workers.ledger.pages import NotificationPlace, PaymentPlace, place_of
from workers.ledger.payments import fold
from workers.ledger.rows import Interpreted, expectation_row, notification_row, payment_row, storable
from workers.ledger.tables import expectations, notifications, payments
from workers.reconcile.reader import Reader, Unreadable

T = TypeVar("T")

Target = Callable[[bytes], None]

SEAL = Seal(secrets("seal-key-of-the-fuzzer"), "batch")
ENDPOINTS: dict[str, Endpoint] = {
    "quickstream": msgspec.structs.replace(QUICKSTREAM, hmac_passwords=secrets("token-password"), own_numbers=("own",)),
    "checkout": CHECKOUT,
    "debitsuccess": DEBITSUCCESS,
    "paymentz": PAYMENTZ,
}
# The same with secrets that no seed and no dictionary knows: whatever is proven to these is forged.
_NOBODYS = secrets("a secret that nobody was ever told 5b1c")
STRANGERS: dict[str, Endpoint] = {
    "quickstream": msgspec.structs.replace(QUICKSTREAM, passwords=_NOBODYS),
    "checkout": msgspec.structs.replace(CHECKOUT, signature_keys=_NOBODYS),
    "debitsuccess": msgspec.structs.replace(DEBITSUCCESS, event_tokens=_NOBODYS),
    "paymentz": msgspec.structs.replace(PAYMENTZ, secure_keys=_NOBODYS),
}
_STRANGERS_TOKEN = msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="nobody-was-told-5b1c")
_PROXIES = TrustedProxies(networks(["10.0.0.0/8", "fd00::/8"], "fuzz"))


class Finding(AssertionError):
    """An answer that must not be."""


def message_of(provider: str, data: bytes) -> Message:
    """Any bytes as a request, in the form of the fixtures: a line, headers, an empty line, the body."""
    head, _, body = data.partition(b"\r\n\r\n")
    known = PROVIDERS[provider]
    wanted = {"content-type", *known.proof_headers, *known.kept_headers}
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        # The server takes no NUL in a header.
        if name.strip().lower() in wanted and "\0" not in value:
            headers.setdefault(name.strip().lower(), value.strip())
    content_type = headers.pop("content-type", "").partition(";")[0].strip().lower()
    return Message(content_type, headers, body)


# Readers


def read_with(reader: Callable[[bytes], Any]) -> Target:
    def target(data: bytes) -> None:
        try:
            value = reader(data)
        except Quarantined:
            return
        _require_storable(_values(value))

    return target


def xml_both_ways(data: bytes) -> None:
    """What is read without lxml reads the same with it."""
    read_with(xml)(data)
    plain = _said_by(reading._plain, data)
    if plain is not None and plain != _said_by(reading._parsed, data):
        raise Finding("the two readers of XML differ")


def _said_by(reader: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return _values(reader(data))
    except Quarantined as refusal:
        return refusal.detail


def settlement_file(data: bytes) -> None:
    reader = Reader(io.BytesIO(data), {}, "AUD")
    try:
        for line in reader:
            if line.row is not None and reader.columns is not None:
                _require_same_row(line.row, line.values, reader.columns)
    except Unreadable:
        return


def _require_same_row(row: Any, values: list[str], where: Any) -> None:
    """What is stored of a row says the same as the row."""
    message = Message(
        quickstream_settlement.CONTENT_TYPE, {ROW_HEADER: "C"}, quickstream_settlement.stored_body(values, where)
    )
    endpoint: Any = msgspec.structs.replace(QUICKSTREAM, supplier_business_codes=(row.business,))
    if quickstream_settlement.identify(message, endpoint) != quickstream_settlement.identity_of(row, "C"):
        raise Finding("the stored row is another one")
    _require_recordable("quickstream", message, quickstream_settlement.interpret(message, endpoint))


def envelope(data: bytes) -> None:
    """A batch as it is, and as one whose writer had the key."""
    for sealed in (data, SEAL.seal(data)):
        try:
            opened = open_batch(sealed, SEAL)
        except BatchError:
            continue
        if sealed is data:
            raise Finding("a batch without a seal was opened")
        if open_batch(seal_batch(opened, SEAL), SEAL) != opened:
            raise Finding("the batch is another one after a second time")


def expectation(data: bytes) -> None:
    for endpoint in ENDPOINTS.values():
        try:
            registered = expectation_from(data, endpoint)
        except Refused:
            continue
        _require_row(expectation_row(registered), expectations)


def forwarded_for(data: bytes) -> None:
    """In either header: as it is, and before what a proxy of ours writes."""
    given = data.split(b"\n")
    for of_x, of_rfc in ((given, None), (None, given)):
        with suppress(Refused):
            address = _PROXIES.client("10.0.0.1", of_x or [], of_rfc or [])
            if _PROXIES.client(str(address), ()) != address:
                raise Finding("the address is another one after a second time")
        with suppress(Refused):
            added_to_x = [*of_x, b"198.51.100.9"] if of_x else []
            added_to_rfc = [*of_rfc, b'for="198.51.100.9:1"'] if of_rfc else []
            if str(_PROXIES.client("10.0.0.1", added_to_x, added_to_rfc)) != "198.51.100.9":
                raise Finding("a client wrote its own address")


def connection(data: bytes) -> None:
    if said := wire.fault(data):
        raise Finding(said)


def card_numbers(data: bytes) -> None:
    masked, count = cards.masked(data)
    if len(masked) != len(data) or (count == 0) != (masked == data):
        raise Finding("the masked body has another length, or was changed without a number")
    if cards.masked(masked)[1]:
        raise Finding("a card number is left")


def return_query(data: bytes) -> None:
    """The query as it is, and as its sender would have signed it."""
    _return_to(ENDPOINTS["debitsuccess"], data)
    said = _return_to(ENDPOINTS["quickstream"], data)
    _return_to(msgspec.structs.replace(ENDPOINTS["quickstream"], hmac_passwords=()), data)
    if said is not None and said.verified and _return_to(_WITHOUT_OUR_PASSWORD, data) is not None:
        raise Finding("a return is proven to those who do not know its secret")
    if b"hmac" not in data:
        _return_to(ENDPOINTS["quickstream"], _signed_query(data))


_WITHOUT_OUR_PASSWORD: Any = msgspec.structs.replace(ENDPOINTS["quickstream"], hmac_passwords=_NOBODYS)


def _signed_query(data: bytes) -> bytes:
    try:
        pairs = [(name, value) for name, values in form(data).values.items() for value in values]
    except Quarantined:
        return data
    query = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs)
    password: Secret = ENDPOINTS["quickstream"].hmac_passwords[-1]  # type: ignore[attr-defined]
    return f"{query}&hmac={return_digest(pairs, password)}".encode()


def _return_to(endpoint: Endpoint, query: bytes) -> Any:
    assert isinstance(endpoint, ReturnEndpoint)
    try:
        said = returned.read(query, endpoint)
    except Refused:
        return None
    if said is None:
        return None
    said, _ = returned.without_cards(said, endpoint)
    _require_storable(msgspec.to_builtins(said))
    page = return_page.of_return(said)
    if "<script" in page.lower() or page.count("<main") != 1:
        raise Finding("the page has markup of its sender")
    return said


# Providers


def authenticate(provider: str) -> Target:
    def target(data: bytes) -> None:
        message = message_of(provider, data)
        is_proven(provider, message, ENDPOINTS[provider], EXPECTED_CASUAL)
        if is_proven(provider, message, STRANGERS[provider], _STRANGERS_TOKEN):
            raise Finding("a request is proven to those who do not know its secret")

    return target


def is_proven(provider: str, message: Message, endpoint: Endpoint, registered: Expectation) -> bool:
    """Whether it passes steps 3 to 5."""
    known = PROVIDERS[provider]
    try:
        known.check_headers(message, endpoint)
        token = known.token_of(message)
        known.authenticate(message, endpoint, registered if token == registered.token else None)
    except Refused:
        return False
    return True


def interpret(provider: str) -> Target:
    """All that follows the proof, up to the rows of the ledger."""
    known, endpoint = PROVIDERS[provider], ENDPOINTS[provider]

    def target(data: bytes) -> None:
        message = message_of(provider, data)
        for given in (message, _signed_callback(message)) if provider == "paymentz" else (message,):
            kept, _ = cards.masked_message(given, known, endpoint)
            try:
                identity = known.identify(kept, endpoint)
            except Quarantined:
                identity = None
            try:
                event = known.interpret(kept, endpoint)
            except Quarantined:
                event = None
            if identity is not None:
                _require_storable(list(msgspec.structs.astuple(identity)))
            if event is not None:
                _require_recordable(provider, kept, event)

    return target


def _signed_callback(message: Message) -> Message:
    """With the checksum that its sender would have given it: nothing is believed without."""
    try:
        body = json_object(message.body)
    except Quarantined:
        return message
    signed = "|".join(paymentz._as_sent(body, name) for name in paymentz._SIGNED)
    key: Secret = PAYMENTZ.secure_keys[-1]
    checksum = hashlib.md5(signed.encode() + b"|" + key.reveal(), usedforsecurity=False).hexdigest()
    signed_body = json.dumps({**body.value, "checksum": checksum}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Message("application/json", message.headers, signed_body)


def _require_recordable(provider: str, message: Message, event: PaymentEvent) -> None:
    """The rows that the ledger would write fit their tables, and the event comes back as it was stored."""
    _require_storable(msgspec.to_builtins(event))
    if msgspec.json.decode(msgspec.json.encode(event), type=PaymentEvent) != event:
        raise Finding("the event is another one when it is read again")
    now = now_us()
    carried = Envelope(
        id=new_id(now),
        provider=provider,
        facility=ENDPOINTS[provider].facility,
        received_at=now,
        source="203.0.113.7",
        content_type=message.content_type,
        headers=dict(message.headers),
        body=message.body,
        verified=True,
        dedupe_key="key",
        event_type=event.event_type,
        fingerprint="f",
        quarantine="",
        detail="",
    )
    interpreted = Interpreted(carried, "processed", event=event)
    row = notification_row(interpreted, Bodies())
    _require_row(row, notifications)
    payment = fold([event])
    if payment is not None and interpreted.payment_id is not None:
        key = (provider, carried.facility, interpreted.payment_id)
        _require_row(payment_row(key, payment, row["received_at"], row["processed_at"]), payments)


# The console


def console_form(data: bytes) -> None:
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    try:
        finished(read_form(_request(data, headers)))
    except Trouble:
        return


def console_upload(data: bytes) -> None:
    """The form with a file."""
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]

    async def read() -> None:
        async with receiving._form(_request(data, headers), 1 << 20) as (_, file):
            if file is not None and len(file.content.read()) > len(data):
                raise Finding("the file is larger than its form")

    with suppress(Trouble, NotDone):
        _LOOP.run_until_complete(read())


_LOOP = asyncio.new_event_loop()


def api_request(data: bytes) -> None:
    """The first line as a query, what follows as a body, of every operation's types."""
    query, _, body = data.partition(b"\n")
    for kind in dict.fromkeys(each.query for each in OPERATIONS):
        try:
            found = operation._query(_request(b"", [], query), kind)
            if isinstance(found, asked.Notifications | asked.Payments):
                asked.wanted(found)
        except Declined:
            continue
    headers = [(b"content-type", b"application/json")]
    for wanted in (asked.NewReplay, asked.Resolution, asked.Why):
        try:
            finished(operation._json(_request(body, headers), wanted))
        except Declined:
            continue


def cursor(data: bytes) -> None:
    text = data.decode("latin-1")
    for kind in (NotificationPlace, PaymentPlace):
        try:
            place_of(text, kind)
        except NotDone:
            continue


def _request(body: bytes, headers: list[tuple[bytes, bytes]], query: bytes = b"") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "query_string": query, "headers": headers}
    # As in an application: Starlette raises another error without one.
    scope["app"] = None
    return Request(scope, receive)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of what waits for nothing: an event loop for each would be most of the time."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise Finding("it waits")


# What must hold of every answer


def _values(value: Any) -> Any:
    if isinstance(value, Fields):
        return value.values
    if isinstance(value, tuple):
        return tuple(map(_values, value))
    return value.value if isinstance(value, Json) else value


def _require_storable(value: Any) -> None:
    if isinstance(value, str):
        if not storable(value):
            raise Finding("a text that no database takes")
    elif isinstance(value, dict):
        for name, child in value.items():
            _require_storable(name)
            _require_storable(child)
    elif isinstance(value, list | tuple):
        for child in value:
            _require_storable(child)


def _require_row(row: dict[str, Any], table: Table) -> None:
    for name, value in row.items():
        column = table.columns[name]
        if value is None:
            if not column.nullable:
                raise Finding(f"{name} is null")
        elif isinstance(value, str):
            longest = column.type.length if isinstance(column.type, String) else None
            if not storable(value) or (longest is not None and len(value) > longest):
                raise Finding(f"{name} does not fit its column")
        elif isinstance(value, int) and isinstance(column.type, BigInteger | SmallInteger):
            bits = 15 if isinstance(column.type, SmallInteger) else 63
            if not -(2**bits) <= value < 2**bits:
                raise Finding(f"{name} does not fit its column")


TARGETS: dict[str, Target] = {
    "form": read_with(form),
    "xml": xml_both_ways,
    "json_object": read_with(json_object),
    "json_pairs": read_with(json_pairs),
    "settlement_file": settlement_file,
    "envelope": envelope,
    "expectation": expectation,
    "connection": connection,
    "forwarded_for": forwarded_for,
    "card_numbers": card_numbers,
    "return_query": return_query,
    "console_form": console_form,
    "console_upload": console_upload,
    "api_request": api_request,
    "cursor": cursor,
    **{f"authenticate_{name}": authenticate(name) for name in PROVIDERS},
    **{f"interpret_{name}": interpret(name) for name in PROVIDERS},
}
