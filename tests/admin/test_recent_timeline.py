"""Decisions in words, out of the journal."""

from __future__ import annotations

from router.admin.recent import KEPT, Moment, Timeline, moments
from router.errors import LoadFailed, NoRoom
from router.observability.journal import Journal
from router.scheduler.types import (
    Acquire,
    Cause,
    Exited,
    Grant,
    HostLost,
    Measured,
    Placement,
    Ready,
    Refuse,
    Reloaded,
    Start,
    Stop,
    Tick,
    Unload,
)

GPU = "local/cuda:GPU-5f3c"
ON_GPU = Placement("local", {GPU: 6 << 30}, (GPU,))


def label(device: str) -> str:
    return {GPU: "NVIDIA H200"}[device]


def swap() -> Journal:
    """alpha leaves for beta, which comes up."""
    journal = Journal()
    journal.record(1.0, Acquire("r1", "beta"), [Stop("alpha#1", Cause.EVICTED, "beta")])
    journal.record(2.0, Exited("alpha#1"), [Start("beta#2", "beta", ON_GPU, ("alpha#1",))])
    journal.record(3.0, Ready("beta#2"), [Grant("r1", "beta#2", "loaded")])
    return journal


def told(journal: Journal) -> list[tuple[str, str]]:
    return [(one.kind, one.text) for one in moments(journal.entries(), label)]


def test_a_swap_is_told_with_its_cause_and_without_its_grants():
    assert told(swap()) == [
        ("leave", "alpha leaves to make room for beta"),
        ("gone", "alpha is gone"),
        ("load", "beta loads on NVIDIA H200 (6144 MiB), after alpha left"),
        ("ready", "beta is ready"),
    ]


def test_a_failure_a_refusal_and_a_lost_host_say_why():
    journal = Journal()
    journal.record(1.0, Exited("alpha#1", LoadFailed("out of memory")), [])
    journal.record(2.0, Acquire("r1", "beta"), [Refuse("r1", NoRoom("beta does not fit"))])
    journal.record(3.0, HostLost("local"), [])
    assert told(journal) == [
        ("failed", "alpha failed: out of memory"),
        ("refused", "a request is refused: beta does not fit"),
        ("lost", "local does not answer any more"),
    ]


def test_what_an_operator_did_is_told():
    journal = Journal()
    journal.record(1.0, Unload("alpha", force=True), [Stop("alpha#1", Cause.UNLOADED)])
    journal.record(2.0, Reloaded({}), [])
    assert [kind for kind, _ in told(journal)] == ["unload", "leave", "reload"]
    assert told(journal)[0][1] == "an operator unloads alpha, at once"


def test_what_decides_nothing_makes_no_moment():
    journal = Journal()
    journal.record(1.0, Tick(), [Grant("r1", "alpha#1")])
    journal.record(2.0, Measured({GPU: None}), [Grant("r2", "alpha#1")])
    assert told(journal) == []


def test_the_last_word_about_a_model_is_why_it_left_and_not_that_it_is_gone():
    timeline = Timeline()
    timeline.note(swap().entries(), label)
    assert timeline.lasts["alpha"].text == "alpha leaves to make room for beta"
    assert timeline.lasts["beta"].text == "beta is ready"


def test_a_death_is_the_last_word_even_of_one_that_was_leaving():
    timeline, journal = Timeline(), Journal()
    journal.record(1.0, Tick(), [Stop("alpha#1", Cause.EXPIRED)])
    journal.record(2.0, Exited("alpha#1", LoadFailed("killed")), [])
    timeline.note(journal.entries(), label)
    assert timeline.lasts["alpha"].kind == "failed"


def test_only_what_is_new_is_told_again_and_no_more_than_a_page_shows():
    timeline = Timeline()
    timeline.note(swap().entries(), label)
    last = timeline.after(0)[-1]
    assert timeline.after(last.id) == []
    journal = Journal()
    for n in range(KEPT + 50):
        journal.record(float(n), Ready(f"alpha#{n}"), [])
    timeline.note(journal.entries(), label)
    assert len(timeline.after(0)) == KEPT
    assert isinstance(timeline.after(0)[-1], Moment)
