"""A small language for scenarios: tell the scheduler what happened, read its commands as words.

    table = Table(gpu=10, a=6, b=6)              # one GPU with 10 GiB to give away, two models of 6 GiB
    assert table.asks("r1", "a") == ["start a"]
    assert table.ready("a") == ["grant r1 on a"]

An instance is called by its model; the second child of a model that is ever started is "a.2", then "a.3".
Memory follows the children: one that is ready holds all it reserved, one that is gone holds nothing;
`exits(..., returns=False)` lets it lag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from router.errors import LoadFailed, RouterError
from router.ids import Definition
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import (
    Acquire,
    Adopted,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Footprint,
    Grant,
    HostId,
    HostLost,
    InstanceId,
    Measured,
    Model,
    ModelName,
    Placement,
    Priority,
    Ready,
    Refuse,
    Release,
    Reloaded,
    Start,
    Stop,
    Tick,
    Unload,
    host_of,
)
from router.scheduler.views import Explanation, InstanceView
from tests.scheduler.telling import tell

GIB = 2**30
#: Of every model that a test gives no other.
FIRST = Definition("1")


def on(tier: int = 0, **gib: float) -> Placement:
    """A way to run a model: GiB per device of host `local`."""
    sizes = {f"local/{name}": int(amount * GIB) for name, amount in gib.items()}
    return Placement("local", sizes, tuple(sizes), tier=tier)


def at(device: DeviceId, gib: float) -> Placement:
    """A way to run a model on one device of any host."""
    return Placement(host_of(device), {device: int(gib * GIB)}, (device,))


def device(name: str, gib: float) -> Device:
    """A device that can give away `gib` GiB above its margin."""
    return Device(f"local/{name}", int((gib + 1) * GIB), GIB, name)


def model(name: ModelName, *placements: Placement, load: float = 1.0, **more: object) -> Model:
    more.setdefault("definition", FIRST)
    return Model(name, placements, load_seconds=load, **more)  # type: ignore[arg-type]


class Table:
    """A scheduler, a clock and the memory behind it. Every verb returns the commands it caused, as words."""

    def __init__(
        self,
        *,
        gpu: float | None = None,
        devices: Sequence[Device] = (),
        models: Iterable[Model] = (),
        policy: str = "lru",
        ttl: float = 300.0,
        settings: Mapping[str, float] | None = None,
        **sizes: float,
    ) -> None:
        if gpu is not None:
            devices = (device("gpu", gpu), *devices)
        known = [*models, *(model(name, on(gpu=size)) for name, size in sizes.items())]
        self.devices = {d.id: d for d in devices}
        self.models = {m.name: m for m in known}
        self.now = 0.0
        self.strangers = dict.fromkeys(self.devices, 0)
        self.ids: dict[str, InstanceId] = {}
        self.errors: dict[str, RouterError] = {}
        self.commands: list[Command] = []
        self.told: list[Command] = []  # of all verbs, until somebody takes them
        self._used: dict[InstanceId, dict[DeviceId, int]] = {}
        self._places: dict[InstanceId, Placement] = {}
        self._starts: dict[ModelName, int] = {}
        chosen = Settings(**(settings or {}))  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.models, devices, make_policy(policy, ttl=ttl), chosen)
        self.measure()

    # --- what clients do ---

    def asks(self, lease: str, model: ModelName, **more: float | Priority) -> list[str]:
        return self.tell(Acquire(lease, model, **more))  # type: ignore[arg-type]

    def ends(self, lease: str) -> list[str]:
        return self.tell(Release(lease))

    def serves(self, model: ModelName, hold: float = 1.0) -> None:
        """One request from first to last: afterwards the model is resident and idle."""
        lease = f"first of {model}"
        if self.asks(lease, model) != [f"grant {lease} on {model}"]:
            assert self.ready(model) == [f"grant {lease} on {model}"]
        self.wait(hold)
        self.ends(lease)

    # --- what children and hosts do ---

    def ready(self, name: str, footprint: Footprint | None = None) -> list[str]:
        instance = self.ids[name]
        self._used[instance] = dict(footprint or self._places[instance].footprint)
        return self.tell(Ready(instance, footprint))

    def exits(
        self,
        name: str,
        error: RouterError | None = None,
        *,
        returns: bool = True,
        no_room: bool = False,
        out_of_memory: bool = False,
    ) -> list[str]:
        """The child is gone; with `returns` its memory is free at once and was measured after its end."""
        done = self.tell(Exited(self.ids[name], error, no_room, out_of_memory))
        return done + (self.returns(name) if returns else [])

    def returns(self, name: str) -> list[str]:
        """The memory of one that is gone has come back, and is measured."""
        self._used.pop(self.ids[name], None)
        return self.measure()

    def fails(self, name: str, words: str = "exit status 1") -> list[str]:
        return self.exits(name, LoadFailed(words))

    def holds(self, name: str, **gib: float) -> None:
        """What a child really has taken so far."""
        self._used[self.ids[name]] = {f"local/{d}": int(amount * GIB) for d, amount in gib.items()}

    def measure(self, *, at: float | None = None, without: Iterable[DeviceId] = ()) -> list[str]:
        """A look at all devices; those `without` are not healthy."""
        used = {name: dict(bytes_) for name, bytes_ in self._used.items()}
        free: dict[DeviceId, int | None] = {d: self.free(d) for d in self.devices}
        free |= dict.fromkeys(without)
        return self.tell(Measured(free, used, self.now if at is None else at))

    def free(self, device: DeviceId) -> int:
        held = sum(bytes_.get(device, 0) for bytes_ in self._used.values())
        return self.devices[device].total - self.strangers[device] - held

    def stranger(self, **gib: float) -> list[str]:
        """Other programs hold this much now, and it is measured."""
        self.strangers |= {f"local/{d}": int(amount * GIB) for d, amount in gib.items()}
        return self.measure()

    def adopts(
        self, name: str, model: ModelName, placement: Placement, definition: Definition = FIRST
    ) -> list[str]:
        instance = self.ids[name] = f"{model}#0"
        self._places[instance] = placement
        self._used[instance] = dict(placement.footprint)
        return self.tell(Adopted(instance, model, placement, definition)) + self.measure()

    def loses(self, host: HostId) -> list[str]:
        for instance in [i for i, place in self._places.items() if place.host == host]:
            self._used.pop(instance, None)
        return self.tell(HostLost(host))

    # --- what operators do ---

    def unloads(self, model: ModelName, *, force: bool = False, deadline: float | None = None) -> list[str]:
        return self.tell(Unload(model, force, deadline))

    def reloads(self, *models: Model) -> list[str]:
        return self.tell(Reloaded({m.name: m for m in models}))

    # --- time ---

    def wait(self, seconds: float) -> list[str]:
        """Time passes; every timer fires exactly when it is due."""
        end, done = self.now + seconds, []
        for _ in range(10_000):
            due = self.scheduler.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            done += self.tell(Tick())
        else:
            raise AssertionError(f"the timer fires for ever at {self.now}")
        self.now = end
        return done

    # --- reading ---

    def tell(self, event: Event) -> list[str]:
        self.commands = tell(self.scheduler, event, self.now)
        self.scheduler.next_deadline()  # as the shell asks
        self.told += self.commands
        words = [self._words(command) for command in self.commands]
        self.scheduler.check()
        return words

    def view(self, name: str) -> InstanceView:
        return next(v for v in self.scheduler.snapshot(self.now).instances if v.id == self.ids[name])

    def state(self, name: str) -> str:
        """The state of a child, "gone" if it is not there."""
        views = self.scheduler.snapshot(self.now).instances
        return next((v.state.value for v in views if v.id == self.ids.get(name, name)), "gone")

    def states(self) -> list[str]:
        """What there is, plans included: "a ready", "b planned"."""
        return sorted(f"{v.model} {v.state.value}" for v in self.scheduler.snapshot(self.now).instances)

    def waiting(self) -> dict[ModelName, int]:
        return {q.model: q.waiting for q in self.scheduler.snapshot(self.now).queues}

    def explain(self, model: ModelName) -> Explanation:
        return self.scheduler.explain(model, self.now)

    def place(self, name: str) -> str:
        """Where a child was put: "gpu0", or "gpu0+gpu1"."""
        return "+".join(d.partition("/")[2] for d in self._places[self.ids[name]].footprint)

    def _words(self, command: Command) -> str:
        match command:
            case Start(instance, name, placement):
                self._starts[name] = number = self._starts.get(name, 0) + 1
                alias = name if number == 1 else f"{name}.{number}"
                self.ids[alias] = instance
                self._places[instance] = placement
                return f"start {alias}"
            case Stop(instance, cause, for_model):
                return f"stop {self._alias(instance)}: {cause.value}" + (
                    f" for {for_model}" if for_model else ""
                )
            case Grant(lease, instance):
                return f"grant {lease} on {self._alias(instance)}"
            case Refuse(lease, error):
                self.errors[lease] = error
                return f"refuse {lease}: {type(error).__name__}"

    def _alias(self, instance: InstanceId) -> str:
        return next(alias for alias, known in self.ids.items() if known == instance)


NEVER = inf
