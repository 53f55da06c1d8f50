"""The router itself: replaced by a new process of the same command, while its models stay loaded."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT
from router.admin.route import Access, Routes
from router.errors import Unavailable

ROUTES: Final = Routes()


class Restarted(msgspec.Struct, frozen=True):
    """`pid` is that of the process that serves now."""

    success: bool
    pid: int


@ROUTES.add(
    "POST",
    "/restart",
    access=Access.ADMIN,
    summary="Replace the router's process; the models stay loaded",
    answer=Restarted,
    refusals=(Unavailable,),
)
async def restart(request: web.Request) -> web.Response:
    """Answers when the new process serves; until then, and where it cannot, this one does."""
    return json_response(Restarted(True, await request.app[CONTEXT].restart()))
