"""Every decider on the same trace, beside the best that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from router.errors import StartupError
from router.scheduler.policy import POLICIES, make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.simulate.baselines import CountFifo, DrainOnMiss, FifoNoGate, SwapWhenIdle
from router.simulate.clairvoyant import best_goodput, steady_runs
from router.simulate.report import SLO_SECONDS, Figures, mean, measure
from router.simulate.trace import Trace
from router.simulate.world import Decider, World

BEST: Final = "offline best known"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A decider as it stands in the table."""

    label: str
    build: Callable[[Trace, Settings], Decider]


def _ours(policy: str, trace: Trace, settings: Settings) -> Decider:
    return Scheduler(trace.machine.models(), trace.machine.devices, make_policy(policy), settings)


def _fifo(trace: Trace, _: Settings) -> Decider:
    return CountFifo(trace.machine.models(), trace.machine.devices)


def _drain(trace: Trace, _: Settings) -> Decider:
    return DrainOnMiss(trace.machine.models(), trace.machine.devices)


def _swap(trace: Trace, _: Settings) -> Decider:
    return SwapWhenIdle(trace.machine.models(), trace.machine.devices, trace.popularity())


def _ollama(trace: Trace, _: Settings) -> Decider:
    return FifoNoGate(trace.machine.models(), trace.machine.devices)


#: By the name that chooses one on the command line: our policies, then what others do.
CONTESTANTS: Final[Mapping[str, Contestant]] = {
    **{name: Contestant(f"llama-router {name}", partial(_ours, name)) for name in POLICIES},
    "fifo": Contestant("fifo (llama.cpp)", _fifo),
    "drain-on-miss": Contestant("drain-on-miss (llama.cpp, proposed)", _drain),
    "swap-when-idle": Contestant("swap-when-idle (llama-swap)", _swap),
    "fifo-no-gate": Contestant("fifo-no-gate (ollama)", _ollama),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of one trace, or their means over several seeds. Labels in the order of the table."""

    trace: str
    minutes: float
    slo_seconds: float
    rows: Mapping[str, Figures]


def compare(
    trace: Trace,
    names: Sequence[str] = (),
    slo_seconds: float = SLO_SECONDS,
    settings: Settings | None = None,
    with_best: bool = True,
) -> Comparison:
    """Run `names` (default: all) on `trace`. `of_best` relates to the best of them and of the offline search.

    Raises StartupError for a name nobody bears, BrokenRule if a decider does what none may do.
    """
    rows: dict[str, Figures] = {}
    for name in names or CONTESTANTS:
        contestant = find(name)
        world = World(trace, contestant.build(trace, settings or Settings()))
        world.run()
        rows[contestant.label] = measure(world, slo_seconds)
    if with_best:
        worlds = [best_goodput(trace, slo_seconds), *steady_runs(trace, slo_seconds)]
        candidates = [measure(world, slo_seconds) for world in worlds]
        rows[BEST] = max([*rows.values(), *candidates], key=lambda figures: figures.goodput_per_hour)
        best = rows[BEST].goodput_per_hour
        rows = {
            label: replace(f, of_best=f.goodput_per_hour / best if best else 1.0) for label, f in rows.items()
        }
    return Comparison(trace.name, trace.seconds / 60.0, slo_seconds, rows)


def average(several: Iterable[Comparison]) -> Comparison:
    """The mean of each row over comparisons of the same contestants."""
    every = list(several)
    rows = {label: mean([one.rows[label] for one in every]) for label in every[0].rows}
    return replace(every[0], rows=rows)


def find(name: str) -> Contestant:
    """The contestant of that name; StartupError names those there are."""
    if name not in CONTESTANTS:
        raise StartupError(f"there is no policy {name!r}; there are {', '.join(CONTESTANTS)}")
    return CONTESTANTS[name]
