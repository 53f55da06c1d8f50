"""A line to the NVIDIA driver that is kept open only while it is needed, and mended when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.memory.devices.probe import Probe, ProbeFailed
from router.memory.devices.protocol import Reading
from router.tasks import Spawner

#: After so many doublings the time between two sessions grows no more.
_DOUBLINGS: Final = 3

#: How long a probe that was told to end may take for it.
_END_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class LineTiming:
    """Seconds: for one answer; for a driver to be opened (1-3 s per GPU without persistence mode), and how
    long of that a sample waits while nothing is known to be wrong; without need until the driver is closed;
    between the beginnings of two sessions."""

    answer_seconds: float = 2.0
    start_seconds: float = 60.0
    patience_seconds: float = 15.0
    idle_seconds: float = 60.0
    renew_seconds: float = 30.0


class ProbeLine:
    """Asks the probe, and starts it when there is none. Not for two callers at once."""

    def __init__(
        self,
        tasks: Spawner,
        argv: Sequence[str],
        environ: Mapping[str, str],
        timing: LineTiming,
    ) -> None:
        self._tasks = tasks
        self._argv = argv
        self._environ = environ
        self._timing = timing
        self._probe: Probe | None = None
        self._starting: asyncio.Task[None] | None = None
        #: The last failure, and how many there were since all was well.
        self._failure: ProbeFailed | None = None
        self._failures = 0
        #: When the next session may begin after a failure, by the clock of the loop.
        self._not_before = 0.0
        #: Closes the session that is not used.
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[Probe] = set()
        self._is_asked = False
        #: Closed because it was not needed; nothing is wrong.
        self.is_resting = False
        #: The number of sessions with the driver that were opened.
        self.session = 0

    @property
    def pids(self) -> list[int]:
        """The processes it has now: usually one, none while it rests."""
        probes = [*([self._probe] if self._probe else []), *self._ending]
        return [probe.pid for probe in probes]

    @property
    def driver(self) -> str:
        return self._probe.driver if self._probe is not None else ""

    async def ask(self, *, keep: bool = True) -> Reading:
        """A reading that begins now, or ProbeFailed. Without `keep` it does not delay the next rest.

        It takes `answer_seconds` at most, and as much again where a dead probe is replaced. Only the first
        start and one after a rest may take `patience_seconds`.
        """
        self._is_asked = True
        try:
            try:
                return await self._ask_once()
            except ProbeFailed as failed:
                if not failed.is_dead or asyncio.get_running_loop().time() < self._not_before:
                    raise
            return await self._ask_once()
        except ProbeFailed as failed:
            self._failure = failed.copy()
            raise
        finally:
            self._is_asked = False
            if keep or self._idle is None:
                self._rest_later()

    def renew(self) -> None:
        """Something is wrong with this session: opens another beside it, which replaces it once it has come
        up.

        At most every `renew_seconds`, and up to eight times as long where that did not help before.
        """
        if self._starting is None and asyncio.get_running_loop().time() >= self._not_before:
            self._failures += 1
            self._begin_start()

    def is_well(self) -> None:
        """All that it knows of works: the next trouble may be seen to at once."""
        self._failures = 0

    async def close(self) -> None:
        """Ends its processes. One that is stuck in the kernel is left to it after a while."""
        if self._idle is not None:
            self._idle.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        if self._probe is not None:
            self._end(self._probe)
            self._probe = None
        for probe in list(self._ending):
            probe.kill()
        for probe in list(self._ending):
            await probe.wait(_END_SECONDS)

    async def _ask_once(self) -> Reading:
        probe = self._probe or await self._wait_for_start()
        try:
            return await probe.ask(self._timing.answer_seconds)
        except ProbeFailed:
            if self._probe is probe:
                self._probe = None
            self._failures += 1
            probe.kill()
            self._end(probe)
            raise

    async def _wait_for_start(self) -> Probe:
        """A healthy driver may take its time. A sick one must not hold up every sample until it is well
        again, and where there is none at all nobody waits: the attempt goes on by itself, and the next sample
        will see what came of it."""
        if self._starting is None:
            if asyncio.get_running_loop().time() < self._not_before and not self.is_resting:
                raise self._why()
            self._begin_start()
        assert self._starting is not None, "begun above"
        patience = self._timing.patience_seconds
        if self._failures:
            is_absent = self._failure is not None and self._failure.is_absent
            patience = 0.0 if is_absent else min(patience, self._timing.answer_seconds)
        await asyncio.wait({self._starting}, timeout=patience)
        if self._probe is None:
            raise self._why()
        return self._probe

    def _why(self) -> ProbeFailed:
        return ProbeFailed("the driver is being opened") if self._failure is None else self._failure.copy()

    def _begin_start(self) -> None:
        wait = self._timing.renew_seconds * 2 ** min(self._failures, _DOUBLINGS)
        self._not_before = asyncio.get_running_loop().time() + wait
        self.is_resting = False
        self._starting = self._tasks.create_task(self._start(), name="nvml-probe-start")

    async def _start(self) -> None:
        """Make before break: the old one is ended only when the new one has opened the driver."""
        probe: Probe | None = None
        try:
            async with asyncio.timeout(self._timing.start_seconds):
                probe = await Probe.spawn(self._argv, self._environ)
                await probe.greet()
        except (ProbeFailed, TimeoutError) as error:
            late = ProbeFailed(f"the driver could not be opened within {self._timing.start_seconds:.1f} s")
            self._failure = error.copy() if isinstance(error, ProbeFailed) else late
            self._failures += 1
        else:
            old, self._probe, probe = self._probe, probe, None
            self._failure = None
            self.session += 1
            self.is_resting = False
            if old is not None:
                self._end(old)
            if self._idle is None:  # it took longer than a rest takes to come
                self._rest_later()
        finally:
            self._starting = None
            if probe is not None:
                probe.kill()
                self._end(probe)

    def _rest_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._timing.idle_seconds, self._rest)

    def _rest(self) -> None:
        self._idle = None
        if self._is_asked:
            self._rest_later()
        elif self._probe is not None:
            self.is_resting = True
            self._end(self._probe)
            self._probe = None

    def _end(self, probe: Probe) -> None:
        self._ending.add(probe)
        probe.close()
        self._tasks.create_task(self._see_out(probe), name="nvml-probe-end")

    async def _see_out(self, probe: Probe) -> None:
        if not await probe.wait(_END_SECONDS):
            probe.kill()
            await probe.wait(_END_SECONDS)
        self._ending.discard(probe)
