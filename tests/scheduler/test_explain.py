"""What a request would do, told without asking for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.errors import LoadFailed, ModelNotFound, ModelTooLarge, ModelUnusable
from router.ids import Definition
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import (
    Acquire,
    Device,
    Exited,
    Measured,
    Model,
    Pinned,
    Placement,
    Ready,
    Release,
    Reloaded,
    Unload,
)

GIB = 1 << 30
GPU = "local/cuda:0"


def model(name: str, gib: float, **more: object) -> Model:
    return Model(name, (Placement("local", {GPU: int(gib * GIB)}, (GPU,)),), **more)  # type: ignore[arg-type]


def scheduler(*models: Model, policy: str = "lru", free_gib: int = 24) -> Scheduler:
    device = Device(GPU, 24 * GIB, GIB, "cuda:0")
    made = Scheduler({one.name: one for one in models}, (device,), make_policy(policy), Settings(linger=0))
    made.handle(Measured({GPU: free_gib * GIB}, at=0.0), 0.0)
    return made


def load(made: Scheduler, name: str, *, keep_busy: bool = False) -> None:
    made.handle(Acquire(f"lease of {name}", name), 1.0)
    made.handle(Ready(f"{name}#1"), 2.0)
    if not keep_busy:
        made.handle(Release(f"lease of {name}"), 3.0)


def test_what_fits_would_be_started_and_nobody_would_leave():
    explained = scheduler(model("a", 8)).explain("a", 10.0)
    assert (explained.would, explained.would_evict, explained.refusal) == ("start", (), None)
    assert explained.placement is not None and explained.placement.footprint == {GPU: 8 * GIB}


def test_who_would_leave_is_named():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a")
    explained = made.explain("b", 10.0)
    assert (explained.would, explained.would_evict) == ("start", ("a#1",))


def test_behind_a_busy_one_it_would_wait():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a", keep_busy=True)
    explained = made.explain("b", 10.0)
    assert (explained.would, explained.would_evict) == ("wait", ("a#1",))
    assert explained.shortfall == {GPU: 5 * GIB}


def test_what_fits_no_machine_would_be_refused_with_the_error_a_request_gets():
    explained = scheduler(model("a", 24)).explain("a", 10.0)
    assert explained.would == "refuse" and isinstance(explained.refusal, ModelTooLarge)


def test_it_can_be_asked_of_another_definition_which_changes_nothing():
    small, large = model("b", 4), model("b", 20)
    made = scheduler(model("a", 8), small)
    load(made, "a")
    before = made.snapshot(10.0)
    assert made.explain("b", 10.0, large).would_evict == ("a#1",)
    assert made.explain("b", 10.0, replace(large, placements=())).would == "refuse"
    assert made.explain("b", 10.0).would_evict == ()
    assert made.snapshot(10.0) == before
    with pytest.raises(ModelNotFound):
        made.explain("c", 10.0, model("c", 1))


def test_a_loaded_model_would_do_nothing():
    made = scheduler(model("a", 8))
    load(made, "a")
    assert made.explain("a", 10.0).would is None


# --- the words, state by state ---


def text(made: Scheduler, name: str, now: float = 10.0) -> str:
    return made.explain(name, now).text


def test_not_loaded():
    told = text(scheduler(model("a", 8)), "a")
    assert told == "a is not loaded. A load would go to cuda:0; it evicts nothing."


def test_loading():
    made = scheduler(model("a", 8))
    made.handle(Acquire("r1", "a"), 4.0)
    assert (
        text(made, "a")
        == "a#1 has been loading for 6 s. 1 request waits for its llama-server, which is loading."
    )


def test_loaded_and_idle_or_serving_one_request_or_several():
    made = scheduler(model("a", 8))
    load(made, "a")
    assert text(made, "a") == "a#1 is loaded and idle for 7 s."
    made.handle(Acquire("r1", "a"), 4.0)
    assert text(made, "a") == "a#1 is loaded and serves 1 request."
    made.handle(Acquire("r2", "a"), 5.0)
    assert text(made, "a") == "a#1 is loaded and serves 2 requests."


def test_stopping_for_another_model_that_waits_for_its_room():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a")
    made.handle(Acquire("r1", "b"), 4.0)
    assert text(made, "a").startswith("a#1 is being stopped (evicted for b). ")
    assert text(made, "b").startswith(
        "b#1 is started as soon as there is room for it. "
        "1 request waits for room: a#1 is being stopped (evicted for b)."
    )


def test_draining_for_another_model_with_one_request_or_several():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a", keep_busy=True)
    for number in range(2):
        made.handle(Acquire(f"r{number}", "a"), 3.0)
    made.handle(Acquire("other", "b"), 4.0)
    made.handle(Measured({GPU: 16 * GIB}, {"a#1": {GPU: 8 * GIB}}, at=100.0), 100.0)
    drains = "a#1 takes no new requests and is stopped when its 3 requests have ended (evicted for b)"
    assert text(made, "a", 100.0).startswith(f"{drains}. ")
    assert f"1 request waits for room: {drains}." in text(made, "b", 100.0)
    made.handle(Release("r0"), 101.0)
    made.handle(Release("r1"), 102.0)
    assert "is stopped when its 1 request has ended (evicted for b)." in text(made, "a", 103.0)
    made.handle(Release("lease of a"), 104.0)
    assert text(made, "a", 105.0).startswith("a#1 is being stopped (evicted for b). ")


def test_unloaded_by_an_operator_while_it_serves_and_by_force():
    made = scheduler(model("a", 8))
    load(made, "a", keep_busy=True)
    made.handle(Unload("a"), 4.0)
    assert "is stopped when its 1 request has ended (unloaded)." in text(made, "a")
    made.handle(Unload("a", force=True), 5.0)
    assert text(made, "a").startswith("a#1 is being stopped, with 1 request running (unloaded). ")


def test_a_load_that_is_stopped():
    made = scheduler(model("a", 8))
    made.handle(Acquire("r1", "a"), 4.0)
    made.handle(Unload("a", force=True), 5.0)
    assert text(made, "a").startswith("a#1 is being stopped (unloaded). ")


def test_its_definition_has_changed_or_is_gone():
    made = scheduler(model("a", 8, definition=Definition("1")))
    load(made, "a", keep_busy=True)
    made.handle(Reloaded({"a": model("a", 8, definition=Definition("2"))}), 4.0)
    assert "is stopped when its 1 request has ended (reloaded)." in text(made, "a")


def test_a_load_that_failed_once_and_again():
    made = scheduler(model("a", 8))
    for number, (at, words) in enumerate([(4.0, "once"), (100.0, "2 times in a row")], 1):
        made.handle(Acquire(f"r{number}", "a"), at)
        made.handle(Exited(f"a#{number}", LoadFailed("exit status 1")), at + 1)
        made.handle(Measured({GPU: 24 * GIB}, at=at + 2), at + 2)
        assert f"Its load failed {words}, last: exit status 1." in text(made, "a", at + 3)


def test_it_can_never_be_loaded():
    broken = model("a", 8, error=ModelUnusable("a cannot be loaded: its file is gone"))
    assert text(scheduler(broken), "a") == "a is not loaded. It cannot be loaded: its file is gone."


def test_what_a_load_would_stop_and_drain_is_told_apart():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a")
    assert text(made, "b") == "b is not loaded. A load would go to cuda:0; it stops a."


def test_it_is_refused_or_waits_for_a_busy_one():
    told = text(scheduler(model("a", 24)), "a")
    assert told.startswith("a is not loaded. A request for it is refused now: a does not fit this machine: ")
    assert not told.endswith("..")
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a", keep_busy=True)
    assert text(made, "b").endswith("A request for it would wait: 5.0 GiB short on cuda:0; in the way: a.")


def test_evicted_before():
    made = scheduler(model("a", 8), model("b", 20))
    load(made, "a")
    made.handle(Acquire("r1", "b"), 4.0)
    made.handle(Exited("a#1"), 5.0)
    assert text(made, "a").endswith("It was last evicted 6 s ago for b.")


def test_while_it_backs_off_requests_are_said_to_be_refused():
    made = scheduler(model("a", 8))
    made.handle(Acquire("r1", "a"), 4.0)
    made.handle(Exited("a#1", LoadFailed("exit status 1")), 5.0)
    made.handle(Measured({GPU: 24 * GIB}, at=5.5), 5.5)
    again = "Requests for it are refused for another {} s, before it is tried again."
    assert again.format(1) in text(made, "a", 5.2)
    assert "are refused" not in text(made, "a", 6.5)


def test_that_it_is_pinned_is_told_loaded_or_not():
    words = "It is pinned: it is neither evicted nor does it leave by itself."
    made = scheduler(model("a", 8, pinned=True))
    assert words in text(made, "a")
    load(made, "a")
    assert words in text(made, "a")
    made.handle(Pinned("a", False), 4.0)
    assert words not in text(made, "a")


def test_what_leaves_for_another_cause_is_what_is_waited_for():
    made = scheduler(model("a", 20), model("b", 20))
    load(made, "a", keep_busy=True)
    made.handle(Unload("a"), 4.0)
    made.handle(Acquire("r1", "b"), 5.0)
    assert text(made, "a").endswith("in the way: a#1, which is leaving.")
    waits = "1 request waits for room: a#1 takes no new requests and is stopped when its 1 request has ended"
    assert waits in text(made, "b")
