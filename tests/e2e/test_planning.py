"""What is planned comes true: told by a running router, then done by it with real llama-servers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from router.cli import cli
from router.engines.llama_server import find_binary
from tests.e2e.running import DEADLINE_SECONDS, Running, running

pytestmark = pytest.mark.e2e


async def plan(router: Running, *args: str) -> Any:
    """`llama-router plan --json`, against this router."""
    command = ["plan", "--json", "--url", router.url, *args]
    result = await asyncio.to_thread(CliRunner().invoke, cli, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def expected_opinion() -> str:
    beside = find_binary().with_name("llama-fit-params").exists()
    return "agrees" if beside else "missing"


async def vram(router: Running) -> Any:
    async with router.session.get("/vram?measure=1") as answer:
        return await answer.json()


async def test_who_is_said_to_leave_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], "[scheduler]\nmodels_max = 1\nlinger = 0\n") as router:
        before = await plan(router, "a")
        assert (before["would"], before["would_evict"]) == ("start", [])
        await router.chat("a")
        assert (await plan(router, "a"))["would"] is None, "it is there already"
        planned = await plan(router, "b")
        assert (planned["would"], planned["would_evict"]) == ("start", ["a#1"])
        assert (await plan(router, "b", "--ctx", "1024"))["would_evict"] == ["a#1"]
        assert router.resident() == ["a"], "a plan does nothing"
        await router.chat("b")
        assert router.stops() == [("a", "evicted")] and router.resident() == ["b"]


async def test_a_load_reserves_what_was_planned_and_takes_no_more(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        planned = await plan(router, "a")
        place = planned["placements"][planned["chosen"]]
        assert sum(term["bytes"] for term in place["terms"]) == place["bytes"]
        # llama.cpp's own count is asked for as soon as the router is up, as no GPU is touched for it.
        await router.until(lambda: router.pool.standings("a")[0].opinion == expected_opinion())
        await router.chat("a", tokens=32)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:  # the first look after a load may be too early to learn from
                (loaded,) = (await vram(router))["models"]
                if loaded["confidence"] != "estimated":
                    break
        assert loaded["confidence"] in ("measured", "proven")
        assert loaded["predicted"] == sum(place["predicted"].values())
        assert 0 < loaded["measured"] <= place["bytes"]


async def test_models_that_are_said_to_fit_together_are_resident_together(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b", "c"]) as router:
        together = (await plan(router, "a", "b", "c"))["together"]
        assert together["fits"], together["text"]
        for name in ("a", "b", "c"):
            await router.chat(name)
        assert router.resident() == ["a", "b", "c"] and not router.stops()


async def test_models_that_are_said_not_to_fit_together_are_not_resident_together(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b", "c"], "[scheduler]\nmodels_max = 2\n") as router:
        together = (await plan(router, "a", "b", "c"))["together"]
        assert not together["fits"] and "scheduler.models_max is 2" in together["text"]
        sets = [sorted(one["model"] for one in fit["models"]) for fit in together["sets"]]
        assert sets == [["a", "b"], ["a", "c"], ["b", "c"]]
        for name in ("a", "b", "c"):
            await router.chat(name)
        assert router.resident() in sets
