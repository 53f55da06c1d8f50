"""One line per request, and its part in the metrics: who asked, which model answered, what that took."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec
from aiohttp import web

from router.api.context import Context
from router.api.route import Handler
from router.config import ServerConfig
from router.core.types import InstanceId, ModelName
from router.proxy import ACCOUNT, Account

log = logging.getLogger("router.access")

#: What nginx notes for a client that left before its answer.
CLIENT_LEFT: Final = 499


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
        request.app[ACCESS_LOG].ended(
            request.remote,
            request.method,
            request.rel_url.raw_path,
            request.get(ACCOUNT),
            status,
            loop.time() - begun,
        )


class AccessLog:
    """Told of every request that is over. The context is asked for when the first one is."""

    def __init__(self, server: ServerConfig, context: Callable[[], Context]) -> None:
        self._is_on = server.access_log
        self._line, self._record = (
            (_json_line, _BARE) if server.access_log_format == "json" else (_line, _PLAIN)
        )
        self._context = context

    def ended(
        self,
        client: str | None,
        method: str,
        path: str,
        account: Account | None,
        status: int,
        total_seconds: float,
    ) -> None:
        """One request is over, however it ended. `path` as it came, without its query; `account` where it
        asked for a model.
        """
        context = self._context()
        if account is not None:
            context.metrics.requests.ended(account, status, total_seconds)
        if self._is_on and log.isEnabledFor(logging.INFO):
            at, policy = time.time(), context.config.scheduler.policy
            line = self._line(at, client, method, path, status, account, total_seconds, policy)
            log.handle(_record_of(self._record, at, line))


ACCESS_LOG = web.AppKey("access_log", AccessLog)


def _record_template(**more: object) -> dict[str, object]:
    made = logging.LogRecord(log.name, logging.INFO, __file__, 0, "", None, None, "ended")
    return {**made.__dict__, **more}


#: What is the same in every line. `log.info` looks it up anew for each, in five times the time that the line
#: takes.
_PLAIN: Final = _record_template()
#: A line that is an object by itself is written as it is, without the time and name that others have.
_BARE: Final = _record_template(bare=True)


def _record_of(template: dict[str, object], at: float, line: str) -> logging.LogRecord:
    record = object.__new__(logging.LogRecord)
    record.__dict__.update(template)
    record.msg, record.created, record.msecs = line, at, at % 1 * 1e3
    return record


def _line(
    at: float,
    client: str | None,
    method: str,
    path: str,
    status: int,
    account: Account | None,
    total_seconds: float,
    policy: str,
) -> str:
    asked = f"{client or '-'} {method} {path} {status}"
    total = f"total={total_seconds * 1e3:.0f}ms"
    if account is None:
        return f"{asked} {total}"
    queue, load = account.queue_seconds * 1e3, account.load_seconds * 1e3
    waited = f"{account.model} {account.action} queue={queue:.0f}ms load={load:.0f}ms"
    if account.first_byte_seconds is not None:
        waited = f"{waited} first={account.first_byte_seconds * 1e3:.0f}ms"
    if account.prompt_tokens is not None or account.completion_tokens is not None:
        total = f"{total} tokens={account.prompt_tokens or 0}+{account.completion_tokens or 0}"
    if account.error is not None:
        total = f"{total} error={account.error}"
    if account.evicted:
        total = f"{total} evicted={','.join(account.evicted)}"
    return f"{asked} {waited} {total} policy={policy}"


class _Fields(msgspec.Struct):
    """The same keys in every line, null for what there is not."""

    time: str
    client: str | None
    method: str
    path: str
    status: int
    model: ModelName | None
    action: str | None
    queue_ms: float | None
    load_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    tokens_per_second: float | None
    error: str | None
    evicted: tuple[InstanceId, ...]
    policy: str


_encode: Final = msgspec.json.Encoder().encode
_NONE: Final = Account(None, action=None, queue_seconds=None, load_seconds=None)  # type: ignore[arg-type]


def _json_line(
    at: float,
    client: str | None,
    method: str,
    path: str,
    status: int,
    account: Account | None,
    total_seconds: float,
    policy: str,
) -> str:
    known = account or _NONE
    fields = _Fields(
        f"{_second(int(at))}.{int(at % 1 * 1e3):03d}Z",
        client,
        method,
        path,
        status,
        known.model,
        known.action,
        _ms(known.queue_seconds),
        _ms(known.load_seconds),
        _ms(known.first_byte_seconds),
        _ms(total_seconds),
        known.prompt_tokens,
        known.cached_tokens,
        known.completion_tokens,
        known.tokens_per_second,
        known.error,
        known.evicted,
        policy,
    )
    return _encode(fields).decode()


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    """As ISO 8601 writes it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
