"""Which web pages may use the router: none but its own, unless `server.cors_origins` names them.

"*" opens inference to every page, and SCHEME://* to every page of a scheme; the admin endpoints only ever
open to pages whose host is named. What no browser sends has neither Origin nor Sec-Fetch-Site, and passes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from aiohttp import web

from router.admin.allowed_hosts import ALLOWED_HOSTS, hosts_of
from router.admin.answer import is_set
from router.admin.route import ROUTE_OF, Access, Handler, HttpRequest
from router.config.web import Origin, OriginPattern, host_of
from router.errors import Forbidden

_EXPOSED = "X-Router-Action, X-Router-Queue-Ms, X-Router-Load-Ms, Retry-After"
_PREFLIGHT_SECONDS = "600"
#: Origins whose verdict is kept.
_KEPT: Final = 256
#: Switches by which a GET loads a model, or looks for models anew and stops what has changed.
_EFFECTS: Final = ("autoload", "reload")
#: What Sec-Fetch-Site says of a request of our own page, and of one that a person typed.
_OWN_SITES: Final = frozenset({"same-origin", "none"})


class Origins:
    """The pages that `server.cors_origins` allows."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._patterns = tuple(map(OriginPattern.parse, patterns))
        #: Whether every page may infer, also in requests that do not say where they come from.
        self.are_all = any(one.origin is None for one in self._patterns)
        self.allows = lru_cache(maxsize=_KEPT)(self._judge)

    def _judge(self, text: str, admin: bool) -> bool:
        """Whether a page of this origin may read answers; `admin`: of the admin endpoints."""
        if text == "null":
            return self.are_all and not admin
        try:
            origin = Origin.parse(text)
        except ValueError:
            return False
        return any(one.matches(origin) and not (admin and one.is_wide) for one in self._patterns)


ORIGINS = web.AppKey("origins", Origins)


@web.middleware
async def check_source(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests under names that are not ours, and those of pages that may not use the router; answer
    preflights.

    A browser sends simple requests (`<img>`, forms, fetch with mode "no-cors") without asking first: that a
    page may not read the answer does not keep it from loading or unloading a model."""
    request.app[ALLOWED_HOSTS].check(hosts_of(request), request.transport)
    if request.method == "OPTIONS":
        return await _preflight(request)
    check_page(request.app[ORIGINS], request, needs_admin=_needs_admin(request, request.match_info))
    return await handler(request)


def check_page(origins: Origins, request: HttpRequest, *, needs_admin: bool) -> None:
    """Raises Forbidden for a request of a web page that may not use the router."""
    origin, site = _said_once(request, "Origin"), _said_once(request, "Sec-Fetch-Site")
    if is_foreign(origin, site, request.headers.get("Host", "")):
        if not (is_allowed(origins, request, needs_admin=needs_admin) or _opens_page(request)):
            raise Forbidden(_refusal(origins, origin))
    elif origin is None and site is None and _may_be_any_pages(request):
        raise Forbidden(
            "this GET changes what is loaded, and from a browser it could be any page's (neither Origin nor "
            "Sec-Fetch-Site says whose): send it from another program, or with a key"
        )


@lru_cache(maxsize=_KEPT)
def is_foreign(origin: str | None, site: str | None, host: str) -> bool:
    """Whether a page of another origin sends this. `site` (Sec-Fetch-Site) compares the page with the address
    that the browser asked for, also where a proxy between changes the Host; browsers send it to https and
    loopback addresses only. Else the Origin is compared with the Host.
    """
    if site == "same-origin":
        return False
    if site is not None and site not in _OWN_SITES:
        return True
    return origin is not None and not _is_own(origin, host)


async def mark_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer, streams and errors too, says whether the asking page may read it.
    (on_response_prepare)"""
    needs_admin = _needs_admin(request, request.match_info)
    for name, value in page_headers(request.app[ORIGINS], request, needs_admin=needs_admin):
        response.headers.add(name, value)


def page_headers(origins: Origins, request: HttpRequest, *, needs_admin: bool) -> list[tuple[str, str]]:
    """What an answer says of whether the asking page may read it."""
    origin = request.headers.get("Origin", "")
    # One that is not ASCII is none (RFC 6454, 6.2), and an answer cannot say it again.
    if not (origin and origin.isascii() and is_allowed(origins, request, needs_admin=needs_admin)):
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _EXPOSED),
        ("Vary", "Origin"),
    ]


def is_allowed(origins: Origins, request: HttpRequest, *, needs_admin: bool) -> bool:
    """`needs_admin`: whether this is about something that only admins may do."""
    origin, needs_admin = _said_once(request, "Origin"), needs_admin or is_set(request, "reload")
    return origins.allows(origin, needs_admin) if origin is not None else origins.are_all and not needs_admin


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
        if is_allowed(request.app[ORIGINS], request, needs_admin=_needs_admin(request, match)):
            usable.append(method)
    if usable:
        response.headers["Access-Control-Allow-Methods"] = ", ".join(usable)
        # Clients send headers of their own invention (x-stainless-...): naming them all is hopeless.
        asked = request.headers.get("Access-Control-Request-Headers", "*")
        response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
    return response


def _said_once(request: HttpRequest, name: str) -> str | None:
    """A header of a browser. With several values it is no browser's; together they match nothing."""
    values = set(request.headers.getall(name, ()))
    return values.pop() if len(values) == 1 else ", ".join(sorted(values)) or None


def _is_own(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host and port; the scheme may be a proxy's."""
    try:
        page = Origin.parse(origin)
        own = Origin.parse(f"{page.scheme}://{host}")
        return page.scheme in ("http", "https") and (host_of(page.host), page.port) == (
            host_of(own.host),
            own.port,
        )
    except ValueError:
        return False


def _opens_page(request: HttpRequest) -> bool:
    """A link to the status page: it shows nothing to the page that the link is on."""
    headers = request.headers
    is_document = headers.get("Sec-Fetch-Dest", "document") == "document"
    is_navigation = headers.get("Sec-Fetch-Mode") == "navigate" and is_document and "Origin" not in headers
    return is_navigation and request.method == "GET" and request.path == "/"


def _may_be_any_pages(request: HttpRequest) -> bool:
    """A GET with an effect that a browser sends to an address without encryption beyond loopback: such a
    request does not say whose it is. It is known by its User-Agent, which a page cannot change; a key cannot
    come with it either.
    """
    headers = request.headers
    return (
        headers.get("User-Agent", "").startswith("Mozilla/")
        and request.method in ("GET", "HEAD")
        and any(is_set(request, name) for name in _EFFECTS)
        and not ("Authorization" in headers or "x-api-key" in headers)
    )


def _refusal(origins: Origins, origin: str | None) -> str:
    if origin is None:
        return (
            "a page of another web site sends this (Sec-Fetch-Site) without saying which one: name the page "
            'in server.cors_origins, and let it fetch with mode "cors"'
        )
    page = ascii(origin[:80])[1:-1]
    if origin == "null":
        return 'pages without an origin ("null") may not do this (server.cors_origins)'
    if origins.allows(origin, False):
        return f'pages of {page} may infer, and no more: set server.cors_origins = ["{page}"] for the rest'
    return f'pages of {page} may not do this: set server.cors_origins = ["{page}"]'


def _needs_admin(request: web.Request, match: web.UrlMappingMatchInfo) -> bool:
    route = request.app[ROUTE_OF].get(match.route)
    return route is not None and route.access is Access.ADMIN
