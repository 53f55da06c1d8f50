"""One look at the books, shared by all demands of a pass: what will be free once those who leave have left,
and who may leave.

Everything is computed when first asked for; a plan that is booked makes it stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from router.scheduler.state import Instance, Record, SchedulerState
from router.scheduler.types import DeviceId, InstanceId, Placement, State
from router.scheduler.victims import ABANDONED, BUSY, IDLE, SPARE, EvictionCandidate


@dataclass(frozen=True, slots=True)
class Idle:
    """One that nobody uses. Its own clients usually come back before `lingers_until`."""

    instance: Instance
    candidate: EvictionCandidate
    lingers_until: float | None


class PlanningView:
    def __init__(self, state: SchedulerState, now: float) -> None:
        self.state = state
        self.now = now
        self._at_most: dict[DeviceId, int] = {}
        self._rooms: dict[str, dict[DeviceId, int | None]] = {"leaving": {}, "movable": {}, "everyone": {}}

    # --- who ---

    @cached_property
    def leaving(self) -> frozenset[InstanceId]:
        """Those on their way out."""
        return frozenset(one.id for one in self.state.instances.values() if one.is_leaving)

    @cached_property
    def movable(self) -> frozenset[InstanceId]:
        """Those, and all that may leave some day: evictable, or with an end of their own."""
        return self.leaving | {one.id for one in self.state.instances.values() if self._may_leave(one)}

    @cached_property
    def everyone(self) -> frozenset[InstanceId]:
        return frozenset(self.state.instances)

    @cached_property
    def idle(self) -> tuple[Idle, ...]:
        """Those that could be stopped now."""
        seen = (self._as_idle(one) for one in self.state.instances.values())
        return tuple(one for one in seen if one is not None)

    @cached_property
    def busy(self) -> tuple[tuple[Instance, EvictionCandidate], ...]:
        """Those that serve, and could be drained."""
        serving = (one for one in self.state.instances.values() if one.state is State.READY and one.leases)
        ranked = ((one, self.state.rank(one, self.now)) for one in serving)
        return tuple(
            (one, EvictionCandidate(one.id, self.state.ledger.reserved(one.id), BUSY, rank))
            for one, rank in ranked
            if rank is not None
        )

    def rivals(self, record: Record) -> tuple[Instance, ...]:
        """Instances that must be gone before this model may be resident, and are not going yet."""
        return tuple(one for one in self.state.conflicts(record.model) if not one.is_leaving)

    # --- what ---

    def short(self, place: Placement, gone: str = "leaving") -> dict[DeviceId, int]:
        """Bytes that will still be missing per device when `gone` are gone."""
        missing = {}
        for device, need in place.footprint.items():
            room = self.room(device, gone) or 0
            if need > 0 and need > room:
                missing[device] = need - room
        return missing

    def is_healthy(self, place: Placement) -> bool:
        """Whether the room is known on every device that it needs."""
        return all(need <= 0 or self.room(device) is not None for device, need in place.footprint.items())

    def room(self, device: DeviceId, gone: str = "leaving") -> int | None:
        """Bytes a newcomer may have on the device when "leaving", "movable" or "everyone" are gone."""
        rooms = self._rooms[gone]
        if device not in rooms:
            rooms[device] = self.state.ledger.expected_room(device, leaving=getattr(self, gone))
        return rooms[device]

    def slots_missing(self, gone: str = "leaving", newcomers: int = 1) -> int:
        """How many instances too many there would be with the newcomers, when `gone` are gone."""
        limit = self.state.settings.models_max
        if limit <= 0:
            return 0
        left: Iterable[InstanceId] = getattr(self, gone)
        return max(0, len(self.state.instances.keys() - left) + newcomers - limit)

    def at_most(self, device: DeviceId) -> int:
        """Bytes that all idle and busy ones together could give back: a bound to rule most placements
        out by."""
        if device not in self._at_most:
            candidates = [one.candidate for one in self.idle] + [candidate for _, candidate in self.busy]
            self._at_most[device] = sum(candidate.frees.get(device, 0) for candidate in candidates)
        return self._at_most[device]

    # --- steps of the above ---

    def _may_leave(self, one: Instance) -> bool:
        if one.state is State.PLANNED:
            return False
        state = self.state
        return state.rank(one, self.now) is not None or state.ttl(one, state.record_of(one)) is not None

    def _as_idle(self, one: Instance) -> Idle | None:
        if one.leases or one.state not in (State.STARTING, State.READY):
            return None
        record = self.state.record_of(one)
        rank = self.state.rank(one, self.now)
        if rank is None:
            return None
        reserved = self.state.ledger.reserved(one.id)
        if one.state is State.STARTING:
            return (
                None
                if record.waiting
                else Idle(one, EvictionCandidate(one.id, reserved, ABANDONED, one.since), None)
            )
        linger = record.forecast.linger_seconds(self.state.settings.linger)
        group = SPARE if _is_spare(record, one) else IDLE
        return Idle(
            one,
            EvictionCandidate(one.id, reserved, group, rank),
            one.last_used + linger if linger > 0 else None,
        )


def _is_spare(record: Record, one: Instance) -> bool:
    """Whether a better used replica of the same model stays."""

    def use(each: Instance) -> tuple[int, float, int]:
        return (len(each.leases), each.last_used, each.order)

    replicas = (each for each in record.instances.values() if each.state is State.READY)
    return any(use(other) > use(one) for other in replicas)
