"""`rm`"""

from __future__ import annotations

import json

from tests.admin.hub_cache import OverCache, put
from tests.cli.conftest import Terminal

REPO = "org/tiny-GGUF"


async def test_a_model_is_deleted_and_what_is_free_by_that_told(api, tmp_path, monkeypatch, models_dir):
    router = OverCache(api, tmp_path, monkeypatch, {})
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"):
        put(router.cache, REPO, name, models_dir / "tiny.gguf")
    eyes = put(router.cache, REPO, "mmproj-F16.gguf", models_dir / "seeing" / "mmproj-seeing.gguf")
    await router.start()
    terminal = Terminal(api)
    first = (await terminal.run("rm", f"{REPO}:Q4_K_M")).output.splitlines()
    assert first[0].startswith(f"{REPO}:Q4_K_M: deleted, ")
    assert first[1] == f"kept {eyes}: another model uses it"
    assert json.loads((await terminal.run("rm", f"{REPO}:Q8_0", "--json")).output)["kept"] == []
    assert await router.names() == []
    assert "not found" in (await terminal.run("rm", f"{REPO}:Q8_0", status=1)).output
