"""Settlement files, from a form or as the body of a request to the API: who sends one is known, and may, before any of
it is read; then it goes to the disk."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive

from receiver.errors import NotDone, Reason
from receiver.settings import Role
from workers.console import site as pages
from workers.console.render import size
from workers.console.site import Fields, Visit

FIELD = "file"
"""The name of the field that has the file."""
PATIENCE = 60.0
"""Seconds after which a body of which nothing more comes is given up."""
AROUND = 64 << 10
"""Bytes of a form beside its file."""

_MOST_FIELDS = 16


class Attached:
    """The file of a form, for as long as the request lasts."""

    def __init__(self, file: UploadFile) -> None:
        # The last part, as an old browser names the whole path of its user.
        self.name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        self.content: BinaryIO = file.file


Handler = Callable[[Visit, Attached | None], Response]


def upload(path: str, handler: Handler, role: Role) -> Route:
    """A form with one file that does something. `handler` gets None where no file was chosen."""

    async def endpoint(request: Request) -> Response:
        pages.require_own_form(request)
        visit = pages.require_permitted(request, await run_in_threadpool(pages.identified, request), role)
        largest = visit.site.settings.console.max_upload
        with visit.site.uploads.receiving():
            async with _form(request, largest) as (fields, file):
                visit.take(fields)
                return await pages.answer(visit, lambda visit: handler(visit, file))

    return Route(path, endpoint, methods=["POST"], name=handler.__name__)


@dataclass(frozen=True, slots=True)
class Body:
    """A whole body that is a file, for as long as the request lasts."""

    content: IO[bytes]
    digest: str
    """SHA-256, in hex."""


@asynccontextmanager
async def body(request: Request, largest: int) -> AsyncIterator[Body]:
    """Raises `NotDone`: `body_too_large`, `body_too_slow`, `request_malformed`, `disk_full`."""
    _require_fitting(request, largest, largest)
    counted = Request(request.scope, _counted(request.receive, largest, largest))
    with ExitStack() as kept:
        with _room():
            content = kept.enter_context(tempfile.TemporaryFile())
        yield Body(content, await _copied(counted, content))


async def _copied(request: Request, content: IO[bytes]) -> str:
    """SHA-256 of the body, which is in `content` then."""
    copied = hashlib.sha256()
    with _room():
        try:
            async for chunk in request.stream():
                copied.update(chunk)
                await run_in_threadpool(content.write, chunk)
        except ClientDisconnect:
            raise NotDone(Reason.REQUEST_MALFORMED, "The file did not arrive.") from None
        content.flush()
    return copied.hexdigest()


@asynccontextmanager
async def _form(request: Request, largest: int) -> AsyncIterator[tuple[Fields, Attached | None]]:
    """Its fields and its file, which is closed in the end. Raises `Trouble` and `NotDone`."""
    kind = pages.content_type(request)
    if kind != "multipart/form-data":
        # A form without a file says so; anything else is none.
        yield await pages.read_form(request), None
        return
    form = await _read(request, largest)
    try:
        fields: Fields = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
        file = form.get(FIELD)
        # A browser sends a file without a name where none was chosen.
        yield fields, Attached(file) if isinstance(file, UploadFile) and file.filename else None
    finally:
        await form.close()


async def _read(request: Request, largest: int) -> FormData:
    _require_fitting(request, largest + AROUND, largest)
    counted = Request(request.scope, _counted(request.receive, largest + AROUND, largest))
    with _room():
        try:
            return await counted.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=AROUND)
        except HTTPException:
            raise NotDone(Reason.REQUEST_MALFORMED, "The form cannot be read. A form has one file.") from None
        except ClientDisconnect:
            raise NotDone(Reason.REQUEST_MALFORMED, "The form did not arrive.") from None


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        sentence = f"The file cannot be kept while it is looked at: {error.strerror}."
        raise NotDone(Reason.DISK_FULL, sentence) from None


def _require_fitting(request: Request, most: int, told: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
        raise _too_large(told)


def _counted(receive: Receive, most: int, told: int) -> Receive:
    """`most` bytes; of the file itself `told`."""
    came = 0

    async def counted() -> Message:
        nonlocal came
        try:
            async with asyncio.timeout(PATIENCE):
                message = await receive()
        except TimeoutError:
            raise NotDone(Reason.BODY_TOO_SLOW, "Nothing more came of the file.") from None
        came += len(message.get("body", b""))
        if came > most:
            raise _too_large(told)
        return message

    return counted


def _too_large(most: int) -> NotDone:
    sentence = f"The file is too large. It may have {size(most)}: console.max_upload says so."
    return NotDone(Reason.BODY_TOO_LARGE, sentence)
