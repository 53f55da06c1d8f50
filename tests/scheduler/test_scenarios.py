"""What goes wrong elsewhere: one scenario per known bug of the peers, and the traffic that starves or
thrashes them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.errors import LoadFailed
from router.scheduler.scheduler import Settings
from router.scheduler.types import Start
from tests.scheduler.playbook import Table
from tests.scheduler.playbook import device as card
from tests.scheduler.playbook import model as known_model
from tests.scheduler.playbook import on as placed_on
from tests.scheduler.scenes import device, model, on, scene
from tests.scheduler.world import Nature, Scene, World

# --- one decision, one step ---


def test_a_victim_that_is_asked_for_again_is_not_revived_and_the_loader_does_not_hang() -> None:
    """ollama 17408: new requests revive the chosen victim, the loader waits for an unload that never
    comes.
    """
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("cold", "b")
    table.wait(16.1)
    for number in range(20):
        assert table.asks(f"hot{number}", "a", keep_alive=300.0) == []
        table.wait(0.1)
    assert table.ends("r1") == ["stop a: evicted for b"]
    assert table.asks("hot20", "a") == []
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant cold on b"]


def test_an_idle_time_that_ends_while_somebody_waits_for_the_room_stops_the_model_once() -> None:
    """llama-swap 946: a TTL timer stops the process behind the scheduler's back, the swap waits for ever
    on "stopping".
    """
    table = Table(gpu=10, policy="lru-ttl", ttl=10.0, a=6, b=6)
    table.serves("a")
    table.now += 10.0  # the timer is due, and b is asked for in the same moment
    assert table.asks("r1", "b") == ["stop a: expired"]
    assert table.wait(1.0) == []
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant r1 on b"]


def test_a_model_promised_to_a_waiter_does_not_look_idle_to_those_who_need_its_room() -> None:
    """httpcore 1110, llama.cpp 28698: what was just loaded for somebody is evicted before he is counted
    on it.
    """
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    table.asks("r2", "b")
    assert table.ready("a") == ["grant r1 on a"]
    assert table.ends("r1") == ["stop a: evicted for b"]
    assert table.asks("r3", "a") == []
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant r2 on b"]


def test_a_stop_that_takes_long_holds_up_nobody_but_those_who_need_the_room() -> None:
    """llama-swap: a child that ignores SIGTERM blocks requests for other models that are ready."""
    table = Table(gpu=14, a=6, b=6, small=2)
    table.serves("a")
    table.serves("small")
    table.unloads("a")
    table.wait(30.0)
    assert table.asks("r1", "small") == ["grant r1 on small"]
    assert table.asks("r2", "b") == ["start b"]


# --- who pays for whom ---


def test_a_client_that_hangs_up_in_the_queue_costs_nobody_a_model() -> None:
    """llama-swap: the other model is already evicted when the client leaves."""
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.wait(5.0)
    assert table.ends("r2") == []
    assert table.ends("r1") == []
    assert table.wait(1000.0) == []
    assert table.states() == ["a ready"]


def test_the_first_clients_patience_does_not_bound_the_load_of_all() -> None:
    """ollama 8006, 7408: the timeout of the client that caused the load aborts it, and the next one
    begins it again.
    """
    table = Table(gpu=10, a=6)
    table.asks("hasty", "a", timeout=5.0)
    table.asks("patient", "a", timeout=60.0)
    assert table.wait(10.0) == ["refuse hasty: WaitTimeout"]
    assert table.ready("a") == ["grant patient on a"]


def test_a_broken_model_evicts_at_most_once_before_it_is_known_to_be_broken() -> None:
    """llama-swap: a broken model evicts the good one, and each retry does it again."""
    table = Table(gpu=10, broken=6, good=6)
    table.serves("good", hold=0.1)
    assert table.asks("r1", "broken") == ["stop good: evicted for broken"]
    table.exits("good")
    assert table.exits("broken", LoadFailed("bad magic")) == ["refuse r1: LoadFailed"]
    assert table.asks("g1", "good") == ["start good.2"]
    assert table.ready("good.2") == ["grant g1 on good.2"]
    table.ends("g1")
    for number in range(5):
        assert table.asks(f"again{number}", "broken") == [f"refuse again{number}: LoadFailed"]
    assert table.state("good.2") == "ready"


def test_what_cannot_be_is_refused_before_anybody_is_evicted_for_it() -> None:
    table = Table(gpu=10, good=6, huge=11)
    table.serves("good")
    assert table.asks("r1", "huge") == ["refuse r1: ModelTooLarge"]
    assert table.state("good") == "ready"


def test_room_that_others_take_while_a_victim_leaves_is_seen_and_planned_anew() -> None:
    """ollama 9926 asks whether the victim's memory came back, and stalls when another program takes it
    meanwhile.
    """
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.serves("b")
    assert table.asks("r1", "c") == ["stop a: evicted for c"]
    table.strangers["local/gpu"] = 3 * 2**30
    assert table.exits("a") == ["stop b: evicted for c"]
    assert table.exits("b") == ["start c"]


def test_the_victim_is_the_least_recently_used_and_not_the_first_by_name() -> None:
    """ollama: with equal keep_alive the victim is simply alphabetical."""
    table = Table(gpu=12, alpha=6, omega=6, new=6)
    table.serves("omega")
    table.wait(1.0)
    table.serves("alpha")
    assert table.asks("r1", "new") == ["stop omega: evicted for new"]


def test_the_victim_is_on_the_device_that_is_short() -> None:
    """llama.cpp: LRU ignores the device, and may evict a model on the wrong GPU."""
    table = Table(
        devices=[card("gpu0", 10), card("gpu1", 10)],
        models=[
            known_model(n, placed_on(**{g: 6})) for n, g in (("a", "gpu0"), ("b", "gpu1"), ("c", "gpu1"))
        ],
    )
    table.serves("a")
    table.serves("b")
    assert table.asks("r1", "c") == ["stop b: evicted for c"]


# --- head of line ---


def test_a_big_load_on_one_gpu_does_not_hold_up_a_small_one_on_another() -> None:
    """ollama 14578 and llama.cpp: loads run one after the other though there is room for all."""
    table = Table(
        devices=[card("gpu0", 20), card("gpu1", 4)],
        models=[
            known_model("big", placed_on(gpu0=18), load=60.0),
            known_model("s1", placed_on(gpu1=2), load=0.1),
            known_model("s2", placed_on(gpu1=2), load=0.1),
        ],
    )
    assert table.asks("r1", "big") == ["start big"]
    assert table.asks("r2", "s1") == ["start s1"]
    assert table.asks("r3", "s2") == ["start s2"]


def test_who_cannot_get_in_does_not_hold_up_those_behind_who_can() -> None:
    table = Table(
        devices=[card("gpu0", 10), card("gpu1", 10)],
        models=[
            known_model("a", placed_on(gpu0=6)),
            known_model("stuck", placed_on(gpu0=6)),
            known_model("free", placed_on(gpu1=6)),
        ],
    )
    table.asks("r1", "a")
    table.ready("a")
    assert table.asks("r2", "stuck") == []
    assert table.asks("r3", "free") == ["start free"]


def test_requests_for_a_resident_model_never_stand_behind_those_for_another() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    table.ready("a")
    table.asks("r2", "b")
    assert table.asks("r3", "a") == ["grant r3 on a"]


# --- traffic ---


def contest(*, load: float, quantum: float = 8.0, places: int = 1, names: str = "ab") -> Scene:
    """Models that want the same room; there is room for `places` of them."""
    nature = Nature(load_seconds=load, stop_seconds=0.05, return_seconds=0.1)
    made = scene(
        "contest",
        (device("local/gpu0", 8 * places + 2),),
        tuple(model(name, on(gpu0=8), load=load) for name in names),
        settings=Settings(quantum=quantum),
        **dict.fromkeys(names, nature),
    )
    return replace(made, look_seconds=0.1)


def clients(world: World, name: str, *, count: int, hold: float, until: float) -> None:
    """Closed loops: each asks again as soon as it was answered."""

    def again() -> None:
        if world.now < until:
            world.ask(name, hold, then=again)

    for number in range(count):
        world.ask(name, hold * (number + 1) / count, then=again)


def starts(world: World) -> list[str]:
    return [c.model for _, _, commands in world.history for c in commands if isinstance(c, Start)]


def serving_share(world: World, end: float) -> float:
    """The share of the time until `end` in which somebody was being served."""
    spans = sorted(
        (lease.answered_at, min(end, lease.answered_at + lease.hold))
        for lease in world.oracle.leases.values()
        if lease.answered_at is not None and lease.answered_at < end
    )
    served, reached = 0.0, 0.0
    for begin, over in spans:
        served += max(0.0, over - max(begin, reached))
        reached = max(reached, over)
    return served / end


def test_a_request_gets_its_turn_against_two_endless_overlapping_streams() -> None:
    """llama-swap and llama.cpp: B is unanswered for as long as A's traffic lasts."""
    world = World(contest(load=1.5), "lru")
    clients(world, "a", count=2, hold=1.0, until=120.0)
    world.pass_time(10.0)
    lease = world.oracle.leases[world.ask("b", 1.0)]
    world.pass_time(110.0)
    assert lease.state == "over"
    quantum = 8.0 * (1.0 + 1.5)
    assert lease.answered_at is not None
    assert quantum <= lease.answered_at - lease.asked_at <= quantum + 1.0 + 0.15 + 0.3 + 1.5
    answered_later = [one for one in world.oracle.leases.values() if one.model == "a" and one.asked_at > 60.0]
    assert len(answered_later) > 50
    world.run_until_quiet(30.0)
    assert all(one.state == "over" for one in world.oracle.leases.values())


def test_two_closed_loops_that_want_the_same_room_spend_little_time_swapping() -> None:
    """llama-swap: 4 clients on A and 4 on B, 0.25 s answers and 0.3 s loads, swap about 80 % of the time."""
    world = World(contest(load=0.3), "lru")
    for name in "ab":
        clients(world, name, count=4, hold=0.25, until=120.0)
    world.pass_time(120.0)
    assert serving_share(world, 120.0) > 0.85
    answers = [
        sum(1 for one in world.oracle.leases.values() if one.model == name and one.state == "over")
        for name in "ab"
    ]
    assert min(answers) > 0.8 * max(answers)
    world.run_until_quiet(30.0)


@pytest.mark.parametrize("policy", ["lru", "lru-ttl", "cost"])
def test_every_one_of_four_endless_streams_is_served_again_and_again(policy: str) -> None:
    world = World(contest(load=0.5, names="abcd", places=2), policy)
    for name in "abcd":
        clients(world, name, count=2, hold=0.5, until=300.0)
    world.pass_time(300.0)
    turn = 8.0 * (0.5 + 0.5) + 0.5 + 0.35 + 0.5
    for one in world.oracle.leases.values():
        if one.answered_at is not None:
            assert one.answered_at - one.asked_at <= 3 * turn
    assert serving_share(world, 300.0) > 0.85


def test_three_requests_each_for_two_models_that_do_not_fit_together_cost_one_swap() -> None:
    world = World(contest(load=1.0), "lru")
    for name in "ababab":
        world.ask(name, 0.5)
    world.run_until_quiet(60.0)
    assert starts(world) == ["a", "b"]
    assert all(one.state == "over" for one in world.oracle.leases.values())


def test_three_models_in_room_for_two_cost_one_swap() -> None:
    world = World(contest(load=1.0, names="abc", places=2), "lru")
    for name in "abcabcabc":
        world.ask(name, 0.5)
    world.run_until_quiet(60.0)
    assert starts(world) == ["a", "b", "c"]


def test_alternating_requests_that_arrive_while_the_other_is_served_are_gathered() -> None:
    world = World(contest(load=1.0), "lru")
    for _ in range(8):
        for name in "ab":
            world.ask(name, 0.4)
            world.pass_time(0.2)
    world.run_until_quiet(120.0)
    assert len(starts(world)) <= 4  # a router that swaps per request loads 16 times
    assert all(one.state == "over" for one in world.oracle.leases.values())


def test_six_requests_at_once_for_one_model_cost_one_load() -> None:
    world = World(contest(load=1.0), "lru")
    for _ in range(6):
        world.ask("a", 0.5)
    world.run_until_quiet(60.0)
    assert starts(world) == ["a"]
