"""The words of the core: frozen values, the events it is told and the commands it answers with.

Events are in the past tense, commands imperative. Ids are strings: a device is `host/device`
("local/cuda:GPU-5f3c"), an instance is `model#n` ("qwen3-8b#4"). Bytes are ints, times are seconds of one
monotonic clock.

Those that come with every request are Structs: such a one is made in 0.14 us, a dataclass like it in 2.5, and
the journal is full of them. They hold nothing that leads back to them: what looks for cycles skips them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

import msgspec

from router.errors import RouterError
from router.ids import NO_DEFINITION, Definition

DeviceId: TypeAlias = str
HostId: TypeAlias = str
ModelName: TypeAlias = str
InstanceId: TypeAlias = str
LeaseId: TypeAlias = str
Footprint: TypeAlias = Mapping[DeviceId, int]

NOTHING: Final[Footprint] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Device:
    """A memory pool. `total` is what could ever be used (driver reserve taken off); a `margin` of 0
    switches the check off.
    """

    id: DeviceId
    total: int
    margin: int
    label: str = ""

    @property
    def host(self) -> HostId:
        return host_of(self.id)


def host_of(device: DeviceId) -> HostId:
    """The host part of a device id: "local" of "local/cuda:GPU-5f3c"."""
    return device.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to run a model: bytes on each memory pool of one host. A lower tier is a better way (GPU before
    host). A resort is offered only where nothing else could ever fit. `ctx_size` is in tokens, 0: not told.
    """

    host: HostId
    footprint: Footprint
    devices: tuple[DeviceId, ...] = ()
    args: tuple[str, ...] = ()
    tier: int = 0
    is_fallback: bool = False
    ctx_size: int = 0


class Priority(Enum):
    """How much a second of waiting weighs when models compete for room."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def weight(self) -> float:
        return _WEIGHTS[self]


_WEIGHTS: Final = {Priority.HIGH: 8.0, Priority.NORMAL: 1.0, Priority.LOW: 0.125}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the scheduler knows it. `definition` stands for all that decides how it runs: a reload
    compares nothing else.

    `ttl`: seconds of idleness after which it leaves; None = the policy's, negative = never, 0 = as soon as
    idle. `replicas` are loaded together (the first is owed, further ones only into free room), up to
    `replica_max` as load grows; an instance with `target_inflight` leases counts as full (0 = never).
    `error`: why it cannot be loaded at all. `load_seconds` is the expectation until a load was measured;
    `measured_load_seconds` what loads of this definition took under earlier routers, None if there were none.
    """

    name: ModelName
    placements: tuple[Placement, ...]
    definition: Definition = NO_DEFINITION
    ttl: float | None = None
    pinned: bool = False
    priority: Priority = Priority.NORMAL
    replicas: int = 1
    replica_max: int = 1
    target_inflight: int = 0
    exclusive: frozenset[str] = frozenset()
    load_seconds: float = 5.0
    measured_load_seconds: float | None = None
    error: RouterError | None = None


class State(Enum):
    """PLANNED books memory while its victims leave; STARTING loads; DRAINING takes no new lease; STOPPING
    is being ended.
    """

    PLANNED = "planned"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"


#: The state of whoever serves. Looked up in its class it takes three times as long, which every request does.
READY: Final = State.READY

#: Every transition there is; `None` is "gone". Nothing outside the scheduler assigns a state.
#: DRAINING -> READY happens only when the plan that drains is itself given up: a request never revives a
#: victim.
TRANSITIONS: Final[Mapping[State, frozenset[State | None]]] = MappingProxyType(
    {
        State.PLANNED: frozenset({State.STARTING, None}),
        State.STARTING: frozenset({State.READY, State.STOPPING, None}),
        State.READY: frozenset({State.DRAINING, State.STOPPING, None}),
        State.DRAINING: frozenset({State.READY, State.STOPPING, None}),
        State.STOPPING: frozenset({None}),
    }
)


class Cause(Enum):
    """Why an instance is stopped or drained."""

    EVICTED = "evicted"  # another model needs the room
    EXPIRED = "expired"  # idle longer than its TTL
    UNLOADED = "unloaded"  # an operator said so
    RELOADED = "reloaded"  # its definition changed
    ABORTED = "aborted"  # a load nobody waits for, in somebody's way
    YIELDED = "yielded"  # another program took memory and the margin must be kept
    SHUTDOWN = "shutdown"


# --- events ---


class Acquire(msgspec.Struct, frozen=True, gc=False):
    """A client asks for a model. `keep_alive` overrides the TTL from now on; `size` is what the request
    may produce (its max_tokens) and serves only to predict how long it will hold the lease; `timeout`
    bounds the wait in seconds. `overrides`: an operator's load with other settings; it is refused while the
    model runs with any others, and the settings are forgotten with the instance that got them.
    """

    lease: LeaseId
    model: ModelName
    priority: Priority | None = None
    keep_alive: float | None = None
    size: float | None = None
    timeout: float | None = None
    overrides: Model | None = None


class Release(msgspec.Struct, frozen=True, gc=False):
    """The lease is over, however it ended. Always sent, once; also for a lease that was never granted."""

    lease: LeaseId


@dataclass(frozen=True, slots=True)
class Ready:
    """The child answers. `footprint` replaces the reservation where the host knows better than the
    estimate.
    """

    instance: InstanceId
    footprint: Footprint | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """The child is gone (or never came up): exactly one per Start. `no_room`: the host refused to start it
    for memory; that is nobody's fault, and the plan is made again from its next measurement. `out_of_memory`:
    it wanted more than was reserved for it; it is tried once more with a larger reservation.
    """

    instance: InstanceId
    error: RouterError | None = None
    no_room: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """A child of an earlier router was found alive and answering; it is READY from now on. `leases` are held
    already, by requests that the earlier router still serves.
    """

    instance: InstanceId
    model: ModelName
    placement: Placement
    definition: Definition = NO_DEFINITION
    leases: tuple[LeaseId, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What a host measured. `free` is per device (None = the device is unhealthy: nothing is admitted
    there), `used` per instance; sampling began at `at` (processes first, memory second, so that an
    allocation in between errs to the safe side). `reserve` corrects reservations by what was learned: growth
    that is still expected, or an estimate that was too high.
    """

    free: Mapping[DeviceId, int | None]
    used: Mapping[InstanceId, Footprint] = field(default_factory=dict)
    at: float | None = None
    reserve: Mapping[InstanceId, Footprint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unload:
    """An operator wants the model out: drain, then stop; kill when `deadline` seconds have passed, or at
    once with `force`.
    """

    model: ModelName
    force: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Pinned:
    """An operator pins the model or takes the pin away, whatever its preset says; None: as that says."""

    model: ModelName
    pinned: bool | None


@dataclass(frozen=True, slots=True)
class HostLost:
    host: HostId
    error: RouterError | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The catalog or the devices changed. Models whose `definition` is the same keep serving."""

    models: Mapping[ModelName, Model]
    devices: tuple[Device, ...] | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """The same model, the same definition, with placements that were corrected by measurement."""

    model: Model


@dataclass(frozen=True, slots=True)
class Closed:
    """The router shuts down: whoever waits is refused, and everything that runs is stopped."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `next_deadline()` is due."""


Event: TypeAlias = (
    Acquire
    | Release
    | Ready
    | Exited
    | Adopted
    | Measured
    | Unload
    | Pinned
    | HostLost
    | Reloaded
    | Learned
    | Closed
    | Tick
)


# --- commands ---


@dataclass(frozen=True, slots=True)
class Start:
    """Start a child; the shell answers with one Ready or none, and one Exited. `definition`: of a load with
    other settings than the model's own; else `NO_DEFINITION`.
    """

    instance: InstanceId
    model: ModelName
    placement: Placement
    evicted: tuple[InstanceId, ...] = ()
    definition: Definition = NO_DEFINITION


@dataclass(frozen=True, slots=True)
class Stop:
    """End a child: SIGTERM, a grace, SIGKILL. `for_model` is whom it makes room for, where there is one."""

    instance: InstanceId
    cause: Cause
    for_model: ModelName | None = None


class Grant(msgspec.Struct, frozen=True, gc=False):
    """The lease holds from now until its Release. `action` is what it took: already_loaded, loaded or
    queued.
    """

    lease: LeaseId
    instance: InstanceId
    action: str = "already_loaded"


@dataclass(frozen=True, slots=True)
class Refuse:
    """The lease is refused and over."""

    lease: LeaseId
    error: RouterError


Command: TypeAlias = Start | Stop | Grant | Refuse
