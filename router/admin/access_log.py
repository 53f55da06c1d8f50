"""One line per request, and its part in the metrics: who asked, which model answered, what that took."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, strftime, time
from typing import Final, TypeAlias

import msgspec
from aiohttp import web

from router.admin.client_address import shown_address
from router.admin.context import Context
from router.admin.route import Handler
from router.config import ServerConfig
from router.observability.log_record import Line, Together
from router.proxy import RequestStats
from router.scheduler.types import InstanceId, ModelName

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
            shown_address(request.remote),
            request.method,
            request.rel_url.raw_path,
            None,
            status,
            loop.time() - begun,
        )


class AccessLog:
    """Told of every request that is over. The context is asked for when the first one is."""

    def __init__(self, server: ServerConfig, context: Callable[[], Context]) -> None:
        self._is_on = server.access_log
        self._kind = _Objects if server.access_log_format == "json" else _Lines
        self._ask_context = context
        self._context: Context | None = None
        self._record: _Ended | None = None  # to which lines are added as long as nobody has read it

    def ended(
        self,
        client: str | None,
        method: str,
        path: str,
        account: RequestStats | None,
        status: int,
        total_seconds: float,
    ) -> None:
        """One request is over, however it ended. `path` as it came, without its query; `account` where it
        asked for a model: nothing in it changes any more.
        """
        context = self._context
        if context is None:
            context = self._context = self._ask_context()
        if account is not None:
            context.metrics.requests.ended(account, status, total_seconds)
        if self._is_on:
            over = (time(), client, method, path, status, account, total_seconds)
            if self._record is None or not self._record.add(over):
                self._begin(over, context.config.scheduler.policy)

    def _begin(self, over: _Over, policy: str) -> None:
        self._record = self._kind(over, policy) if log.isEnabledFor(logging.INFO) else None
        if self._record is not None:
            log.callHandlers(self._record)


ACCESS_LOG = web.AppKey("access_log", AccessLog)


#: When a request was over, what was asked, its status, its account and its seconds.
_Over: TypeAlias = tuple[float, str | None, str, str, int, RequestStats | None, float]


class _Ended(Together[_Over]):
    name = log.name

    def __init__(self, first: _Over, policy: str) -> None:
        super().__init__(first[0], first)
        self._policy = policy


class _Lines(_Ended):
    def words(self, kept: list[_Over]) -> list[Line]:
        lines, policy = [], self._policy
        for at, client, method, path, status, account, seconds in kept:
            # Rounded as `.0f` does it, in half the time.
            total = round(seconds * 1e3)
            if account is None:
                lines.append((at, f"{client or '-'} {method} {path} {status} total={total}ms"))
                continue
            asked = _asked(
                client,
                method,
                path,
                status,
                account.model,
                account.action,
                account.queue_seconds,
                account.load_seconds,
            )
            if account.first_byte_seconds is not None:
                asked = f"{asked} first={round(account.first_byte_seconds * 1e3)}ms"
            prompt, completion = account.prompt_tokens, account.completion_tokens
            end = ""
            if prompt is not None or completion is not None:
                end = f" tokens={prompt or 0}+{completion or 0}"
            if account.error is not None:
                end = f"{end} error={account.error}"
            if account.evicted:
                end = f"{end} evicted={','.join(account.evicted)}"
            lines.append((at, f"{asked} total={total}ms{end} policy={policy}"))
        return lines


@lru_cache(maxsize=64)
def _asked(
    client: str | None,
    method: str,
    path: str,
    status: int,
    model: ModelName,
    action: str,
    queue_seconds: float,
    load_seconds: float,
) -> str:
    """The same for most requests."""
    waited = f"queue={round(queue_seconds * 1e3)}ms load={round(load_seconds * 1e3)}ms"
    return f"{client or '-'} {method} {path} {status} {model} {action} {waited}"


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
_NONE: Final = RequestStats(None, action=None, queue_seconds=None, load_seconds=None)  # type: ignore[arg-type]


class _Objects(_Ended):
    bare = True

    def words(self, kept: list[_Over]) -> list[Line]:
        return [(one[0], self._object(*one)) for one in kept]

    def _object(
        self,
        at: float,
        client: str | None,
        method: str,
        path: str,
        status: int,
        account: RequestStats | None,
        total_seconds: float,
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
            self._policy,
        )
        return _encode(fields).decode()


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    """As ISO 8601 writes it, in UTC."""
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(at))


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1e3, 1) if seconds else seconds
