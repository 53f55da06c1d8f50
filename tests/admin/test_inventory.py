"""GET /models/inventory: every file, what it is, and what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.admin.conftest import Api
from tests.admin.hub_cache import OverCache, put

REPO = "org/tiny-GGUF"


async def test_every_model_is_told_with_its_files_and_what_they_take(
    api: Api, tmp_path, monkeypatch, models_dir
):
    router = OverCache(api, tmp_path, monkeypatch, {"mine": {"hidden": True}})
    file = put(router.cache, REPO, "tiny-Q4_K_M.gguf", models_dir / "tiny.gguf")
    eyes = put(router.cache, REPO, "mmproj-F16.gguf", models_dir / "seeing" / "mmproj-seeing.gguf")
    put(router.cache, REPO, "tiny-Q8_0.gguf", models_dir / "other.gguf")
    os.link(models_dir / "hidden.gguf", router.folder / "mine.gguf")
    (router.folder / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    left = file.parents[2] / "blobs" / ("e" * 64 + ".llama-router.incomplete")
    left.write_bytes(b"." * 77)
    await router.start()
    body = (await api.get("/models/inventory")).json()
    models: dict[str, Any] = {one["id"]: one for one in body["models"]}
    assert models.keys() == {"mine", "broken", f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"}
    tiny = models[f"{REPO}:Q4_K_M"]
    sizes = {path: path.stat().st_size for path in (file, eyes)}
    assert tiny["files"] == [
        {"path": str(file), "role": "model", "size": sizes[file]},
        {"path": str(eyes), "role": "projector", "size": sizes[eyes]},
    ]
    assert (tiny["size"], tiny["shared_bytes"]) == (sum(sizes.values()), sizes[eyes])
    assert tiny["architecture"] == "llama" and tiny["parameters"] > 0 and tiny["ctx_train"] > 0
    assert tiny["modalities"] == ["text", "image"] and tiny["can_remove"] and tiny["quantisation"]
    assert models["mine"]["hidden"] and not models["mine"]["can_remove"]
    assert models["broken"]["error"] and models["broken"]["parameters"] is None
    all_files = {Path(one["path"]).resolve() for model in body["models"] for one in model["files"]}
    assert body["total_size"] == sum(path.stat().st_size for path in all_files), "shared files count once"
    (disk,) = body["disks"]
    assert disk["folders"] == [str(router.folder), str(router.cache)]
    assert disk["used_by_models"] == body["total_size"] and 0 < disk["free"] <= disk["total"]
    assert body["unfinished"] == [{"repo": REPO, "file": str(left), "size": 77}]
