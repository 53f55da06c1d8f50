"""What this router answers, for programs to read: an OpenAPI document made of the routes themselves.

It tells nothing of this installation but the version, and so needs no key, like `/health`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from router import __version__
from router.admin.allowed_hosts import HostNotAllowed
from router.admin.dialect import ANTHROPIC_PATHS
from router.admin.route import Access, Route, Routes
from router.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    RequestTooSlow,
    RouterError,
    ShuttingDown,
    Unauthorized,
    UnsupportedCoding,
)

Json: TypeAlias = dict[str, Any]

ROUTES: Final = Routes()
_METHODS: Final = ("get", "post", "put", "patch", "delete")
#: aiohttp's {name} and {name:pattern}.
_VARIABLE: Final = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_REFERENCE: Final = "#/components/schemas/{name}"
_SECURITY: Final[list[Json]] = [{"bearer": []}, {"key": []}]
#: What any path that takes a body may answer instead.
_OF_BODIES: Final = (InvalidRequest, BodyTooLarge, RequestTooSlow, UnsupportedCoding)
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


class Document:
    """The document of these routes: made when it is first asked for, not when the router starts."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)

    @cached_property
    def text(self) -> bytes:
        kinds: dict[str, Any] = {}
        for route in self._routes:
            answers = route.answer if isinstance(route.answer, tuple) else (route.answer,)
            for kind in (route.body, *answers, *(one.kind for one in route.query)):
                if kind is not None and kind is not Any:
                    kinds[_key(kind)] = kind
        schemas, components = msgspec.json.schema_components(
            (*kinds.values(), Failed, AnthropicFailed), ref_template=_REFERENCE
        )
        #: The schema of each body, answer and parameter, by the key of its type.
        self._schemas = dict(zip(kinds, schemas, strict=False))
        paths: dict[str, Json] = {}
        for route in self._routes:
            for method in _METHODS if route.method == "*" else (route.method.lower(),):
                paths.setdefault(_plain(route.path), {})[method] = self._operation(route, method)
        document = {
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
        return msgspec.json.encode(document)

    def _schema(self, kind: Any) -> Json:
        if isinstance(kind, tuple):
            return {"anyOf": [self._schema(one) for one in kind]}
        return {} if kind is Any else self._schemas[_key(kind)]

    def _operation(self, route: Route, method: str) -> Json:
        operation: Json = {
            "summary": route.summary,
            "operationId": f"{method} {_plain(route.path)}",
            "tags": [route.described.__module__.rpartition(".")[2]],
            "security": [] if route.access is Access.PUBLIC else _SECURITY,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _VARIABLE.findall(route.path)
            ],
            "responses": self._responses(route, method),
        }
        operation["parameters"] += [
            {
                "name": query.name,
                "in": "query",
                "required": query.required,
                "description": query.about,
                "schema": self._schema(query.kind),
            }
            for query in route.query
        ]
        about = inspect.cleandoc(route.described.__doc__ or "")
        if route.access is Access.ADMIN:
            about = f"{about}\n\nNeeds an admin key, where there are any (server.admin_keys).".strip()
        if about:
            operation["description"] = about
        if route.body is not None and method not in ("get", "delete"):
            content = {route.takes: {"schema": self._schema(route.body)}}
            operation["requestBody"] = {"required": True, "content": content}
        return operation

    def _responses(self, route: Route, method: str) -> Json:
        good: Json = {"description": route.summary}
        if route.answer is not None:
            good["content"] = {media: {"schema": self._schema(route.answer)} for media in route.media}
        shape = "AnthropicFailed" if _plain(route.path) in ANTHROPIC_PATHS else "Failed"
        failed = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=shape)}}}
        by_status: dict[int, list[str]] = {}
        for error in _refusals(route, method):
            by_status.setdefault(error.status, []).append(_about(error))
        return {str(route.status): good} | {
            str(status): {"description": "; ".join(abouts), "content": failed}
            for status, abouts in sorted(by_status.items())
        }


DOCUMENT = web.AppKey("openapi", Document)


@ROUTES.add("GET", "/openapi.json", access=Access.PUBLIC, summary="This document", answer=dict[str, Any])
async def openapi(request: web.Request) -> web.Response:
    """OpenAPI 3.1: every path, who may use it, what it takes and what it answers."""
    return web.Response(body=request.app[DOCUMENT].text, content_type="application/json")


def _plain(path: str) -> str:
    return _VARIABLE.sub(r"{\1}", path)


def _refusals(route: Route, method: str) -> dict[type[RouterError], None]:
    """Each once, in order."""
    found = dict.fromkeys([*route.refusals, ShuttingDown, Forbidden, HostNotAllowed])
    if route.access is not Access.PUBLIC:
        found[Unauthorized] = None
    if route.body is not None and method != "get":
        found |= dict.fromkeys(_OF_BODIES)
    return found


def _key(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{kind!r}"


def _about(error: type[RouterError]) -> str:
    # Its own docstring: a class without any would have that of its base.
    about = inspect.cleandoc(error.__dict__.get("__doc__") or "").partition("\n\n")[0].replace("\n", " ")
    return f"{error.code}: {about}" if about else error.code
