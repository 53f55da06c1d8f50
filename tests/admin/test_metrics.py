"""The page that Prometheus collects."""

from __future__ import annotations

import asyncio

from router.errors import LoadFailed
from router.hosts import Measurement
from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import FootprintStatus
from router.scheduler.types import Cause, Exited, Placement, Ready, Start, Stop, Tick
from router.scheduler.views import ModelView, QueueView
from tests.admin.conftest import Api
from tests.admin.fake_pool import GIB, GPU, Instance
from tests.admin.upstream import Connection, Received
from tests.metrics.lint import complaints, families

OWN = """\
# HELP llamacpp:requests_processing Now.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
"""


async def child(received: Received, connection: Connection) -> None:
    if received.line.startswith("GET /metrics "):
        await connection.answer(OWN.encode(), head="Content-Type: text/plain")
    else:
        await connection.answer(received.body)


def view(name: str) -> ModelView:
    return ModelView(name, 5.0, 1, 0, 0, None, None, None, None)


async def page(api: Api) -> str:
    answer = await api.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return answer.body.decode()


async def test_it_keeps_prometheus_conventions(api: Api):
    await api.start(script=child)
    api.pool.views = {name: view(name) for name in ("tiny", "other")}
    await api.post("/v1/completions", json={"model": "tiny"})
    await api.post("/v1/completions", json={"model": "other"})
    api.pool.stop(next(iter(api.pool.instances)), Cause.EVICTED)
    assert complaints(await page(api)) == []


async def test_a_request_is_counted_when_it_ends(api: Api):
    await api.start(script=child)
    await api.post("/v1/completions", json={"model": "small"})
    await api.post("/v1/completions", json={"model": "tiny"})
    await api.post("/v1/completions", json={"model": "nobody"})
    found = families(await page(api))
    rows = {
        (one.labels["model"], one.labels["action"], one.labels["status"]): one.value
        for one in found["llama_router_requests"].samples
        if "total" in one.name
    }
    assert rows == {("tiny", "loaded", "200"): 1, ("tiny", "already_loaded", "200"): 1}
    assert "nobody" not in str(rows)


async def test_every_model_has_a_row_and_who_waits_or_is_served_is_counted(api: Api):
    await api.start(script=child)
    api.pool.views = {name: view(name) for name in ("tiny", "other")}
    api.pool.instances["tiny#1"] = Instance(
        "tiny#1", "tiny", api.pool.sockets["tiny"][0], leases=["r1", "r2"]
    )
    api.pool.queues = (QueueView("other", 3, 90.0, 1, "its turn", None),)
    found = families(await page(api))

    def by_model(name: str) -> dict[str, float]:
        return {one.labels["model"]: one.value for one in found[f"llama_router_{name}"].samples}

    assert by_model("leases") == {"tiny": 2, "other": 0}
    assert by_model("queue_length") == {"tiny": 0, "other": 3}
    assert by_model("queue_oldest_seconds") == {"other": 10}
    assert by_model("instances") == {"tiny": 1, "other": 0}
    assert by_model("hits") == by_model("swaps") == {"tiny": 0, "other": 0}


async def test_what_is_counted_since_the_start_is_told(api: Api):
    await api.start(script=child)
    api.pool.views = {name: view(name) for name in ("tiny", "other")}
    placement = Placement("local", {})
    record = api.pool.journal.record
    record(
        1.0,
        Tick(),
        [Start("tiny#2", "tiny", placement, ("other#1",)), Stop("other#1", Cause.EVICTED, "tiny")],
    )
    record(2.0, Ready("tiny#2"), [])
    record(3.0, Exited("tiny#2", LoadFailed("dead")), [])
    found = families(await page(api))

    def of(name: str) -> dict[str, float]:
        return {one.labels["model"]: one.value for one in found[f"llama_router_{name}"].samples}

    assert of("swaps") == of("loads") == of("crashes") == {"tiny": 1, "other": 0}
    assert of("evictions") == {"tiny": 0, "other": 1}


async def test_memory_is_told_by_device_predicted_measured_and_how_wrong_that_was(api: Api):
    await api.start(script=child)
    api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", api.pool.sockets["tiny"][0])
    api.pool.standing_of["tiny#1"] = FootprintStatus(
        "measured", {GPU: 4 * GIB}, {GPU: 5 * GIB}, {GPU: 6 * GIB}
    )
    info = DeviceInfo(GPU, "cuda", "NVIDIA H200", "GPU-5f3c", 24 * GIB, 15 * GIB, 0, 40, 61, None, pool=GPU)
    api.pool.measurements["local"] = Measurement(1.0, {GPU: 15 * GIB}, infos={GPU: info})
    found = families(await page(api))

    def one(name: str) -> float:
        (sample,) = found[f"llama_router_{name}"].samples
        assert sample.labels["device"] == "cuda:GPU-5f3c"
        return float(sample.value)

    assert one("model_memory_predicted_bytes") == 4 * GIB
    assert one("model_memory_measured_bytes") == 5 * GIB
    assert one("model_memory_reserved_bytes") == 6 * GIB
    assert one("model_memory_error_bytes") == GIB
    assert one("device_memory_free_bytes") == 15 * GIB
    assert one("device_memory_margin_bytes") == GIB
    assert (
        one("device_memory_margin_left_bytes") == 14 * GIB
    )  # free, less 1 GiB that is promised and not taken
    assert one("device_healthy") == 1
    assert one("device_utilisation_ratio") == 0.4
    assert one("device_temperature_celsius") == 61


async def test_loaded_llama_servers_are_asked_and_nobody_is_loaded(api: Api):
    await api.start(script=child)
    api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", api.pool.sockets["tiny"][0])
    found = families(await page(api))
    (own,) = found["llamacpp_requests_processing"].samples
    assert (own.labels, own.value) == ({"model": "tiny", "replica": "0"}, 1.0)
    assert not api.pool.acquired


async def test_of_one_model_it_is_what_its_llama_server_tells(api: Api):
    await api.start(script=child)
    answer = await api.get("/metrics?model=tiny")
    assert (answer.status, answer.error["code"]) == (400, "model_not_loaded")
    assert not api.pool.acquired
    api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", api.pool.sockets["tiny"][0])
    assert (await api.get("/metrics?model=small")).body.decode() == OWN
    assert (await api.get("/metrics?model=nobody")).status == 404


async def test_a_collector_that_prefers_openmetrics_gets_it(api: Api):
    await api.start(script=child)
    answer = await api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


async def test_it_needs_a_key_where_there_are_keys(api: Api):
    await api.start(script=child, api_keys=("secret",))
    assert (await api.get("/metrics")).status == 401
    assert (await api.get("/metrics", headers={"Authorization": "Bearer secret"})).status == 200


async def test_a_request_in_flight_is_seen_as_a_lease_and_counted_only_afterwards(api: Api):
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(received: Received, connection: Connection) -> None:
        if received.line.startswith("POST"):
            begun.set()
            await go.wait()
        await connection.answer(b"{}")

    await api.start(script=slow)
    api.pool.views = {"tiny": view("tiny")}
    async with asyncio.TaskGroup() as group:
        group.create_task(api.post("/v1/completions", json={"model": "tiny"}))
        await begun.wait()
        during = families(await page(api))
        go.set()
    assert during["llama_router_leases"].samples[0].value == 1
    assert not during["llama_router_requests"].samples
    assert families(await page(api))["llama_router_requests"].samples
