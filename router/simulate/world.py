"""Virtual time: devices that really fill, children that load and die, clients that wait, think and leave.

The world speaks to whoever decides in the words of the core, (event, now) -> commands, and holds it to its
word: more bytes on a device than there are, a grant nobody asked for, a child stopped in the middle of an
answer or a client that waits when nothing can happen any more end the simulation with an error. Nothing
here reads a clock or draws luck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from typing import Final, Protocol

from router.scheduler.types import (
    Acquire,
    Command,
    DeviceId,
    Event,
    Exited,
    Footprint,
    Grant,
    InstanceId,
    LeaseId,
    Measured,
    ModelName,
    Ready,
    Refuse,
    Release,
    Start,
    State,
    Stop,
    Tick,
)
from router.simulate.machine import Spec
from router.simulate.trace import Trace

MAX_TICKS_AT_ONE_TIME: Final = 1000
#: A client that is refused comes back no sooner. Without it refusing would pay: whoever turns all expensive
#: requests away at once would let closed loops run through the cheap ones.
REFUSED_PAUSE_SECONDS: Final = 30.0


class Decider(Protocol):
    """What is put to the test: the core's scheduler, or one of the others in its place."""

    def handle(self, event: Event, now: float) -> Sequence[Command]: ...

    def next_deadline(self) -> float | None: ...


class BrokenRule(AssertionError):
    """A decider did what no decider may do; the message says what and when."""


class Overcommitted(BrokenRule):
    """More bytes were taken on a device than it has."""


class Outcome(IntEnum):
    """How a request ended. UNSENT: the trace ended before its turn came. CANCELLED: its client never
    meant to stay."""

    UNSENT = 0
    WAITING = 1
    GRANTED = 2
    DONE = 3
    CANCELLED = 4
    GAVE_UP = 5
    REFUSED = 6


@dataclass(slots=True)
class Child:
    """One simulated llama-server. `prefixes` holds how many tokens of each session it need not read again."""

    id: InstanceId
    spec: Spec
    footprint: Footprint
    state: State
    used: Footprint = field(default_factory=dict)
    leases: int = 0
    busy_slots: int = 0
    inside: deque[int] = field(default_factory=deque)
    prefixes: dict[str, int] = field(default_factory=dict)

    def fork(self) -> Child:
        return Child(
            self.id, self.spec, self.footprint, self.state, self.used, self.leases, self.busy_slots,
            self.inside.copy(), self.prefixes.copy(),
        )  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What is counted as it happens. Seconds of loading are per device, overlapping loads counted once."""

    events: int = 0
    loads: int = 0
    stops: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    loading_seconds: dict[DeviceId, float] = field(default_factory=dict)

    def fork(self) -> Tally:
        return Tally(self.events, self.loads, self.stops, self.refusals.copy(), self.loading_seconds.copy())


# What stands in the heap: (time, order of insertion, kind, request or step, child).
_ARRIVE, _LEAVE, _END, _RELEASED, _TAKE, _EXITED, _RETURNED = range(7)
_Item = tuple[float, int, int, int, InstanceId]


class World:
    """One run of a trace under one decider. `run()` to the end, or `run(until)` and `fork()` to try
    several futures."""

    def __init__(self, trace: Trace, decider: Decider) -> None:
        self.trace = trace
        self.decider = decider
        self.now = 0.0
        count = len(trace.requests)
        self.outcome = bytearray(count)
        self.sent = [0.0] * count
        self.first = [float("inf")] * count
        self.ended = [0.0] * count
        self._until = [float("inf")] * count  # when the answer will have ended, from when it is served
        self.tally = Tally()
        self.free = {device.id: device.total for device in trace.machine.devices}
        self.children: dict[InstanceId, Child] = {}
        self._home: dict[int, Child] = {}
        self._specs = trace.machine.by_name()
        self._followers = _followers(trace)
        self._leases = [f"r{n}" for n in range(count)]
        self._loading: dict[DeviceId, int] = dict.fromkeys(self.free, 0)
        self._loading_since: dict[DeviceId, float] = {}
        self._returning: dict[InstanceId, Footprint] = {}
        self._heap: list[_Item] = []
        self._asked: dict[ModelName, list[float]] = {}  # by model, a heap of the times of arrivals to come
        self._order = 0
        self._open = 0  # sent and not over
        self._coming = 0  # in the heap, to be sent before the trace ends
        self._begun = False
        for request in trace.requests:
            if request.after is None:
                self._push(request.timestamp, _ARRIVE, request.id)

    def fork(self, decider: Decider) -> World:
        """A copy that can run on by itself, under `decider`. Shares the trace and nothing that changes."""
        copy = object.__new__(World)
        copy.trace, copy.decider, copy.now = self.trace, decider, self.now
        copy.outcome, copy.sent, copy.first = self.outcome[:], self.sent[:], self.first[:]
        copy.ended, copy.tally, copy.free = self.ended[:], self.tally.fork(), self.free.copy()
        copy.children = {name: child.fork() for name, child in self.children.items()}
        copy._home = {number: copy.children[child.id] for number, child in self._home.items()}
        copy._specs, copy._followers, copy._leases = self._specs, self._followers, self._leases
        copy._loading, copy._loading_since = self._loading.copy(), self._loading_since.copy()
        copy._returning, copy._heap = self._returning.copy(), self._heap.copy()
        copy._until, copy._asked = self._until[:], {m: times.copy() for m, times in self._asked.items()}
        copy._order, copy._open, copy._coming, copy._begun = (
            self._order,
            self._open,
            self._coming,
            self._begun,
        )
        return copy

    def run(self, until: float = float("inf")) -> None:
        """Let time pass: until then, or until every request is over. BrokenRule as the module says."""
        if not self._begun:
            self._begun = True
            self._measure()
        heap, ticks = self._heap, 0
        while self._open or self._coming:
            deadline = self.decider.next_deadline()
            if heap and (deadline is None or heap[0][0] <= max(deadline, self.now)):
                if heap[0][0] > until:
                    break
                self.now, _, kind, number, name = heappop(heap)
                ticks = 0
                self._happen(kind, number, name)
            elif deadline is not None:
                if deadline > until:
                    break
                ticks = ticks + 1 if deadline <= self.now else 0
                if ticks > MAX_TICKS_AT_ONE_TIME:
                    raise BrokenRule(f"at {self.now:.3f} s a deadline at {deadline:.3f} s stays due for ever")
                self.now = max(self.now, deadline)
                self._tell(Tick())
            else:
                raise BrokenRule(
                    f"at {self.now:.3f} s nothing can happen any more, and {self._waiting()} wait"
                )
        if until != float("inf"):
            self.now = max(self.now, until)

    def next_use(self, model: ModelName) -> float:
        """When `model` is used next as far as the future is settled: now if it serves somebody, else when a
        client will send or send again. Waiting requests do not count. For deciders that may see the future.
        """
        asked = self._asked.get(model, [])
        while asked and asked[0] < self.now:
            heappop(asked)
        best = asked[0] if asked else float("inf")
        requests = self.trace.requests
        for number, child in self._home.items():
            if child.spec.name == model:
                return self.now
            for follower in self._followers[number]:
                if requests[follower].model == model:
                    best = min(best, self._until[number] + requests[follower].delay)
        return best

    def leaves_at(self, instance: InstanceId) -> float:
        """When the last request now served by `instance` will have ended; now if there is none."""
        ends = (self._until[n] for n, child in self._home.items() if child.id == instance)
        return max((end for end in ends if end < float("inf")), default=self.now)

    # --- what happens ---

    def _happen(self, kind: int, number: int, name: InstanceId) -> None:
        if kind == _ARRIVE:
            self._arrive(number)
        elif kind == _LEAVE:
            self._leave(number)
        elif kind == _END:
            self._end(number)
        elif kind == _RELEASED:
            self._tell(Release(self._leases[number]))
        elif kind == _TAKE:
            self._take(name, number)
        elif kind == _EXITED:
            self._exit(name)
        else:
            self._return(name)

    def _arrive(self, number: int) -> None:
        self._coming -= 1
        request = self.trace.requests[number]
        self.outcome[number] = Outcome.WAITING
        self.sent[number] = self.now
        self._open += 1
        stays = request.cancel if request.cancel is not None else request.patience
        if stays is not None:
            self._push(self.now + stays, _LEAVE, number)
        self._tell(Acquire(self._leases[number], request.model, size=float(request.output_length)))

    def _leave(self, number: int) -> None:
        """A client's own deadline: patience ends with the first token, a cancellation does not."""
        request = self.trace.requests[number]
        outcome = self.outcome[number]
        if outcome not in (Outcome.WAITING, Outcome.GRANTED):
            return
        if request.cancel is None and self.first[number] <= self.now:
            return
        self._over(number, Outcome.GAVE_UP if request.cancel is None else Outcome.CANCELLED)
        self._tell(Release(self._leases[number]))

    def _end(self, number: int) -> None:
        if self.outcome[number] != Outcome.GRANTED:
            return
        self._over(number, Outcome.DONE)
        self._tell(Release(self._leases[number]))

    def _over(self, number: int, outcome: Outcome) -> None:
        """The request is over: free its slot, and let those who waited for it to end send theirs."""
        self.outcome[number] = outcome
        self.ended[number] = self.now
        self._open -= 1
        child = self._home.pop(number, None)
        if child is not None:
            self._vacate(number, child)
        pause = REFUSED_PAUSE_SECONDS if outcome == Outcome.REFUSED else 0.0
        for follower in self._followers[number]:
            self._push(self.now + max(pause, self.trace.requests[follower].delay), _ARRIVE, follower)

    def _vacate(self, number: int, child: Child) -> None:
        child.leases -= 1
        if self.first[number] == float("inf"):
            child.inside.remove(number)  # it never had a slot
            return
        if self.first[number] > self.now:
            self.first[number] = float("inf")  # it left before its first token
        else:
            request = self.trace.requests[number]
            if request.session is not None:
                child.prefixes[request.session] = request.input_length + request.output_length
        child.busy_slots -= 1
        if child.inside:
            self._serve(child.inside.popleft(), child)

    def _serve(self, number: int, child: Child) -> None:
        """Take a slot: read what of the prompt is not known, then write the answer."""
        request = self.trace.requests[number]
        known = child.prefixes.get(request.session, 0) if request.session is not None else 0
        fresh = request.input_length - known if known <= request.input_length else request.input_length
        child.busy_slots += 1
        self.first[number] = self.now + child.spec.prefill_seconds(fresh)
        self._until[number] = self.first[number] + child.spec.decode_seconds(request.output_length)
        self._push(self._until[number], _END, number)

    def _take(self, name: InstanceId, step: int) -> None:
        """The next part of a load: the memory is really taken, and after the last part the child answers."""
        child = self.children.get(name)
        if child is None or child.state is not State.STARTING:
            return
        steps = self.trace.machine.load_steps
        used = {device: size * step // steps for device, size in child.footprint.items()}
        for device, size in used.items():
            self.free[device] -= size - child.used.get(device, 0)
            if self.free[device] < 0:
                raise Overcommitted(
                    f"at {self.now:.3f} s {name} takes {device} {-self.free[device]} bytes beyond what it has"
                )
        child.used = used
        if step == steps:
            child.state = State.READY
            self._count_loading(child, -1)
            self._measure()
            self._tell(Ready(name))
        else:
            self._measure()

    def _exit(self, name: InstanceId) -> None:
        child = self.children.pop(name)
        self._returning[name] = child.used
        self._push(self.now + self.trace.machine.return_seconds, _RETURNED, name=name)
        self._tell(Exited(name))

    def _return(self, name: InstanceId) -> None:
        for device, size in self._returning.pop(name).items():
            self.free[device] += size
        self._measure()

    # --- telling and being told ---

    def _measure(self) -> None:
        used: Mapping[InstanceId, Footprint] = {
            child.id: child.used for child in self.children.values() if child.used
        }
        self._tell(Measured(self.free.copy(), used, self.now))

    def _tell(self, event: Event) -> None:
        self.tally.events += 1
        for command in self.decider.handle(event, self.now):
            match command:
                case Grant():
                    self._granted(command)
                case Refuse():
                    self._refused(command)
                case Start():
                    self._start(command)
                case Stop():
                    self._stop(command)

    def _granted(self, command: Grant) -> None:
        number = self._number(command.lease)
        child = self.children.get(command.instance)
        if child is None or child.state is not State.READY:
            raise BrokenRule(f"at {self.now:.3f} s {command.lease} is granted {command.instance}, not ready")
        if child.spec.name != self.trace.requests[number].model:
            raise BrokenRule(f"at {self.now:.3f} s {command.lease} is granted {command.instance}")
        self.outcome[number] = Outcome.GRANTED
        self._home[number] = child
        child.leases += 1
        if child.busy_slots < child.spec.slots:
            self._serve(number, child)
        else:
            child.inside.append(number)

    def _refused(self, command: Refuse) -> None:
        code = command.error.code
        self.tally.refusals[code] = self.tally.refusals.get(code, 0) + 1
        number = self._number(command.lease)
        self._over(number, Outcome.REFUSED)
        self._push(self.now, _RELEASED, number)

    def _number(self, lease: LeaseId) -> int:
        number = int(lease[1:])
        if self.outcome[number] != Outcome.WAITING:
            raise BrokenRule(f"at {self.now:.3f} s {lease} is answered, but does not wait")
        return number

    def _start(self, command: Start) -> None:
        if command.instance in self.children or command.instance in self._returning:
            raise BrokenRule(f"at {self.now:.3f} s {command.instance} is started twice")
        spec, machine = self._specs[command.model], self.trace.machine
        child = Child(command.instance, spec, command.placement.footprint, State.STARTING)
        self.children[child.id] = child
        self.tally.loads += 1
        self._count_loading(child, 1)
        total = machine.load_seconds(spec)
        startup = min(machine.startup_seconds, total)
        for step in range(1, machine.load_steps + 1):
            at = self.now + startup + (total - startup) * step / machine.load_steps
            self._push(at, _TAKE, step, child.id)

    def _stop(self, command: Stop) -> None:
        child = self.children.get(command.instance)
        if child is None:
            raise BrokenRule(f"at {self.now:.3f} s {command.instance} is stopped, but does not live")
        if child.leases:
            raise BrokenRule(f"at {self.now:.3f} s {child.id} is stopped with {child.leases} leases")
        if child.state is State.STOPPING:
            return
        if child.state is State.STARTING:
            self._count_loading(child, -1)
        child.state = State.STOPPING
        self.tally.stops += 1
        self._push(self.now + self.trace.machine.stop_seconds, _EXITED, name=child.id)

    # --- bookkeeping ---

    def _push(self, time: float, kind: int, number: int = 0, name: InstanceId = "") -> None:
        self._order += 1
        if kind == _ARRIVE:
            if time > self.trace.seconds:
                return  # too late to be sent
            self._coming += 1
            heappush(self._asked.setdefault(self.trace.requests[number].model, []), time)
        heappush(self._heap, (time, self._order, kind, number, name))

    def _count_loading(self, child: Child, change: int) -> None:
        for device in child.footprint:
            self._loading[device] += change
            if change > 0 and self._loading[device] == 1:
                self._loading_since[device] = self.now
            elif change < 0 and self._loading[device] == 0:
                seconds = self.now - self._loading_since.pop(device)
                total = self.tally.loading_seconds.get(device, 0.0)
                self.tally.loading_seconds[device] = total + seconds

    def _waiting(self) -> str:
        names = [self._leases[n] for n, how in enumerate(self.outcome) if how == Outcome.WAITING]
        return f"{len(names)} requests ({', '.join(names[:5])})"


def _followers(trace: Trace) -> tuple[tuple[int, ...], ...]:
    lists: list[list[int]] = [[] for _ in trace.requests]
    for request in trace.requests:
        if request.after is not None:
            lists[request.after].append(request.id)
    return tuple(tuple(numbers) for numbers in lists)
