"""Which web pages may talk to the router: none but its own, unless `server.cors_origins` names them.

"*" opens inference to every page; the admin endpoints only ever to pages that are named."""

from __future__ import annotations

from aiohttp import web

from router.api.keys import ACCESS
from router.api.route import Access, Handler
from router.errors import Forbidden

ORIGINS = web.AppKey("origins", frozenset[str])

_EXPOSED = "X-Router-Action, X-Router-Queue-Ms, X-Router-Load-Ms, Retry-After"
_PREFLIGHT_SECONDS = "600"


@web.middleware
async def answer_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer preflights, and refuse admin requests from foreign pages.

    A browser sends a simple POST without asking first, so that not allowing a page to read the answer
    does not keep it from unloading a model."""
    if request.method == "OPTIONS":
        return _preflight(request)
    if _is_admin_path(request) and _is_foreign(request) and not is_allowed(request):
        raise Forbidden(f"pages of {request.headers['Origin']} may not do this (server.cors_origins)")
    return await handler(request)


async def mark_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer, streams and errors too, says whether the asking page may read it.
    (on_response_prepare)"""
    if "Origin" in request.headers and is_allowed(request):
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.add("Vary", "Origin")


def is_allowed(request: web.Request) -> bool:
    origins = request.app[ORIGINS]
    is_open = "*" in origins and not _is_admin_path(request)
    return is_open or request.headers.get("Origin") in origins


def _preflight(request: web.Request) -> web.Response:
    refused = request.match_info.http_exception
    if not isinstance(refused, web.HTTPMethodNotAllowed):
        raise refused or web.HTTPNotFound
    methods = ", ".join(sorted({*refused.allowed_methods, "OPTIONS"}))
    response = web.Response(status=204, headers={"Allow": methods})
    if is_allowed(request):
        response.headers["Access-Control-Allow-Methods"] = methods
        # Clients send headers of their own invention (x-stainless-...): naming them all is hopeless.
        asked = request.headers.get("Access-Control-Request-Headers", "*")
        response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
    return response


def _is_foreign(request: web.Request) -> bool:
    """Whether a page of another site sends this; what is no browser sends no Origin."""
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def _is_admin_path(request: web.Request) -> bool:
    # By path, not by route: a preflight has the method OPTIONS, for which there is no route.
    access = request.app[ACCESS]
    return any(
        access[route] is Access.ADMIN
        and route.resource is not None
        and route.resource.canonical == request.path
        for route in access
    )
