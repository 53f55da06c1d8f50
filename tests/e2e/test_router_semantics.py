"""llama.cpp's router, state by state, with its real llama-server: one test for each thing that its clients
count on. Where it is known to fail them, what they would expect stands here instead."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.scheduler.types import State
from tests.e2e.running import DEADLINE_SECONDS, Running, llama_servers, running
from tests.hub_stub import HubStub
from tests.make_gguf import make_llama
from tests.waiting import until

pytestmark = pytest.mark.e2e

ONE, TWO = "[scheduler]\nmodels_max = 1\nlinger = 0\n", "[scheduler]\nmodels_max = 2\nlinger = 0\n"


async def post(router: Running, path: str, body: dict[str, Any], **options: Any) -> tuple[int, Any]:
    async with router.session.post(path, json=body, **options) as answer:
        return answer.status, await answer.json()


async def status_of(router: Running, model: str) -> dict[str, Any]:
    async with router.session.get("/models") as answer:
        rows = {row["id"]: row for row in (await answer.json())["data"]}
    found: dict[str, Any] = rows[model]["status"]
    return found


def leases(router: Running, model: str) -> int:
    return sum(len(one.leases) for one in router.pool.snapshot().of_model(model))


def waiting(router: Running) -> int:
    return sum(queue.waiting for queue in router.pool.snapshot().queues)


async def until_it_speaks(router: Running) -> None:
    """The one request in flight has had the first bytes of its answer."""

    async def speaks() -> bool:
        async with router.session.get("/requests") as answer:
            return any(row["bytes"] > 0 for row in (await answer.json())["data"])

    await until(speaks)


@asynccontextmanager
async def held(router: Running, model: str) -> AsyncIterator[asyncio.Task[Any]]:
    """A stream that keeps the model busy; it must end whole."""
    stream = asyncio.create_task(router.stream(model, 400))
    await router.until(lambda: leases(router, model))
    yield stream
    answer = await stream
    assert (answer.status, answer.ended) == (200, True), answer


class Events:
    """What `/models/sse` tells, as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.seen: list[dict[str, Any]] = []

    async def until(self, model: str, event: str, **data: Any) -> dict[str, Any]:
        """The next one that is so."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for line in self._answer.content:
                if not line.startswith(b"data: "):
                    continue
                told = json.loads(line[6:])
                self.seen.append(told)
                is_it = (told["model"], told["event"]) == (model, event)
                if is_it and data.items() <= told["data"].items():
                    found: dict[str, Any] = told["data"]
                    return found
        raise AssertionError(self.seen)


@asynccontextmanager
async def events(router: Running) -> AsyncIterator[Events]:
    async with router.session.get("/models/sse", timeout=aiohttp.ClientTimeout(total=None)) as answer:
        assert answer.content_type == "text/event-stream"
        told = Events(answer)
        await told.until("*", "snapshot")
        yield told


# --- load and unload ---


async def test_a_load_answers_at_once_and_its_progress_is_told_in_status_and_events(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router, events(router) as told:
        assert (await status_of(router, "a"))["value"] == "unloaded"
        status, body = await post(router, "/models/load", {"model": "a"})
        assert (status, body["success"]) == (200, True)
        await told.until("a", "model_status", status="loading")
        loaded = await told.until("a", "status_change", status="loaded")
        assert loaded["load_seconds"] > 0
        assert loaded["info"]["meta"]["n_params"] > 0
        shown = await status_of(router, "a")
        assert (shown["value"], shown["waiting"]) == ("loaded", 0)
        assert "--alias" in shown["args"] and shown["preset"].startswith("[a]\n")


async def test_a_load_that_waits_answers_when_the_model_does_and_again_is_no_error(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        for _ in range(2):
            status, body = await post(router, "/models/load?wait=1", {"model": "a"})
            assert (status, body["status"]["value"]) == (200, "loaded")
        assert router.starts() == ["a"]
        assert (await post(router, "/models/load", {"model": "nobody"}))[0] == 404


async def test_an_unload_ends_the_process_and_what_is_not_loaded_is_400(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router, events(router) as told:
        await router.chat("a")
        status, body = await post(router, "/models/unload", {"model": "a"})
        assert (status, body["status"]["value"]) == (200, "unloaded")
        assert not llama_servers()
        await told.until("a", "stop", cause="unloaded")
        assert (await told.until("a", "status_change", status="unloaded"))["exit_code"] == 0
        status, body = await post(router, "/models/unload", {"model": "a"})
        assert (status, body["error"]["code"]) == (400, "model_not_loaded")


async def test_an_unload_lets_a_stream_end_and_with_force_ends_it_with_an_error(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        async with held(router, "a"):
            assert (await post(router, "/models/unload", {"model": "a"}))[0] == 200
        stream = asyncio.create_task(router.stream("a", 4000))
        await until_it_speaks(router)
        assert (await post(router, "/models/unload", {"model": "a", "force": True}))[0] == 200
        cut = await stream
        assert not cut.ended, "it is told as cut"
        assert "error" in cut.body


async def test_all_are_unloaded_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"]) as router:
        await asyncio.gather(router.chat("a"), router.chat("b"))
        _, body = await post(router, "/models/unload-all", {})
        assert sorted(body["unloaded"]) == ["a", "b"]
        assert not llama_servers()


async def test_a_load_with_other_settings_is_for_this_load_and_the_next_is_the_presets(
    tmp_path: Path,
) -> None:
    allowed = '[server]\nload_args = ["--threads"]\n[child]\nctx_size = 1024\n'
    async with running(tmp_path, ["a", "b"], allowed + ONE) as router:
        asked = {"model": "a", "ctx_size": 256, "cache_type_k": "f32", "args": ["--threads", "1"]}
        status, body = await post(router, "/models/load?wait=1", asked)
        assert status == 200, body
        assert body["meta"]["n_ctx"] == 256
        assert body["instances"][0]["settings"]["ctx_size"] == 256
        async with router.session.get("/props?model=a") as props:
            assert (await props.json())["default_generation_settings"]["n_ctx"] == 256
        assert (await post(router, "/models/load", asked))[0] == 200, "the same again is no error"
        other = {"model": "a", "ctx_size": 512}
        assert (await post(router, "/models/load", other))[0] == 409
        assert (await router.chat("b")).status == 200
        assert (await router.chat("a")).status == 200
        async with router.session.get("/props?model=a") as props:
            assert (await props.json())["default_generation_settings"]["n_ctx"] == 1024


async def test_a_load_that_fails_is_told_with_its_exit_code_and_one_with_other_settings_costs_no_pause(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ["a"]) as router, events(router) as told:
        # Its heads are smaller than a block of that type: llama-server itself says so, and ends.
        status, body = await post(router, "/models/load?wait=1", {"model": "a", "cache_type_k": "q8_0"})
        assert (status, body["error"]["code"]) == (503, "load_failed")
        gone = await told.until("a", "status_change", status="unloaded")
        assert gone["exit_code"] == 1 and gone["error"]
        shown = await status_of(router, "a")
        assert (shown["value"], shown["failed"], shown["exit_code"]) == ("unloaded", True, 1)
        assert shown["error"] == gone["error"]
        assert (await router.chat("a")).status == 200
        assert "failed" not in await status_of(router, "a")


# --- who leaves, and who does not ---


async def test_at_the_limit_whoever_was_used_least_recently_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b", "c"], TWO) as router:
        for name in ("a", "b", "a", "c"):
            assert (await router.chat(name)).status == 200
        assert router.stops() == [("b", "evicted")]
        assert router.resident() == ["a", "c"]


async def test_a_busy_model_is_not_evicted_and_its_stream_ends_whole(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], ONE) as router, held(router, "a"):
        asked = asyncio.create_task(router.chat("b"))
        await router.until(lambda: waiting(router))
        assert router.resident().count("a") == 1
        shown = await status_of(router, "b")
        assert shown["waiting"] == 1 and shown["reason"]
        assert (await asked).status == 200


async def test_simultaneous_requests_for_one_model_share_one_load(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        answers = await asyncio.gather(*(router.chat("a") for _ in range(6)))
        assert [answer.status for answer in answers] == [200] * 6
        assert router.starts() == ["a"]


async def test_a_hang_up_in_the_queue_keeps_the_resident_model(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], ONE) as router:
        async with held(router, "a"):
            asked = asyncio.create_task(router.chat("b"))
            await router.until(lambda: waiting(router))
            asked.cancel()
            await router.until(lambda: not waiting(router))
        assert (router.starts(), router.stops()) == (["a"], [])
        assert (await router.chat("a")).action == "already_loaded"


async def test_equal_models_are_loaded_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    names = ["b", "c", "d"]
    async with running(tmp_path, ["a", *names], ONE) as router:
        async with held(router, "a"):
            asked: list[asyncio.Task[Any]] = []
            for name in names:
                asked.append(asyncio.create_task(router.chat(name)))
                await router.until(lambda: waiting(router) == len(asked))
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3
        assert router.starts() == ["a", *names]


# --- what is not allowed ---


async def test_without_autoload_only_a_command_loads(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"], "[scheduler]\nautoload = false\n") as router:
        refused = await router.chat("a")
        assert (refused.status, refused.body["error"]["code"]) == (400, "model_not_loaded")
        assert not router.starts()
        await post(router, "/models/load?wait=1", {"model": "a"})
        assert (await router.chat("a")).status == 200


async def test_a_key_uses_models_an_admin_key_loads_them_and_no_child_sees_either(tmp_path: Path) -> None:
    keys = '[server]\napi_keys = ["user-key"]\nadmin_keys = ["admin-key"]\n'
    async with running(tmp_path, ["a"], keys) as router:
        user, admin = {"Authorization": "Bearer user-key"}, {"x-api-key": "admin-key"}
        assert (await router.chat("a")).status == 401
        assert (await post(router, "/models/load", {"model": "a"}, headers=user))[0] == 403
        assert (await post(router, "/models/load?wait=1", {"model": "a"}, headers=admin))[0] == 200
        assert (await router.chat("a", headers=user)).status == 200
        (child,) = llama_servers()
        assert not any("-key" in word for word in [*child.cmdline(), *child.environ().values()])


# --- what there is ---


async def test_a_reload_of_presets_unloads_what_changed_and_leaves_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"]) as router, events(router) as told:
        await asyncio.gather(router.chat("a"), router.chat("b"))
        source = tmp_path / "config.toml"
        source.write_text(source.read_text() + '[models."a"]\nctx_size = 512\naliases = ["other"]\n')
        make_llama(tmp_path / "models" / "c.gguf", name="c", seed=9)
        async with held(router, "a"):
            async with router.session.get("/models?reload=1") as answer:
                ids = [row["id"] for row in (await answer.json())["data"]]
            assert sorted(ids) == ["a", "b", "c"]
            await told.until("*", "models_reload")
        await told.until("a", "status_change", status="unloaded")
        assert router.stops() == [("a", "reloaded")]
        assert (await router.chat("b")).action == "already_loaded"
        assert (await router.chat("other")).action == "loaded"
        (instance,) = router.pool.snapshot().of_model("a")
        assert instance.state is State.READY and instance.placement.args[:2] == ("-c", "512")


async def test_a_cached_file_that_a_preset_names_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hf" / "models--o--r" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "hf" / "models--o--r" / "refs").mkdir()
    (tmp_path / "hf" / "models--o--r" / "refs" / "main").write_text("a" * 40)
    os.link(make_llama(tmp_path / "model.gguf", name="cached"), snapshot / "r-Q4_K_M.gguf")
    make_llama(snapshot / "r-F16.gguf", name="another", seed=1)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    preset = '[models."mine"]\nhf_repo = "o/r:Q4_K_M"\n'
    async with running(tmp_path, [], preset, hf_cache=True) as router:
        async with router.session.get("/models") as answer:
            rows = {row["id"]: row["source"] for row in (await answer.json())["data"]}
        assert rows == {"mine": "preset", "o/r:F16": "cache"}
        assert (await router.chat("mine")).status == 200


async def test_files_with_like_names_are_served_each_under_its_own_and_deleted_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path that each llama-server says it has loaded."""
    snapshot = tmp_path / "hf" / "models--org--Flash-GGUF" / "snapshots" / ("a" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    files = {
        "Compact": "Flash-Compact.gguf",
        "I-Compact": "Flash-I-Compact.gguf",
        "UD-Q4_K_XL": "Flash-UD-Q4_K_XL.gguf",
        "base-Q4_K_M": "base-Q4_K_M.gguf",
        "instruct-Q4_K_M": "instruct-Q4_K_M.gguf",
        "small/Flash-Q8_0": "small/Flash-Q8_0.gguf",
        "large/Flash-Q8_0": "large/Flash-Q8_0.gguf",
    }
    for number, file in enumerate(files.values()):
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        make_llama(snapshot / file, name=f"m{number}", seed=number)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    async with running(tmp_path, [], hf_cache=True) as router:
        for label, file in files.items():
            name = f"org/Flash-GGUF:{label}"
            assert (await router.chat(name)).status == 200
            async with router.session.get("/props", params={"model": name}) as answer:
                assert (await answer.json())["model_path"] == str(snapshot / file)
        loaded = len(llama_servers())
        for label in ("Q4_K_M", "Q8_0"):
            params = {"model": f"org/Flash-GGUF:{label}"}
            assert (await router.chat(params["model"])).status == 409
            async with router.session.delete("/models", params=params) as answer:
                assert answer.status == 409, await answer.text()
        async with router.session.delete("/models", params={"model": "org/Flash-GGUF:i-compact"}) as answer:
            assert answer.status == 200, await answer.text()
        assert {path.name for path in snapshot.rglob("*.gguf")} == {
            Path(file).name for label, file in files.items() if label != "I-Compact"
        }
        assert len(llama_servers()) == loaded - 1
        assert (await router.chat("org/Flash-GGUF:I-Compact")).status == 404


# --- fetched and deleted ---


@asynccontextmanager
async def fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[HubStub, Running, Events]]:
    """A router whose hub has o/r:Q4_K_M and stops in the middle of it until it is told to go on."""
    content = make_llama(tmp_path / "model.gguf", name="fetched").read_bytes()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    async with HubStub().running() as hub:
        hub.add("o/r", {"r-Q4_K_M.gguf": content})
        hub.faults.hold_after = len(content) // 2
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        config = "[downloads]\nmin_free_mib = 0\n"
        async with running(tmp_path, [], config, hf_cache=True) as router, events(router) as told:
            status, body = await post(router, "/models", {"model": "o/r:Q4_K_M"})
            assert (status, body["success"]) == (200, True)
            yield hub, router, told


async def test_a_download_is_told_as_it_comes_listed_meanwhile_usable_at_its_end_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fetching(tmp_path, monkeypatch) as (hub, router, told):
        await hub.faults.holding.wait()
        shown = await status_of(router, "o/r:Q4_K_M")
        assert shown["value"] == "downloading"
        assert 0 <= shown["progress"]["value"] < 1
        hub.faults.go.set()
        await told.until("o/r:Q4_K_M", "download_finished")
        progress = [one["data"]["progress"] for one in told.seen if one["event"] == "download_progress"]
        assert progress, told.seen
        ((url, last),) = progress[-1].items()
        assert url.endswith("r-Q4_K_M.gguf") and last["done"] <= last["total"]
        assert (await router.chat("o/r:Q4_K_M")).status == 200
        async with router.session.delete("/models", params={"model": "o/r:Q4_K_M"}) as answer:
            assert answer.status == 200, await answer.text()
        await told.until("o/r:Q4_K_M", "model_remove")
        assert not llama_servers()
        assert (await router.chat("o/r:Q4_K_M")).status == 404
        assert not list((tmp_path / "hf").rglob("*.gguf"))


async def test_an_unload_of_what_is_being_downloaded_ends_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fetching(tmp_path, monkeypatch) as (hub, router, told):
        await hub.faults.holding.wait()
        status, body = await post(router, "/models/unload", {"model": "o/r:Q4_K_M"})
        assert (status, body["status"]["value"]) == (200, "unloaded")
        await told.until("o/r:Q4_K_M", "download_failed")
        async with router.session.get("/models") as answer:
            assert (await answer.json())["data"] == []
