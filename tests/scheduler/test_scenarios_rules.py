"""Policies, limits and house rules; failures; what operators and reloads do."""

from __future__ import annotations

import pytest

from router.errors import LoadFailed, ModelUnusable, UpstreamFailed
from router.ids import Definition
from router.scheduler.types import Closed, Device, Learned, Model, Reloaded
from tests.scheduler.playbook import GIB, Table, at, device, model, on

# --- policies ---


def test_no_evict_refuses_at_once_and_starts_nothing() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=6)
    table.serves("a")
    assert table.asks("r1", "b") == ["refuse r1: NoRoom"]
    assert table.errors["r1"].status == 503
    assert table.errors["r1"].retry_after_seconds
    assert table.states() == ["a ready"]


def test_no_evict_waits_for_memory_that_is_coming() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=6)
    table.serves("a")
    table.unloads("a")
    assert table.asks("r1", "b") == []
    assert table.exits("a") == ["start b"]


def test_under_ttl_nobody_is_evicted_and_a_request_waits_for_an_expiry() -> None:
    table = Table(gpu=10, policy="ttl", ttl=30.0, a=6, b=6)
    table.serves("a")
    assert table.asks("r1", "b") == []
    assert table.wait(29.9) == []
    assert table.wait(0.2) == ["stop a: expired"]
    assert table.exits("a") == ["start b"]


def test_an_idle_model_expires_exactly_after_its_ttl() -> None:
    table = Table(gpu=10, policy="lru-ttl", ttl=30.0, a=6)
    table.serves("a")
    assert table.scheduler.next_deadline() == pytest.approx(table.now + 30.0)
    assert table.wait(29.99) == []
    assert table.wait(0.02) == ["stop a: expired"]


def test_a_model_in_use_does_not_expire_and_each_use_begins_the_time_anew() -> None:
    table = Table(gpu=10, policy="ttl", ttl=30.0, a=6)
    table.serves("a")
    table.wait(29.0)
    table.asks("r1", "a")
    assert table.wait(100.0) == []
    table.ends("r1")
    assert table.wait(29.9) == []
    assert table.wait(0.2) == ["stop a: expired"]


def test_what_is_due_is_done_with_the_first_event_that_comes_if_the_timer_is_late() -> None:
    quick, stays = model("quick", on(gpu=3), ttl=5.0), model("stays", on(gpu=3), ttl=-1.0)
    table = Table(gpu=10, models=[quick, stays])
    table.serves("quick")
    table.serves("stays")
    table.now += 6.0
    assert table.asks("r1", "stays") == ["grant r1 on stays", "stop quick: expired"]


def test_what_is_due_is_done_with_the_end_of_a_request_if_that_comes_first() -> None:
    quick, stays = model("quick", on(gpu=3), ttl=5.0), model("stays", on(gpu=3), ttl=-1.0)
    table = Table(gpu=10, models=[quick, stays])
    table.serves("quick")
    table.serves("stays")
    table.asks("r1", "stays")
    table.asks("r2", "stays")
    table.now += 6.0
    assert table.ends("r1") == ["stop quick: expired"]


def test_lru_ttl_evicts_as_well_as_expires() -> None:
    table = Table(gpu=10, policy="lru-ttl", ttl=30.0, a=6, b=6)
    table.serves("a")
    assert table.asks("r1", "b") == ["stop a: evicted for b"]


def test_a_models_own_ttl_overrides_the_policys() -> None:
    quick, stays = model("quick", on(gpu=3), ttl=5.0), model("stays", on(gpu=3), ttl=-1.0)
    table = Table(gpu=10, policy="ttl", ttl=30.0, models=[quick, stays])
    table.serves("quick")
    table.serves("stays")
    assert table.wait(6.0) == ["stop quick: expired"]
    assert table.wait(1000.0) == []


def test_a_ttl_works_under_a_policy_that_has_none() -> None:
    table = Table(gpu=10, policy="lru", models=[model("a", on(gpu=3), ttl=5.0)])
    table.serves("a")
    assert table.wait(5.1) == ["stop a: expired"]


def test_keep_alive_of_a_request_overrides_the_ttl_from_then_on() -> None:
    table = Table(gpu=10, policy="ttl", ttl=30.0, a=6)
    table.serves("a")
    table.asks("r1", "a", keep_alive=100.0)
    table.ends("r1")
    assert table.wait(99.9) == []
    assert table.wait(0.2) == ["stop a: expired"]


def test_keep_alive_zero_unloads_as_soon_as_the_last_request_is_over() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    table.asks("r2", "a", keep_alive=0.0)
    assert table.ends("r2") == []
    assert table.ends("r1") == ["stop a: expired"]


def test_keep_alive_below_zero_keeps_it_until_somebody_needs_the_room() -> None:
    table = Table(gpu=10, policy="lru-ttl", ttl=5.0, a=6, b=6)
    table.serves("a")
    table.asks("r1", "a", keep_alive=-1.0)
    table.ends("r1")
    assert table.wait(1000.0) == []
    assert table.asks("r2", "b") == ["stop a: evicted for b"]


def test_a_model_that_leaves_as_soon_as_it_is_idle_serves_its_waiters_first() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), ttl=0.0)])
    table.asks("r1", "a")
    table.asks("r2", "a")
    assert table.ready("a") == ["grant r1 on a", "grant r2 on a"]
    assert table.ends("r1") == []
    assert table.ends("r2") == ["stop a: expired"]


def test_a_model_that_leaves_as_soon_as_it_is_idle_leaves_when_all_its_waiters_left() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), ttl=0.0)])
    table.asks("r1", "a")
    table.ends("r1")
    assert table.ready("a") == ["stop a: expired"]


def test_cost_evicts_what_is_cheapest_to_have_again_though_it_was_used_last() -> None:
    dear, cheap = model("dear", on(gpu=6), load=60.0), model("cheap", on(gpu=6), load=1.0)
    table = Table(gpu=12, policy="cost", models=[dear, cheap], new=6)
    table.asks("r1", "dear")
    table.wait(60.0)
    table.ready("dear")
    table.ends("r1")
    table.asks("r2", "cheap")
    table.wait(1.0)
    table.ready("cheap")
    table.ends("r2")
    assert table.asks("r3", "new") == ["stop cheap: evicted for new"]


def test_cost_takes_two_cheap_ones_rather_than_a_dear_one() -> None:
    loads = {"dear": 90.0, "x": 2.0, "y": 3.0}
    sizes = {"dear": 6, "x": 3, "y": 3}
    models = [model(name, on(gpu=sizes[name]), load=loads[name]) for name in loads]
    table = Table(gpu=12, policy="cost", models=models, new=6)
    for name, seconds in loads.items():
        table.asks(f"of {name}", name)
        table.wait(seconds)
        table.ready(name)
        table.ends(f"of {name}")
    assert sorted(table.asks("r", "new")) == ["stop x: evicted for new", "stop y: evicted for new"]


def test_cost_keeps_what_is_asked_for_often() -> None:
    table = Table(
        gpu=12, policy="cost", models=[model(n, on(gpu=6), load=10.0) for n in ("often", "rare")], new=6
    )
    for name, times in (("often", 20), ("rare", 1)):
        table.asks(f"first {name}", name)
        table.wait(10.0)
        table.ready(name)
        table.ends(f"first {name}")
        for number in range(times):
            table.wait(12.0)
            table.asks(f"{name}{number}", name)
            table.ends(f"{name}{number}")
    table.wait(60.0)
    assert table.asks("r", "new") == ["stop rare: evicted for new"]


# --- house rules ---


def test_a_pinned_model_is_never_evicted_and_never_expires() -> None:
    pinned = model("p", on(gpu=6), pinned=True, ttl=5.0)
    table = Table(gpu=12, policy="lru-ttl", ttl=5.0, models=[pinned], a=6, b=6)
    table.serves("p")
    assert table.wait(100.0) == []
    table.asks("keeps", "a", keep_alive=-1.0)
    table.ready("a")
    table.ends("keeps")
    assert table.asks("r1", "b") == ["stop a: evicted for b"]
    assert table.state("p") == "ready"


def test_where_only_a_pinned_model_is_in_the_way_the_answer_comes_at_once() -> None:
    table = Table(gpu=10, models=[model("p", on(gpu=6), pinned=True)], b=6)
    table.serves("p")
    assert table.asks("r1", "b") == ["refuse r1: NoRoom"]
    assert "pinned" in table.errors["r1"].message


def test_models_that_exclude_each_other_are_never_there_at_once_though_both_would_fit() -> None:
    left, right = (model(name, on(gpu=2), exclusive=frozenset({"voice"})) for name in ("left", "right"))
    table = Table(gpu=10, models=[left, right], other=2)
    table.serves("left")
    table.serves("other")
    assert table.asks("r1", "right") == ["stop left: evicted for right"]
    assert table.measure() == []
    assert table.exits("left") == ["start right"]


def test_a_rival_in_use_is_drained_after_its_quantum_like_anybody() -> None:
    left, right = (model(name, on(gpu=2), exclusive=frozenset({"voice"})) for name in ("left", "right"))
    table = Table(gpu=10, models=[left, right])
    table.serves("left")
    table.wait(100.0)
    table.asks("r1", "left")
    assert table.asks("r2", "right") == []
    table.wait(16.1)
    assert table.states() == ["left draining", "right planned"]
    assert table.ends("r1") == ["stop left: evicted for right"]


def test_no_more_models_than_allowed_are_there_at_once_loading_and_leaving_ones_included() -> None:
    table = Table(gpu=100, a=1, b=1, c=1, settings={"models_max": 2})
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "b") == ["start b"]
    assert table.asks("r3", "c") == []
    table.ready("a")
    assert table.ends("r1") == ["stop a: evicted for c"]
    assert table.measure() == []
    assert table.exits("a") == ["start c"]


def test_a_further_replica_comes_when_all_are_full_and_requests_go_to_the_least_loaded() -> None:
    table = Table(gpu=20, models=[model("a", on(gpu=4), replica_max=3, target_inflight=2)])
    table.asks("r1", "a")
    table.ready("a")
    assert table.asks("r2", "a") == ["grant r2 on a", "start a.2"]
    assert table.asks("r3", "a") == ["grant r3 on a"]
    assert table.ready("a.2") == []
    assert table.asks("r4", "a") == ["grant r4 on a.2"]
    assert table.asks("r5", "a") == ["grant r5 on a.2", "start a.3"]
    table.ready("a.3")
    assert [table.asks(f"s{n}", "a")[0] for n in range(2)] == ["grant s0 on a.3", "grant s1 on a.3"]
    assert table.asks("s2", "a") == ["grant s2 on a.2"]  # three is the most there may be


def test_replicas_that_are_wanted_from_the_start_follow_the_first() -> None:
    table = Table(gpu=20, models=[model("a", on(gpu=4), replicas=2, replica_max=2)])
    assert table.asks("r1", "a") == ["start a"]
    assert table.ready("a") == ["grant r1 on a", "start a.2"]
    assert table.ready("a.2") == []
    assert table.wait(10.0) == []


def test_of_two_that_were_replicas_the_least_loaded_is_asked_also_when_none_is_wanted_any_more() -> None:
    table = Table(gpu=20, models=[model("a", on(gpu=4), replicas=2, replica_max=2)])
    table.asks("r1", "a")
    table.ready("a")
    table.ready("a.2")
    table.ends("r1")
    table.reloads(model("a", on(gpu=4)))
    granted = [table.asks(f"r{number}", "a") for number in (2, 3, 4, 5)]
    assert granted == [[f"grant r{number} on a{'' if number % 2 == 0 else '.2'}"] for number in (2, 3, 4, 5)]


def test_a_replica_evicts_nobody() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=4), replicas=2, replica_max=2)], b=4)
    table.serves("b")
    table.asks("r1", "a")
    assert table.ready("a") == ["grant r1 on a"]
    assert table.wait(1000.0) == []
    assert table.state("b") == "ready"


def test_a_spare_replica_leaves_for_another_model_before_a_model_that_has_but_one() -> None:
    table = Table(gpu=12, models=[model("a", on(gpu=4), replicas=2, replica_max=2)], b=4, c=4)
    table.serves("b")
    table.wait(100.0)
    table.asks("r1", "a")
    table.ready("a")
    table.ready("a.2")
    table.wait(1.0)
    table.ends("r1")
    assert table.asks("r2", "c") == ["stop a.2: evicted for c"]


def test_a_replica_its_host_refuses_waits_for_the_next_look() -> None:
    table = Table(gpu=20, models=[model("a", on(gpu=4), replicas=2, replica_max=2)])
    table.asks("r1", "a")
    table.ready("a")
    assert table.exits("a.2", no_room=True, returns=False) == []
    table.wait(0.5)
    assert table.measure() == ["start a.3"]


# --- bounds of the queue ---


def test_a_full_queue_refuses_with_a_time_to_retry_and_those_served_do_not_count() -> None:
    table = Table(gpu=10, a=6, b=6, settings={"queue_limit": 2})
    table.asks("r0", "a")
    table.ready("a")
    assert table.asks("r1", "b") == table.asks("r2", "b") == []
    assert table.asks("r3", "b") == ["refuse r3: QueueFull"]
    assert table.errors["r3"].status == 429
    assert table.errors["r3"].retry_after_seconds
    assert table.asks("r4", "a") == ["grant r4 on a"]
    table.ends("r1")
    assert table.asks("r5", "b") == []


def test_a_wait_ends_at_its_deadline_and_says_what_it_was_for() -> None:
    table = Table(gpu=10, a=6, b=6, settings={"queue_timeout": 30.0, "quantum": 1000.0})
    table.serves("a")
    table.asks("r1", "a")
    table.wait(20.0)
    table.asks("r2", "b", timeout=10.0)
    assert table.wait(9.99) == []
    assert table.wait(0.02) == ["refuse r2: WaitTimeout"]
    assert "a" in table.errors["r2"].message
    assert table.errors["r2"].retry_after_seconds
    table.asks("r3", "a")
    assert table.wait(100.0) == []  # who is served has no deadline


def test_a_wait_without_a_wish_has_the_deadline_of_the_settings() -> None:
    table = Table(gpu=10, a=6, settings={"queue_timeout": 30.0})
    table.asks("r1", "a")
    assert table.wait(29.99) == []
    assert table.wait(0.02) == ["refuse r1: WaitTimeout"]
    assert table.ready("a") == []


def test_with_nothing_to_wait_for_there_is_no_timer() -> None:
    table = Table(gpu=10, a=6)
    assert table.scheduler.next_deadline() is None
    table.serves("a")
    assert table.wait(1000.0) == []
    assert table.scheduler.next_deadline() is None


# --- refused before anybody suffers ---


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    table = Table(gpu=10, qwen=6)
    assert table.asks("r1", "qwem") == ["refuse r1: ModelNotFound"]
    assert "'qwen'" in table.errors["r1"].message


def test_a_model_that_cannot_be_loaded_is_refused_with_its_own_error_and_evicts_nobody() -> None:
    broken = ModelUnusable("broken.gguf is not there")
    table = Table(gpu=10, a=6, models=[model("b", on(gpu=6), error=broken)])
    table.serves("a")
    assert table.asks("r1", "b") == ["refuse r1: ModelUnusable"]
    assert table.errors["r1"] is broken
    assert table.state("a") == "ready"


# --- failures ---


def test_all_who_waited_for_a_load_learn_why_it_failed() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.asks("r2", "a")
    cause = LoadFailed("exit status 1: bad magic", details={"log": ["bad magic"]})
    assert table.exits("a", cause) == ["refuse r1: LoadFailed", "refuse r2: LoadFailed"]
    assert "bad magic" in table.errors["r1"].message
    assert table.errors["r1"].details["log"] == ["bad magic"]
    assert table.errors["r1"].retry_after_seconds == pytest.approx(1.0)


def test_a_model_that_keeps_failing_is_tried_less_and_less_often() -> None:
    table = Table(gpu=10, a=6, settings={"backoff_initial": 1.0, "backoff_max": 5.0})
    for number, pause in enumerate((1.0, 2.0, 4.0, 5.0, 5.0), 1):
        name = "a" if number == 1 else f"a.{number}"
        assert table.asks(f"r{number}", "a") == [f"start {name}"]
        table.fails(name)
        table.wait(pause - 0.01)
        assert table.asks(f"early{number}", "a") == [f"refuse early{number}: LoadFailed"]
        assert table.errors[f"early{number}"].retry_after_seconds == pytest.approx(0.01)
        table.wait(0.02)


def test_during_the_back_off_nobody_is_evicted_for_the_broken_model() -> None:
    table = Table(gpu=10, broken=6, good=6)
    table.asks("r1", "broken")
    table.fails("broken")
    table.serves("good", hold=0.5)
    assert table.asks("r2", "broken") == ["refuse r2: LoadFailed"]
    assert table.state("good") == "ready"


def test_a_request_that_is_answered_ends_the_back_off() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.fails("a")
    table.wait(1.1)
    table.asks("r2", "a")
    table.ready("a.2")
    table.ends("r2")
    table.exits("a.2", UpstreamFailed("died by signal 9"))
    assert table.asks("r3", "a") == ["start a.3"]


def test_a_child_that_dies_before_it_has_answered_anybody_counts_as_a_failed_load() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.ready("a")
    table.exits("a", UpstreamFailed("died by signal 11"))
    assert table.asks("r2", "a") == ["refuse r2: LoadFailed"]


def test_a_child_that_dies_in_service_is_started_again_by_the_next_request() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    table.exits("a", UpstreamFailed("died by signal 11"))
    assert table.asks("r2", "a") == ["start a.2"]
    assert table.ends("r1") == []
    assert table.ready("a.2") == ["grant r2 on a.2"]


def test_a_host_without_room_is_nobodys_fault_and_is_asked_again_after_the_next_look() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.wait(0.1)
    assert table.exits("a", no_room=True, returns=False) == []
    assert table.asks("r2", "a") == []
    table.wait(0.1)
    assert table.measure() == ["start a.2"]
    assert table.ready("a.2") == ["grant r1 on a.2", "grant r2 on a.2"]


def test_a_client_in_a_hurry_does_not_make_a_host_without_room_try_again_at_once() -> None:
    table = Table(gpu=20, a=6)
    table.asks("r1", "a")
    table.wait(0.1)
    table.exits("a", no_room=True, returns=False)
    table.ends("r1")
    assert table.asks("r2", "a") == []


def test_releases_of_leases_nobody_knows_or_that_are_over_change_nothing() -> None:
    table = Table(gpu=10, a=6)
    assert table.ends("never") == []
    table.asks("r1", "a")
    table.ready("a")
    table.asks("r2", "a")
    table.ends("r1")
    assert table.ends("r1") == []
    assert table.view("a").leases == ("r2",)


def test_a_lost_host_takes_its_children_with_it_and_its_waiters_go_elsewhere() -> None:
    table = Table(
        gpu=10,
        devices=[Device("far/gpu", 21 * GIB, GIB)],
        models=[model("a", on(gpu=6)), model("b", at("far/gpu", 6), on(gpu=9))],
    )
    table.serves("a")
    table.stranger(gpu=0)
    table.asks("r1", "b")
    assert table.place("b") == "gpu"
    assert table.loses("far") == ["stop a: evicted for b"]
    assert table.exits("a") == ["start b.2"]


def test_leases_on_a_lost_host_last_until_their_release() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.ready("a")
    assert table.loses("local") == []
    assert table.states() == []
    assert table.ends("r1") == []
    assert table.asks("r2", "a") == []
    assert table.measure() == ["start a.2"]


# --- operators ---


def test_an_idle_model_is_unloaded_at_once_and_a_pinned_one_too() -> None:
    table = Table(gpu=10, models=[model("p", on(gpu=6), pinned=True)])
    table.serves("p")
    assert table.unloads("p") == ["stop p: unloaded"]


def test_a_model_in_use_is_unloaded_when_it_is_empty_and_takes_nobody_until_then() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    assert table.unloads("a") == []
    assert table.asks("r2", "a") == []
    assert table.ends("r1") == ["stop a: unloaded"]
    assert table.exits("a") == ["start a.2"]


def test_an_operator_waits_no_longer_than_his_deadline() -> None:
    table = Table(gpu=10, a=6, settings={"unload_deadline": 60.0})
    table.serves("a")
    table.asks("r1", "a")
    table.unloads("a")
    assert table.wait(59.9) == []
    assert table.wait(0.2) == ["stop a: unloaded"]
    assert table.ends("r1") == []


def test_an_operator_may_name_his_own_deadline_and_shorten_it() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    table.unloads("a", deadline=30.0)
    table.unloads("a", deadline=5.0)
    assert table.wait(4.9) == []
    assert table.wait(0.2) == ["stop a: unloaded"]


def test_force_stops_a_model_in_use_now() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    assert table.unloads("a", force=True) == ["stop a: unloaded"]
    assert table.unloads("a", force=True) == []


def test_unloading_a_model_that_loads_ends_the_load_and_tells_its_waiters() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    assert sorted(table.unloads("a")) == ["refuse r1: Unloaded", "stop a: unloaded"]


def test_unloading_a_model_that_waits_for_room_gives_up_its_plan() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.asks("r1", "b")
    assert table.unloads("b") == ["refuse r1: Unloaded"]
    assert table.states() == ["a stopping"]


def test_an_operators_unload_of_a_victim_outlives_the_challenger() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.wait(16.1)
    table.unloads("a")
    table.ends("r2")
    assert table.state("a") == "draining"
    assert table.ends("r1") == ["stop a: unloaded"]


# --- reloads and adoption ---


def reloaded(before: Model, definition: str) -> Model:
    return model(before.name, *before.placements, definition=Definition(definition))


def test_models_whose_definition_is_the_same_keep_serving_through_a_reload() -> None:
    table = Table(gpu=10, a=6)
    table.serves("a")
    table.asks("r1", "a")
    assert table.reloads(model("a", on(gpu=6), ttl=5.0), model("new", on(gpu=2))) == []
    assert table.asks("r2", "a") == ["grant r2 on a"]
    assert table.asks("r3", "new") == ["start new"]
    table.ends("r1")
    table.ends("r2")
    assert table.wait(5.1) == ["stop a: expired"]  # what does not touch how it runs holds from now on


def test_a_changed_model_is_replaced_at_once_when_idle_and_when_empty_if_in_use() -> None:
    table = Table(gpu=12, a=6, b=6)
    table.serves("a")
    table.serves("b")
    table.asks("r1", "b")
    done = table.reloads(*(reloaded(table.models[name], "2") for name in "ab"))
    assert done == ["stop a: reloaded"]
    assert table.asks("r2", "b") == []
    assert table.wait(500.0) == []  # nobody is cut off for a reload, however long it takes
    assert table.ends("r1") == ["stop b: reloaded"]
    assert table.exits("b") == ["start b.2"]


def test_who_waits_for_a_model_that_vanishes_is_told() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    assert sorted(table.reloads(model("b", on(gpu=6)))) == ["refuse r1: ModelNotFound", "stop a: reloaded"]
    assert table.asks("r2", "a") == ["refuse r2: ModelNotFound"]
    table.exits("a")
    assert table.asks("r3", "b") == ["start b"]


def test_who_waits_for_a_model_that_becomes_unusable_is_told_and_nobody_leaves_for_it() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.asks("r1", "a")
    table.asks("r2", "b")
    gone = ModelUnusable("b.gguf is not there any more")
    table.reloads(model("a", on(gpu=6)), model("b", on(gpu=6), definition=Definition("2"), error=gone))
    assert table.errors.get("r2") is gone
    assert table.ends("r1") == []


def test_who_waits_for_a_model_that_changes_gets_the_new_one() -> None:
    table = Table(gpu=8, a=6)
    table.asks("r1", "a")
    assert table.reloads(model("a", on(gpu=4), definition=Definition("2"))) == ["stop a: reloaded"]
    assert table.exits("a") == ["start a.2"]
    assert table.view("a.2").reserved == {"local/gpu": 4 * GIB}


def test_a_corrected_definition_ends_the_back_off() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.fails("a")
    table.reloads(model("a", on(gpu=6), definition=Definition("2")))
    assert table.asks("r2", "a") == ["start a.2"]


def test_devices_may_change_with_a_reload() -> None:
    table = Table(gpu=10, a=8)
    table.asks("r1", "a")
    table.ready("a")
    smaller = Device("local/gpu", 11 * GIB, 4 * GIB)
    table.tell(Reloaded(table.models, (smaller,)))
    table.exits("a", UpstreamFailed("died"))
    table.wait(5.0)
    assert table.asks("r2", "a") == ["refuse r2: ModelTooLarge"]


def test_what_was_learned_of_a_model_counts_for_its_next_load() -> None:
    table = Table(gpu=10, policy="no-evict", a=9, b=5)
    table.asks("r1", "b")
    assert table.asks("r2", "a") == ["refuse r2: NoRoom"]
    table.tell(Learned(model("a", on(gpu=5))))
    assert table.asks("r3", "a") == ["start a"]


def test_an_adopted_child_serves_at_once_and_its_memory_is_booked() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=6)
    assert table.adopts("a", "a", on(gpu=6)) == []
    assert table.asks("r1", "a") == ["grant r1 on a"]
    assert table.asks("r2", "b") == ["refuse r2: NoRoom"]


def test_an_adopted_child_of_an_older_definition_or_of_no_model_is_ended() -> None:
    table = Table(gpu=20, a=6)
    assert table.adopts("a", "a", on(gpu=6), definition=Definition("0")) == ["stop a: reloaded"]
    assert table.adopts("x", "unheard-of", on(gpu=6)) == ["stop x: reloaded"]
    table.exits("a")
    table.exits("x")
    assert table.states() == []


# --- why ---


def test_explain_names_whom_it_would_evict_and_changes_nothing() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    told = table.explain("b")
    assert told.would_evict == ("a#1",)
    assert "a" in told.text
    assert table.states() == ["a ready"]


def test_explain_says_for_whom_a_model_was_last_evicted() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    evicted_at = table.now
    table.asks("r1", "b")
    table.exits("a")
    told = table.explain("a")
    assert (told.last_evicted_for, told.last_evicted_at) == ("b", evicted_at)
    assert "for b" in told.text


def test_explain_says_what_a_request_waits_for() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.asks("r1", "a")
    table.asks("r2", "b")
    told = table.explain("b")
    assert told.waiting == 1
    assert "a" in (told.waits_for or "")
    assert told.shortfall == {"local/gpu": 2 * GIB}


def test_devices_of_two_hosts_are_told_apart() -> None:
    table = Table(
        devices=[device("gpu", 10), Device("far/gpu", 11 * GIB, GIB)], models=[model("a", on(gpu=6))]
    )
    assert [view.room for view in table.scheduler.snapshot(0.0).devices] == [10 * GIB, 10 * GIB]


def test_a_shutdown_refuses_who_waits_and_stops_what_runs_loads_or_drains_each_once() -> None:
    table = Table(gpu=10, a=4, b=4, c=9)
    table.serves("a")
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.asks("r3", "c")
    told = table.tell(Closed())
    assert sorted(told) == [
        "refuse r2: ShuttingDown", "refuse r3: ShuttingDown", "stop a: shutdown", "stop b: shutdown",
    ]  # fmt: skip
    assert table.tell(Closed()) == []
    assert table.exits("a") + table.exits("b") == []
    assert table.states() == []
