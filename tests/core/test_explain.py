"""What a request would do, told without asking for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.policy import make_policy
from router.core.scheduler import Scheduler, Settings
from router.core.types import Acquire, Device, Measured, Model, Placement, Ready, Release
from router.errors import ModelNotFound, ModelTooLarge

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
