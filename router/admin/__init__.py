"""The HTTP surface: one file per family of endpoints, each with its `ROUTES`, put together here.

To add an endpoint, write a handler under `@ROUTES.add` in its family's file; a new family is named in
`FAMILIES`."""

from __future__ import annotations

from aiohttp import web

from router.admin import (
    deletion,
    downloads,
    events,
    explain,
    health,
    inventory,
    journal,
    loaded,
    log,
    metrics,
    models,
    openai,
    openapi,
    page,
    requests,
    restart,
    streams,
    upstream,
    verify,
    vram,
)
from router.admin.access_log import ACCESS_LOG, AccessLog, note_access
from router.admin.allowed_hosts import ALLOWED_HOSTS, AllowedHosts
from router.admin.context import CONTEXT, Context, Known
from router.admin.cors import ORIGINS, Origins, check_source, mark_answer
from router.admin.errors import expect, tell_errors
from router.admin.headers import check_headers
from router.admin.keys import KEYS, Keys, check_key
from router.admin.route import METHODS, ROUTE_OF, ProxiedRoute
from router.admin.stream_limit import Streams
from router.config import ServerConfig
from router.proxy.body import BODY_LIMITS, BodyLimits

FAMILIES = (
    openai,
    loaded,
    streams,
    upstream,
    models,
    downloads,
    verify,
    deletion,
    inventory,
    events,
    log,
    requests,
    vram,
    explain,
    journal,
    health,
    metrics,
    restart,
    page,
    openapi,
)

ROUTES = tuple(route for family in FAMILIES for route in family.ROUTES)
#: Those that an instance answers.
PROXIED_ROUTES = tuple(route for route in ROUTES if isinstance(route, ProxiedRoute))

#: What every request passes before anything is done for it.
FIRST = (note_access, tell_errors, check_headers, check_source)

__all__ = ["CONTEXT", "FAMILIES", "FIRST", "PROXIED_ROUTES", "ROUTES", "Context", "Known", "application"]


def application(server: ServerConfig) -> web.Application:
    """Every endpoint, with its keys and limits. Whoever starts it sets `app[CONTEXT]` before the first
    request."""
    app = web.Application(
        middlewares=[*FIRST, check_key],
        client_max_size=server.max_body_mib << 20,
    )
    app[ACCESS_LOG] = AccessLog(server, lambda: app[CONTEXT])
    app[BODY_LIMITS] = BodyLimits(server.request_body_seconds, server.max_body_mib << 20)
    app[KEYS] = Keys(server.api_keys, server.admin_keys)
    app[ALLOWED_HOSTS], app[ORIGINS] = AllowedHosts(server), Origins(server.cors_origins)
    for key in (log.FOLLOWERS, events.READERS, page.VIEWERS):
        app[key] = Streams(server.client_share)
    app[ROUTE_OF] = {}
    app[openapi.DOCUMENT] = openapi.Document(ROUTES)
    for route in ROUTES:
        for method in METHODS.get(route.method, (route.method,)):
            added = app.router.add_route(method, route.path, route.handler, expect_handler=expect)
            app[ROUTE_OF][added] = route
    app.on_response_prepare.append(mark_answer)
    return app
