"""The machines and catalogs on which histories take place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.errors import ModelUnusable
from router.ids import Definition
from router.scheduler.scheduler import Settings
from router.scheduler.types import Device, Model, Placement, Priority, host_of
from tests.scheduler.world import GIB, Nature, Scene

#: Short waits, so that a history sees them end.
BRISK = Settings(
    queue_limit=12, queue_timeout=40.0, quantum=3.0, recovery=4.0, external_memory_wait=5.0, backoff_max=8.0
)


def device(name: str, total: float, margin: float = 1.0) -> Device:
    return Device(name, int(total * GIB), int(margin * GIB))


def on(*, tier: int = 0, **gib: float) -> Placement:
    """A placement on host `local`: on(gpu0=6, host=1)."""
    return placed({f"local/{name}": amount for name, amount in gib.items()}, tier)


def placed(gib: Mapping[str, float], tier: int = 0) -> Placement:
    sizes = {name: int(amount * GIB) for name, amount in gib.items()}
    return Placement(host_of(next(iter(sizes))), sizes, tuple(sizes), tier=tier)


def model(name: str, *placements: Placement, load: float = 2.0, **more: object) -> Model:
    return Model(name, placements, definition=Definition("1"), load_seconds=load, **more)  # type: ignore[arg-type]


def scene(
    name: str,
    devices: tuple[Device, ...],
    models: tuple[Model, ...],
    *,
    settings: Settings = BRISK,
    **natures: Nature,
) -> Scene:
    """Children do as their model expects unless `natures` says otherwise."""
    known = {m.name: natures.get(m.name, Nature(load_seconds=m.load_seconds)) for m in models}
    return Scene(name, devices, {m.name: m for m in models}, known, settings)


def one_gpu() -> Scene:
    """Three equal models of which two fit, a big one, one that is too big, broken ones and a liar."""
    return scene(
        "one gpu",
        (device("local/gpu0", 24),),
        (
            model("a", on(gpu0=8), load=1.3),
            model("b", on(gpu0=8), load=1.3),
            model("c", on(gpu0=8), load=1.3),
            model("big", on(gpu0=20), load=3.7),
            model("small", on(gpu0=3), load=0.4),
            model("huge", on(gpu0=23.5)),
            model("gone", on(gpu0=4), error=ModelUnusable("its file is gone")),
            model("flaky", on(gpu0=5)),
            model("liar", on(gpu0=6)),
            model("thrifty", on(gpu0=9), load=1.1),
        ),
        settings=replace(BRISK, evict_on_memory_pressure=True),
        thrifty=Nature(load_seconds=1.1, need=0.6),
        a=Nature(load_seconds=1.3, return_seconds=1.1),
        flaky=Nature(load_seconds=1.0, fails=2),
        liar=Nature(load_seconds=0.9, overshoot=GIB // 4, grow_seconds=4.0),
        big=Nature(load_seconds=3.7, return_seconds=2.3, stop_seconds=0.7),
    )


def two_gpus() -> Scene:
    """Models that may live on either, across both, or on the host."""
    return scene(
        "two gpus",
        (device("local/gpu0", 24), device("local/gpu1", 16), device("local/host", 64, 4)),
        (
            model("a", on(gpu0=9), on(gpu1=9), load=1.1),
            model("b", on(gpu0=9), on(gpu1=9), load=1.1),
            model("c", on(gpu0=9), on(gpu1=9), load=1.1),
            model("split", on(gpu0=20, gpu1=12, host=1), load=3.3),
            model("either", on(gpu0=14), on(gpu1=14), on(tier=1, host=16), load=1.9),
            model("cpu", on(host=30), load=2.7),
            model("flaky", on(gpu0=5), on(gpu1=5)),
            model("liar", on(gpu1=7)),
            model("thrifty", on(gpu0=12), on(gpu1=12), load=1.1),
        ),
        thrifty=Nature(load_seconds=1.1, need=0.5, is_measured=True),
        b=Nature(load_seconds=1.1, return_seconds=1.7),
        split=Nature(load_seconds=3.3, return_seconds=3.1, stop_seconds=0.4),
        flaky=Nature(load_seconds=0.7, fails=1),
        liar=Nature(load_seconds=1.0, overshoot=GIB // 2),
    )


def two_hosts() -> Scene:
    """Two machines; nobody on one is cleared to make room on the other."""
    return scene(
        "two hosts",
        (device("local/gpu0", 16), device("far/gpu0", 24)),
        (
            model("near", on(gpu0=9), load=1.3),
            model("near2", on(gpu0=9), load=1.3),
            model("far", placed({"far/gpu0": 13}), load=1.7),
            model("any", on(gpu0=7), placed({"far/gpu0": 7}), load=0.9),
            model("big", placed({"far/gpu0": 22}), load=2.9),
        ),
        far=Nature(load_seconds=1.7, return_seconds=2.9),
    )


def counted() -> Scene:
    """No memory check, two models at a time: llama.cpp's own rule."""
    return scene(
        "counted",
        (device("local/gpu0", 24, 0.0),),
        tuple(model(name, on(gpu0=10), load=1.3) for name in "abcd"),
        settings=Settings(models_max=2, queue_limit=12, queue_timeout=40.0, quantum=3.0, backoff_max=8.0),
        c=Nature(load_seconds=1.3, fails=1),
    )


def house_rules() -> Scene:
    """Pinned, exclusive, replicated and of different priority."""
    return scene(
        "house rules",
        (device("local/gpu0", 24), device("local/gpu1", 24)),
        (
            model("pinned", on(gpu0=10), pinned=True, load=1.3),
            model("left", on(gpu0=6), on(gpu1=6), exclusive=frozenset({"x"}), load=1.1),
            model("right", on(gpu1=6), exclusive=frozenset({"x", "y"}), load=1.1),
            model("third", on(gpu0=6), exclusive=frozenset({"y"}), load=1.1),
            model("many", on(gpu0=5), on(gpu1=5), replica_max=3, target_inflight=2, load=0.9),
            model("twin", on(gpu1=4), replicas=2, replica_max=2, ttl=6.0, load=0.7),
            model("urgent", on(gpu0=13), on(gpu1=13), priority=Priority.HIGH, load=1.9),
            model("patient", on(gpu0=13), on(gpu1=13), priority=Priority.LOW, ttl=0.0, load=1.9),
        ),
    )


SCENES = (one_gpu, two_gpus, two_hosts, counted, house_rules)
