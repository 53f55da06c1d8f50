"""One line per request: who asked for what, which model answered and what that took."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from router.api.route import Handler
from router.proxy import ACCOUNT

log = logging.getLogger("router.access")

#: What nginx notes for a client that left before its answer.
CLIENT_LEFT = 499


@web.middleware
async def note_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware and not aiohttp's access logger, which never hears of a client that left."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    status = CLIENT_LEFT
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        log.info("%s", _line(request, status, loop.time() - begun))


def _line(request: web.Request, status: int, total_seconds: float) -> str:
    words = [request.remote or "-", request.method, request.rel_url.raw_path, str(status)]
    account = request.get(ACCOUNT)
    if account is not None:
        words += [account.model, account.action]
        words += [f"queue={account.queue_seconds * 1e3:.0f}ms", f"load={account.load_seconds * 1e3:.0f}ms"]
        if account.first_byte_seconds is not None:
            words.append(f"first={account.first_byte_seconds * 1e3:.0f}ms")
        if account.evicted:
            words.append(f"evicted={','.join(account.evicted)}")
    return " ".join([*words, f"total={total_seconds * 1e3:.0f}ms"])
