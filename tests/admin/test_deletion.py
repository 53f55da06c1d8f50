"""DELETE /models: out of the Hugging Face cache, once nothing runs on it, and out of nowhere else."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.admin import CONTEXT
from tests.admin.conftest import Api
from tests.admin.hub_cache import OverCache, put
from tests.waiting import until

REPO = "org/tiny-GGUF"


@pytest.fixture
def over(api: Api, tmp_path: Path, monkeypatch: Any) -> Callable[..., OverCache]:
    return lambda **models: OverCache(api, tmp_path, monkeypatch, models)


async def test_a_model_is_unloaded_and_deleted_and_listed_no_more(over, models_dir):
    router = over()
    model = put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    other = put(router.cache, REPO, "tiny-Q8_0.gguf", models_dir / "other.gguf")
    await router.start()
    await router.api.post("/models/load?wait=1", json={"model": f"{REPO}:Q4_K_M"})
    answer = await router.api.call("DELETE", f"/models?model={REPO}:q4_k_m")
    body = answer.json()
    assert (answer.status, body["success"], body["id"]) == (200, True, f"{REPO}:Q4_K_M")
    assert body["freed_bytes"] == (models_dir / "tiny.gguf").stat().st_size
    assert router.api.pool.unloads == [(f"{REPO}:Q4_K_M", False, None)]
    assert await router.names() == [f"{REPO}:Q8_0"]
    assert not model.is_symlink() and other.exists()


async def test_one_that_is_not_loaded_is_not_unloaded_first(over, models_dir):
    router = over()
    put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    await router.start()
    assert (await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")).status == 200
    assert router.api.pool.unloads == [] and not list(router.cache.iterdir())


async def test_a_projector_stays_while_another_model_uses_it(over, models_dir):
    router = over()
    put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    put(router.cache, REPO, "tiny-Q8_0.gguf", models_dir / "other.gguf")
    eyes = put(router.cache, REPO, "mmproj-F16.gguf", models_dir / "seeing" / "mmproj-seeing.gguf")
    await router.start()
    first = (await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")).json()
    assert first["kept"] == [{"file": str(eyes), "reason": "another model uses it"}] and eyes.exists()
    await router.api.call("DELETE", f"/models?model={REPO}:Q8_0")
    assert not list(router.cache.iterdir())


async def test_a_projector_that_only_its_header_tells_goes_with_the_last_model(over, models_dir):
    router = over()
    for name, file in (("Q4_K_M", "tiny.gguf"), ("Q8_0", "other.gguf")):
        put(router.cache, REPO, f"tiny-{name}.gguf", models_dir / file)
    eyes = put(router.cache, REPO, "tiny-vision.gguf", models_dir / "seeing" / "mmproj-seeing.gguf")
    await router.start()
    assert f"{REPO}:VISION" not in await router.names()
    await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")
    assert eyes.exists()
    last = (await router.api.call("DELETE", f"/models?model={REPO}:Q8_0")).json()
    assert last["kept"] == [] and str(eyes) in last["files"]
    assert not list(router.cache.iterdir())


async def test_models_of_other_folders_are_their_owners_to_delete(over, models_dir):
    router = over()
    own = router.folder / "mine.gguf"
    own.write_bytes((models_dir / "tiny.gguf").read_bytes())
    await router.start()
    answer = await router.api.call("DELETE", "/models?model=mine")
    assert (answer.status, answer.error["code"]) == (400, "not_removable")
    assert str(own) in answer.error["message"] and own.exists()


async def test_a_model_that_another_one_drafts_with_is_in_use(over, models_dir, tmp_path):
    draft = tmp_path / "hub" / "models--org--tiny-GGUF" / "snapshots" / ("c" * 40) / "tiny-Q4_K_M.gguf"
    router = over(mine={"draft_model": str(draft)})
    put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    (router.folder / "mine.gguf").write_bytes((models_dir / "other.gguf").read_bytes())
    await router.start()
    answer = await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")
    assert (answer.status, answer.error["code"]) == (409, "in_use") and "mine" in answer.error["message"]
    assert draft.exists()


async def test_a_model_of_a_preset_is_deleted_with_its_section_first(over, models_dir):
    router = over(mine={"hf_repo": f"{REPO}:Q4_K_M"})
    file = put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    await router.start()
    for name in ("mine", f"{REPO}:Q4_K_M"):
        answer = await router.api.call("DELETE", f"/models?model={name}")
        assert (answer.status, answer.error["code"]) == (400, "not_removable"), answer.body
    assert file.exists()


@pytest.mark.parametrize("name", ["nobody", "../../etc/passwd", "org/tiny-GGUF:..", "%00"])
async def test_a_name_that_there_is_not_deletes_nothing(over, models_dir, name):
    router = over()
    file = put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    await router.start()
    assert (await router.api.call("DELETE", f"/models?model={name}")).error["code"] == "model_not_found"
    assert (await router.api.call("DELETE", "/models")).error["code"] == "invalid_request"
    assert file.exists()


async def test_what_its_settings_name_elsewhere_stays(over, models_dir):
    draft = put(over().cache, "org/draft-GGUF", "draft-Q8_0.gguf", models_dir / "other.gguf")
    shutil.rmtree(draft.parents[4] / "own")
    router = over(**{f"{REPO}:Q4_K_M": {"draft_model": str(draft)}})
    put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    await router.start()
    assert (await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")).status == 200
    assert draft.exists() and "org/draft-GGUF:Q8_0" in await router.names()


async def test_a_deletion_goes_to_its_end_though_its_client_leaves(over, models_dir):
    router = over()
    put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    await router.start()
    context = router.api.app[CONTEXT]
    await context.downloads.removing.acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await router.api.call("DELETE", f"/models?model={REPO}:Q4_K_M")
    context.downloads.removing.release()
    await until(router.names, holds=lambda names: not names)
    assert not list(router.cache.iterdir())
