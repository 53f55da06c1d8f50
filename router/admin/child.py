"""Small questions to a child that is loaded already, asked without a lease: who only looks neither keeps a
model from leaving nor makes it seem used, and what leaves meanwhile is not there any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from router.admin.context import Context
from router.errors import UpstreamFailed
from router.hosts import Address
from router.scheduler.types import InstanceId, ModelName, State

#: llama-server answers such questions between two steps of its work; the longest are those of a long prompt.
PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Child:
    """A child that answers."""

    instance: InstanceId
    model: ModelName
    address: Address


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    content_type: str
    body: bytes


def children(context: Context, model: ModelName | None = None) -> Iterator[Child]:
    """Those that are ready, also on their way out; of one model, or of all."""
    for one in context.pool.snapshot().instances:
        if one.state in (State.READY, State.DRAINING) and model in (None, one.model):
            address = context.pool.address(one.id)
            if address is not None:
                yield Child(one.id, one.model, address)


@asynccontextmanager
async def _asked(
    child: Child, method: str, target: str, body: bytes | None = None, *, timeout_seconds: float | None
) -> AsyncIterator[aiohttp.ClientResponse]:
    url = URL(f"http://llama-server{target}", encoded=True)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(child.address.socket),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        ) as session,
        session.request(method, url, data=body, headers=headers) as answer,
    ):
        yield answer


async def read_to_its_end(child: Child, target: str) -> None:
    """Let it say all that it has to say, however long that takes, and listen to nothing of it."""
    with suppress(aiohttp.ClientError, OSError):
        async with _asked(child, "GET", target, timeout_seconds=None) as answer:
            async for _ in answer.content.iter_any():
                pass


async def ask(child: Child, method: str, target: str, body: bytes | None = None) -> Said:
    """`target` is the encoded path and query. Raises UpstreamFailed."""
    try:
        async with _asked(child, method, target, body, timeout_seconds=PATIENCE_SECONDS) as answer:
            if not 200 <= answer.status <= 599:
                why = f"answered with status {answer.status}, and HTTP has 200 to 599"
                raise UpstreamFailed(f"the llama-server of {child.model} {why}")
            return Said(answer.status, answer.headers.get("Content-Type", ""), await answer.read())
    except TimeoutError as error:
        why = f"did not answer within {PATIENCE_SECONDS:g} s"
        raise UpstreamFailed(f"the llama-server of {child.model} {why}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamFailed(f"the llama-server of {child.model} is gone: {error}") from error
