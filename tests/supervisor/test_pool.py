"""The shell around the scheduler: leases end on every path, children end once, nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from typing import Any

import msgspec
import pytest

from router.engines import Launch
from router.errors import LoadFailed, ModelNotFound, ModelUnusable, RouterError, ShuttingDown, Unavailable
from router.hosts import Address, InstanceRecord, Measurement
from router.ids import Definition
from router.observability.journal import Journal
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import (
    Acquire,
    Cause,
    Exited,
    Grant,
    Model,
    Placement,
    Refuse,
    Release,
    Reloaded,
    State,
    Stop,
)
from router.supervisor import measuring as measuring_module
from router.supervisor import pool as pool_module
from router.supervisor.pool import HandedOver, Pool
from tests.fake_host import GIB, FakeChild, FakeHost, full
from tests.waiting import until


def model(name: str, gib: float, **more: object) -> Model:
    return Model(name, (Placement("local", {"local/cuda:0": int(gib * GIB)}),), load_seconds=0.01, **more)  # type: ignore[arg-type]


def pool_of(host: FakeHost, *models: Model, settings: Settings | None = None, policy: str = "lru") -> Pool:
    settings = settings or Settings(backoff_initial=0.05)
    definitions = {m.name: m for m in models}
    scheduler = Scheduler(definitions, (host.device,), make_policy(policy), settings)
    return Pool(scheduler, [host], lambda *_: Launch(("true",)), Journal(), definitions=definitions)


def exits(pool: Pool, instance: str) -> int:
    events = (entry.event for entry in pool.journal.entries())
    return sum(1 for event in events if isinstance(event, Exited) and event.instance == instance)


async def test_a_lease_loads_the_model_and_holds_it_until_its_end() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        async with pool.lease("a") as lease:
            assert (lease.instance, lease.action, lease.address.socket) == ("a#1", "loaded", "/run/a#1.sock")
            assert pool.snapshot().instances[0].leases == (lease.id,)
        async with pool.lease("a") as lease:
            assert (lease.action, lease.queue_seconds, lease.load_seconds) == ("already_loaded", 0.0, 0.0)
        assert pool.snapshot().instances[0].leases == ()
    assert host.started == ["a#1"] and not host.children


async def test_a_resident_model_is_granted_without_a_measurement() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        await pool.load("a")
        before = host.counts["measure"]
        async with pool.lease("a"):
            assert host.counts["measure"] == before


async def test_what_is_loaded_into_an_empty_machine_is_measured_from_then_on() -> None:
    host = FakeHost()
    pool = pool_of(host, model("a", 8))
    pool._measuring._poll_seconds = 0.01
    async with pool:
        await asyncio.sleep(0.03)  # three polls
        assert host.counts["measure"] == 1, "with nothing loaded a sleeping GPU is left asleep"
        await pool.load("a")
        before = host.counts["measure"]
        await until(lambda: host.counts["measure"] > before + 2)


async def test_ten_simultaneous_requests_share_one_load() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8)) as pool:
        asked = [asyncio.ensure_future(pool.load("a")) for _ in range(10)]
        await until(lambda: "a#1" in host.children)
        host.finish_load("a#1")
        await asyncio.gather(*asked)
    assert host.started == ["a#1"]


async def test_an_idle_model_makes_room_and_the_newcomer_starts_only_when_it_is_gone() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 14), model("b", 14)) as pool:
        await pool.load("a")
        async with pool.lease("b") as lease:
            assert (lease.action, lease.evicted) == ("queued", ("a#1",))
            assert set(host.children) == {"b#1"}
    assert host.stopped[0] == "a#1"


async def test_a_caller_that_leaves_does_not_abort_the_load_others_wait_for() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8)) as pool:
        first, second = (asyncio.ensure_future(pool.load("a")) for _ in range(2))
        await until(lambda: "a#1" in host.children)
        first.cancel()
        await asyncio.sleep(0)
        host.finish_load("a#1")
        await second
    assert first.cancelled() and host.started == ["a#1"]


async def test_a_waiter_cancelled_in_the_turn_of_its_grant_leaves_no_lease() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8)) as pool:
        waiting = asyncio.ensure_future(pool.load("a"))
        await until(lambda: "a#1" in host.children)
        host.finish_load("a#1")
        await until(lambda: pool.snapshot().instances[0].state is State.READY)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert pool.snapshot().instances[0].leases == ()


async def test_a_lease_of_a_ready_model_is_taken_at_once_and_noted_as_any_other() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        async with pool.lease("a") as loaded:
            taken = pool.acquire_nowait("a", keep_alive=30.0, size=5.0)
            assert taken is not None
            assert taken == msgspec.structs.replace(
                loaded,
                id=taken.id,
                action="already_loaded",
                queue_seconds=0.0,
                load_seconds=0.0,
            )
            assert pool.snapshot().instances[0].leases == (loaded.id, taken.id)
            *_, last = pool.journal.entries()
            assert last.event == Acquire(taken.id, "a", None, 30.0, 5.0)
            assert last.commands == (Grant(taken.id, "a#1", "already_loaded"),)
        pool.release(taken)
        assert pool.snapshot().instances[0].leases == ()
        assert pool.journal.entries()[-1].event == Release(taken.id)


async def test_a_model_leaves_its_idle_time_after_the_last_lease_that_was_taken() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8, ttl=0.05), model("b", 8)) as pool:
        await pool.load("b")
        async with pool.lease("a"):
            pass
        lease = pool.acquire_nowait("a")
        assert lease is not None
        await asyncio.sleep(0.06)  # its timer is gone, and nothing came of it
        assert not host.stopped
        pool.release(lease)
        await until(lambda: host.stopped == ["a#1"], seconds=1.0)  # and not at the next poll, in 5 s


async def test_nothing_is_taken_and_nothing_told_of_what_would_have_to_wait() -> None:
    host = FakeHost(auto_ready=False)
    broken = model("broken", 1, error=ModelUnusable("its file is damaged"))
    async with pool_of(host, model("a", 8), broken) as pool:

        def told() -> int:
            return len([one for one in pool.journal.entries() if isinstance(one.event, Acquire)])

        assert [pool.acquire_nowait(name) for name in ("a", "broken", "nobody")] == [None, None, None]
        assert told() == 0
        waiting = asyncio.ensure_future(pool.load("a"))
        await until(lambda: "a#1" in host.children)
        assert pool.acquire_nowait("a") is None
        host.finish_load("a#1")
        await waiting
        async with pool.lease("a"):
            leaving = asyncio.ensure_future(pool.unload("a"))
            await until(lambda: pool.snapshot().instances[0].state is State.DRAINING)
            assert pool.acquire_nowait("a") is None
        await leaving
        assert told() == 2


async def test_a_lease_that_was_taken_outlives_its_child_and_the_pool() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        await pool.load("a")
        first = pool.acquire_nowait("a")
        assert first is not None
        host.crash("a#1")
        await until(lambda: exits(pool, "a#1"))
        assert pool.acquire_nowait("a") is None
        pool.release(first)
        await pool.load("a")
        second = pool.acquire_nowait("a")
        assert second is not None and second.instance == "a#2"
    assert pool.acquire_nowait("a") is None
    pool.release(second)


async def test_a_lease_that_was_taken_is_handed_over_until_it_is_given_back() -> None:
    host, ended = FakeHost(), list[str]()
    async with pool_of(host, model("a", 8)) as pool:
        await pool.load("a")
        over, held = pool.acquire_nowait("a"), pool.acquire_nowait("a")
        assert over is not None and held is not None
        pool.release(over)
        assert await pool.hand_over(ended.append) == {held.id: "a#1"}
        assert pool.acquire_nowait("a") is None
        pool.release(held)
    assert ended == [held.id]


async def test_a_load_that_fails_answers_all_who_waited_with_its_last_words_and_backs_off() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8), settings=Settings(backoff_initial=30.0)) as pool:
        asked = [asyncio.ensure_future(pool.load("a")) for _ in range(3)]
        await until(lambda: "a#1" in host.children)
        host.crash("a#1")
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(e, LoadFailed) and e.details["log"] == ["boom"] for e in errors)
        with pytest.raises(LoadFailed, match="the next try is in") as refused:
            await pool.load("a")
        assert 0 < (refused.value.retry_after_seconds or 0) <= 30
        assert exits(pool, "a#1") == 1


async def test_a_host_that_says_no_is_asked_again_after_a_measurement() -> None:
    host = FakeHost()
    host.fail_next = [full()]
    async with pool_of(host, model("a", 8)) as pool:
        async with pool.lease("a") as lease:
            assert lease.instance == "a#2"
        assert exits(pool, "a#1") == 1


async def test_a_child_that_dies_in_service_is_replaced_on_the_next_request() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        await pool.load("a")
        async with pool.lease("a"):
            host.crash("a#1")
            await until(lambda: not pool.snapshot().instances)
        async with pool.lease("a") as lease:
            assert lease.instance == "a#2"


async def test_whoever_waits_for_a_load_does_not_wait_for_what_it_took_to_be_measured() -> None:
    class SlowlyMeasured(FakeHost):
        async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
            if any(child.loaded.is_set() for child in self.children.values()):
                await measuring.wait()
            return await super().measure(max_age_seconds=max_age_seconds)

    measuring = asyncio.Event()
    async with pool_of(SlowlyMeasured(), model("a", 8)) as pool, asyncio.timeout(20), pool.lease("a"):
        assert not pool.snapshot().of_model("a")[0].used
        measuring.set()
        await until(lambda: pool.snapshot().of_model("a")[0].used == {"local/cuda:0": 8 * GIB})


async def test_room_is_measured_when_its_holder_is_gone_and_not_at_the_next_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring_module, "RETURN_POLL_SECONDS", 3600.0)
    async with pool_of(FakeHost(), model("a", 16), model("b", 16)) as pool, asyncio.timeout(20):
        for name in ("a", "b", "a", "b"):
            await pool.load(name)


async def test_memory_that_comes_back_late_is_looked_for_often_once_its_holder_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class SlowToReturn(FakeHost):
        late = 0

        async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
            if "b#1" not in self.children and "a#1" in self.stopped and self.late < 3:
                self.late += 1
                self.strangers = 16 * GIB
            else:
                self.strangers = 0
            return await super().measure(max_age_seconds=max_age_seconds)

    monkeypatch.setattr(measuring_module, "RETURN_POLL_SECONDS", 3600.0)
    host = SlowToReturn()
    async with pool_of(host, model("a", 16), model("b", 16)) as pool, asyncio.timeout(20):
        await pool.load("a")
        await pool.load("b")
        assert host.late == 3


async def test_files_are_looked_at_while_memory_is_measured() -> None:
    class Measured(FakeHost):
        async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
            measuring.set()
            return await super().measure(max_age_seconds=max_age_seconds)

    measuring, host = threading.Event(), Measured()
    definitions = {"a": model("a", 8)}
    scheduler = Scheduler(definitions, (host.device,), make_policy("lru"), Settings())

    def check(_: str) -> None:
        assert measuring.wait(20), "nobody has begun to measure"

    pool = Pool(
        scheduler, [host], lambda *_: Launch(("true",)), Journal(), check=check, measure_max_age_seconds=0.0
    )
    async with pool:
        measuring.clear()
        await pool.load("a")


async def test_a_child_that_dies_as_it_becomes_ready_is_an_error_of_ours_to_its_waiters() -> None:
    class DiesWhenReady(FakeHost):
        async def start(self, instance: str, *args: Any, **more: Any) -> Address:
            address = await super().start(instance, *args, **more)
            self.crash(instance)
            return address

    async with pool_of(DiesWhenReady(), model("a", 8)) as pool:
        with pytest.raises(LoadFailed, match="SIGSEGV"):
            await pool.load("a")
        assert not pool.snapshot().instances and not pool._waiters


async def test_a_request_that_other_programs_keep_waiting_is_served_once_they_leave() -> None:
    host = FakeHost()
    host.strangers = 20 * GIB
    async with pool_of(host, model("a", 8)) as pool:
        waiting = asyncio.ensure_future(pool.load("a"))
        await until(lambda: pool.snapshot().queues)
        host.strangers = 0
        await until(waiting.done)
        await waiting


async def test_a_stop_in_the_turn_of_the_start_ends_the_child_once() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8)) as pool:
        waiting = asyncio.ensure_future(pool.load("a"))
        await until(lambda: pool.snapshot().instances)
        assert await pool.unload("a", force=True)
        with pytest.raises(Unavailable, match="unloaded by an operator"):
            await waiting
        assert exits(pool, "a#1") == 1 and not host.children


async def test_unload_drains_and_returns_when_the_model_is_gone() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        assert not await pool.unload("a")
        async with pool.lease("a"):
            unloading = asyncio.ensure_future(pool.unload("a"))
            await until(lambda: pool.snapshot().instances[0].state is State.DRAINING)
            assert host.children and not unloading.done()
        assert await unloading
        assert not host.children


async def test_a_lease_tells_why_the_router_stopped_its_instance() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool, asyncio.timeout(5):
        await pool.load("a")
        taken = pool.acquire_nowait("a")
        assert taken is not None
        async with pool.lease("a") as lease:
            assert lease.ending is taken.ending
            assert (lease.ending.cause, lease.ending.over.is_set()) == (None, False)
            await pool.unload("a", force=True)
            assert (lease.ending.cause, lease.ending.over.is_set()) == (Cause.UNLOADED, True)
        pool.release(taken)
        async with pool.lease("a") as another:
            assert another.ending.cause is None, "it is another instance"
            host.crash(another.instance)
            await another.ending.over.wait()
            assert another.ending.cause is None, "nothing has stopped it"


async def test_shutting_down_refuses_those_who_wait_and_stops_loads_and_residents() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8), model("b", 8), model("c", 20)) as pool:
        await pool.load("a")
        host.auto_ready = False
        loading, queued = (asyncio.ensure_future(pool.load(name)) for name in ("b", "c"))
        await until(lambda: "b#1" in host.children and pool.snapshot().queues)
    results = await asyncio.gather(loading, queued, return_exceptions=True)
    assert all(isinstance(result, ShuttingDown) for result in results)
    assert not host.children and host.started == ["a#1", "b#1"]
    with pytest.raises(ShuttingDown):
        await pool.load("a")


async def test_a_shutdown_is_in_the_journal_as_the_reason_of_every_stop() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8), model("b", 8)) as pool:
        await pool.load("a")
        host.auto_ready = False
        loading = asyncio.ensure_future(pool.load("b"))
        await until(lambda: "b#1" in host.children)
    await asyncio.gather(loading, return_exceptions=True)
    stops = [c for entry in pool.journal.entries() for c in entry.commands if isinstance(c, Stop)]
    assert stops == [Stop("a#1", Cause.SHUTDOWN), Stop("b#1", Cause.SHUTDOWN)]
    assert (exits(pool, "a#1"), exits(pool, "b#1")) == (1, 1)


async def test_an_unknown_model_is_refused_and_leaves_nothing() -> None:
    async with pool_of(FakeHost(), model("alpha", 8)) as pool:
        with pytest.raises(ModelNotFound, match="Did you mean 'alpha'"):
            await pool.load("alhpa")
        with pytest.raises(ModelNotFound):
            pool.explain("alhpa")
        assert not pool.snapshot().queues


async def test_what_is_kept_of_a_refusal_holds_nothing_of_those_who_were_refused() -> None:
    """An exception that was raised holds all frames that it passed: requests, with their bodies."""
    broken = model("broken", 1, error=ModelUnusable("broken cannot be loaded"))
    failing = model("failing", 1)
    host = FakeHost()
    host.fail_next = [LoadFailed("it does not come up")]
    async with pool_of(host, broken, failing) as pool:
        for name in ("broken", "failing", "broken", "nothing"):
            with pytest.raises(RouterError) as refused:
                async with pool.lease(name):
                    pytest.fail("it cannot be had")
            assert refused.value.__traceback__ is not None
        kept = [c.error for e in pool.journal.entries() for c in e.commands if isinstance(c, Refuse)]
        kept += [
            e.event.error for e in pool.journal.entries() if isinstance(e.event, Exited) and e.event.error
        ]
        assert len(kept) == 5 and broken.error in kept
        assert [error for error in kept if error.__traceback__ is not None or error.__context__] == []


async def test_a_model_that_cannot_be_started_is_refused_before_anyone_is_evicted() -> None:
    host = FakeHost()
    pool = pool_of(host, model("a", 14), model("b", 14))

    def check(name: str) -> None:
        if name == "b":
            raise ModelUnusable("b cannot be loaded: its file is gone")

    pool._check = check
    async with pool:
        await pool.load("a")
        with pytest.raises(ModelUnusable, match="its file is gone"):
            await pool.load("b")
        assert set(host.children) == {"a#1"} and not pool.snapshot().queues


async def test_a_failing_measurement_and_a_failing_launch_do_not_take_the_pool_down() -> None:
    host = FakeHost()
    pool = pool_of(host, model("a", 8), model("b", 8))
    broken = LoadFailed("the preset of a is wrong")

    def launcher(name: str, *_: object) -> Launch:
        if name == "a":
            raise broken
        return Launch(("true",))

    pool._launcher = launcher
    async with pool:
        with pytest.raises(LoadFailed, match="the preset of a is wrong"):
            await pool.load("a")
        await pool.load("b")


async def test_a_storm_of_requests_half_of_them_cancelled_leaves_nothing_behind() -> None:
    host = FakeHost()
    chance = random.Random(7)
    names = ["a", "b", "c", "d"]
    settings = Settings(queue_limit=2000)
    async with pool_of(host, *(model(name, 9) for name in names), settings=settings) as pool:

        async def client(patience: float | None, name: str) -> None:
            async with asyncio.timeout(patience), pool.lease(name):
                await asyncio.sleep(chance.random() * 0.002)

        patiences = [chance.random() * 0.004 if chance.random() < 0.5 else None for _ in range(1300)]
        clients = [client(patience, chance.choice(names)) for patience in patiences]
        results = await asyncio.gather(*clients, return_exceptions=True)
        patient = [result for result, patience in zip(results, patiences, strict=True) if patience is None]
        assert all(result is None for result in patient), "who waits is served"
        assert all(result is None or isinstance(result, TimeoutError) for result in results)
        snapshot = pool.snapshot()
        assert not snapshot.queues and not any(i.leases for i in snapshot.instances)
        assert not any(i.state is State.PLANNED for i in snapshot.instances)
        assert not pool._waiters
    assert not host.children and not pool._tasks


async def test_what_a_host_said_last_of_its_devices_can_be_looked_at() -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 8)) as pool:
        host.strangers = 5 * GIB
        await pool.measure()
        assert pool.measurements["local"].free == {"local/cuda:0": 19 * GIB}


async def test_it_tells_what_another_definition_would_do_without_doing_it() -> None:
    async with pool_of(FakeHost(), model("a", 8), model("b", 4)) as pool:
        await pool.load("a")
        assert pool.explain("b").would_evict == ()
        assert pool.explain("b", model("b", 20)).would_evict == ("a#1",)
        assert pool.explain("b").would_evict == ()


# --- before and after this process ---


ELSEWHERE = Placement("local", {"local/cuda:9": GIB}, ("local/cuda:9",))


def found(host: FakeHost, instance: str, placement: Placement, **more: Any) -> InstanceRecord:
    """A child of an earlier router, as this one's host finds it."""
    child = host.children[instance] = FakeChild(placement)
    child.loaded.set()
    address, name = Address(f"/run/{instance}.sock"), instance.partition("#")[0]
    record = InstanceRecord(instance, name, placement, Definition("d"), address, pid=1, ready=True)
    return dataclasses.replace(record, **more)


async def test_an_adopted_child_serves_without_a_load_and_its_memory_is_counted() -> None:
    host, a = FakeHost(), model("a", 14, definition=Definition("d"))
    record = found(host, "a#7", a.placements[0])
    async with pool_of(host, a, model("b", 14), policy="no-evict") as pool:
        pool.adopt(record)
        await pool.measure()
        async with pool.lease("a") as lease:
            assert (lease.instance, lease.action, lease.address) == ("a#7", "already_loaded", record.address)
        with pytest.raises(Unavailable):
            await pool.load("b")
    assert not host.started
    assert host.stopped == ["a#7"], "it is a child like any other"
    assert exits(pool, "a#7") == 1


@pytest.mark.parametrize(
    "change",
    [{"ready": False}, {"definition": Definition("old")}, {"model": "gone"}, {"placement": ELSEWHERE}],
)
async def test_a_child_that_does_not_match_is_stopped_and_the_next_has_another_name(change: dict) -> None:
    host, a = FakeHost(), model("a", 14, definition=Definition("d"))
    record = found(host, "a#1", change.pop("placement", a.placements[0]), **change)
    async with pool_of(host, a) as pool:
        pool.adopt(record)
        await until(lambda: host.stopped == ["a#1"] and not host.children)
        await pool.load("a")
    assert host.started == (["a#1"] if record.model == "gone" else ["a#2"])


async def test_the_death_of_an_adopted_child_is_noticed() -> None:
    host, a = FakeHost(), model("a", 14, definition=Definition("d"))
    record = found(host, "a#1", a.placements[0])
    async with pool_of(host, a) as pool:
        pool.adopt(record)
        await asyncio.sleep(0)
        host.crash("a#1")
        await until(lambda: exits(pool, "a#1"))
        async with pool.lease("a") as lease:
            assert lease.instance == "a#2"


async def test_a_pool_that_is_handed_over_tells_its_leases_and_touches_no_child_any_more() -> None:
    host, ended = FakeHost(), list[str]()
    async with pool_of(host, model("a", 8), model("b", 20)) as pool:
        async with pool.lease("a") as lease:
            waiting = asyncio.ensure_future(pool.load("b"))
            await until(lambda: pool.snapshot().queues)
            assert await pool.hand_over(ended.append) == {lease.id: "a#1"}
            with pytest.raises(HandedOver):
                await waiting
            with pytest.raises(HandedOver):
                await pool.load("a")
            assert lease.id not in ended
        assert ended[-1] == lease.id
    assert not host.stopped
    assert list(host.children) == ["a#1"]
    assert host.started == ["a#1"]


async def test_leases_of_an_earlier_router_are_handed_on_until_they_end() -> None:
    host, a, ended = FakeHost(), model("a", 8, definition=Definition("d")), list[str]()
    record = found(host, "a#1", a.placements[0])
    async with pool_of(host, a) as pool:
        pool.adopt(record, ["earlier 1", "earlier 2"])
        assert pool.snapshot().instances[0].leases == ("earlier 1", "earlier 2")
        pool.end_adopted("earlier 1")
        pool.end_adopted("earlier 1")
        assert pool.snapshot().instances[0].leases == ("earlier 2",)
        assert await pool.hand_over(ended.append) == {"earlier 2": "a#1"}
        pool.end_adopted("earlier 2")
    assert ended == ["earlier 2"]


async def test_a_load_that_has_not_ended_is_called_off_by_a_handover() -> None:
    host = FakeHost(auto_ready=False)
    async with pool_of(host, model("a", 8)) as pool:
        waiting = asyncio.ensure_future(pool.load("a"))
        await until(lambda: "a#1" in host.children)
        assert pool.is_changing()
        assert await pool.hand_over(lambda _: None) == {}
        with pytest.raises(HandedOver):
            await waiting
        assert not host.children


async def test_devices_are_looked_at_before_a_load_and_while_somebody_waits_for_memory() -> None:
    """And what goes wrong with that keeps nobody from being served."""
    host = FakeHost()
    host.strangers = 20 * GIB
    looked = 0

    async def look_again() -> None:
        nonlocal looked
        looked += 1
        raise OSError("the disk is gone")

    scheduler = Scheduler({"a": model("a", 8)}, (host.device,), make_policy("lru"), Settings())
    launch = Launch(("true",))
    async with (
        Pool(scheduler, [host], lambda *_: launch, Journal(), look_again=look_again) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        waiting = tasks.create_task(pool.load("a"))
        await until(lambda: pool.snapshot().queues)
        assert looked == 1
        await until(lambda: looked > 2)
        assert not waiting.done()
        host.strangers = 0
        await waiting


async def test_reloads_that_change_nothing_keep_no_copies_in_the_journal() -> None:
    async with pool_of(FakeHost(), model("a", 8), model("b", 8)) as pool:
        for _ in range(3):
            await pool.reload({name: model(name, 8) for name in ("a", "b")})
        await pool.reload({"a": model("a", 8), "b": model("b", 9)})
        told = [entry.event.models for entry in pool.journal.entries() if isinstance(entry.event, Reloaded)]
    assert told[0] is told[1] is told[2]
    assert told[3]["a"] is told[0]["a"]
    assert told[3]["b"] == model("b", 9)


class FailingLearner:
    """Fails at everything that it hears of a model whose name begins with "bad"."""

    def on_event(self, event: Any, commands: Any) -> list[Any]:
        if any("bad" in str(one) for one in (event, *commands)):
            raise KeyError("bad")
        return []

    async def consult(self, instance: str) -> list[Any]:
        return []

    def corrections(self, taken: Measurement, use: Any) -> dict[str, Any]:
        if any(instance.startswith("bad") for instance in taken.used):
            raise ValueError("zip() argument 2 is shorter than argument 1")
        return {}

    async def hand_over(self) -> None:
        pass

    def of_instance(self, instance: str) -> None:
        return None

    def of_model(self, model: str) -> tuple[()]:
        return ()


async def test_what_cannot_be_learned_from_one_child_costs_no_request_and_no_measurement(caplog) -> None:
    host = FakeHost()
    definitions = {name: model(name, 4) for name in ("bad", "good")}
    scheduler = Scheduler(definitions, (host.device,), make_policy("lru"), Settings())
    launch = Launch(("true",))
    async with Pool(
        scheduler,
        [host],
        lambda *_: launch,
        Journal(),
        definitions=definitions,
        learner=FailingLearner(),  # type: ignore[arg-type]
    ) as pool:
        for name in definitions:
            await pool.load(name)
        await pool.measure()
        free = pool.snapshot().devices[0].free
        assert free == host.device.total - 8 * GIB, "the scheduler was told all the same"
        await pool.unload("bad")
        await pool.load("good")
    assert "nothing is learned from Acquire" in caplog.text
    assert "nothing is learned from a measurement" in caplog.text
    assert not host.children


async def test_a_measurement_that_fails_in_whichever_way_is_followed_by_the_next(monkeypatch, caplog) -> None:
    host = FakeHost()
    pool = pool_of(host, model("a", 8))
    pool._measuring._poll_seconds = 0.01
    async with pool:
        await pool.load("a")
        with monkeypatch.context() as patch:
            patch.setattr(host, "measure", lambda **_: 1 / 0)
            await until(lambda: "cannot be measured" in caplog.text)
        before = host.counts["measure"]
        await until(lambda: host.counts["measure"] > before + 2)


async def test_leaving_does_not_wait_for_ever_for_a_child_that_does_not_end(monkeypatch, caplog) -> None:
    """Not even SIGKILL ends one that is stuck in the kernel, as with a GPU that has failed."""
    monkeypatch.setattr(pool_module, "STOP_SECONDS", 0.05)

    class Stuck(FakeHost):
        async def stop(self, instance: str, *, grace_seconds: float) -> None:
            if instance == "b#1":
                await super().stop(instance, grace_seconds=grace_seconds)

    host = Stuck()
    pool = pool_of(host, model("a", 4), model("b", 4))
    pool._grace = lambda _: 0.05
    async with asyncio.timeout(20):
        async with pool:
            await pool.load("a")
            await pool.load("b")
    assert "a#1 not ended within 0.1 s" in caplog.text
    assert set(host.children) == {"a#1"}


async def test_a_child_whose_task_fails_after_its_start_is_stopped(monkeypatch) -> None:
    host = FakeHost()
    async with pool_of(host, model("a", 4)) as pool:
        monkeypatch.setattr(host, "wait", lambda _: 1 / 0)
        with pytest.raises(LoadFailed, match="ZeroDivisionError"):
            await pool.load("a")
            await pool.load("a")
        await until(lambda: "a#1" in host.stopped)
        monkeypatch.undo()
        host.children.clear()
