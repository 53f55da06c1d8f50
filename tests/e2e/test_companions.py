"""What lies beside models, with the real llama-server: never answered with, never evicted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.running import running
from tests.make_gguf import KvValue, Tensor, make_llama, make_mmproj, write_gguf

pytestmark = pytest.mark.e2e

ADAPTER: dict[str, KvValue] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}


async def test_a_file_that_is_no_model_is_refused_at_once_and_evicts_nobody(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_mmproj(models / "seer.gguf")
    tensors = [Tensor("blk.0.ffn_up.weight.lora_a", (64, 4)), Tensor("blk.0.ffn_up.weight.lora_b", (4, 128))]
    write_gguf(models / "style.gguf", "llama", ADAPTER, tensors)
    write_gguf(models / "steer.gguf", "controlvector", {}, [Tensor("direction.1", (64,))])
    for architecture in ("flux", "sd3", "wan", "t5encoder", "dflash", "made-up-in-2031"):
        write_gguf(models / f"{architecture}.gguf", architecture, {}, [Tensor("x.weight", (8, 8))])
    async with running(tmp_path, ["a"], "[scheduler]\nmodels_max = 1\n") as router:
        assert (await router.chat("a")).status == 200
        for name in sorted(path.stem for path in models.iterdir() if path.stem != "a"):
            body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
            async with router.session.post("/v1/chat/completions", json=body) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (422, "model_unusable"), error
                assert "Retry-After" not in answer.headers
        async with router.session.get("/v1/models") as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["a"]
        assert (router.starts(), router.stops(), router.resident()) == (["a"], [], ["a"])


async def test_each_model_is_served_with_what_belongs_to_it(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_llama(models / "vlm" / "vlm.gguf", name="vlm")
    make_mmproj(models / "vlm" / "vlm-vision-f16.gguf")
    make_llama(models / "wide" / "q4" / "Wide.GGUF", name="wide", n_embd=128)
    make_mmproj(models / "wide" / "mmproj-f16.gguf")
    make_llama(models / "Foo-Q8_0" / "Foo-Q8_0.gguf", name="foo")
    make_llama(models / "Foo-Q8_0" / "Foo-DFlash-BF16.gguf", n_layers=1, seed=1)
    async with running(tmp_path, []) as router:
        assert {(await router.chat(name)).status for name in ("vlm", "wide/q4", "Foo-Q8_0")} == {200}
        async with router.session.get("/v1/models") as answer:
            rows = {row["id"]: row for row in (await answer.json())["data"]}
    assert sorted(rows) == ["Foo-Q8_0", "vlm", "wide/q4"]
    assert rows["vlm"]["architecture"]["input_modalities"] == ["text", "image"]
    assert rows["wide/q4"]["architecture"]["input_modalities"] == ["text"]
    args = rows["Foo-Q8_0"]["status"]["args"]
    assert args[args.index("-m") + 1].endswith("/Foo-Q8_0.gguf")
    assert args[args.index("-md") + 1].endswith("/Foo-DFlash-BF16.gguf")
