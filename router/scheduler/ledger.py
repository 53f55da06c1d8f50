"""The arithmetic of bytes: what is free, promised, on its way back. It never decides.

Per device, in the words of the admission rule: F free as measured, M margin, T total (driver reserve taken
off), and for every holder R reserved and U used as measured (R is never below U). Two bounds must both
hold for a newcomer of N bytes:

    F - G - N >= M      G = sum of R - U: promised, not yet taken
    T - sum(R) - N >= M  holds even when the measurement lies

A booking ends with `exited`, never with the order to stop. What an exited holder had promised but not
taken stays counted until a measurement that began after its exit; what it had used (V, `returning`) comes
back through F alone, and only keeps a plan from evicting a second victim needlessly until `recovery`
seconds have passed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from router.scheduler.types import NOTHING, Device, DeviceId, Footprint, InstanceId, Placement

#: Room on a device without a memory check (margin 0): more than any machine has.
UNBOUNDED: Final = 1 << 62
#: A share of the used bytes that, measured back, counts as all of it: drivers keep a little for themselves.
RETURNED_SHARE: Final = 0.75


@dataclass(slots=True)
class _Holder:
    reserved: dict[DeviceId, int]
    used: dict[DeviceId, int] = field(default_factory=dict)
    claim: int | None = None  # the plan's sequence number while it is only a claim


@dataclass(slots=True)
class _Returning:
    """An exited holder. `promised` and `booked` count until measured after `exited_at`, `used` until
    returned or `deadline`.
    """

    exited_at: float
    deadline: float
    used: dict[DeviceId, int]
    promised: dict[DeviceId, int]
    booked: dict[DeviceId, int]
    free_then: dict[DeviceId, int | None]

    def learn(self, used: Footprint, free: Mapping[DeviceId, int | None]) -> None:
        """A measurement that was under way at the exit tells what it had taken by then."""
        for device, bytes_ in used.items():
            self.used[device] = bytes_
            self.promised[device] = max(0, self.booked.get(device, 0) - bytes_)
            self.free_then[device] = free.get(device)


@dataclass(slots=True)
class Ledger:
    devices: dict[DeviceId, Device]
    recovery: float = 10.0
    free: dict[DeviceId, int | None] = field(default_factory=dict)
    _measured_at: dict[DeviceId, float] = field(default_factory=dict)
    _holders: dict[InstanceId, _Holder] = field(default_factory=dict)
    _returning: dict[InstanceId, _Returning] = field(default_factory=dict)

    # --- what happens ---

    def claim(self, holder: InstanceId, footprint: Footprint, order: int) -> None:
        """Book for a plan: it counts for every younger claim and for every newcomer."""
        assert holder not in self._holders, f"{holder} holds already"
        self._holders[holder] = _Holder(dict(footprint), claim=order)

    def reserve(self, holder: InstanceId, footprint: Footprint | None = None) -> None:
        """Turn a claim into a reservation, or reserve outright for a child that is already there."""
        if footprint is not None:
            self._holders[holder] = _Holder(dict(footprint))
        self._holders[holder].claim = None

    def settle(self, holder: InstanceId, footprint: Footprint) -> None:
        """The host knows better than the estimate; what is measured stays the least."""
        held = self._holders[holder]
        held.reserved = dict(footprint)
        self._raise_to_used(held)

    def forget(self, holder: InstanceId) -> None:
        """A claim that never became a child."""
        del self._holders[holder]

    def exited(self, holder: InstanceId, now: float) -> None:
        held = self._holders.pop(holder)
        self._returning[holder] = _Returning(
            exited_at=now,
            deadline=now + self.recovery,
            used={d: b for d, b in held.used.items() if b > 0},
            promised={
                d: r - held.used.get(d, 0) for d, r in held.reserved.items() if r > held.used.get(d, 0)
            },
            booked=dict(held.reserved),
            free_then=dict(self.free),
        )

    def measure(
        self, free: Mapping[DeviceId, int | None], used: Mapping[InstanceId, Footprint], at: float, now: float
    ) -> bool:
        """Take a measurement whose sampling began at `at`. It speaks of the devices in `free` alone; of
        those that were measured later already it says nothing any more. False: it said nothing at all.
        """
        news = {d for d in free if d in self.devices and at >= self._measured_at.get(d, at)}
        for device in news:
            self._measured_at[device] = at
            self.free[device] = free[device]
        for name, bytes_ in used.items():
            held = self._holders.get(name)
            if held is not None and held.claim is None:
                kept = {d: b for d, b in held.used.items() if d not in news}
                held.used = kept | {d: b for d, b in bytes_.items() if d in news}
                self._raise_to_used(held)
        for name, gone in list(self._returning.items()):
            if at < gone.exited_at:
                gone.learn({d: b for d, b in used.get(name, NOTHING).items() if d in news}, self.free)
            else:
                self._see_return(name, gone, news, now)
        return bool(news)

    def expire(self, now: float) -> bool:
        """Give up waiting for memory that did not come back: from now on it is simply not free. True if
        some was. What had been promised stays counted until somebody has looked.
        """
        late = [name for name, gone in self._returning.items() if gone.used and gone.deadline <= now]
        for name in late:
            self._returning[name].used.clear()
            self._forget_returned(name)
        return bool(late)

    def replace_devices(self, devices: Iterable[Device]) -> None:
        self.devices = {d.id: d for d in devices}
        self.free = {d: f for d, f in self.free.items() if d in self.devices}

    def lose(self, devices: Iterable[DeviceId]) -> None:
        """Nothing is known of these devices until they are measured again."""
        self.free.update(dict.fromkeys(devices, None))

    # --- what it comes to ---

    def room(self, device: DeviceId, *, before: int | None = None) -> int | None:
        """Bytes a newcomer may take right now. Claims count, or only those older than `before`. None:
        unknown device or health.
        """
        return self._room(device, leaving=(), before=before, expected=False)

    def fits(self, footprint: Footprint, *, before: int | None = None) -> bool:
        """Whether the room is real on every device at once."""
        for device, need in footprint.items():
            room = self.room(device, before=before)
            if need > 0 and (room is None or need > room):
                return False
        return True

    def expected_room(
        self, device: DeviceId, *, leaving: Collection[InstanceId], before: int | None = None
    ) -> int | None:
        """Bytes a newcomer may take once the `leaving` are gone and all that is on its way back has come."""
        return self._room(device, leaving=leaving, before=before, expected=True)

    def shortfall(
        self, footprint: Footprint, *, leaving: Collection[InstanceId], before: int | None = None
    ) -> dict[DeviceId, int]:
        """Bytes missing per device once the `leaving` are gone and all that is on its way back has come."""
        short = {}
        for device, need in footprint.items():
            if need <= 0:
                continue
            room = self.expected_room(device, leaving=leaving, before=before)
            missing = need - (room if room is not None else 0)
            if missing > 0:
                short[device] = missing
        return short

    def impossible(self, footprint: Footprint) -> bool:
        """Whether not even an empty machine could hold it."""
        for device, need in footprint.items():
            known = self.devices.get(device)
            if known is None or (known.margin > 0 and need + known.margin > known.total):
                return True
        return False

    def possible(self, placements: Iterable[Placement]) -> list[Placement]:
        """Those that an empty machine could hold; resorts only where there is nothing else."""
        found = [place for place in placements if not self.impossible(place.footprint)]
        return [place for place in found if not place.is_fallback] or found

    def reserved(self, holder: InstanceId) -> Footprint:
        return self._holders[holder].reserved

    def used(self, holder: InstanceId) -> Footprint:
        return self._holders[holder].used

    def holders(self) -> Collection[InstanceId]:
        return self._holders.keys()

    def promised(self, device: DeviceId) -> int:
        """G: reserved by ours on this device and not yet taken, claims not included."""
        live = sum(
            max(0, h.reserved.get(device, 0) - h.used.get(device, 0))
            for h in self._holders.values()
            if h.claim is None
        )
        return live + sum(g.promised.get(device, 0) for g in self._returning.values())

    def returning(self, device: DeviceId) -> int:
        """V: used by children that exited, not yet measured back."""
        return sum(g.used.get(device, 0) for g in self._returning.values())

    def is_returning(self, device: DeviceId) -> bool:
        """Whether a child exited there and not all that is known of it was measured since."""
        return any(device in gone.used or device in gone.promised for gone in self._returning.values())

    def crowded(self) -> list[DeviceId]:
        """Where less is free than the margin."""
        return [
            device
            for device, known in self.devices.items()
            if (free := self.free.get(device)) is not None and free < known.margin
        ]

    def used_by_ours(self, device: DeviceId) -> int:
        return sum(h.used.get(device, 0) for h in self._holders.values())

    def booked(self, device: DeviceId) -> int:
        return sum(h.reserved.get(device, 0) for h in self._holders.values())

    def others(self, device: DeviceId) -> int | None:
        """What is used and not ours: other programs, and whatever the driver keeps."""
        free = self.free.get(device)
        if free is None:
            return None
        total = self.devices[device].total
        return max(0, total - free - self.used_by_ours(device) - self.returning(device))

    def next_deadline(self) -> float | None:
        return min((g.deadline for g in self._returning.values() if g.used), default=None)

    def check(self) -> None:
        """Every invariant, or AssertionError."""
        for name, held in self._holders.items():
            assert all(b >= 0 for b in held.reserved.values()), f"{name} reserves less than nothing"
            if held.claim is None:
                for device, bytes_ in held.used.items():
                    assert device not in self.devices or held.reserved.get(device, 0) >= bytes_, (
                        f"{name} uses more than it reserved"
                    )
        assert not self._holders.keys() & self._returning.keys(), "a holder both lives and returns"

    # --- steps of the above ---

    def _room(
        self, device: DeviceId, *, leaving: Collection[InstanceId], before: int | None, expected: bool
    ) -> int | None:
        known = self.devices.get(device)
        if known is None:
            return None
        free = self.free.get(device)
        if known.margin <= 0:
            return None if device in self.free and free is None else UNBOUNDED
        if free is None:
            return None
        by_measure = free - known.margin
        by_books = known.total - known.margin
        for name, held in self._holders.items():
            reserved = held.reserved.get(device, 0)
            if held.claim is not None:
                if name not in leaving and (before is None or held.claim < before):
                    by_measure -= reserved
                    by_books -= reserved
                continue
            if name in leaving:
                # One whose use nobody could attribute has taken up to all it reserved: that is hoped for, not
                # admitted.
                by_measure += held.used.get(device, reserved)
                continue
            by_measure -= max(0, reserved - held.used.get(device, 0))
            by_books -= reserved
        for gone in self._returning.values():
            if expected:
                by_measure += gone.used.get(device, 0)
            else:
                by_measure -= gone.promised.get(device, 0)
                by_books -= gone.booked.get(device, 0)
        return min(by_measure, by_books)

    def _see_return(self, name: InstanceId, gone: _Returning, news: Collection[DeviceId], now: float) -> None:
        """Measured after the exit: what it had promised is void there, what it had used may be back."""
        for device in news:
            gone.promised.pop(device, None)
            gone.booked.pop(device, None)
            if device in gone.used:
                free, then = self.free[device], gone.free_then.get(device)
                if free is None or then is None:
                    del gone.used[device]
                elif free - then >= gone.used[device] * RETURNED_SHARE:
                    self._credit(device, gone.used.pop(device))
        if gone.deadline <= now:
            gone.used.clear()
        self._forget_returned(name)

    def _forget_returned(self, name: InstanceId) -> None:
        gone = self._returning[name]
        if not (gone.used or gone.promised or gone.booked):
            del self._returning[name]

    def _credit(self, device: DeviceId, bytes_: int) -> None:
        """These bytes came back and are accounted for: they are not another's, who exited at the same
        time."""
        for other in self._returning.values():
            then = other.free_then.get(device)
            if then is not None and device in other.used:
                other.free_then[device] = then + bytes_

    def _raise_to_used(self, held: _Holder) -> None:
        for device, bytes_ in held.used.items():
            if device in self.devices and bytes_ > held.reserved.get(device, 0):
                held.reserved[device] = bytes_
