"""Measuring: when each host is measured, and what the scheduler and the calibration are told of it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from router.errors import RouterError
from router.hosts import Host, Measurement
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import Event, Footprint, HostId, InstanceId, Measured, State
from router.supervisor.calibration import Learning
from router.supervisor.handover import Handover, Phase
from router.tasks import Tasks

log = logging.getLogger("router.supervisor.pool")

#: Seconds between measurements while memory is on its way back: for the first second (`FAST_RETURN_SECONDS`),
#: in which it usually comes, and later. Once its holder has exited: a share of the time since then.
RETURN_POLL_SECONDS = 0.05
SLOW_RETURN_POLL_SECONDS = 0.25
FAST_RETURN_SECONDS = 1.0
RETURN_POLL_SHARE = 0.2
LEAST_RETURN_POLL_SECONDS = 0.01
#: How long after a child has become ready it is measured, in seconds, unless that has been done since.
NEWCOMER_SECONDS = 0.05
#: Seconds between measurements while a child loads, so that a request that comes meanwhile finds the figures
#: fresh.
LOAD_POLL_SECONDS = 1.0


class Measuring:
    """Measures the hosts when a decision needs it, while memory is expected, and every `poll_seconds`."""

    def __init__(
        self,
        hosts: Mapping[HostId, Host],
        scheduler: Scheduler,
        learning: Learning | None,
        tell: Callable[[Event], None],
        handover: Handover,
        tasks: Tasks,
        *,
        look_again: Callable[[], Awaitable[None]] | None,
        max_age_seconds: float,
        poll_seconds: float,
    ) -> None:
        #: What is measured, by id.
        self._hosts = hosts
        #: Says whether memory is expected, and how much each instance is used.
        self._scheduler = scheduler
        #: Corrects reservations by what was measured; None: nothing is corrected.
        self._learning = learning
        #: Passes an event to the scheduler.
        self._tell = tell
        #: Whether the hosts are still measured.
        self._handover = handover
        #: The owner of the task of each single measurement.
        self._tasks = tasks
        #: Looks which devices there are, and reloads if they are others.
        self._look_again = look_again
        #: Figures that are older are not fresh, in seconds.
        self._max_age_seconds = max_age_seconds
        #: Between measurements while nothing changes, in seconds.
        self._poll_seconds = poll_seconds
        #: Set to make `run` work out its interval anew.
        self._changed = asyncio.Event()
        #: Since when memory is expected, by the loop's clock.
        self._expecting_since: float | None = None
        #: When the last instance of which memory is expected has exited.
        self._exited_at: float | None = None
        #: When the last sample was taken.
        self._measured_at = -math.inf
        #: The last one of each host.
        self.last: Final[dict[HostId, Measurement]] = {}

    def __repr__(self) -> str:
        state = "expecting memory" if self._expecting_since is not None else f"every {self._poll_seconds} s"
        return f"<Measuring {', '.join(self._hosts)}, {state}>"

    async def run(self) -> None:
        """Measure for ever, as often as `_interval` says."""
        measured_all_at = _now()
        while True:
            self._changed.clear()
            interval = self._interval()
            last = max(measured_all_at, self._measured_at)
            if self._exited_at is not None:  # `after_exit` has begun to measure then
                last = max(last, self._exited_at)
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
                async with asyncio.timeout_at(None if interval is None else last + interval):
                    await self._changed.wait()
            except TimeoutError:
                await self.measure()
                await self.see_devices()
                measured_all_at = _now()

    async def measure(self, max_age_seconds: float = 0.0) -> None:
        """Measure every host, unless its figures are younger than that, and tell the scheduler."""
        await asyncio.gather(*(self._measure(host, max_age_seconds) for host in self._hosts.values()))

    async def be_fresh(self) -> None:
        """Measure, unless the figures are fresh."""
        if _now() - self._measured_at > self._max_age_seconds:
            await self.measure(self._max_age_seconds)

    async def see_devices(self) -> None:
        """Look which devices there are: what waits for memory is placed anew when a new device has it."""
        if self._look_again is None or self._handover.phase is not Phase.SERVING:
            return
        try:
            await self._look_again()
        except Exception:
            log.exception("cannot look again at the devices")  # and the measuring must go on

    def wake(self) -> None:
        """Work out anew when to measure: an instance was started, or memory is expected."""
        self._changed.set()

    def after_ready(self, host: Host, instance: InstanceId) -> None:
        """Measure an instance that has become ready: until then all that was reserved for it counts."""
        self._tasks.create_task(self._measure_newcomer(host), name=f"measure {instance}")

    def after_exit(self, host: Host) -> None:
        """An instance has exited. Most of its memory is back by now, and a request may wait for that: measure
        at once, and for the rest often.
        """
        if self._handover.phase is Phase.SERVING and self._scheduler.is_expecting_memory():
            self._exited_at = _now()
            self._tasks.create_task(self._measure(host, 0.0), name=f"measure {host.id}")

    async def _measure_newcomer(self, host: Host) -> None:
        ready_at = _now()
        await asyncio.sleep(NEWCOMER_SECONDS)  # its first requests have the processor first
        await self._measure(host, _now() - ready_at)

    async def _measure(self, host: Host, max_age_seconds: float) -> None:
        try:
            taken: Measurement = await host.measure(max_age_seconds=max_age_seconds)
        except RouterError as error:
            log.warning("%s cannot be measured: %s", host.id, error.message)
            return
        except Exception:  # the next measurement may succeed: the measuring must go on
            log.exception("%s cannot be measured", host.id)
            return
        before = self.last.get(host.id)
        for warning in taken.warnings:
            if before is None or warning not in before.warnings:
                log.warning("%s", warning)
        self._measured_at = taken.taken_at
        self.last[host.id] = taken
        corrected = self._corrections(taken)
        host.reserve(corrected)
        self._tell(Measured(taken.free, taken.used, taken.taken_at, corrected))

    def _corrections(self, taken: Measurement) -> Mapping[InstanceId, Footprint]:
        """None where nothing can be learned from the measurement: the scheduler is told all the same."""
        if self._learning is None:
            return {}
        try:
            return self._learning.corrections(taken, self._scheduler.use())
        except Exception:
            log.exception("nothing is learned from a measurement")
            return {}

    def _interval(self) -> float | None:
        """Seconds from the last measurement to the next; None with nothing loaded, so that a sleeping GPU is
        left asleep.
        """
        if self._scheduler.is_expecting_memory():
            return self._return_interval()
        self._expecting_since = self._exited_at = None
        states = {instance.state for instance in self._scheduler.snapshot(_now()).instances}
        if not states:
            return None
        return min(LOAD_POLL_SECONDS, self._poll_seconds) if State.STARTING in states else self._poll_seconds

    def _return_interval(self) -> float:
        if self._expecting_since is None:
            self._expecting_since = _now()
        elapsed = _now() - (self._expecting_since if self._exited_at is None else self._exited_at)
        if elapsed > FAST_RETURN_SECONDS:
            return SLOW_RETURN_POLL_SECONDS
        if self._exited_at is None:
            return RETURN_POLL_SECONDS
        return min(RETURN_POLL_SECONDS, max(LEAST_RETURN_POLL_SECONDS, elapsed * RETURN_POLL_SHARE))


def _now() -> float:
    return asyncio.get_running_loop().time()
