"""The router itself: replaced by a new process of the same command, while its models stay loaded."""

from __future__ import annotations

from aiohttp import web

from router.api.answer import json_response
from router.api.context import CONTEXT
from router.api.route import Access, Route


async def restart(request: web.Request) -> web.Response:
    """Answers when the new process serves; until then, and where it cannot, this one does."""
    return json_response({"success": True, "pid": await request.app[CONTEXT].restart()})


ROUTES = (Route("POST", "/restart", restart, Access.ADMIN),)
