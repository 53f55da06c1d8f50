"""Whether the router itself is alive: no model, no key, no wait."""

from __future__ import annotations

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.route import Access, Route


async def health(_: web.Request) -> web.Response:
    return json_response({"status": "ok"})


class Health(msgspec.Struct, frozen=True):
    status: str


ROUTES = tuple(
    Route("GET", path, health, Access.PUBLIC, summary="Whether the router itself is alive", answer=Health)
    for path in ("/health", "/v1/health")
)
