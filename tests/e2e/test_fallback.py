"""The real llama-server, built for the CPU, on a machine with a GPU: that it computes on the CPU is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import SMALL
from tests.make_gguf import make_llama
from tests.memory.devices.conftest import A
from tests.router_process import RouterProcess
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import StubNvml
from tests.waiting import until

pytestmark = pytest.mark.e2e


async def test_what_llama_server_says_of_a_gpu_that_it_cannot_use_is_understood(
    folder: Path, llama_server: Path
):
    library = build()
    if library is None:
        pytest.skip("no C compiler for the NVML library")
    stub = StubNvml(folder / "stub", A)
    up = RouterProcess(folder, llama_server, *SMALL, env=library_environment(stub.folder, library))
    make_llama(up.models / "tiny.gguf")
    async with up:
        assert (await up.chat("tiny"))[0] == 200
        await up.until(lambda: "tiny runs on the CPU, though it was placed" in up.output, "it is said")
        # The next measurement brings it.
        found = await until(lambda: up.get("/explain?model=tiny"), holds=lambda found: found["warnings"])
        (warning,) = found["warnings"]
        assert "no usable GPU found" in warning or "failed to initialize CUDA" in warning
