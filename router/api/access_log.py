"""One line per request, and its part in the metrics: who asked, which model answered, what that took."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, strftime, time
from typing import Final

import msgspec
from aiohttp import web

from router.api.context import Context
from router.api.route import Handler
from router.config import ServerConfig
from router.core.types import InstanceId, ModelName
from router.log_record import Lasting
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
        self._record = _Object if server.access_log_format == "json" else _Line
        self._ask_context = context
        self._context: Context | None = None

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
        asked for a model: nothing in it changes any more.
        """
        context = self._context
        if context is None:
            context = self._context = self._ask_context()
        if account is not None:
            context.metrics.requests.ended(account, status, total_seconds)
        if self._is_on and log.isEnabledFor(logging.INFO):
            policy = context.config.scheduler.policy
            log.callHandlers(
                self._record(time(), client, method, path, status, account, total_seconds, policy)
            )


ACCESS_LOG = web.AppKey("access_log", AccessLog)


class _Ended(Lasting):
    name = log.name

    def __init__(
        self,
        at: float,
        client: str | None,
        method: str,
        path: str,
        status: int,
        account: Account | None,
        total_seconds: float,
        policy: str,
    ) -> None:
        self.created = at
        self.client = client
        self.method = method
        self.path = path
        self.status = status
        self.account = account
        self.total_seconds = total_seconds
        self.policy = policy


class _Line(_Ended):
    def words(self) -> str:
        account = self.account
        # Rounded as `.0f` does it, in half the time.
        asked = f"{self.client or '-'} {self.method} {self.path} {self.status}"
        total = f"total={round(self.total_seconds * 1e3)}ms"
        if account is None:
            return f"{asked} {total}"
        waited = f"queue={round(account.queue_seconds * 1e3)}ms load={round(account.load_seconds * 1e3)}ms"
        if account.first_byte_seconds is not None:
            waited = f"{waited} first={round(account.first_byte_seconds * 1e3)}ms"
        if account.prompt_tokens is not None or account.completion_tokens is not None:
            total = f"{total} tokens={account.prompt_tokens or 0}+{account.completion_tokens or 0}"
        if account.error is not None:
            total = f"{total} error={account.error}"
        if account.evicted:
            total = f"{total} evicted={','.join(account.evicted)}"
        return f"{asked} {account.model} {account.action} {waited} {total} policy={self.policy}"


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


class _Object(_Ended):
    bare = True

    def words(self) -> str:
        at, known = self.created, self.account or _NONE
        fields = _Fields(
            f"{_second(int(at))}.{int(at % 1 * 1e3):03d}Z",
            self.client,
            self.method,
            self.path,
            self.status,
            known.model,
            known.action,
            _ms(known.queue_seconds),
            _ms(known.load_seconds),
            _ms(known.first_byte_seconds),
            _ms(self.total_seconds),
            known.prompt_tokens,
            known.cached_tokens,
            known.completion_tokens,
            known.tokens_per_second,
            known.error,
            known.evicted,
            self.policy,
        )
        return _encode(fields).decode()


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    """As ISO 8601 writes it, in UTC."""
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(at))


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1e3, 1) if seconds else seconds
