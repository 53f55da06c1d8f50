"""Random histories against a world in which devices really fill and processes really die.

Arrivals, hang-ups, crashes at every state, late and torn measurements, strangers, reloads, lost hosts:
after every event the oracle holds the scheduler to its promises, at the end nobody may still wait, and a
replay must give the same commands. `LLAMA_ROUTER_HISTORIES=20000` looks further than the 2,000 of every
check, from another seed each time.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.errors import ModelUnusable
from router.ids import Definition
from router.scheduler.policy import POLICIES
from router.scheduler.types import Priority, State
from tests.scheduler.oracle import Lease
from tests.scheduler.scenes import SCENES
from tests.scheduler.world import GIB, Scene, World, changed

WANTED = int(os.environ.get("LLAMA_ROUTER_HISTORIES", "0"))
HISTORIES = WANTED or 2000
PATIENT = settings(
    deadline=None,
    database=None,
    derandomize=not WANTED or WANTED < 2000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
)

Step = tuple[str, int, int]

#: How often each kind of step is drawn.
HOSTILE = (
    ["ask"] * 10
    + ["wait"] * 8
    + ["hang up"] * 2
    + ["crash", "stranger", "stranger", "lag", "sick", "look"]
    + ["unload", "reload", "lose", "adopt", "no room", "junk", "burst", "learn"]
)
PEACEFUL = ["plain ask", "plain ask", "plain burst", "stream", "wait", "wait", "hang up"]
BYTE = st.integers(0, 255)


def steps(kinds: list[str], longest: int) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(st.sampled_from(kinds), BYTE, BYTE), max_size=longest)


# --- what a step does ---


def take(world: World, step: Step) -> None:
    """Carry out one step; whatever it names that is not there makes it a pause."""
    kind, a, b = step
    _VERBS[kind](world, a, b)


def _ask(world: World, a: int, b: int) -> None:
    names = list(world.models)
    holds = (0.0, 0.13, 0.7, 1.9, 5.3, 17.0)
    choice = b // len(holds)
    world.ask(
        names[a % len(names)],
        holds[b % len(holds)],
        priority=(None, None, None, Priority.HIGH, Priority.LOW)[a // 16 % 5],
        keep_alive=(None, None, None, None, 0.0, 3.0, -1.0)[choice % 7],
        size=(None, None, 10.0, 1000.0)[choice % 4],
        timeout=(None, None, None, 2.1)[a // 32 % 4],
    )


def _burst(world: World, a: int, b: int) -> None:
    for number in range(2 + a // 64):
        _ask(world, (a + number * (1 + b // 128)) % 16, b % 64)


def _plain_ask(world: World, a: int, b: int) -> None:
    names = list(world.models)
    world.ask(names[a % len(names)], (0.1, 0.4, 1.1, 2.3)[b % 4])


def _plain_burst(world: World, a: int, b: int) -> None:
    for number in range(2 + a // 64):
        _plain_ask(world, a + number * (1 + b // 128), b)


def _stream(world: World, a: int, b: int) -> None:
    """Two clients in turn on one model, so that it is never idle: the next request overlaps the last."""
    names = list(world.models)
    name, left = names[a % len(names)], 4 + b // 8

    def again() -> None:
        nonlocal left
        left -= 1
        if left > 0:
            world.ask(name, 0.7, then=again)

    world.ask(name, 0.4, then=again)
    world.ask(name, 0.7, then=again)


def _wait(world: World, a: int, b: int) -> None:
    world.pass_time((0.0, 0.01, 0.1, 0.3, 0.9, 2.7, 7.3, 21.0)[a % 8])


def _hang_up(world: World, a: int, b: int) -> None:
    open_ = world.oracle.open_leases()
    if open_:
        world.hang_up(open_[a % len(open_)].id)


def _crash(world: World, a: int, b: int) -> None:
    alive = world.alive()
    if alive:
        world.crash(alive[a % len(alive)].instance)


def _stranger(world: World, a: int, b: int) -> None:
    devices = list(world.devices)
    world.take(devices[a % len(devices)], (b - 100) * GIB // 16)


def _lag(world: World, a: int, b: int) -> None:
    world.delivery_lag = (0.0, 0.2, 0.6, 1.4)[a % 4]


def _sick(world: World, a: int, b: int) -> None:
    devices = list(world.devices)
    world.sick ^= {devices[a % len(devices)]}


def _unload(world: World, a: int, b: int) -> None:
    names = list(world.models)
    world.unload(names[a % len(names)], force=b % 3 == 0, deadline=(None, 0.5, 4.0)[b // 3 % 3])


def _reload(world: World, a: int, b: int) -> None:
    names = list(world.models)
    name = names[a % len(names)]
    models = dict(world.models)
    devices = None
    match b % 6:
        case 0:
            models[name] = changed(models[name], Definition(models[name].definition.hash + "'"))
        case 1 if len(names) > 2:
            del models[name]
        case 2:
            models[name] = replace(models[name], ttl=None if b % 12 == 2 else 5.0)
        case 3:
            broken = Definition(models[name].definition.hash + "!")
            models[name] = changed(models[name], broken, error=ModelUnusable("its file is gone"))
        case 4:
            margin = GIB * (1 + b % 5) // 2
            devices = tuple(replace(d, margin=margin if d.margin else 0) for d in world.devices.values())
        case _:
            models |= {n: m for n, m in world.scene.models.items() if n not in models}
    world.reload(models, devices)


def _lose(world: World, a: int, b: int) -> None:
    hosts = sorted({device.host for device in world.devices.values()})
    world.lose(hosts[a % len(hosts)])


def _adopt(world: World, a: int, b: int) -> None:
    names = [name for name, m in world.models.items() if m.placements and m.error is None]
    name = names[a % len(names)]
    if any(child.model == name for child in world.alive()):
        return
    placements = world.models[name].placements
    place = placements[b % len(placements)]
    if all(world.true_free(device) >= need for device, need in place.footprint.items()):
        world.adopt(name, place, stale=b % 5 == 0)


def _no_room(world: World, a: int, b: int) -> None:
    world.refuse_next_start = True


def _junk(world: World, a: int, b: int) -> None:
    world.hang_up(f"unheard-of-{a}")


def _learn(world: World, a: int, b: int) -> None:
    names = list(world.models)
    world.learn(names[a % len(names)])


def _look(world: World, a: int, b: int) -> None:
    world.look()


_VERBS: dict[str, Callable[[World, int, int], None]] = {
    "ask": _ask,
    "burst": _burst,
    "plain ask": _plain_ask,
    "plain burst": _plain_burst,
    "stream": _stream,
    "wait": _wait,
    "hang up": _hang_up,
    "crash": _crash,
    "stranger": _stranger,
    "lag": _lag,
    "sick": _sick,
    "unload": _unload,
    "reload": _reload,
    "lose": _lose,
    "adopt": _adopt,
    "no room": _no_room,
    "junk": _junk,
    "look": _look,
    "learn": _learn,
}


def live_through(scene: Scene, policy: str, history: list[Step]) -> World:
    """Carry out the steps, end the trouble, and run on until every lease is answered and over."""
    world = World(scene, policy)
    for step in history:
        take(world, step)
    world.sick.clear()
    world.delivery_lag = 0.0
    longest = max((lease.hold for lease in world.oracle.leases.values()), default=0.0)
    world.run_until_quiet(scene.settings.queue_timeout + scene.settings.unload_deadline + longest + 30.0)
    return world


# --- what must hold ---


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_any_history_keeps_every_promise(policy: str) -> None:
    @settings(PATIENT, max_examples=max(1, HISTORIES * 17 // 20 // len(POLICIES)))
    @given(st.sampled_from(SCENES), steps(HOSTILE, 24))
    def any_history(make_scene: Callable[[], Scene], history: list[Step]) -> None:
        world = live_through(make_scene(), policy, history)
        assert all(lease.state in ("over", "left", "refused") for lease in world.oracle.leases.values())
        settled = {view.state for view in world.scheduler.snapshot(world.now).instances}
        assert settled <= {State.READY}, world.story()
        world.replay()

    any_history()


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"no-evict", "ttl"}))
def test_with_honest_children_and_finite_service_everybody_is_served_in_bounded_time(policy: str) -> None:
    @settings(PATIENT, max_examples=max(1, HISTORIES * 3 // 20 // 3))
    @given(st.sampled_from(SCENES), steps(PEACEFUL, 16))
    def any_peaceful_history(make_scene: Callable[[], Scene], history: list[Step]) -> None:
        world = live_through(peaceful(make_scene()), policy, history)
        for lease in world.oracle.leases.values():
            assert lease.state in ("over", "left"), f"{lease}\n{world.story()}"
            waited = (lease.answered_at or 0.0) - lease.asked_at
            assert lease.state == "left" or waited <= longest_wait(world, lease), (
                f"{lease} waited {waited}\n{world.story()}"
            )
        world.replay()

    any_peaceful_history()


def peaceful(scene: Scene) -> Scene:
    """Only models that can be loaded, children that do as promised, and all the patience in the world."""
    models = {
        name: model
        for name, model in scene.models.items()
        if model.error is None and name not in ("huge", "flaky", "liar")
    }
    natures = {name: replace(scene.natures[name], fails=0) for name in models}
    patient = replace(scene.settings, queue_timeout=5000.0, queue_limit=1000)
    return replace(scene, models=models, natures=natures, settings=patient)


def longest_wait(world: World, lease: Lease) -> float:
    """Each rival may serve for a quantum, end what it has begun, leave, and give its memory back before
    the next one loads.
    """
    load = max(nature.load_seconds for nature in world.natures.values())
    gone = max(nature.stop_seconds + nature.return_seconds for nature in world.natures.values())
    hold = max(one.hold for one in world.oracle.leases.values())
    weight = (lease.priority or world.models[lease.model].priority).weight
    turn = world.scene.settings.quantum * (hold + load) / min(weight, 1.0) + hold + gone + load + 1.0
    return turn * len(world.models)


def test_the_order_of_sets_decides_nothing() -> None:
    """Two processes whose strings hash differently give the same commands for the same histories."""
    answers = {_fingerprint_elsewhere(seed) for seed in ("1", "2")}
    assert len(answers) == 1


def _fingerprint_elsewhere(hash_seed: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "tests.scheduler.test_histories"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def fingerprint(histories: int) -> str:
    """One number for all commands of some random histories."""
    luck, seen = random.Random(42), sha256()
    for number in range(histories):
        policy = sorted(POLICIES)[number % len(POLICIES)]
        drawn = [(luck.choice(HOSTILE), luck.randrange(256), luck.randrange(256)) for _ in range(16)]
        world = live_through(SCENES[number % len(SCENES)](), policy, drawn)
        for _, now, commands in world.history:
            seen.update(f"{now} {commands}".encode())
    return seen.hexdigest()


if __name__ == "__main__":
    print(fingerprint(25))
