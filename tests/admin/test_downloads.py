"""Downloads over HTTP, by the real huggingface_hub from a hub on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.admin import CONTEXT
from router.config import Config, DownloadsConfig, PathsConfig
from router.downloads import Downloads
from tests.admin.conftest import Api
from tests.admin.hub_cache import OverCache, put
from tests.hub_stub import HubStub
from tests.waiting import until

MODEL = os.urandom(1 << 20)
REPO = "org/tiny-GGUF"
Q4, Q8 = "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"


@pytest.fixture
async def hub() -> AsyncIterator[HubStub]:
    async with HubStub().running() as made:
        yield made


@pytest.fixture
async def fetching(api: Api, hub: HubStub, tmp_path: Path) -> AsyncIterator[Api]:
    """A router that downloads from the hub."""
    await api.start()
    context = api.app[CONTEXT]
    cache, environ = tmp_path / "hf" / "hub", hub.environ(tmp_path / "hf")
    settings = DownloadsConfig(min_free_mib=0, retry_seconds=10.0)
    async with Downloads(None, cache, lambda: settings, context.reload, environ) as downloads:
        context.downloads = downloads
        yield api


async def ended(api: Api, job: str) -> Any:
    async def found() -> Any:
        return (await api.get(f"/models/downloads/{job}")).json()

    return await until(found, holds=lambda it: it["state"] not in ("queued", "downloading", "waiting"))


async def test_a_model_is_fetched_as_llama_cpps_clients_ask_for_it(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL + b"x"})
    answer = await fetching.post("/models", json={"model": f"{REPO}:q8_0"})
    body = answer.json()
    assert (answer.status, body["success"], body["model"]) == (200, True, f"{REPO}:q8_0")
    job = await ended(fetching, body["job"])
    assert (job["state"], job["done_bytes"], job["error"]) == ("finished", len(MODEL) + 1, None)
    assert fetching.reloads == 1


async def test_what_there_is_already_is_refused_there(fetching):
    answer = await fetching.post("/models", json={"model": "nobody/nothing:Q4_0"})
    assert (answer.status, answer.error["code"]) == (404, "repo_not_found")
    answer = await fetching.post("/models", json={"model": "no repository"})
    assert (answer.status, answer.error["code"]) == (400, "bad_source")


async def test_an_address_of_a_file_fetches_that_file_with_all_that_goes_with_it(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL + b"x", "mmproj-F16.gguf": MODEL[:2000], "README.md": b"hello"})
    asked = {"url": f"{hub.url}/{REPO}/blob/main/{Q8}"}
    job = (await fetching.post("/models/download", json=asked)).json()
    assert [one["path"] for one in job["files"]] == ["mmproj-F16.gguf", Q8]
    assert job["models"] == [f"{REPO}:Q8_0"] and job["total_bytes"] == len(MODEL) + 2001
    assert (await ended(fetching, job["id"]))["state"] == "finished"


async def test_the_same_download_twice_is_one(fetching, hub):
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 1000
    first = (await fetching.post("/models/download", json={"repo": REPO})).json()
    again = (await fetching.post("/models/download", json={"repo": f"{REPO}:Q4_K_M"})).json()
    assert first["id"] == again["id"]
    listed = (await fetching.get("/models/downloads")).json()
    assert [one["id"] for one in listed["data"]] == [first["id"]]
    hub.faults.go.set()
    assert (await ended(fetching, first["id"]))["state"] == "finished"
    assert len(hub.content_requests()) == 1


async def test_a_model_that_comes_is_listed_as_llama_cpp_does_and_an_unload_cancels_it(fetching, hub):
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 300_000
    job = (await fetching.post("/models/download", json={"repo": REPO})).json()
    await hub.faults.holding.wait()
    rows = {one["id"]: one for one in (await fetching.get("/models")).json()["data"]}
    assert rows[f"{REPO}:Q4_K_M"]["status"]["value"] == "downloading"
    answer = await fetching.post("/models/unload", json={"model": f"{REPO}:Q4_K_M"})
    assert answer.status == 200
    assert (await ended(fetching, job["id"]))["error"]["code"] == "cancelled"


@pytest.mark.parametrize("way", [("POST", "/cancel"), ("DELETE", "")])
async def test_a_cancelled_download_keeps_what_has_come_unless_it_is_cleaned_away(
    fetching, hub, way, tmp_path
):
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 800_000
    job = (await fetching.post("/models/download", json={"repo": REPO})).json()
    method, suffix = way
    await hub.faults.holding.wait()
    cancelled = (await fetching.call(method, f"/models/downloads/{job['id']}{suffix}")).json()
    assert cancelled["state"] == "cancelled"
    kept = list((tmp_path / "hf").rglob("*.incomplete"))
    assert len(kept) == 1
    again = (await fetching.post("/models/download", json={"repo": REPO})).json()
    assert again["state"] in ("queued", "downloading") and again["done_bytes"] == kept[0].stat().st_size
    cleaned = (await fetching.call(method, f"/models/downloads/{again['id']}{suffix}?clean=1")).json()
    assert cleaned["done_bytes"] == 0
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


async def test_an_ended_download_is_taken_off_the_list(fetching, hub):
    hub.add(REPO, {Q4: MODEL})
    job = (await fetching.post("/models/download", json={"repo": REPO})).json()
    await ended(fetching, job["id"])
    assert (await fetching.call("DELETE", f"/models/downloads/{job['id']}")).status == 200
    assert (await fetching.get("/models/downloads")).json()["data"] == []
    assert (await fetching.get(f"/models/downloads/{job['id']}")).error["code"] == "download_not_found"


async def test_what_would_not_be_found_is_not_fetched(fetching, hub):
    context = fetching.app[CONTEXT]
    context.config = Config(paths=PathsConfig(hf_cache=False))
    answer = await fetching.post("/models/download", json={"repo": REPO})
    assert answer.status == 400 and "paths.hf_cache is off" in answer.error["message"]


async def test_a_disk_without_room_is_told_with_the_numbers_before_anything_is_fetched(
    fetching, hub, monkeypatch
):
    hub.add(REPO, {Q4: MODEL})
    usage = shutil.disk_usage("/")._replace(free=len(MODEL) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    answer = await fetching.post("/models/download", json={"repo": REPO})
    assert (answer.status, answer.error["code"]) == (507, "disk_full")
    assert answer.error["needed_bytes"] == len(MODEL) and answer.error["free_bytes"] == len(MODEL) - 1
    assert str(context_cache(fetching)) in answer.error["message"]
    assert hub.content_requests() == []


def context_cache(api: Api) -> Path:
    return api.app[CONTEXT].downloads.cache


async def test_a_model_that_there_is_not_is_refused_with_those_there_are(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL})
    hub.add("org/weights", {"model.safetensors": MODEL})
    answer = await fetching.post("/models/download", json={"repo": REPO, "quantization": "Q2_K"})
    assert (answer.status, answer.error["code"]) == (400, "nothing_to_fetch")
    assert "Q4_K_M, Q8_0" in answer.error["message"]
    answer = await fetching.post("/models/download", json={"repo": "org/weights"})
    assert "has no GGUF model" in answer.error["message"]


@pytest.mark.parametrize("body", [{}, {"repo": "a/b", "url": "a/b"}, {"repo": "a/b", "revision": "../../x"}])
async def test_a_request_that_says_too_little_or_too_much_is_refused(fetching, body):
    answer = await fetching.post("/models/download", json=body)
    assert (answer.status, answer.error["code"]) == (400, "bad_source")


# --- beside models that are there ---

UD, PLAIN = "tiny-UD-Q4_K_XL.gguf", "tiny-Q4_K_XL.gguf"


@pytest.fixture
async def beside(
    api: Api, hub: HubStub, tmp_path: Path, monkeypatch: Any, models_dir: Path
) -> AsyncIterator[OverCache]:
    """A router that downloads, and has UD, but not PLAIN, for which its name is short."""
    over = OverCache(api, tmp_path, monkeypatch, {})
    put(over.cache, REPO, UD, models_dir / "tiny.gguf")
    await over.start()
    hub.add(REPO, {UD: MODEL, PLAIN: MODEL + b"x"})
    settings = DownloadsConfig(min_free_mib=0, retry_seconds=10.0)
    environ = hub.environ(tmp_path)
    async with Downloads(None, over.cache, lambda: settings, over.reload, environ) as downloads:
        api.app[CONTEXT].downloads = downloads
        yield over


@pytest.mark.parametrize("path", ["/models", "/models/download"])
async def test_a_model_whose_name_another_was_short_for_is_fetched_and_has_its_name(beside, path):
    api = beside.api
    assert (await api.get(f"/v1/models/{REPO}:Q4_K_XL")).json()["id"] == f"{REPO}:UD-Q4_K_XL"
    before = (await api.get(f"/v1/models/{REPO}:UD-Q4_K_XL")).json()["path"]
    asked = {"model" if path == "/models" else "repo": f"{REPO}:Q4_K_XL"}
    answer = (await api.post(path, json=asked)).json()
    assert (await ended(api, answer.get("job") or answer["id"]))["models"] == [f"{REPO}:Q4_K_XL"]
    assert await beside.names() == [f"{REPO}:Q4_K_XL", f"{REPO}:UD-Q4_K_XL"]
    assert (await api.get(f"/v1/models/{REPO}:UD-Q4_K_XL")).json()["path"] == before
    assert (await api.get(f"/v1/models/{REPO}:q4_k_xl")).json()["path"].endswith(f"/{PLAIN}")
    again = await api.post("/models", json={"model": f"{REPO}:Q4_K_XL"})
    assert (again.status, again.error["code"]) == (400, "model_exists")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", f"/models?model={REPO}:Q4_K_XL", None),
        ("POST", "/models/unload", {"model": f"{REPO}:Q4_K_XL"}),
    ],
)
async def test_what_ends_a_download_leaves_the_model_that_its_name_is_short_for(
    beside, hub, method, path, body
):
    api = beside.api
    await api.post("/models/load?wait=1", json={"model": f"{REPO}:UD-Q4_K_XL"})
    hub.faults.hold_after = 300_000
    job = (await api.post("/models", json={"model": f"{REPO}:Q4_K_XL"})).json()["job"]
    await hub.faults.holding.wait()
    answer = await api.call(method, path, json=body) if body else await api.call(method, path)
    assert answer.status == 200
    assert not any(one.is_active for one in api.app[CONTEXT].downloads.jobs()), job
    assert await beside.names() == [f"{REPO}:UD-Q4_K_XL"] and api.pool.unloads == []


@pytest.mark.parametrize("path", ["/models", "/models/download", "/models/verify-repo"])
async def test_a_quantisation_of_several_files_is_not_fetched(fetching, hub, path):
    hub.add(REPO, {"base-Q4_K_M.gguf": MODEL, "instruct-Q4_K_M.gguf": MODEL})
    for repo in (f"{REPO}:Q4_K_M", REPO):
        body = (await fetching.post(path, json={"model" if path == "/models" else "repo": repo})).json()
        problem = body["problem"] if path == "/models/verify-repo" else body["error"]
        assert problem["code"] == "model_ambiguous"
        assert f"{REPO}:base-Q4_K_M, {REPO}:instruct-Q4_K_M" in problem["message"]
    assert (await fetching.get("/models/downloads")).json()["data"] == []
    assert hub.content_requests() == []
