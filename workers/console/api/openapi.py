"""The OpenAPI 3.1 document, made of the table by which the API routes and validates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from receiver import __version__
from receiver.errors import STATUS_OF, Reason
from workers.console.api.operation import Operation, Streamed
from workers.console.api.problems import MEDIA_TYPE, Problem

_ALWAYS = (
    Reason.REQUEST_MALFORMED,
    Reason.PARAMETER_REFUSED,
    Reason.CREDENTIALS_MISSING,
    Reason.CREDENTIALS_REFUSED,
    Reason.ROLE_REFUSED,
    Reason.METHOD_REFUSED,
    Reason.LEDGER_AWAY,
    Reason.REDIS_AWAY,
    Reason.FAULT,
)
_WITH_BODY = (Reason.BODY_TOO_LARGE, Reason.MEDIA_TYPE_REFUSED)
_WITH_FILE = (*_WITH_BODY, Reason.BODY_TOO_SLOW, Reason.UPLOADS_FULL, Reason.DISK_FULL)
_PARAMETER = re.compile(r"{(\w+)(?::any)?}")

Json = dict[str, Any]


def document(operations: Sequence[Operation]) -> Json:
    kinds: list[Any] = [Problem]
    for each in operations:
        some = (each.answer, each.created, each.accepted, each.query, each.body)
        kinds += [kind for kind in some if kind is not None and not isinstance(kind, Streamed)]
    kinds = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Json] = {}
    parameters_only: set[str] = set()
    for each in operations:
        name = schema_of[each.query]["$ref"].rpartition("/")[2]
        parameters_only.add(name)
        described = _operation(each, schema_of, components[name])
        paths.setdefault("/api/v1" + _PARAMETER.sub(r"{\1}", each.path), {})[each.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Postback",
            "version": __version__,
            "description": "What came and what became of it. Amounts are decimal strings, times UTC ISO 8601.",
        },
        "security": [{"api_key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: schema for name, schema in components.items() if name not in parameters_only},
        },
    }


def _operation(operation: Operation, schema_of: dict[Any, Json], query: Json) -> Json:
    described: Json = {
        "operationId": operation.handler.__name__,
        "summary": f"Needs the role {operation.role}.",
        "parameters": list(_parameters(operation, query)),
        "responses": _responses(operation, schema_of),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schema_of[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.file:
        binary: Json = {"schema": {"type": "string", "format": "binary"}}
        described["requestBody"] = {"required": True, "content": dict.fromkeys(operation.file, binary)}
    return described


def _parameters(operation: Operation, query: Json) -> Iterable[Json]:
    for name in _PARAMETER.findall(operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for name, schema in query.get("properties", {}).items():
        yield {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": schema}
    if operation.method == "GET" and not isinstance(operation.answer, Streamed):
        yield {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}}
    if operation.idempotent:
        key = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"}
        yield {"name": "Idempotency-Key", "in": "header", "schema": key}


def _responses(operation: Operation, schema_of: dict[Any, Json]) -> Json:
    responses: Json = {}
    streamed = operation.answer if isinstance(operation.answer, Streamed) else None
    if streamed is not None:
        text = {"schema": {"type": "string"}}
        responses["200"] = {"description": "A file.", "content": dict.fromkeys(streamed.media_types, text)}
    for status, kind in ((200, operation.answer), (201, operation.created), (202, operation.accepted)):
        if kind is not None and kind is not streamed:
            described: Json = {"description": "Done.", "content": {"application/json": {"schema": schema_of[kind]}}}
            if operation.method == "GET":
                described["headers"] = {"ETag": {"schema": {"type": "string"}}}
            responses[str(status)] = described
    if operation.method == "GET" and streamed is None:
        responses["304"] = {"description": "It is as it was.", "headers": {"ETag": {"schema": {"type": "string"}}}}
    reasons: dict[int, list[Reason]] = {}
    of_body = _WITH_FILE if operation.file else _WITH_BODY if operation.body is not None else ()
    for reason in (*_ALWAYS, *operation.reasons, *of_body):
        reasons.setdefault(STATUS_OF[reason], []).append(reason)
    for status in sorted(reasons):
        content = {MEDIA_TYPE: {"schema": schema_of[Problem]}}
        responses[str(status)] = {"description": f"Reasons: {', '.join(reasons[status])}.", "content": content}
    return responses
