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
        return await _preflight(request)
    if _needs_admin(request, request.match_info) and _is_foreign(request) and not is_allowed(request):
        raise Forbidden(f"pages of {request.headers['Origin']} may not do this (server.cors_origins)")
    return await handler(request)


async def mark_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer, streams and errors too, says whether the asking page may read it.
    (on_response_prepare)"""
    origin = request.headers.get("Origin", "")
    # One that is not ASCII is none (RFC 6454, 6.2), and an answer cannot say it again.
    if origin and origin.isascii() and is_allowed(request):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.add("Vary", "Origin")


def is_allowed(request: web.Request, *, admin: bool | None = None) -> bool:
    """`admin`: whether this is about something that only admins may do; None: as the request itself is."""
    origins = request.app[ORIGINS]
    if admin is None:
        admin = _needs_admin(request, request.match_info)
    return ("*" in origins and not admin) or request.headers.get("Origin") in origins


async def _preflight(request: web.Request) -> web.Response:
    refused = request.match_info.http_exception
    if not isinstance(refused, web.HTTPMethodNotAllowed):
        raise refused or web.HTTPNotFound
    methods = sorted(refused.allowed_methods)
    response = web.Response(status=204, headers={"Allow": ", ".join([*methods, "OPTIONS"])})
    # One path may have a method for everybody and another for admins; a page is told what it may use.
    usable = []
    for method in methods:
        match = await request.app.router.resolve(request.clone(method=method))
        if is_allowed(request, admin=_needs_admin(request, match)):
            usable.append(method)
    if usable:
        response.headers["Access-Control-Allow-Methods"] = ", ".join(usable)
        # Clients send headers of their own invention (x-stainless-...): naming them all is hopeless.
        asked = request.headers.get("Access-Control-Request-Headers", "*")
        response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
    return response


def _is_foreign(request: web.Request) -> bool:
    """Whether a page of another site sends this; what is no browser sends no Origin."""
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def _needs_admin(request: web.Request, match: web.UrlMappingMatchInfo) -> bool:
    return request.app[ACCESS].get(match.route) is Access.ADMIN
