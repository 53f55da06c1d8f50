"""One line per request, and its part in the metrics: who asked, which model answered, what that took."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from router.api.context import CONTEXT
from router.api.route import Handler
from router.config import ServerConfig
from router.proxy import ACCOUNT, Account

log = logging.getLogger("router.access")

#: What nginx notes for a client that left before its answer.
CLIENT_LEFT: Final = 499
#: A line that is an object by itself is written as it is, without the time and name that others have.
BARE: Final = {"bare": True}

SERVER = web.AppKey("server", ServerConfig)


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
        _note(request, status, loop.time() - begun)


def _note(request: web.Request, status: int, total_seconds: float) -> None:
    account = request.get(ACCOUNT)
    if account is not None:
        request.app[CONTEXT].metrics.requests.ended(account, status, total_seconds)
    server = request.app[SERVER]
    if not server.access_log:
        return
    if server.access_log_format == "json":
        log.info("%s", _json_line(request, account, status, total_seconds), extra=BARE)
    else:
        log.info("%s", _line(request, account, status, total_seconds))


def _line(request: web.Request, account: Account | None, status: int, total_seconds: float) -> str:
    words = [request.remote or "-", request.method, request.rel_url.raw_path, str(status)]
    if account is not None:
        words += [account.model, account.action]
        words += [f"queue={account.queue_seconds * 1e3:.0f}ms", f"load={account.load_seconds * 1e3:.0f}ms"]
        if account.first_byte_seconds is not None:
            words.append(f"first={account.first_byte_seconds * 1e3:.0f}ms")
    words.append(f"total={total_seconds * 1e3:.0f}ms")
    if account is not None:
        if account.prompt_tokens is not None or account.completion_tokens is not None:
            words.append(f"tokens={account.prompt_tokens or 0}+{account.completion_tokens or 0}")
        if account.error is not None:
            words.append(f"error={account.error}")
        if account.evicted:
            words.append(f"evicted={','.join(account.evicted)}")
        words.append(f"policy={_policy(request)}")
    return " ".join(words)


def _json_line(request: web.Request, account: Account | None, status: int, total_seconds: float) -> str:
    """The same keys in every line, null for what there is not."""
    fields: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "client": request.remote,
        "method": request.method,
        "path": request.rel_url.raw_path,
        "status": status,
        "model": None,
        "action": None,
        "queue_ms": None,
        "load_ms": None,
        "first_byte_ms": None,
        "total_ms": _ms(total_seconds),
        "prompt_tokens": None,
        "cached_tokens": None,
        "completion_tokens": None,
        "tokens_per_second": None,
        "error": None,
        "evicted": [],
        "policy": _policy(request),
    }
    if account is not None:
        fields |= {
            "model": account.model,
            "action": account.action,
            "queue_ms": _ms(account.queue_seconds),
            "load_ms": _ms(account.load_seconds),
            "first_byte_ms": _ms(account.first_byte_seconds),
            "prompt_tokens": account.prompt_tokens,
            "cached_tokens": account.cached_tokens,
            "completion_tokens": account.completion_tokens,
            "tokens_per_second": account.tokens_per_second,
            "error": account.error,
            "evicted": account.evicted,
        }
    return msgspec.json.encode(fields).decode()


def _policy(request: web.Request) -> str:
    return request.app[CONTEXT].config.scheduler.policy


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
