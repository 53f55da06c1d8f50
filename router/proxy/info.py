"""What the router knows of a request before it is passed on, and what became of it after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

import msgspec

from router.errors import RouterError
from router.scheduler.types import InstanceId, ModelName, Priority


class Dialect(Enum):
    """Whose words an error inside a stream is told in."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class RequestInfo(msgspec.Struct, frozen=True):
    """What the scheduler is told of a request. `model` is the canonical name; `keep_alive` is in seconds,
    `size` in tokens; `stream`: the client asked for server-sent events. `target` is the path and query that
    the instance is asked for, encoded; None: those of the request. With `on_abandoned` llama-server is meant
    to go on when the client has disconnected: it is called then, with the stats of the request, to hold the
    model for that.
    """

    model: ModelName
    priority: Priority | None = None
    keep_alive: float | None = None
    size: float | None = None
    dialect: Dialect = Dialect.OPENAI
    stream: bool = False
    target: str | None = None
    on_abandoned: Callable[[RequestStats], None] | None = None


class RequestStats(msgspec.Struct):
    """What became of a request, for its X-Router headers, its line in the access log and the metrics.

    `error` is the code of what it ended with, also where its status had been sent before. `sent_bytes` are
    those of the child's body. `ended_by` is set by an operator who ends the request, before its task is
    cancelled. `ending` is done when llama-server has ended a request that was abandoned; None where the
    request was not abandoned, or had ended by then. Tokens and their rates are what llama-server says itself
    at the end of an answer; None where it does not say.
    """

    model: ModelName
    action: str = "rejected"
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    first_byte_seconds: float | None = None
    evicted: tuple[InstanceId, ...] = ()
    instance: InstanceId | None = None
    attempts: int = 0
    error: str | None = None
    sent_bytes: int = 0
    ended_by: RouterError | None = None
    ending: asyncio.Future[None] | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_per_second: float | None = None
    tokens_per_second: float | None = None

    def headers(self) -> dict[str, str]:
        return {
            "X-Router-Action": self.action,
            "X-Router-Queue-Ms": f"{self.queue_seconds * 1e3:.0f}",
            "X-Router-Load-Ms": f"{self.load_seconds * 1e3:.0f}",
        }
