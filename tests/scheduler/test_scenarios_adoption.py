"""Children of an earlier router: what they are called, and what still leans on them."""

from __future__ import annotations

from router.ids import Definition
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import (
    Acquire,
    Adopted,
    Cause,
    Command,
    Device,
    Event,
    Exited,
    Grant,
    Measured,
    Model,
    Placement,
    Release,
    Start,
    State,
    Stop,
)

GPU = "local/gpu"


def place(size: int) -> Placement:
    return Placement("local", {GPU: size}, (GPU,))


class Adopter:
    """A scheduler on one device with 10 bytes to give away."""

    def __init__(self, **sizes: int) -> None:
        models = {name: Model(name, (place(size),), Definition("new")) for name, size in sizes.items()}
        self.scheduler = Scheduler(models, [Device(GPU, 11, 1)], make_policy("lru"))
        self.now = 0.0
        self.tell(Measured({GPU: 11}, at=0.0))

    def tell(self, event: Event) -> list[Command]:
        self.now += 1.0
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        return commands

    def state(self, instance: str) -> State | None:
        found = self.scheduler.snapshot(self.now).instances
        return next((one.state for one in found if one.id == instance), None)


def test_no_later_child_bears_the_name_of_an_adopted_one() -> None:
    adopter = Adopter(a=4)
    adopter.tell(Adopted("a#3", "a", place(4), Definition("old")))
    adopter.tell(Adopted("a#1", "a", place(4), Definition("old")))
    adopter.tell(Exited("a#1"))
    adopter.tell(Exited("a#3"))
    adopter.tell(Measured({GPU: 11}, at=adopter.now + 1))
    assert adopter.tell(Acquire("r1", "a")) == [Start("a#4", "a", place(4))]


def test_a_name_that_no_scheduler_gave_is_adopted_all_the_same() -> None:
    adopter = Adopter(a=4)
    assert adopter.tell(Adopted("a", "a", place(4), Definition("new"))) == []
    assert adopter.tell(Acquire("r1", "a")) == [Grant("r1", "a")]


def test_one_that_an_earlier_router_still_streams_from_is_not_evicted_before_that_is_over() -> None:
    adopter = Adopter(a=6, b=6)
    adopter.tell(Adopted("a#1", "a", place(6), Definition("new"), leases=("before 1", "before 2")))
    adopter.tell(Measured({GPU: 5}, {"a#1": {GPU: 6}}, at=adopter.now + 1))
    assert adopter.tell(Acquire("r1", "b")) == []
    assert adopter.tell(Release("before 1")) == []
    assert adopter.tell(Release("before 2")) == [Stop("a#1", Cause.EVICTED, "b")]


def test_one_whose_definition_changed_takes_nothing_new_and_ends_with_its_last_stream() -> None:
    adopter = Adopter(a=4)
    assert adopter.tell(Adopted("a#1", "a", place(4), Definition("old"), leases=("before",))) == []
    assert adopter.state("a#1") is State.DRAINING
    assert Start("a#2", "a", place(4)) in adopter.tell(Acquire("r1", "a"))
    assert adopter.tell(Release("before")) == [Stop("a#1", Cause.RELOADED)]
