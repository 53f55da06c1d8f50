"""Whether a child that should be working is stuck: decided from what it got done, not from the time it took.

A stuck llama-server often answers /health: that is another thread. One in a long prompt answers nothing else
either, for many minutes. What tells them apart is work: a working child uses the processor, reads its file,
writes its log, or its slots get further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final

from router.scheduler.types import InstanceId

#: Less of one processor than this is not work: waking up, answering questions about health.
IDLE_SHARE: Final = 0.01
IDLE_IO_BYTES: Final = 64 << 10
#: A driver that waits for a dead GPU spins: so many times the bound may a child use the processor without
#: anything to show for it. One batch of a huge model on a slow CPU takes many minutes, so it is generous.
SPINNING_FACTOR: Final = 30.0


@dataclass(slots=True, eq=False)
class InstanceTraffic:
    """The requests that are with one instance now; the proxy keeps it up to date."""

    requests: int = 0
    #: How many of them wait for their client, not for the instance.
    held: int = 0
    #: The number of the request that entered last.
    begun: int = 0
    #: Bytes that came from the instance to any of them so far.
    moved_bytes: int = 0
    #: Why the instance is stuck, if it was ended for that.
    verdict: str | None = None
    #: By number, oldest first, the monotonic time in seconds at which each request entered.
    open: dict[int, float] = field(default_factory=dict)


class Traffic:
    """What passes through the proxy, by instance. It has an entry only where there are requests."""

    def __init__(self) -> None:
        self._flows: dict[InstanceId, InstanceTraffic] = {}

    @property
    def flows(self) -> Mapping[InstanceId, InstanceTraffic]:
        return self._flows

    def enter(self, instance: InstanceId) -> InstanceTraffic:
        """A request begins: `leave` once, with the `begun` that the flow has now, and not `held`."""
        flow = self._flows.get(instance)
        if flow is None:
            flow = self._flows[instance] = InstanceTraffic()
        flow.requests += 1
        flow.begun += 1
        flow.open[flow.begun] = monotonic()
        return flow

    def leave(self, flow: InstanceTraffic, instance: InstanceId, number: int) -> None:
        flow.requests -= 1
        del flow.open[number]
        if not flow.requests:
            self._flows.pop(instance, None)


@dataclass(frozen=True, slots=True)
class ProgressSample:
    """What an instance has got done so far. Numbers that cannot be had stay 0.

    `slots` is what it says of its slots, None where it did not answer; `is_between_requests` that it says
    that none of them works.
    """

    begun: int = 0
    moved_bytes: int = 0
    log_bytes: int = 0
    cpu_seconds: float = 0.0
    io_bytes: int = 0
    major_faults: int = 0
    slots: bytes | None = None
    is_between_requests: bool = False


@dataclass(slots=True)
class Stall:
    """One instance while requests wait for it. Seconds are those of a clock that does not go back."""

    #: The last sample; its `slots` are the last that were told.
    signs: ProgressSample
    #: When it was taken, in seconds.
    looked_at: float
    #: How long the instance did nothing at all.
    idle_seconds: float = 0.0
    #: How long it got nothing done.
    fruitless_seconds: float = 0.0

    def look(self, signs: ProgressSample, now: float, *, longest_step_seconds: float) -> None:
        """Take in how things stand now. A longer gap than `longest_step_seconds` between two looks means that
        the router itself, or the whole machine, was stopped: what lies beyond is not the child's fault.
        """
        elapsed = now - self.looked_at
        step = min(elapsed, longest_step_seconds)
        fruitful, busy = self._is_fruitful(signs), _is_busy(self.signs, signs, elapsed)
        self.fruitless_seconds = 0.0 if fruitful else self.fruitless_seconds + step
        self.idle_seconds = 0.0 if fruitful or busy else self.idle_seconds + step
        slots = self.signs.slots if signs.slots is None else signs.slots
        self.signs, self.looked_at = replace(signs, slots=slots), now

    def verdict(self, stall_seconds: float) -> str | None:
        """Why it is to be given up; None: not yet."""
        if self.idle_seconds >= stall_seconds:
            return f"stuck: it neither answered nor worked for {self.idle_seconds:.0f} s"
        if self.fruitless_seconds >= stall_seconds * SPINNING_FACTOR:
            return f"stuck: it was busy for {self.fruitless_seconds:.0f} s, and nothing came of it"
        return None

    def _is_fruitful(self, now: ProgressSample) -> bool:
        before = self.signs
        return (
            now.begun != before.begun
            or now.moved_bytes != before.moved_bytes
            or now.log_bytes != before.log_bytes
            or (now.slots is not None and now.slots != before.slots)
        )


def _is_busy(before: ProgressSample, now: ProgressSample, elapsed_seconds: float) -> bool:
    """It works, or it waits for others: for a disk, or for the image that a request wants it to fetch."""
    return (
        now.cpu_seconds - before.cpu_seconds > IDLE_SHARE * elapsed_seconds
        or now.io_bytes - before.io_bytes > IDLE_IO_BYTES
        or now.major_faults != before.major_faults
        or now.is_between_requests
    )
