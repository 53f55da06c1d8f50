"""How many events a second the core decides, and how long the slowest takes: `python -m bench.core_events`.

Random traffic in virtual time; children load, answer and leave as told. Only `handle` and `next_deadline` are
timed, in processor time: what the shell calls once per event. The figures are printed, never asserted.
"""

from __future__ import annotations

import heapq
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

from router.ids import Definition
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import (
    Acquire,
    Device,
    Event,
    Exited,
    Footprint,
    Grant,
    InstanceId,
    Measured,
    Model,
    Placement,
    Ready,
    Release,
    Start,
    Stop,
    Tick,
)

GIB = 2**30
#: Each load runs for so many seconds of processor time (others may use the machine), or so many events.
BUDGET_SECONDS, MOST_EVENTS = 4.0, 60_000


@dataclass(frozen=True, slots=True)
class Load:
    """`rate`: requests per second; a request holds its lease for a second on average."""

    name: str
    models: int
    gpus: int
    rate: float
    policy: str = "lru"


LOADS = (
    Load("a desk", models=8, gpus=1, rate=2.0),
    Load("a server", models=40, gpus=4, rate=20.0),
    Load("the same, by cost", models=40, gpus=4, rate=20.0, policy="cost"),
    Load("a rack", models=200, gpus=16, rate=100.0),
    Load("the server, swamped", models=40, gpus=4, rate=400.0),
)


class Traffic:
    """A machine without surprises: memory is taken at once, comes back at once, and is measured then."""

    def __init__(self, load: Load) -> None:
        luck = self.luck = random.Random(7)
        names = [f"m{number}" for number in range(load.models)]
        self.weights = [1.0 / (rank + 1) for rank in range(load.models)]
        self.devices = [Device(f"local/gpu{n}", 80 * GIB, GIB) for n in range(load.gpus)]
        self.models = {name: self._model(name, luck.choice((4, 8, 14, 20, 40))) for name in names}
        self.scheduler = Scheduler(self.models, self.devices, make_policy(load.policy), Settings())
        self.load, self.now, self.order, self.leases = load, 0.0, count(), count()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.held: dict[InstanceId, Footprint] = {}
        self.seconds: list[float] = []
        self.spent = 0.0
        self.told: Counter[str] = Counter()

    def _model(self, name: str, gib: int) -> Model:
        places = [Placement("local", {d.id: gib * GIB}, (d.id,)) for d in self.devices]
        return Model(name, tuple(places), Definition("1"), load_seconds=1 + gib / 8)

    def run(self) -> None:
        self._measure()
        self._arrive()
        while self.spent < BUDGET_SECONDS and len(self.seconds) < MOST_EVENTS:
            due = self.scheduler.next_deadline()
            if due is not None and due < self.agenda[0][0]:
                self.now = max(self.now, due)
                self._tell(Tick())
                continue
            self.now, _, happen = heapq.heappop(self.agenda)
            happen()

    def _arrive(self) -> None:
        name = self.luck.choices(list(self.models), self.weights)[0]
        self._at(self.luck.expovariate(self.load.rate), self._arrive)
        self._tell(Acquire(f"r{next(self.leases)}", name))

    def _tell(self, event: Event) -> None:
        begun = time.thread_time()
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.next_deadline()
        self.seconds.append(time.thread_time() - begun)
        self.spent += self.seconds[-1]
        self.told[type(event).__name__] += 1
        for command in commands:
            match command:
                case Start(instance, model, placement):
                    self.held[instance] = placement.footprint
                    self._at(self.models[model].load_seconds, partial(self._tell, Ready(instance)))
                case Stop(instance):
                    self._at(0.1, partial(self._gone, instance))
                case Grant(lease):
                    self._at(self.luck.expovariate(1.0), partial(self._tell, Release(lease)))
                case _:
                    pass

    def _gone(self, instance: InstanceId) -> None:
        del self.held[instance]
        self._tell(Exited(instance))
        self._measure()

    def _measure(self) -> None:
        free: dict[str, int | None] = {device.id: device.total for device in self.devices}
        for footprint in self.held.values():
            for device, bytes_ in footprint.items():
                free[device] = (free[device] or 0) - bytes_
        self._tell(Measured(free, dict(self.held), self.now))

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + seconds, next(self.order), happen))


def main() -> None:
    say = sys.stdout.write
    say(f"{'':22}models  GPUs  events/s   median      p99    slowest   events, loads, waiting at the end\n")
    for load in LOADS:
        traffic = Traffic(load)
        traffic.run()
        times = sorted(traffic.seconds)
        median, p99 = (1e6 * times[int(len(times) * share)] for share in (0.5, 0.99))
        waiting = sum(queue.waiting for queue in traffic.scheduler.snapshot(traffic.now).queues)
        say(
            f"{load.name:22}{load.models:6}{load.gpus:6}{len(times) / sum(times):10,.0f}"
            f"{median:6.0f} us{p99:6.0f} us{1e3 * times[-1]:7.2f} ms"
            f"   {len(times)}, {traffic.told['Ready']}, {waiting}\n"
        )


if __name__ == "__main__":
    main()
