"""Who broke a margin, from two records that are exact: every allocation (the stub notes them under its lock)
and every admission (the scheduler that is watched here).

A router may promise only what is there: it admits where F - G - N >= M. So from an admission on, however
late memory is taken and returned, at least M stays free of its devices, less what other programs have taken
there since the measurement that it was decided by. An allocation that leaves less than that (or is refused,
and would have left less) is our fault; one that leaves less than M but no less than that is explained by
the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from router.scheduler.scheduler import Scheduler
from router.scheduler.types import Cause, Command, DeviceId, Event, Exited, Measured, Ready, Start, Stop
from tests.stub_nvml.state import Taking


class WatchedScheduler(Scheduler):
    """The scheduler, its invariants checked after every event, and what it decided kept."""

    def watch(self) -> None:
        self.admissions: list[Admission] = []
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._measured_at = 0.0

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        try:
            self.check()
        except AssertionError as error:
            self.broken.append(f"after {event}: {error}")
        self._count(event)
        for command in commands:
            match command:
                case Start(placement=placement):
                    self.counts["loads"] += 1
                    for device in placement.footprint:
                        self.admissions.append(Admission(device, self._measured_at, now))
                case Stop(cause=Cause.EVICTED):
                    self.counts["evictions"] += 1
        return commands

    def _count(self, event: Event) -> None:
        match event:
            case Measured(at=at):
                self._measured_at = max(self._measured_at, at or 0.0)
            case Ready():
                self.counts["ready"] += 1
            case Exited(no_room=True):
                self.counts["refused by the host"] += 1
            case Exited(error=error) if error is not None and "out of memory" in error.message:
                self.counts["out of memory"] += 1


@dataclass(frozen=True, slots=True)
class Admission:
    """A start that takes memory of a device, decided by a measurement that began at `measured_at`."""

    device: DeviceId
    measured_at: float
    decided_at: float


@dataclass(frozen=True, slots=True)
class Holding:
    """What another program held of a device (by index). It came back somewhere between `back_from` and
    `back_by`."""

    device: int
    size: int
    since: float
    back_from: float
    back_by: float


@dataclass(slots=True)
class Verdict:
    """Children that were refused memory, or pushed a device below its margin; by our fault, or explained by
    others. `worst_bytes`: by how much the margin was missed at most, by our fault."""

    out_of_memory: int = 0
    out_of_memory_explained: int = 0
    violations: int = 0
    violations_explained: int = 0
    worst_bytes: int = 0
    blamed: list[str] = field(default_factory=list)


def holdings(
    takings: Sequence[Taking], closed: Mapping[int, tuple[float, float]], lag_seconds: float
) -> list[Holding]:
    """What the other programs held. `closed` says of each of their pids when it began to give everything
    back, and when the stub had noticed that; it is reported as free `lag_seconds` later."""
    found = []
    for taking in takings:
        if taking.pid in closed and taking.is_granted:
            begun, noticed = (at + lag_seconds for at in closed[taking.pid])
            found.append(Holding(taking.device, taking.size, taking.at, begun, noticed))
    return found


def judge(
    takings: Sequence[Taking],
    others: Collection[int],
    held_by_others: Sequence[Holding],
    admissions: Sequence[Admission],
    index_of: Mapping[DeviceId, int],
    margin_bytes: int,
) -> Verdict:
    """Every allocation that is none of the `others`' (pids)."""
    verdict = Verdict()
    seen: set[tuple[int, int, bool]] = set()
    for taking in takings:
        if taking.pid in others or taking.free_after >= margin_bytes:
            continue
        explained = _taken_since_admission(taking, held_by_others, admissions, index_of)
        missed = margin_bytes - taking.free_after - explained
        key = (taking.pid, taking.device, missed > 0)
        if key in seen and taking.is_granted:
            continue  # its next step: still the same child below the same margin
        seen.add(key)
        if missed > 0:
            verdict.worst_bytes = max(verdict.worst_bytes, missed)
            verdict.blamed.append(f"{taking}: {missed >> 20} MiB below, {explained >> 20} MiB explained")
        _add(verdict, taking.is_granted, is_ours=missed > 0)
    return verdict


def _add(verdict: Verdict, is_granted: bool, *, is_ours: bool) -> None:
    name = ("violations" if is_granted else "out_of_memory") + ("" if is_ours else "_explained")
    setattr(verdict, name, getattr(verdict, name) + 1)


def _taken_since_admission(
    taking: Taking,
    others: Sequence[Holding],
    admissions: Sequence[Admission],
    index_of: Mapping[DeviceId, int],
) -> int:
    """Bytes that the others hold of its device now and did not when the last admission there was decided."""
    last = max(
        (a for a in admissions if index_of[a.device] == taking.device and a.decided_at <= taking.at),
        key=lambda a: a.decided_at,
        default=None,
    )
    if last is None:
        return 0
    here = [one for one in others if one.device == taking.device]
    now = sum(one.size for one in here if one.since <= taking.at <= one.back_by)
    return max(0, now - _least_held(here, last.measured_at, last.decided_at))


def _least_held(others: Sequence[Holding], begin: float, end: float) -> int:
    """The least that they held together at any moment of the span."""
    moments = [begin, end, *(one.back_from for one in others if begin <= one.back_from <= end)]
    return min(sum(one.size for one in others if one.since <= at < one.back_from) for at in moments)
