"""A pool that learns, on a host without processes: what is measured changes what is reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.db.store import Store
from router.engines import Launch
from router.errors import LoadFailed, ModelTooLarge
from router.hosts import Exit, Measurement
from router.ids import Definition
from router.memory.estimate.learning import PROOF_TRIALS, PROVEN_SLACK_BYTES, UNPROVEN_SLACK_BYTES, Prediction
from router.observability.journal import Journal
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Device, Footprint, Learned, Model, Placement, Start, Stop
from router.scheduler.views import Use
from router.supervisor.calibration import Learning
from router.supervisor.calibration.fit_params_cache import FitParamsCache
from router.supervisor.pool import Pool
from tests.fake_host import GIB, FakeHost
from tests.waiting import until

MIB = 1 << 20
GPU = "local/cuda:0"
TWIN = "local/cuda:1"


class MeasuredHost(FakeHost):
    """`holds` is what the children of a model really take; `tells`: the driver says who holds what."""

    def __init__(self, **holds: float) -> None:
        super().__init__()
        self.holds = {name: int(gib * GIB) for name, gib in holds.items()}
        self.tells = True
        self.lost: dict[str, dict[str, int]] = {}
        self.twin = Device(TWIN, self.device.total, self.device.margin, "cuda:1")

    async def devices(self) -> tuple[Device, ...]:
        return (self.device, self.twin)

    async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
        at = asyncio.get_running_loop().time()
        held = {
            name: {child.placement.devices[0]: self.holds[name.partition("#")[0]]}
            for name, child in self.children.items()
            if child.loaded.is_set()
        }
        free = {d.id: d.total - self.strangers * (d.id == GPU) for d in (self.device, self.twin)}
        for footprint in held.values():
            for device, size in footprint.items():
                free[device] = free.get(device, 0) - size
        if self.tells:
            return Measurement(at, free, held, told=held)
        guesses = {name: self.children[name].placement.footprint for name in held}
        return Measurement(at, free, guesses, lost=self.lost)


def out_of_memory() -> LoadFailed:
    return LoadFailed("killed by SIGABRT (out of memory)", details={"out_of_memory": True, "log": ["boom"]})


def model(name: str, gib: float, *devices: str) -> Model:
    places = (Placement("local", {d: int(gib * GIB)}, (d,), ("-c", "1")) for d in devices or (GPU,))
    return Model(name, tuple(places), Definition(f"definition-of-{name}"), load_seconds=0.01)


def predictions_of(*models: Model, keys: dict[str, str] | None = None) -> dict[str, tuple[Prediction, ...]]:
    def one(name: str, place: Placement) -> Prediction:
        device = place.devices[0]
        kind = {GPU: "card", TWIN: "card"}[device]
        key = (keys or {}).get(name, name)
        return Prediction(key, kind, (device,), (place.footprint[device],), (0,), (23 * GIB,))

    return {m.name: tuple(one(m.name, place) for place in m.placements) for m in models}


class Bench:
    """A learning pool with everything a test looks at."""

    def __init__(self, pool: Pool, host: MeasuredHost, learning: Learning) -> None:
        self.pool, self.host, self.learning = pool, host, learning

    async def use(self, name: str, times: int = 1) -> None:
        """Requests, each followed by a measurement."""
        for _ in range(times):
            async with self.pool.lease(name):
                pass
            await self.pool.measure()

    async def unload(self, name: str) -> None:
        await self.pool.unload(name)

    def reserved(self, name: str) -> int:
        (one,) = self.pool.snapshot().of_model(name)
        return sum(one.reserved.values())

    def starts(self, name: str) -> list[int]:
        """What each start of the model reserved."""
        commands = (command for entry in self.pool.journal.entries() for command in entry.commands)
        started = (c for c in commands if isinstance(c, Start) and c.model == name)
        return [sum(c.placement.footprint.values()) for c in started]

    def stops(self) -> list[str]:
        commands = (command for entry in self.pool.journal.entries() for command in entry.commands)
        return [c.instance for c in commands if isinstance(c, Stop)]

    def events(self, kind: type) -> list:
        return [entry.event for entry in self.pool.journal.entries() if isinstance(entry.event, kind)]


@asynccontextmanager
async def learning_pool(
    host: MeasuredHost,
    *models: Model,
    store: Store | None = None,
    keys=None,
    opinions: FitParamsCache | None = None,
    predictions=None,
    **settings,
):
    async with (
        Store(None) as memory,
        Learning(store or memory, trial_seconds=0, opinions=opinions) as learning,
    ):
        devices = await host.devices()
        definitions = {m.name: m for m in models}
        placed = learning.define(definitions, predictions or predictions_of(*models, keys=keys), devices)
        rules = Settings(**{"backoff_initial": 0.01, "backoff_max": 0.01, **settings})
        scheduler = Scheduler(placed, devices, make_policy("lru"), rules)
        launch = Launch(("true",))
        pool = Pool(
            scheduler, [host], lambda *_: launch, Journal(), definitions=definitions, learner=learning
        )
        async with pool:
            yield Bench(pool, host, learning)


# --- too high, too low, growing ---


async def test_a_first_load_reserves_the_prediction_and_use_releases_what_it_does_not_take():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench:
        await bench.pool.load("a")
        await bench.pool.measure()
        assert bench.reserved("a") == bench.starts("a")[0] == 9 * GIB
        reserved = [9 * GIB]
        for _ in range(PROOF_TRIALS + 1):
            await bench.use("a")
            reserved.append(bench.reserved("a"))
        assert sum(bench.host.reserved["a#1"].values()) == reserved[-1], "its host knows, too"
        assert reserved == sorted(reserved, reverse=True)
        assert reserved[-1] == pytest.approx(5 * GIB + PROVEN_SLACK_BYTES + 5 * GIB // 100, abs=MIB)
        assert bench.pool.standings("a")[0].confidence == "proven"


async def test_what_is_released_is_there_for_others():
    async with learning_pool(MeasuredHost(a=5, b=14), model("a", 9), model("b", 16)) as bench:
        await bench.use("a", 12)
        await bench.pool.load("b")
        assert not bench.stops(), "9 and 16 GiB would not have fitted on 23 together"


async def test_growth_after_the_load_is_covered_with_a_slack():
    async with learning_pool(MeasuredHost(a=5), model("a", 6)) as bench:
        await bench.use("a", 12)
        bench.host.holds["a"] = 8 * GIB
        await bench.use("a")
        assert bench.reserved("a") == 8 * GIB + UNPROVEN_SLACK_BYTES
        (standing,) = bench.pool.standings("a")
        assert standing.confidence == "measured"
        assert standing.measured == {GPU: 8 * GIB}
        assert standing.predicted == {GPU: 6 * GIB}


async def test_an_idle_model_releases_nothing_however_often_it_is_measured():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench:
        await bench.use("a")
        before = bench.reserved("a")
        for _ in range(20):
            await bench.pool.measure()
        assert bench.reserved("a") == before


async def test_a_request_that_lasts_counts_as_use():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench, bench.pool.lease("a"):
        for _ in range(3):
            await bench.pool.measure()
        assert bench.reserved("a") < 9 * GIB


async def test_the_next_load_reserves_what_was_learned():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench:
        await bench.use("a", 12)
        learned = bench.reserved("a")
        await bench.unload("a")
        await bench.pool.load("a")
        first, second = bench.starts("a")
        assert first == 9 * GIB
        assert second == pytest.approx(learned, rel=0.01)
        told = bench.events(Learned)
        assert 1 <= len(told) <= 2 * PROOF_TRIALS, "only what matters is told"


async def test_identical_cards_share_what_was_learned_and_so_do_two_names_of_one_file():
    models = (model("a", 9, GPU, TWIN), model("b", 9, TWIN))
    async with learning_pool(MeasuredHost(a=5, b=5), *models, keys={"b": "a"}) as bench:
        await bench.use("a", 12)
        for name in ("a", "b"):
            assert all(sum(s.reserved.values()) < 6 * GIB for s in bench.pool.standings(name))
        await bench.pool.load("b")
        assert bench.starts("b")[0] < 6 * GIB


# --- what is no measurement ---


async def test_nothing_is_learned_where_the_driver_does_not_tell():
    host = MeasuredHost(a=5)
    host.tells = False
    async with learning_pool(host, model("a", 9)) as bench:
        await bench.use("a", 12)
        assert bench.reserved("a") == 9 * GIB
        assert bench.pool.standings("a")[0].confidence == "estimated"
        assert not bench.events(Learned)


async def test_a_driver_that_tells_nothing_of_it_says_nothing():
    async with learning_pool(MeasuredHost(a=0), model("a", 9)) as bench:
        await bench.use("a", 12)
        assert bench.reserved("a") == 9 * GIB


async def test_a_loss_of_the_device_corrects_upwards_and_proves_nothing():
    host = MeasuredHost(a=10)
    host.tells = False
    host.lost = {"a#1": {GPU: 10 * GIB}}
    async with learning_pool(host, model("a", 9)) as bench:
        await bench.use("a", 12)
        assert bench.reserved("a") == 10 * GIB + UNPROVEN_SLACK_BYTES
        assert bench.pool.standings("a")[0].confidence == "measured"


async def test_a_loss_that_a_stranger_had_a_part_in_is_not_believed():
    host = MeasuredHost(a=5)
    host.tells = False
    host.lost = {"a#1": {GPU: 17 * GIB}}
    async with learning_pool(host, model("a", 9)) as bench:
        await bench.use("a", 12)
        assert bench.reserved("a") == 9 * GIB


# --- running out of memory ---


async def test_a_load_that_ran_out_of_memory_is_tried_once_more_with_more():
    host = MeasuredHost(a=9.5)
    host.fail_next = [out_of_memory()]
    async with learning_pool(host, model("a", 9, GPU, TWIN)) as bench:
        await bench.pool.load("a")
        assert bench.starts("a") == [9 * GIB, pytest.approx(9 * GIB * 1.15, abs=2)]
        await bench.unload("a")
        await bench.pool.load("a")
        assert bench.starts("a")[2] == pytest.approx(9 * GIB * 1.15, abs=2)


async def test_one_that_always_runs_out_fails_with_its_numbers_and_backs_off():
    host = MeasuredHost(a=30)
    host.fail_next = [out_of_memory() for _ in range(2)]
    async with learning_pool(host, model("a", 9), backoff_initial=60.0, backoff_max=60.0) as bench:
        with pytest.raises(
            LoadFailed, match=r"ran out of memory with 10\.35 GiB on cuda:0 reserved"
        ) as failed:
            await bench.pool.load("a")
        assert failed.value.details["log"] == ["boom"]
        assert failed.value.details["reserved"] == {"cuda:0": pytest.approx(9 * GIB * 1.15, abs=2)}
        with pytest.raises(LoadFailed, match="next try"):
            await bench.pool.load("a")
        assert len(bench.starts("a")) == 2, "tried once more, not for ever"


async def test_no_reservation_grows_beyond_what_the_device_could_give():
    host = MeasuredHost(a=30)
    host.strangers = 2 * GIB
    host.fail_next = [out_of_memory() for _ in range(16)]
    async with learning_pool(host, model("a", 9), queue_timeout=5.0) as bench:
        while host.fail_next:
            with pytest.raises(LoadFailed):
                await bench.pool.load("a")
            await asyncio.sleep(0.01)  # the pause after a failure
        assert max(bench.starts("a")) == 21 * GIB, "24, less a margin of 1 and the 2 of others"
        host.holds["a"] = 20 * GIB
        await asyncio.sleep(0.02)  # the pause after a failure
        await bench.pool.load("a")


async def test_one_that_runs_out_of_memory_in_service_gets_more_next_time():
    async with learning_pool(MeasuredHost(a=5), model("a", 5.3)) as bench:
        await bench.use("a", 12)
        before = bench.reserved("a")
        bench.host.children["a#1"].exit = Exit(-6, "killed by SIGABRT (out of memory)", out_of_memory=True)
        bench.host.children["a#1"].gone.set()
        await until(lambda: not bench.pool.snapshot().instances)
        await bench.pool.load("a")
        assert bench.starts("a")[1] == pytest.approx(before * 1.15, rel=0.001)
        assert bench.pool.standings("a")[0].confidence == "measured"


async def test_one_that_is_stopped_while_its_memory_is_short_is_not_blamed():
    async with learning_pool(MeasuredHost(a=5), model("a", 6)) as bench:
        await bench.use("a", 12)
        before = bench.pool.standings("a")
        bench.host.children["a#1"].exit = Exit(-9, "killed by SIGKILL", out_of_memory=True)
        await bench.unload("a")
        assert bench.pool.standings("a") == before


# --- over time ---


async def test_what_was_learned_outlives_the_router(tmp_path):
    async with (
        Store(tmp_path / "db") as store,
        learning_pool(MeasuredHost(a=5), model("a", 9), store=store) as bench,
    ):
        await bench.use("a", 12)
        learned = bench.reserved("a")
    async with (
        Store(tmp_path / "db") as store,
        learning_pool(MeasuredHost(a=5), model("a", 9), store=store) as bench,
    ):
        await bench.pool.load("a")
        assert bench.starts("a") == [learned]


async def test_a_row_that_cannot_be_of_this_placement_is_not_believed(tmp_path):
    async with Store(tmp_path / "db") as store:
        async with learning_pool(MeasuredHost(a=5), model("a", 9), store=store) as bench:
            await bench.use("a", 12)
        statement = "UPDATE rows SET value = json_set(value, '$.learned.peak', json('[1, 2, 3]'))"
        await store._in_thread(lambda: store._execute(statement, ()))
        async with learning_pool(MeasuredHost(a=5), model("a", 9), store=store) as bench:
            await bench.use("a")
            assert bench.starts("a") == [9 * GIB]


async def test_a_reload_keeps_what_was_learned_and_another_definition_begins_anew():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench:
        await bench.use("a", 12)
        devices = await bench.host.devices()
        same = model("a", 9)
        placed = bench.learning.define({"a": same}, predictions_of(same), devices)
        await bench.pool.reload(placed, devices)
        assert bench.reserved("a") < 6 * GIB
        assert sum(placed["a"].placements[0].footprint.values()) < 6 * GIB
        other = replace(model("a", 8), definition=Definition("another"))
        placed = bench.learning.define({"a": other}, predictions_of(other, keys={"a": "new"}), devices)
        await bench.pool.reload(placed, devices)
        await until(lambda: not bench.pool.snapshot().instances)
        await bench.pool.load("a")
        assert bench.starts("a")[-1] == 8 * GIB


async def test_an_instance_of_an_older_definition_goes_on_under_its_own_key():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench, bench.pool.lease("a"):
        other = replace(model("a", 8), definition=Definition("another"))
        devices = await bench.host.devices()
        placed = bench.learning.define({"a": other}, predictions_of(other, keys={"a": "new"}), devices)
        await bench.pool.reload(placed, devices)
        for _ in range(3):
            await bench.pool.measure()
        assert bench.pool.standings("a")[0].confidence == "estimated"
        one = bench.pool.standing("a#1")
        assert one is not None and one.confidence == "measured"
        assert one.measured_now == {GPU: 5 * GIB}
        assert one.reserved == bench.pool.snapshot().instances[0].reserved


async def test_a_model_without_predictions_and_an_unknown_instance_are_left_alone():
    async with Store(None) as store, Learning(store) as learning:
        odd = model("odd", 1)
        assert learning.define({"odd": odd}, {"odd": ()}, ()) == {"odd": odd}
        assert learning.of_model("odd") == learning.of_model("never heard of") == ()
        assert learning.of_instance("odd#1") is None
        taken = Measurement(0.0, {}, {"odd#1": {GPU: 1}}, {"odd#1": {GPU: 1}})
        assert learning.corrections(taken, {"odd#1": Use(1, 0)}) == {}


async def test_corrections_are_told_only_when_they_change():
    async with learning_pool(MeasuredHost(a=5), model("a", 9)) as bench:
        told: list[dict[str, Footprint]] = []
        real = bench.learning.corrections

        def corrections(taken: Measurement, use: Mapping[str, Use]) -> dict[str, Footprint]:
            told.append(real(taken, use))
            return told[-1]

        bench.learning.corrections = corrections
        await bench.use("a", 30)
        corrected = [reserve for reserve in told if reserve]
        assert len(told) >= 30
        assert 2 <= len(corrected) <= PROOF_TRIALS + 2
        assert corrected[-1] == {"a#1": bench.pool.snapshot().instances[0].reserved}


# --- slower ways, and estimates that are too high ---


HOST_MEMORY = Device("local/host", 64 * GIB, GIB, "host")


class HostToo(MeasuredHost):
    """A machine with a GPU and main memory."""

    async def devices(self) -> tuple[Device, ...]:
        return (self.device, HOST_MEMORY)

    async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
        taken = await super().measure(max_age_seconds=max_age_seconds)
        free = {GPU: taken.free[GPU], HOST_MEMORY.id: HOST_MEMORY.total}
        return replace(taken, free=free)


def with_resort(gib: float) -> Model:
    resort = Placement("local", {HOST_MEMORY.id: int(gib * GIB)}, (HOST_MEMORY.id,), ("-c", "1"), 3, True)
    whole = model("a", gib)
    return replace(whole, placements=(*whole.placements, resort))


def predictions_with_resort(of: Model) -> dict[str, tuple[Prediction, ...]]:
    whole, resort = of.placements
    first = Prediction("a", "card", (GPU,), (whole.footprint[GPU],), (0,), (23 * GIB,), has_resort=True)
    second = Prediction(
        "a slow",
        "host",
        resort.devices,
        tuple(resort.footprint.values()),
        (0,),
        (63 * GIB,),
        is_fallback=True,
    )
    return {"a": (first, second)}


def places(bench: Bench) -> list[str]:
    commands = (command for entry in bench.pool.journal.entries() for command in entry.commands)
    return [c.placement.devices[0] for c in commands if isinstance(c, Start)]


async def test_what_ran_out_of_all_that_its_gpu_has_is_loaded_in_a_slower_way():
    host, of = HostToo(a=1), with_resort(21)
    host.fail_next = [out_of_memory() for _ in range(2)]
    async with learning_pool(host, of, predictions=predictions_with_resort(of)) as bench:
        with pytest.raises(LoadFailed):
            await bench.pool.load("a")
        assert places(bench) == [GPU, GPU], "once more, with all there is, before that is believed"
        assert bench.starts("a")[1] == 23 * GIB
        await asyncio.sleep(0.02)  # the pause after a failure
        await bench.pool.load("a")
        assert places(bench)[2] == HOST_MEMORY.id
        await bench.unload("a")
        await bench.pool.load("a")
        assert places(bench)[3] == HOST_MEMORY.id, "and it is remembered"


async def test_what_ran_out_because_others_hold_the_gpu_is_not_loaded_in_a_slower_way():
    host, of = HostToo(a=1), with_resort(15)
    host.strangers = 6 * GIB
    host.fail_next = [out_of_memory() for _ in range(4)]
    async with learning_pool(host, of, predictions=predictions_with_resort(of)) as bench:
        while host.fail_next:
            with pytest.raises(LoadFailed):
                await bench.pool.load("a")
            await asyncio.sleep(0.02)  # the pause after a failure
        await bench.pool.load("a")
        assert set(places(bench)) == {GPU}
        assert max(bench.starts("a")) == 17 * GIB


async def test_what_is_too_large_by_its_estimate_alone_is_tried_once():
    host, of = MeasuredHost(a=20), model("a", 22)  # what is tried of an estimate of 26, say
    attempt = {"a": (replace(predictions_of(of)["a"][0], is_attempt=True),)}
    async with learning_pool(host, of, predictions=attempt) as bench:
        await bench.use("a", 12)
        assert bench.pool.standings("a")[0].confidence == "proven"
        assert bench.reserved("a") < 21 * GIB
    host.fail_next = [out_of_memory()]
    async with learning_pool(host, of, predictions=attempt) as bench:
        with pytest.raises(LoadFailed):
            await bench.pool.load("a")
        await asyncio.sleep(0.02)  # the pause after a failure
        with pytest.raises(ModelTooLarge):
            await bench.pool.load("a")
        assert len(bench.starts("a")) == 1
