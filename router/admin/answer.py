"""JSON in and out: bodies of the router's own endpoints as strict structures, answers by msgspec."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from router.admin.json_body import json_text, read_json_body
from router.admin.route import HttpRequest
from router.config.nearest import nearest_of
from router.errors import InvalidRequest
from router.proxy import read_body

S = TypeVar("S", bound=msgspec.Struct)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `([^`]*)`")


def event_stream() -> web.StreamResponse:
    """The head of server-sent events, for whoever writes them; an nginx in front is not to collect them."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **headers})


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def read_json(request: web.Request, shape: type[S], *, if_none: S | None = None) -> S:
    """The body as `shape`; `if_none` where there is none. Raises InvalidRequest that says what is wrong and
    what is accepted."""
    body = (await read_body(request)).joined()
    if if_none is not None and not json_text(body):
        return if_none
    try:
        return read_json_body(msgspec.json.Decoder(shape), body)
    except InvalidRequest as error:
        fields = [field.encode_name for field in msgspec.structs.fields(shape)]
        unknown = _UNKNOWN_FIELD.search(error.message)
        near = _nearest(unknown[1], fields) if unknown is not None else None
        hint = f"; did you mean {near}?" if near is not None else ""
        message = f"{error.message}{hint}; this path takes a JSON object with: {', '.join(fields)}"
        raise InvalidRequest(message) from error


def _nearest(name: str, fields: list[str]) -> str | None:
    """The field that was meant: one that begins so, else the one spelt most like it."""
    return next((field for field in fields if name and field.startswith(name)), nearest_of(name, fields))


def is_set(request: HttpRequest, name: str, *, if_absent: bool = False) -> bool:
    """Whether a switch like `?wait=1` is on."""
    given = request.query.get(name)
    return if_absent if given is None else given.lower() not in {"", "0", "false", "no", "off"}
