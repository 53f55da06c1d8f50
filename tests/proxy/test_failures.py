"""What became of a child that failed a request is known from its lease, however many fail at once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, cast

import pytest

from router.errors import ShuttingDown, Unloaded, UpstreamFailed
from router.proxy.failures import Failures
from router.proxy.upstream import ClosedEarly
from router.scheduler.types import Cause
from router.supervisor.pool import Pool
from router.supervisor.stall import Traffic
from tests.admin.fake_pool import FakePool

#: Streams of one child.
STREAMS = 256


class CountingPool(FakePool):
    """Counts how often all instances, all that was decided, or a log is looked at."""

    def __init__(self) -> None:
        super().__init__({"tiny": ["/nowhere"]})
        self.looks = Counter[str]()
        entries = self.journal.entries

        def counted(after: int = 0) -> Any:
            self.looks["journal"] += 1
            return entries(after)

        self.journal.entries = counted  # type: ignore[method-assign]

    def snapshot(self) -> Any:
        self.looks["snapshot"] += 1
        return super().snapshot()

    def log_tail(self, instance: str, lines: int = 20) -> tuple[str, ...]:
        self.looks["log"] += 1
        return ("the last line",)


@pytest.fixture
def pool() -> CountingPool:
    return CountingPool()


async def leases_of(pool: FakePool, count: int) -> list[Any]:
    async with pool.lease("tiny"):
        pass
    return [pool.acquire_nowait("tiny") for _ in range(count)]


@pytest.mark.parametrize("cause", [None, Cause.UNLOADED, Cause.SHUTDOWN])
async def test_nothing_is_searched_for_it(pool: CountingPool, cause: Cause | None, caplog):
    caplog.set_level(logging.CRITICAL, "router.proxy")
    failures = Failures(cast(Pool, pool), Traffic())
    leases = await leases_of(pool, STREAMS)
    error = ClosedEarly("it closed the connection")
    within = [asyncio.ensure_future(failures.within_answer(lease, error)) for lease in leases[1:]]
    before = asyncio.ensure_future(failures.before_answer(leases[0], error, was_connected=True))
    await asyncio.sleep(0)  # their connections break off before the pool is told of the exit
    if cause is None:
        pool.exit(leases[0].instance)
    else:
        pool.stop(leases[0].instance, cause)
    errors = [*await asyncio.gather(*within), (await before).error]
    assert pool.looks == ({"log": 1} if cause is None else {}), "neither the journal nor all instances"
    expected = {None: UpstreamFailed, Cause.UNLOADED: Unloaded, Cause.SHUTDOWN: ShuttingDown}[cause]
    assert {type(error) for error in errors} == {expected}
    assert before.result().may_retry is (cause is None)


async def test_a_child_that_lives_on_is_waited_for_once(pool: CountingPool, monkeypatch):
    monkeypatch.setattr("router.proxy.failures.EXIT_NOTICE_SECONDS", 0.01)
    failures = Failures(cast(Pool, pool), Traffic())
    (lease,) = await leases_of(pool, 1)
    broken = await failures.before_answer(lease, ClosedEarly("it closed the connection"), was_connected=True)
    assert isinstance(broken.error, UpstreamFailed) and not broken.may_retry
    assert "the last line" in broken.error.message
    assert pool.looks == {"log": 1}
