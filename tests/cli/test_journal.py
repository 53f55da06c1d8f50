"""`llama-router journal`, for people and to be replayed."""

from __future__ import annotations

import json

from router.scheduler.types import Acquire, Cause, Release, Stop
from tests.cli.conftest import Terminal


async def test_it_reads_as_one_line_for_each_event_and_command(terminal: Terminal):
    api = terminal.api
    api.pool.journal.record(5.0, Acquire("r1", "tiny"), [Stop("other#1", Cause.EVICTED, "tiny")])
    first, second = (await terminal.run("journal")).output.splitlines()
    assert first.split()[1:] == ["Acquire", "lease=r1", "model=tiny"]
    assert second.split()[1:] == ["Stop", "instance=other#1", "cause=evicted", "for_model=tiny"]


async def test_what_is_exported_is_what_the_router_answers(terminal: Terminal):
    api = terminal.api
    api.pool.journal.record(5.0, Acquire("r1", "tiny"), [])
    api.pool.journal.record(6.0, Release("r1"), [])
    told = (await api.get("/journal")).body.decode()
    for option in ("--export", "--json"):
        assert (await terminal.run("journal", option)).output == told
    assert all(isinstance(json.loads(line), dict) for line in told.splitlines())
