"""What a family of endpoints is made of: routes as data, each with who may use it and what `/openapi.json`
tells of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from aiohttp import web

from router.errors import RouterError

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Access(Enum):
    """PUBLIC needs no key; INFERENCE one of `server.api_keys`; ADMIN one of `server.admin_keys`, where
    there are any."""

    PUBLIC = "public"
    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Query:
    """One parameter of a query. `kind` is bool for a switch (`?wait=1`), list[str] for one that may come
    several times."""

    name: str
    about: str
    kind: Any = str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. `path` is in aiohttp's notation: "/v1/models/{model}"; method "*" is any.

    `endless`: its answer ends only with its client; a shutdown does not wait for it, but cancels it.

    What follows is for `/openapi.json`, which adds what all routes have in common. `summary` is one line (the
    docstring of the handler follows it); `body` and `answer` are types that msgspec can describe (None: none,
    Any: not ours to describe, a tuple: one of several); `takes` and `media` are what they come as; `refusals`
    are what may be answered instead."""

    method: str
    path: str
    handler: Handler
    access: Access = Access.INFERENCE
    endless: bool = False
    summary: str = ""
    query: tuple[Query, ...] = ()
    body: Any = None
    takes: str = "application/json"
    answer: Any = None
    media: tuple[str, ...] = ("application/json",)
    status: int = 200
    refusals: tuple[type[RouterError], ...] = ()


class Routes(list[Route]):
    """The routes of one family, in the order in which they are added."""

    def add(self, method: str, *paths: str, **more: Any) -> Callable[[Handler], Handler]:
        """Decorate the handler of these paths; `more` are further fields of their Route."""

        def decorate(handler: Handler) -> Handler:
            self.extend(Route(method, path, handler, **more) for path in paths)
            return handler

        return decorate


#: The Route of each route that aiohttp knows.
ROUTE_OF = web.AppKey("route_of", dict[web.AbstractRoute, Route])
