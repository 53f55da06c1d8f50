"""Every policy, with real llama-servers: who leaves, when, and who is refused instead."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from router.scheduler.types import State
from tests.e2e.running import llama_servers, running

pytestmark = pytest.mark.e2e


async def test_lru_evicts_whoever_was_used_least_recently(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b", "c"], '[scheduler]\npolicy = "lru"\nmodels_max = 2\n') as router:
        for name in ("a", "b", "a", "c"):
            assert (await router.chat(name)).status == 200
        assert router.stops() == [("b", "evicted")]
        assert router.resident() == ["a", "c"]


async def test_no_evict_refuses_at_once_when_full_and_starts_nothing(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "no-evict"\nmodels_max = 1\n'
    async with running(tmp_path, ["a", "b"], config) as router:
        assert (await router.chat("a")).status == 200
        refused = await router.chat("b")
        assert (refused.status, refused.body["error"]["code"]) == (503, "no_room")
        assert "no-evict" in refused.body["error"]["message"]
        assert router.starts() == ["a"] and not router.stops()
        assert (await router.chat("a")).action == "already_loaded"


async def test_ttl_ends_an_idle_model_and_one_that_needs_its_room_waits_for_that(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "ttl"\nttl_seconds = 1\nmodels_max = 1\n'
    async with running(tmp_path, ["a", "b"], config) as router:
        await router.chat("a")
        waited = await router.chat("b")
        assert waited.status == 200 and waited.seconds >= 0.5
        assert router.stops() == [("a", "expired")]
        await router.until(lambda: not router.resident())
        assert router.stops() == [("a", "expired"), ("b", "expired")] and not llama_servers()


async def test_lru_ttl_evicts_under_pressure_and_expires_without(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "lru-ttl"\nttl_seconds = 2\nmodels_max = 1\n'
    async with running(tmp_path, ["a", "b"], config) as router:
        await router.chat("a")
        await router.chat("b")
        assert router.stops() == [("a", "evicted")], "b did not wait for the end of a's time"
        await router.until(lambda: not router.resident())
        assert router.stops()[1:] == [("b", "expired")]


async def test_cost_keeps_the_model_that_is_asked_for_often(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "cost"\nmodels_max = 2\n'
    async with running(tmp_path, ["often", "rarely", "new"], config) as router:
        for _ in range(12):
            await router.chat("often")
        await router.chat("rarely")
        loads = {one.name: one.load_seconds for one in router.pool.snapshot().models}
        await router.chat("new")
        # Both were measured, on a machine that may be busy: what is asked for often wins unless its load is
        # less than half as dear (a request counts ln 2 within the horizon).
        costs = {
            name: loads[name] * -math.expm1(-asked * math.log(2))
            for name, asked in (("often", 12), ("rarely", 1))
        }
        assert router.stops() == [(min(costs, key=lambda name: costs[name]), "evicted")]


async def test_keep_alive_of_a_request_overrides_the_ttl_either_way(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "lru-ttl"\nttl_seconds = 3\n'
    async with running(tmp_path, ["brief", "usual", "kept"], config) as router:
        assert (await router.chat("brief", keep_alive=0)).status == 200
        await router.until(lambda: "brief" not in router.resident(), seconds=2.5)
        await router.chat("kept", keep_alive=-1)
        await router.chat("usual")
        await router.until(lambda: router.resident() == ["kept"])
        await router.chat("kept", headers={"X-Router-Keep-Alive": "0"})
        await router.until(lambda: not router.resident())
        assert [name for name, cause in router.stops() if cause == "expired"] == ["brief", "usual", "kept"]


async def test_a_model_has_a_ttl_of_its_own_under_any_policy(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "lru"\n[models.a]\nttl_seconds = 1\n'
    async with running(tmp_path, ["a", "b"], config) as router:
        await asyncio.gather(router.chat("a"), router.chat("b"))
        await router.until(lambda: router.resident() == ["b"])


async def test_a_pinned_model_is_never_evicted_and_never_expires(tmp_path: Path) -> None:
    config = '[scheduler]\npolicy = "lru-ttl"\nttl_seconds = 1\nmodels_max = 1\n[models.a]\npinned = true\n'
    config += "load_on_startup = true\n"
    async with running(tmp_path, ["a", "b"], config) as router:
        await router.until(lambda: any(i.state is State.READY for i in router.pool.snapshot().instances))
        refused = await router.chat("b")
        assert (refused.status, refused.body["error"]["code"]) == (503, "no_room")
        assert "a (pinned)" in refused.body["error"]["message"]
        await router.chat("a")
        await asyncio.sleep(1.3)  # longer than the ttl: there is nothing to wait for that must not happen
        assert router.resident() == ["a"] and not router.stops()
        assert await router.pool.unload("a"), "an operator may"


async def test_models_that_exclude_each_other_are_never_resident_together(tmp_path: Path) -> None:
    config = '[scheduler]\nexclusive = [["a", "b"]]\n'
    async with running(tmp_path, ["a", "b", "c"], config) as router:
        for name in ("a", "c", "b"):
            assert (await router.chat(name)).status == 200
        assert router.stops() == [("a", "evicted")]
        assert router.resident() == ["b", "c"]


async def test_replicas_are_loaded_together_and_share_the_requests(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"], "[models.a]\nreplicas = 2\n") as router:
        await router.chat("a")
        await router.until(lambda: [i.state for i in router.pool.snapshot().instances] == [State.READY] * 2)
        assert len(llama_servers()) == 2
        async with asyncio.TaskGroup() as requests:
            for _ in range(2):
                requests.create_task(router.stream("a", tokens=300))
            await router.until(lambda: [len(i.leases) for i in router.pool.snapshot().instances] == [1, 1])


async def test_a_full_model_gets_a_further_replica_into_room_that_is_free(tmp_path: Path) -> None:
    config = "[models.a]\nreplica_max = 2\ntarget_inflight = 1\n"
    async with running(tmp_path, ["a"], config) as router:
        await router.chat("a")
        await asyncio.gather(*(router.stream("a", tokens=600) for _ in range(3)))
        await router.until(lambda: len(llama_servers()) == 2)


async def test_a_further_replica_never_costs_another_model_its_place(tmp_path: Path) -> None:
    config = "[scheduler]\nmodels_max = 2\n[models.a]\nreplica_max = 2\ntarget_inflight = 1\n"
    async with running(tmp_path, ["a", "b"], config) as router:
        await asyncio.gather(router.chat("a"), router.chat("b"))
        await asyncio.gather(*(router.stream("a", tokens=300) for _ in range(3)))
        assert router.resident() == ["a", "b"] and not router.stops()


async def test_a_spare_replica_leaves_before_the_last_copy_of_another_model(tmp_path: Path) -> None:
    config = "[scheduler]\nmodels_max = 3\n[models.a]\nreplicas = 2\n"
    async with running(tmp_path, ["a", "b", "c"], config) as router:
        await router.chat("b")
        await router.chat("a")
        await router.until(lambda: router.resident() == ["a", "a", "b"])
        await router.until(lambda: all(i.state is State.READY for i in router.pool.snapshot().instances))
        await router.chat("c")
        assert router.resident() == ["a", "b", "c"]
