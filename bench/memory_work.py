"""The work of one seed of `memory_seeds`: which models there are, what they really take, who asks for them
and when, and what else happens on the machine. Drawn from the seed alone; nothing runs here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from router.ids import Definition
from router.scheduler.types import Device, DeviceId, Model, Placement
from tests.stub_nvml.state import StubGpu

MIB, GIB = 1 << 20, 1 << 30

#: Three cards of different size, each with what its driver keeps for itself.
GPUS = (
    StubGpu("GPU-24", "NVIDIA Stub 24", "00000000:01:00.0", 24 * GIB, 512 * MIB),
    StubGpu("GPU-16", "NVIDIA Stub 16", "00000000:02:00.0", 16 * GIB, 384 * MIB),
    StubGpu("GPU-8", "NVIDIA Stub 8", "00000000:03:00.0", 8 * GIB, 256 * MIB),
)
MARGIN_MIB = 1024
#: A program that comes unannounced takes no more than this: less than the margin, which is there for that.
BITE_MIB = 700

#: What a model needs when it lies in equal or unequal shares on some devices: bytes of each.
Needs = Callable[["Appetite", Sequence[float]], list[int]]


@dataclass(frozen=True, slots=True)
class Appetite:
    """What a model really takes, in MiB. `weights` and `kv` are divided among its devices; `compute`,
    `context` and `growth` (at the first request) are taken on each. `excess` is by how much the estimate of
    it is too high: one that is too low is what learned footprints are for, and not in question here."""

    weights: int
    kv: int
    compute: int
    context: int
    growth: int
    excess: float

    def loaded(self, shares: Sequence[float]) -> list[int]:
        """MiB on each device once it is ready."""
        return [int((self.weights + self.kv) * s) + self.compute + self.context for s in shares]

    def estimated(self, shares: Sequence[float]) -> list[int]:
        """Bytes to be reserved on each device."""
        return [math.ceil((mib + self.growth) * (1 + self.excess)) * MIB for mib in self.loaded(shares)]

    def file_size(self, shares: Sequence[float]) -> list[int]:
        """Bytes of the file on each device: what a router reserves that knows nothing else."""
        return [math.ceil(self.weights * s) * MIB for s in shares]


@dataclass(frozen=True, slots=True)
class Work:
    """`asked` are requests (at, model, tokens, hung up after or None), `taken` what other programs take (at,
    device index, MiB or None for all that is to spare, seconds), `killed` and `unloaded` when that happens to
    somebody. Times are seconds from the start."""

    appetites: Mapping[str, Appetite]
    load_seconds: Mapping[str, float]
    lag_ms: int
    asked: Sequence[tuple[float, str, int, float | None]]
    taken: Sequence[tuple[float, int, int | None, float]]
    killed: Sequence[float]
    unloaded: Sequence[float]


def draw(seed: int, *, seconds: float = 5.0, requests: int = 80) -> Work:
    luck = random.Random(seed)
    appetites = {f"m{i}": _appetite(luck, is_big=i % 6 == 5) for i in range(luck.randint(9, 12))}
    names = list(appetites)
    luck.shuffle(names)
    popularity = [1 / (1 + rank) ** 0.7 for rank in range(len(names))]
    asked = [
        (
            luck.uniform(0, seconds),
            luck.choices(names, popularity)[0],
            luck.randint(1, 8),
            luck.uniform(0.05, 1.5) if luck.random() < 0.08 else None,
        )
        for _ in range(requests)
    ]
    bites = [bite for device in range(len(GPUS)) for bite in _bites(luck, device, seconds)]
    feasts = [
        (luck.uniform(0, seconds), luck.randrange(len(GPUS)), None, luck.uniform(0.3, 1.2)) for _ in range(3)
    ]
    return Work(
        appetites,
        {name: luck.uniform(0.1, 0.6) for name in names},
        luck.choice((0, 50, 150, 400)),
        sorted(asked),
        sorted([*bites, *feasts], key=lambda one: one[0]),
        sorted(luck.uniform(0, seconds) for _ in range(luck.randint(1, 3))),
        sorted(luck.uniform(0, seconds) for _ in range(luck.randint(1, 3))),
    )


def _bites(luck: random.Random, device: int, seconds: float) -> Iterator[tuple[float, int, int, float]]:
    """One after the other: two at a time could take more than the margin."""
    at = luck.uniform(0, seconds / 3)
    while at < seconds:
        lasts = luck.uniform(0.2, 1)
        yield at, device, luck.randint(200, BITE_MIB), lasts
        at += lasts + 2 + luck.uniform(0, seconds / 3)  # 2: the last has ended by then, on a slow machine too


def _appetite(luck: random.Random, *, is_big: bool) -> Appetite:
    weights = luck.uniform(17, 24) * 1024 if is_big else 1024 * math.exp(luck.uniform(0, math.log(13)))
    return Appetite(
        weights=int(weights),
        kv=int(weights * luck.uniform(0.05, 0.3 if is_big else 0.5)),
        compute=luck.randint(100, 500),
        context=luck.randint(250, 550),
        growth=luck.randint(0, 400),
        excess=luck.uniform(0, 0.05),
    )


def model(
    name: str, appetite: Appetite, devices: Sequence[Device], needs: Needs, load_seconds: float
) -> Model:
    """As the estimate offers it: every single device that can hold it, else the fewest that can together."""
    for count in range(1, len(devices) + 1):
        found = tuple(_placements(appetite, devices, count, needs))
        if found:
            return Model(name, found, definition=Definition(name), load_seconds=load_seconds)
    raise AssertionError(f"{name} is too large for all devices together: {appetite}")


def shares(devices: Sequence[DeviceId], totals: Mapping[DeviceId, int]) -> list[float]:
    """Several devices hold a model in proportion to their sizes."""
    whole = sum(totals[device] for device in devices)
    return [totals[device] / whole for device in devices]


def _placements(
    appetite: Appetite, devices: Sequence[Device], count: int, needs: Needs
) -> Iterator[Placement]:
    totals = {device.id: device.total for device in devices}
    for chosen in combinations(devices, count):
        ids = tuple(device.id for device in chosen)
        sizes = needs(appetite, shares(ids, totals))
        if all(size + device.margin <= device.total for size, device in zip(sizes, chosen, strict=True)):
            yield Placement("local", dict(zip(ids, sizes, strict=True)), ids)
