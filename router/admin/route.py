"""What a family of endpoints is made of: routes as data, each with who may use it and what `/openapi.json`
tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from aiohttp import web
from multidict import CIMultiDictProxy, MultiMapping

from router.errors import RouterError
from router.proxy import Body, RequestInfo

if TYPE_CHECKING:
    from router.admin.context import Context
    from router.admin.keys import Keys

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


#: A GET answers HEAD as well, as RFC 9110 (9.1) asks of every server.
METHODS: Final = {"GET": ("GET", "HEAD"), "*": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")}


class HttpRequest(Protocol):
    """What the checks and the readers of heads use of a request: aiohttp's, or one that is proxied."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> MultiMapping[str]: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def content_type(self) -> str: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...


class FieldReader(Protocol):
    """Reads the few fields that the router needs of a body while that comes in."""

    def feed(self, piece: bytes) -> None:
        """Raises InvalidRequest."""


class Pending(HttpRequest, Protocol):
    """A request that is to be proxied. `raw_path` is the target as it came, with the query; `fields` what the
    route's reader has read of a long body, None for a short one."""

    @property
    def context(self) -> Context: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def raw_path(self) -> str: ...
    @property
    def body(self) -> Body: ...
    @property
    def fields(self) -> FieldReader | None: ...


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

    @property
    def described(self) -> Callable[..., Any]:
        """What has the docstring, and the module of the family."""
        return self.handler


#: What the pool is asked for on behalf of a request. Raises RouterError.
Plan: TypeAlias = Callable[[Pending], RequestInfo | Awaitable[RequestInfo]]


async def _answered_by_the_proxy(request: web.Request) -> web.StreamResponse:
    raise AssertionError(f"{request.path} is proxied before it gets here")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedRoute(Route):
    """One endpoint that an instance answers. `fields` makes the reader of a long body. The application has
    the route for its documentation and preflights only."""

    handler: Handler = _answered_by_the_proxy
    plan: Plan
    fields: Callable[[HttpRequest], FieldReader | None] | None = None

    @property
    def described(self) -> Callable[..., Any]:
        return self.plan


class Routes(list[Route]):
    """The routes of one family, in the order in which they are added."""

    def add(self, method: str, *paths: str, **more: Any) -> Callable[[Handler], Handler]:
        """Decorate the handler of these paths; `more` are further fields of their Route."""

        def decorate(handler: Handler) -> Handler:
            self.extend(Route(method, path, handler, **more) for path in paths)
            return handler

        return decorate

    def proxy(
        self,
        method: str,
        *paths: str,
        fields: Callable[[HttpRequest], FieldReader | None] | None = None,
        **more: Any,
    ) -> Callable[[Plan], Plan]:
        """Decorate the plan of these paths, which instances answer."""

        def decorate(plan: Plan) -> Plan:
            self.extend(ProxiedRoute(method, path, plan=plan, fields=fields, **more) for path in paths)
            return plan

        return decorate


#: The Route of each route that aiohttp knows.
ROUTE_OF = web.AppKey("route_of", dict[web.AbstractRoute, Route])
