"""Forms with a file: who sends one is known, and may, before any of it is read; then it goes to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive

from receiver.settings import Role
from workers.console import site as pages
from workers.console.render import size
from workers.console.site import Fields, Trouble, Visit

FIELD = "file"
"""The name of the field that has the file."""
PATIENCE = 60.0
"""Seconds after which a form of which nothing more comes is given up."""
AROUND = 64 << 10
"""Bytes of a form beside its file."""
AT_ONCE = 4
"""Files that are received at the same moment, by all operators."""

_MOST_FIELDS = 16
_NO_ROOM = 507


class Attached:
    """The file of a form, for as long as the request lasts."""

    def __init__(self, file: UploadFile) -> None:
        # The last part, as an old browser names the whole path of its user.
        self.name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        self.content: BinaryIO = file.file


Handler = Callable[[Visit, Attached | None], Response]


def upload(path: str, handler: Handler, role: Role) -> Route:
    """A form with one file that does something. `handler` gets None where no file was chosen."""
    under_way = 0

    async def endpoint(request: Request) -> Response:
        nonlocal under_way
        pages.require_own_form(request)
        visit = pages.require_permitted(request, await run_in_threadpool(pages.identified, request), role)
        if under_way >= AT_ONCE:
            raise Trouble(429, "Too many files at once", "Nothing was done. Please try again in a moment.")
        under_way += 1
        try:
            async with _form(request, visit.site.settings.console.max_upload) as (fields, file):
                visit.take(fields)
                return await pages.answer(visit, lambda visit: handler(visit, file))
        finally:
            under_way -= 1

    return Route(path, endpoint, methods=["POST"], name=handler.__name__)


@asynccontextmanager
async def _form(request: Request, largest: int) -> AsyncIterator[tuple[Fields, Attached | None]]:
    """Its fields and its file, which is closed in the end. Raises `Trouble`."""
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
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > largest + AROUND):
        raise _too_large(largest)
    counted = Request(request.scope, _counted(request.receive, largest))
    try:
        return await counted.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=AROUND)
    except HTTPException:
        raise Trouble(400, "The form cannot be read", "Nothing was done. A form has one file.") from None
    except ClientDisconnect:
        raise Trouble(400, "The form did not arrive", "Nothing was done.") from None
    except OSError as error:
        sentence = f"Nothing was done. The file cannot be kept while it is looked at: {error.strerror}."
        raise Trouble(_NO_ROOM, "There is no room for the file", sentence) from None


def _counted(receive: Receive, largest: int) -> Receive:
    came = 0

    async def counted() -> Message:
        nonlocal came
        try:
            async with asyncio.timeout(PATIENCE):
                message = await receive()
        except TimeoutError:
            raise Trouble(408, "The form did not arrive", "Nothing was done. Nothing more came of it.") from None
        came += len(message.get("body", b""))
        if came > largest + AROUND:
            raise _too_large(largest)
        return message

    return counted


def _too_large(largest: int) -> Trouble:
    sentence = f"Nothing was done. It may have {size(largest)}: console.max_upload says so."
    return Trouble(413, "The file is too large", sentence)
