"""A child that was placed on a GPU and runs on the CPU: the log, `explain` and the page say so."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stub_machine import make_stub_machine
from tests.make_gguf import make_llama
from tests.memory.devices.conftest import A
from tests.router_process import RouterProcess
from tests.stub_nvml.build import build, library_environment

WHY = "system has unsupported display driver / cuda driver combination"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        yield Path(name)


def router(folder: Path, monkeypatch: pytest.MonkeyPatch, environment: str) -> RouterProcess:
    stub = make_stub_machine(folder, monkeypatch, A)
    environ = library_environment(stub.folder, build())
    text = f'[models."tiny"]\nenv = {{ LLAMA_ROUTER_STUB_NVML = "{stub.folder}", {environment} }}\n'
    made = RouterProcess(folder, folder / "llama-server", config=text, env=environ)
    make_llama(made.models / "tiny.gguf", sparse=True)
    return made


async def test_it_is_told_everywhere_also_by_the_next_router(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async with router(folder, monkeypatch, 'FAKE_LLAMA_LOSE_GPU = "1"') as up:
        await up.chat("tiny")
        await up.until(
            lambda: "tiny runs on the CPU, though it was placed on cuda:0" in up.output, "it is said"
        )
        for _ in range(2):
            explained = await up.get("/explain?model=tiny")
            while not explained["warnings"]:
                explained = await up.get("/explain?model=tiny")
            (warning,) = explained["warnings"]
            assert warning.endswith(f"ggml_cuda_init: failed to initialize CUDA: {WHY}")
            assert warning in (await up.get("/vram"))["notes"]
            await up.restart()


async def test_a_child_that_uses_its_gpu_is_no_warning(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async with router(folder, monkeypatch, 'FAKE_LLAMA_ALLOC_MIB = "64"') as up:
        await up.chat("tiny")
        assert (await up.get("/explain?model=tiny"))["warnings"] == []
        assert "on the CPU" not in up.output
