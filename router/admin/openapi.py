"""What this router answers, for programs to read: an OpenAPI document made of the routes themselves.

It tells nothing of this installation but the version, and so needs no key, like `/health`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from router import __version__
from router.admin.allowed_hosts import HostNotAllowed
from router.admin.route import Access, Query, Route
from router.errors import Forbidden, RouterError, ShuttingDown, Unauthorized

Json: TypeAlias = dict[str, Any]

_METHODS: Final = ("get", "post", "put", "patch", "delete")
#: aiohttp's {name} and {name:pattern}.
_VARIABLE: Final = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_REFERENCE: Final = "#/components/schemas/{name}"
_SECURITY: Final[list[Json]] = [{"bearer": []}, {"key": []}]
_ABOUT: Final = """\
Many local GGUF models behind one address. Inference paths are llama-server's own: their bodies and answers
pass unchanged, and are described by llama.cpp, OpenAI and Anthropic."""


class Failure(msgspec.Struct, frozen=True):
    """What went wrong, and what can be done. Further fields tell the figures."""

    message: str
    type: str
    code: str | int | None
    param: str | None


class Failed(msgspec.Struct, frozen=True):
    """Every error of the router, in OpenAI's shape."""

    error: Failure


class AnthropicFailure(msgspec.Struct, frozen=True):
    type: str
    message: str


class AnthropicFailed(msgspec.Struct, frozen=True):
    """Every error of the router on Anthropic's paths, in Anthropic's shape."""

    error: AnthropicFailure
    type: str


@dataclass(frozen=True)
class Document:
    """Made when it is first asked for, not when the router starts. `anthropic` are the paths whose errors
    have Anthropic's shape; `of_bodies` are what any route with a body may answer instead."""

    routes: tuple[Route, ...]
    anthropic: tuple[str, ...]
    of_bodies: tuple[type[RouterError], ...]

    @cached_property
    def text(self) -> bytes:
        return msgspec.json.encode(document(self.routes, self.anthropic, self.of_bodies))


DOCUMENT = web.AppKey("openapi", Document)


async def openapi(request: web.Request) -> web.Response:
    """OpenAPI 3.1: every path, who may use it, what it takes and what it answers."""
    return web.Response(body=request.app[DOCUMENT].text, content_type="application/json")


def document(
    routes: tuple[Route, ...], anthropic: tuple[str, ...], of_bodies: tuple[type[RouterError], ...]
) -> Json:
    types = {
        _key(kind): kind
        for route in routes
        for kind in (route.body, *_each(route.answer), *(one.kind for one in route.query))
        if kind is not None and kind is not Any
    }
    failures = (Failed, AnthropicFailed)
    schemas, components = msgspec.json.schema_components(
        (*types.values(), *failures), ref_template=_REFERENCE
    )
    shapes = dict(zip(types, schemas, strict=False))
    paths: dict[str, Json] = {}
    for route in routes:
        path = _plain(route.path)
        failed = {"$ref": _REFERENCE.format(name=("AnthropicFailed" if path in anthropic else "Failed"))}
        for method in _METHODS if route.method == "*" else (route.method.lower(),):
            paths.setdefault(path, {})[method] = _operation(route, method, shapes, failed, of_bodies)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama-router", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(
    route: Route,
    method: str,
    shapes: Mapping[str, Json],
    failed: Json,
    of_bodies: tuple[type[RouterError], ...],
) -> Json:
    operation: Json = {
        "summary": route.summary,
        "operationId": f"{method} {_plain(route.path)}",
        "tags": [route.handler.__module__.rpartition(".")[2]],
        "security": [] if route.access is Access.PUBLIC else _SECURITY,
        "parameters": [*_variables(route), *(_parameter(one, shapes) for one in route.query)],
        "responses": _responses(route, method, shapes, failed, of_bodies),
    }
    about = inspect.cleandoc(route.handler.__doc__ or "")
    if route.access is Access.ADMIN:
        about = f"{about}\n\nNeeds an admin key, where there are any (server.admin_keys).".strip()
    if about:
        operation["description"] = about
    if route.body is not None and method not in ("get", "delete"):
        content = {route.takes: {"schema": _shape(route.body, shapes)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _plain(path: str) -> str:
    return _VARIABLE.sub(r"{\1}", path)


def _variables(route: Route) -> Iterator[Json]:
    for name in _VARIABLE.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameter(query: Query, shapes: Mapping[str, Json]) -> Json:
    return {
        "name": query.name,
        "in": "query",
        "required": query.required,
        "description": query.about,
        "schema": _shape(query.kind, shapes),
    }


def _responses(
    route: Route,
    method: str,
    shapes: Mapping[str, Json],
    failed: Json,
    of_bodies: tuple[type[RouterError], ...],
) -> Json:
    good: Json = {"description": route.summary}
    if route.answer is not None:
        good["content"] = {media: {"schema": _shape(route.answer, shapes)} for media in route.media}
    responses: Json = {str(route.status): good}
    for status, errors in sorted(_refusals(route, method, of_bodies).items()):
        about = "; ".join(_words(one) for one in errors)
        responses[str(status)] = {
            "description": about,
            "content": {"application/json": {"schema": failed}},
        }
    return responses


def _refusals(
    route: Route, method: str, of_bodies: tuple[type[RouterError], ...]
) -> dict[int, list[type[RouterError]]]:
    wanted: list[type[RouterError]] = [*route.refusals, ShuttingDown, Forbidden, HostNotAllowed]
    if route.access is not Access.PUBLIC:
        wanted.append(Unauthorized)
    if route.body is not None and method != "get":
        wanted += of_bodies
    found: dict[int, list[type[RouterError]]] = {}
    for one in dict.fromkeys(wanted):
        found.setdefault(one.status, []).append(one)
    return found


def _each(kind: Any) -> tuple[Any, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _shape(kind: Any, shapes: Mapping[str, Json]) -> Json:
    if isinstance(kind, tuple):
        return {"anyOf": [_shape(one, shapes) for one in kind]}
    return {} if kind is Any else shapes[_key(kind)]


def _key(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{kind!r}"


def _words(error: type[RouterError]) -> str:
    # Its own words: a class without any would tell those of its base.
    about = inspect.cleandoc(error.__dict__.get("__doc__") or "").partition("\n\n")[0].replace("\n", " ")
    return f"{error.code}: {about}" if about else error.code


ROUTES = (
    Route("GET", "/openapi.json", openapi, Access.PUBLIC, summary="This document", answer=dict[str, Any]),
)
