"""Whether the router itself is alive: no model, no key, no wait."""

from __future__ import annotations

from aiohttp import web

from router.api.answer import json_response
from router.api.route import Access, Route


async def health(_: web.Request) -> web.Response:
    return json_response({"status": "ok"})


ROUTES = (
    Route("GET", "/health", health, Access.PUBLIC),
    Route("GET", "/v1/health", health, Access.PUBLIC),
)
