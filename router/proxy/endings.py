"""Requests that were abandoned and on which llama-server may still work: each holds its lease until that work
has ended, so that `/requests`, eviction and drain count it.

What llama-server does when a connection is closed (b11434, read in its source and measured): a stream that
generates ends with its next token. A plain request, and a stream before its first token, look whether the
client is there only after a second in which no result of *any* request was delivered: beside a stream that
generates that second does not come, and the work goes on to its natural end (6.4 s for 400 tokens). In the
queue for a slot the same holds: the request is begun later and computed for no client. Nothing that
llama-server offers cancels such a request."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from router.engines.llama_server import PROGRESS_PATH
from router.process import get_answer
from router.proxy.info import RequestStats
from router.proxy.upstream import Upstream
from router.scheduler.types import InstanceId
from router.supervisor.pool import Lease
from router.supervisor.stall import InstanceTraffic

#: A cancelled request leaves its slot after the batch that is being computed. On a slow processor one batch
#: (2,048 tokens) takes many seconds; a slot that is busy for longer is busy with something else.
BATCH_SECONDS: Final = 60.0
SLOTS_POLL_SECONDS: Final = 0.05
#: llama-server answers between two batches (b11434); 9 s were measured on a slow processor.
SLOTS_ANSWER_SECONDS: Final = 20.0
#: A child that closes without an answer this often in a row does not tell whether it works.
SLOTS_TRIES: Final = 3


class Endings:
    """All of one proxy. The wait for a child has no deadline here: the requests count as requests that wait,
    so that a child that is stuck in one is ended after `serving_stall_seconds`.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: Counter[InstanceId] = (
            Counter()
        )  # of each instance, those that wait for a slot to be idle

    def begin(
        self,
        upstream: Upstream,
        lease: Lease,
        flow: InstanceTraffic,
        account: RequestStats,
        held: AsyncExitStack,
        *,
        has_generated: bool,
    ) -> None:
        """Abandon the exchange on `upstream`, of a stream that `has_generated` or of any other. Where the
        child may work on, `held` (the lease, and what else counts the request) is taken over until it has
        ended, and `account.ending` is set; else `held` is left to the caller.
        """
        ended = upstream.abandon()
        if ended is None:
            return
        work = self._wait(ended, upstream, lease, flow, held.pop_all(), has_generated=has_generated)
        task = asyncio.get_running_loop().create_task(work, name=f"{lease.instance} ends a request")
        account.ending = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when none is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Count them no longer: the router ends, and its children with it."""
        for task in self._tasks:
            task.cancel()

    def __len__(self) -> int:
        return len(self._tasks)

    async def _wait(
        self,
        ended: asyncio.Future[None],
        upstream: Upstream,
        lease: Lease,
        flow: InstanceTraffic,
        held: AsyncExitStack,
        *,
        has_generated: bool,
    ) -> None:
        async with held:
            try:
                await ended
            finally:
                upstream.close()
            if has_generated:
                return  # its slot is idle after one token
            self._closed[lease.instance] += 1
            try:
                await self._until_idle(lease, flow)
            finally:
                self._closed[lease.instance] -= 1
                self._closed += Counter()  # drops those at 0

    async def _until_idle(self, lease: Lease, flow: InstanceTraffic) -> None:
        """Return when no more slots work than there are requests that may use them. The connection closes
        when llama-server's handler has asked for the cancellation, which is before it is carried out.
        """
        path, loop = Path(lease.address.socket), asyncio.get_running_loop()
        deadline, tries = loop.time() + BATCH_SECONDS, 0
        while tries < SLOTS_TRIES and (left := deadline - loop.time()) > 0:
            timeout = min(left, SLOTS_ANSWER_SECONDS)
            asked_at = loop.time()
            answer = await get_answer(path, PROGRESS_PATH, timeout_seconds=timeout)
            if answer is None:
                if loop.time() - asked_at >= timeout:
                    return
                tries += 1
                continue
            if _working(answer) <= flow.requests - self._closed[lease.instance]:
                return
            tries = 0
            await asyncio.sleep(SLOTS_POLL_SECONDS)


def _working(slots: bytes) -> int:
    """How many slots work; 0 where the answer is not understood."""
    try:
        return sum(1 for slot in json.loads(slots) if slot["is_processing"])
    except (ValueError, KeyError, TypeError):
        return 0
