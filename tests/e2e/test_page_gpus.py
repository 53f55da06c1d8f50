"""The status page of a machine with two GPUs (the stub of NVML): shares, other programs, a lost device."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from tests.e2e.browser import needs_chromium, page_of, picture
from tests.e2e.stub_machine import make_stub_machine
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.stub_nvml.state import Stranger, StubGpu

pytestmark = needs_chromium

GIB = 1 << 30
GPU_IS_LOST = 15
#: What each takes of its device, and the number of layers that makes the estimate a little more.
MODELS = {
    "llama-3.1-8b": (5600, 40),
    "mistral-small": (13600, 100),
    "qwen3-14b": (9600, 70),
    "gemma-2-2b": (2400, 14),
}


def device(page: Page, uuid: str) -> Locator:
    return page.locator(f'.device[data-device="local/cuda:{uuid}"]')


CONFIG = """
[scheduler]
policy = "lru-ttl"
ttl_seconds = 900
[child.env]
LLAMA_ROUTER_STUB_NVML = "{stub}"
FAKE_LLAMA_TOKENS = "100000"
FAKE_LLAMA_TOKEN_SECONDS = "0.05"
FAKE_LLAMA_LOAD_SECONDS = "0.5"
"""


async def load(router: RouterProcess, model: str) -> None:
    async with router.client.post("/models/load?wait=1", json={"model": model}) as answer:
        assert answer.status == 200, await answer.text()


async def test_two_gpus_are_shown_with_who_is_on_them_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "r"
    folder.mkdir()
    stub = make_stub_machine(
        tmp_path,
        monkeypatch,
        StubGpu("GPU-a", "NVIDIA GeForce RTX 4090", "00000000:01:00.0", 24 * GIB, GIB // 2, util=71, temp=63),
        StubGpu("GPU-b", "NVIDIA RTX A4000", "00000000:02:00.0", 16 * GIB, GIB // 2, util=4, temp=41),
    )
    takes = "".join(
        f'[models."{name}".env]\nFAKE_LLAMA_ALLOC_MIB = "{mib}"\n' for name, (mib, _) in MODELS.items()
    )
    known = {name: value for name, value in os.environ.items() if name.startswith("LLAMA_ROUTER_")}
    config = CONFIG.format(stub=stub.folder) + takes
    router = RouterProcess(folder, os.environ["LLAMA_SERVER"], config=config, env=known)
    for name, (_, layers) in MODELS.items():
        make_llama(
            router.models / f"{name}.gguf",
            name=name,
            n_layers=layers,
            n_embd=2048,
            n_ff=8192,
            n_heads=16,
            n_heads_kv=4,
            n_ctx_train=8192,
            sparse=True,
            weight_type="f16",
        )
    async with router, page_of(router.url, size=(1100, 1160)) as page:
        with closing(Stranger(stub.folder, {0: 2 * GIB})):
            for model in MODELS:
                await load(router, model)
            asked = {"model": "qwen3-14b", "messages": [{"role": "user", "content": "hello"}], "stream": True}
            async with router.client.post("/v1/chat/completions", json=asked) as answer:
                await answer.content.readany()
                await expect(device(page, "GPU-a")).to_contain_text("NVIDIA GeForce RTX 4090")
                await expect(device(page, "GPU-a")).to_contain_text("other programs 2.0\u00a0GiB")
                await expect(device(page, "GPU-a")).to_contain_text("71 % busy")
                await expect(device(page, "GPU-a").locator(".past polyline")).to_have_count(1)
                # The largest of them had the first GPU almost to itself: somebody has left for the others.
                await expect(page.locator("#timeline")).to_contain_text("leaves to make room for")
                await expect(page.locator("#request-list > li")).to_have_count(1)
                await picture(page, "gpus")
                await picture(page, "readme", whole=False)
        stub.gpu(0, err=GPU_IS_LOST)
        async with router.client.get("/vram?measure=1"):
            pass
        await expect(device(page, "GPU-a").locator(".bad")).to_contain_text("lost")
        await expect(device(page, "GPU-b")).to_contain_text("free")
