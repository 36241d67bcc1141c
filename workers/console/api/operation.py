"""One operation of the API: who may ask, what may be asked, and what is answered; read strictly, answered as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from receiver.errors import Reason
from receiver.settings import ApiClient, Role
from receiver.signing import digest, matches
from workers.audit import Actor
from workers.console import receiving
from workers.console.api.problems import Declined
from workers.console.site import Site, client, content_type
from workers.ledger import queries

LARGEST_BODY = 128 << 10
MOST_PARAMETERS = 50

Asked = TypeVar("Asked", bound=msgspec.Struct)


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client that may make it."""

    site: Site
    actor: Actor
    path: Mapping[str, str]
    query: Any
    """Of the operation's `query`."""
    body: Any
    """Of the operation's `body`, or a `receiving.Body` where it takes a file; None without one."""
    idempotency_key: str | None = None

    def ledger(self) -> AbstractContextManager[Connection]:
        """Raises `LedgerAway`."""
        return queries.reading(self.site.engine)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is not simply 200."""

    value: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that is as long as it likes, in one of these media types; the handler gives the response itself."""

    media_types: tuple[str, ...]

    def __init__(self, *media_types: str) -> None:
        object.__setattr__(self, "media_types", media_types)


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    handler: Callable[[Call], Any]
    """Gives what is answered as JSON, an `Answer`, or a whole response."""
    answer: Any
    """Type of the answer with status 200, or a `Streamed`."""
    query: type[msgspec.Struct] = Nothing
    body: type[msgspec.Struct] | None = None
    file: tuple[str, ...] = ()
    """Media types of a body that is a file: of `console.max_upload` bytes at most, it goes to the disk."""
    role: Role = Role.VIEWER
    created: Any = None
    """Type of the answer with status 201, if there is one."""
    accepted: Any = None
    """Type of the answer with status 202, if there is one."""
    idempotent: bool = False
    """Whether it takes an ``Idempotency-Key``."""
    reasons: tuple[Reason, ...] = ()
    """What it may be declined for, besides what every operation may be."""


async def respond(request: Request, operation: Operation) -> Response:
    site: Site = request.app.state.site
    asker = _client_of(request, site)
    request.state.asker = asker.name
    if not asker.role.includes(operation.role):
        raise Declined(Reason.ROLE_REFUSED, f"This needs the role {operation.role}; the key has {asker.role}.")
    query = _query(request, operation.query)
    key = _idempotency_key(request) if operation.idempotent else None
    actor = Actor(asker.name, str(client(request)))
    async with _body(request, operation) as body:
        call = Call(site, actor, request.path_params, query, body, key)
        answered = await run_in_threadpool(operation.handler, call)
    if isinstance(answered, Response):
        return answered
    answer = answered if isinstance(answered, Answer) else Answer(answered)
    content = msgspec.json.encode(answer.value) + b"\n"
    if operation.method == "GET":
        return tagged(request, content)
    return Response(content, answer.status, answer.headers, "application/json")


def tagged(request: Request, content: bytes) -> Response:
    """JSON with an ETag; without the JSON for whoever has it already."""
    headers = {"etag": f'"{digest(content)[:32]}"'}
    if _known(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, "application/json")


def _client_of(request: Request, site: Site) -> ApiClient:
    """Whose key this is. A cookie or a proxy's header does not count here."""
    given = request.headers.getlist("authorization")
    if not given:
        challenge = {"www-authenticate": "Bearer"}
        raise Declined(Reason.CREDENTIALS_MISSING, "The Authorization header with an API key is missing.", challenge)
    if len(given) > 1:
        raise Declined(Reason.REQUEST_MALFORMED, "The Authorization header occurs twice.")
    scheme, _, key = given[0].partition(" ")
    # All are compared, so that time does not tell which.
    sent = key.strip().encode("latin-1")
    found = [each for each in site.settings.security.api_clients if matches(sent, [each.key])]
    if not found or scheme.lower() != "bearer":
        raise Declined(Reason.CREDENTIALS_REFUSED, "The API key is not known.")
    return found[0]


def _query(request: Request, kind: type[Asked]) -> Asked:
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            request.scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MOST_PARAMETERS,
        )
    except ValueError:
        raise Declined(Reason.PARAMETER_REFUSED, "The query cannot be read.") from None
    for name, value in pairs:
        if name in given:
            raise Declined(Reason.PARAMETER_REFUSED, "A parameter occurs twice.")
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Declined(Reason.PARAMETER_REFUSED, _sentence(error)) from None


@asynccontextmanager
async def _body(request: Request, operation: Operation) -> AsyncIterator[Any]:
    """What the handler gets of it, for as long as the handler works."""
    if operation.file:
        _require_media_type(request, operation.file)
        site: Site = request.app.state.site
        with site.uploads.receiving():
            async with receiving.body(request, site.settings.console.max_upload) as file:
                yield file
    elif operation.body is not None:
        yield await _json(request, operation.body)
    else:
        yield None


def _require_media_type(request: Request, media_types: Sequence[str]) -> None:
    if content_type(request) not in media_types:
        raise Declined(Reason.MEDIA_TYPE_REFUSED, f"The body must be {' or '.join(media_types)}.")


async def _json(request: Request, kind: type[Asked]) -> Asked:
    _require_media_type(request, ["application/json"])
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise Declined(Reason.BODY_TOO_LARGE, f"The body may have at most {LARGEST_BODY} bytes.")
    except ClientDisconnect:
        raise Declined(Reason.REQUEST_MALFORMED, "The body did not arrive.") from None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Declined(Reason.REQUEST_MALFORMED, _sentence(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Declined(Reason.REQUEST_MALFORMED, "The body is not valid JSON.") from None


def _sentence(error: msgspec.ValidationError) -> str:
    """What is wrong, and where: made of the names of the contract, and of what was sent only names of fields."""
    return str(error).replace(" - at `$.", " - at `").encode("ascii", "replace").decode()[:300].rstrip(".") + "."


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not (0 < len(given[0]) <= 200 and given[0].isascii() and given[0].isprintable()):
        sentence = "Idempotency-Key must be one text of 1 to 200 printable ASCII characters."
        raise Declined(Reason.PARAMETER_REFUSED, sentence)
    return given[0]


def _known(request: Request, etag: str) -> bool:
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return etag in known or known == ["*"]
