"""Leases: what a granted request holds, and the requests that wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import msgspec

from router.errors import LoadFailed
from router.hosts import Address
from router.scheduler.types import Grant, InstanceId, LeaseId, ModelName
from router.supervisor.instances import Ending, Instance


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A granted request. `queue_seconds` passed before its model's load began, `load_seconds` until it was
    ready. `ending` is that of its instance.
    """

    id: LeaseId
    model: ModelName
    instance: InstanceId
    address: Address
    ending: Ending
    action: str = "already_loaded"
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    evicted: tuple[InstanceId, ...] = ()


class Granted(msgspec.Struct, frozen=True):
    """A Grant with its instance: by the time its request runs, that may have exited and be forgotten."""

    grant: Grant
    instance: Instance

    def lease(self, model: ModelName, since: float, now: float) -> Lease:
        """The lease for a request of `since`. Raises why its instance has exited, if it has."""
        grant, instance = self.grant, self.instance
        assert instance.address is not None, f"{instance} was granted before it was ready"
        if instance.ending.over.is_set():
            raise (
                instance.error.copy()
                if instance.error is not None
                else LoadFailed(f"llama-server of {model} exited right after becoming ready")
            )
        if grant.action == "already_loaded":
            return Lease(grant.lease, model, grant.instance, instance.address, instance.ending)
        queue_seconds = max(0.0, instance.started_at - since)
        return Lease(
            id=grant.lease,
            model=model,
            instance=grant.instance,
            address=instance.address,
            ending=instance.ending,
            action=grant.action,
            queue_seconds=queue_seconds,
            load_seconds=max(0.0, now - since - queue_seconds),
            evicted=instance.start.evicted,
        )


class Waiters:
    """The requests that wait for a lease. Each is answered once; an answer for none of them is dropped."""

    def __init__(self) -> None:
        self._numbers = count(1)
        #: By the id of the lease that each will have.
        self._futures: dict[LeaseId, asyncio.Future[Granted]] = {}

    def __repr__(self) -> str:
        return f"<Waiters {' '.join(self._futures)}>"

    def __len__(self) -> int:
        return len(self._futures)

    def new_id(self) -> LeaseId:
        """The id of a lease, new in this process."""
        return f"r{next(self._numbers)}"

    @contextmanager
    def waiting(self, lease: LeaseId) -> Iterator[asyncio.Future[Granted]]:
        """Wait in this block: the future is answered by `grant` and `refuse`."""
        future = self._futures[lease] = asyncio.get_running_loop().create_future()
        try:
            yield future
        finally:
            del self._futures[lease]

    def grant(self, granted: Granted) -> None:
        future = self._futures[granted.grant.lease]
        if not future.done():  # else it is cancelled, and ends its lease when it runs
            future.set_result(granted)

    def refuse(self, lease: LeaseId, error: Exception) -> None:
        future = self._futures[lease]
        if not future.done():
            future.set_exception(error)

    def refuse_all(self, error: type[Exception]) -> None:
        for lease in self._futures:
            self.refuse(lease, error())
