"""Clients: each kind behaves as people and programs do, and the same seed does the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from random import Random
from statistics import mean, pstdev

import pytest

from router.errors import StartupError
from router.simulate import clients
from router.simulate.clients import TRACES, Draft, generate
from router.simulate.machine import MACHINES


def draft(seconds=3600.0, seed=1):
    return Draft(MACHINES["lab"], Random(seed), seconds)


@pytest.mark.parametrize("name", TRACES)
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(name):
    assert generate(name, 1, 15) == generate(name, 1, 15)
    assert generate(name, 1, 15) != generate(name, 2, 15)


@pytest.mark.parametrize("name", TRACES)
def test_requests_are_numbered_and_follow_only_earlier_ones_that_end_before(name):
    trace = generate(name, 1, 30)
    assert [r.id for r in trace.requests] == list(range(len(trace.requests)))
    for request in trace.requests:
        if request.after is not None:
            assert request.after < request.id
            assert request.timestamp >= trace.requests[request.after].timestamp + request.delay


def test_an_unknown_trace_is_answered_with_those_there_are():
    with pytest.raises(StartupError, match="no trace 'hoem'; there are home, lab, agents, bursts"):
        generate("hoem", 1, 10)


def test_a_chat_waits_thinks_and_asks_the_small_model_a_second_after_each_answer():
    made = draft(4 * 3600)
    clients.chat(made, "c", ["chat-8b", "chat-27b"], "title-1b")
    turns = [r for r in made.requests if r.kind == "chat"]
    sides = [r for r in made.requests if r.kind == "side"]
    assert len(turns) > 30
    assert all(one.after == other.id for other, one in pairwise(turns))
    assert Counter(s.after for s in sides).keys() == {t.id for t in turns}
    assert {s.delay for s in sides} == {1.0}
    firsts = {min(t.id for t in turns if t.session == name) for name in {t.session for t in turns}}
    assert all(
        Counter(s.after for s in sides)[t.id] == (2 if t.id in firsts else 1) for t in turns
    )  # a title once, tags always
    thinks = [t.delay for t in turns if t.id not in firsts]
    assert 15 < sorted(thinks)[len(thinks) // 2] < 40


def test_a_conversation_grows_and_stays_with_its_model():
    made = draft(4 * 3600)
    clients.chat(made, "c", ["chat-8b", "chat-27b"], None)
    by_session = defaultdict(list)
    for request in made.requests:
        by_session[request.session].append(request)
    assert len(by_session) > 5
    for turns in by_session.values():
        assert len({t.model for t in turns}) == 1
        lengths = [t.input_length for t in turns]
        assert lengths == sorted(lengths)


def test_an_agent_alternates_two_models_over_ten_to_a_hundred_calls():
    made = draft(12 * 3600)
    clients.agent(made, "a", ["chat-8b", "coder-32b", "coder-7b"])
    tasks = defaultdict(list)
    for request in made.requests:
        tasks[request.session].append(request.model)
    finished = list(tasks.values())[:-1]
    assert len(finished) > 10
    assert all(10 <= len(models) <= 100 for models in finished)
    assert {len(set(models)) for models in finished} == {2}


def test_a_batch_is_a_hundred_to_a_thousand_requests_for_one_model_by_a_few_workers():
    made = draft(8 * 3600)
    clients.batch(made, "b", ["chat-8b", "audio-3b"])
    starts = defaultdict(list)
    for request in made.requests:
        first = request
        while first.after is not None:
            first = made.requests[first.after]
        starts[first.timestamp].append(request)
    assert len(starts) > 5
    for jobs in starts.values():
        assert 100 <= len(jobs) <= 1000
        assert len({r.model for r in jobs}) == 1
        assert 4 <= sum(r.after is None for r in jobs) <= 16


def test_an_editor_cancels_three_of_five_completions():
    made = draft(12 * 3600)
    clients.editor(made, "e", "coder-7b")
    cancelled = [r.cancel for r in made.requests if r.cancel is not None]
    assert len(made.requests) > 1000
    assert len(cancelled) / len(made.requests) == pytest.approx(0.6, abs=0.05)
    assert all(0.15 <= seconds <= 1.2 for seconds in cancelled)


def test_an_open_loop_is_zipf_by_model_and_bursty_in_time():
    models = [f"m{n}" for n in range(1, 9)]
    made = Draft(MACHINES["bursts"], Random(5), 100 * 3600.0)
    clients.open_loop(made, models, 0.15, 3.0)
    counts = Counter(r.model for r in made.requests)
    assert len(made.requests) / made.seconds == pytest.approx(0.15, rel=0.15)
    assert counts["m1"] / counts["m2"] == pytest.approx(2.0, rel=0.25)
    assert counts["m1"] / counts["m8"] == pytest.approx(8.0, rel=0.25)
    times = [r.timestamp for r in made.requests if r.model == "m1"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert pstdev(gaps) / mean(gaps) == pytest.approx(3.0, rel=0.15)
