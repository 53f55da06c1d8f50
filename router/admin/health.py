"""Whether the router itself is alive: no model, no key, no wait."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.route import Access, Routes

ROUTES: Final = Routes()


class Health(msgspec.Struct, frozen=True):
    status: str


@ROUTES.add(
    "GET",
    "/health",
    "/v1/health",
    access=Access.PUBLIC,
    summary="Whether the router itself is alive",
    answer=Health,
)
async def health(_: web.Request) -> web.Response:
    return json_response(Health("ok"))
