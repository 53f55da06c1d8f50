"""What passes from one router process to the next: the children, and the leases that are held on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from router.scheduler.types import InstanceId, LeaseId


class Phase(Enum):
    """What the pool does with events and requests."""

    SERVING = "serving"
    #: Requests are refused, every child is stopped.
    CLOSING = "closing"
    #: The next router decides: nothing is told to the scheduler, no child is touched. This does not end.
    HANDED_OVER = "handed over"


class HandedOver(Exception):
    """Another process has the children from now on, and serves: ask there."""


class Handover:
    """The phase of a pool, and the leases that pass between its process and those before and after it."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        #: The leases that are held since `begin`, each with its instance.
        self.left: Final[dict[LeaseId, InstanceId]] = {}
        #: The leases that an earlier router holds.
        self._earlier: set[LeaseId] = set()
        #: Called with each lease of `left` as it ends.
        self._on_lease_end: Callable[[LeaseId], None] | None = None

    def __repr__(self) -> str:
        return f"<Handover {self.phase.value}, {len(self._earlier)} leases before, {len(self.left)} after>"

    @property
    def is_over(self) -> bool:
        """Whether the next router decides."""
        return self.phase is Phase.HANDED_OVER

    def begin(self, held: dict[LeaseId, InstanceId], on_lease_end: Callable[[LeaseId], None]) -> None:
        """Hand over: `on_lease_end` is told to the next router by the caller."""
        self.phase = Phase.HANDED_OVER
        self.left.update(held)
        self._on_lease_end = on_lease_end

    def close(self) -> None:
        """Begin to stop, unless that is for the next router to do."""
        if not self.is_over:
            self.phase = Phase.CLOSING

    def lease_ended(self, lease: LeaseId) -> None:
        """Pass the end of a lease on to the next router, if there is one."""
        if self._on_lease_end is not None:
            self.left.pop(lease, None)
            self._on_lease_end(lease)

    def take_over(self, leases: Iterable[LeaseId]) -> None:
        """Note the leases that an earlier router holds on a child that is adopted."""
        self._earlier.update(leases)

    def take_back(self, lease: LeaseId) -> bool:
        """Whether an earlier router held the lease until now: once, and not if its child was not adopted."""
        is_known = lease in self._earlier
        self._earlier.discard(lease)
        return is_known
