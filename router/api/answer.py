"""JSON in and out: bodies of the router's own endpoints as strict structures, answers by msgspec."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from router.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def read_json(request: web.Request, shape: type[S]) -> S:
    """The body as `shape`. Raises InvalidRequest that says what is wrong and what is accepted."""
    body = await request.read()
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:  # includes ValidationError
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(shape))
        raise InvalidRequest(f"{error}; this path takes a JSON object with: {fields}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from error


def is_set(request: web.Request, name: str) -> bool:
    """Whether a switch like `?wait=1` is on."""
    return request.query.get(name, "").lower() not in {"", "0", "false", "no", "off"}
