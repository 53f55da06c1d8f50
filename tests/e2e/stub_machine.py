"""A machine whose GPUs are the stub of NVML, for a whole router with fake llama-servers that allocate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_binary import make_fake_binary
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import StubGpu, StubNvml, keep_takings


def make_stub_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *gpus: StubGpu, listed: str = "  (none)"
) -> StubNvml:
    """What this process starts from now on finds these GPUs, and $LLAMA_SERVER. `listed` is what that prints
    for --list-devices. Skips where there is no compiler."""
    library = build()
    if library is None:
        pytest.skip("no C compiler for the NVML library")
    binary = make_fake_binary(folder)
    shebang, _, program = binary.read_text().partition("\n")
    answers = {"--list-devices": f"Available devices:\n{listed}", "--version": "version: 0 (a fake)"}
    asked = (
        f"import sys\nfor flag, said in {answers!r}.items():\n    if flag in sys.argv: sys.exit(print(said))"
    )
    binary.write_text(f"{shebang}\n{asked}\n{program}")
    monkeypatch.setenv("LLAMA_SERVER", str(binary))
    for name, value in library_environment(folder / "stub", library).items():
        monkeypatch.setenv(name, value)
    stub = StubNvml(folder / "stub", *gpus)
    keep_takings(stub.folder)
    return stub


def child_environment(stub: StubNvml, *, alloc_mib: int, grow_mib: int) -> str:
    """Configuration: what each child takes of each device while it loads, and at its first request."""
    return (
        f'[child.env]\nLLAMA_ROUTER_STUB_NVML = "{stub.folder}"\n'
        f'FAKE_LLAMA_ALLOC_MIB = "{alloc_mib}"\nFAKE_LLAMA_GROW_MIB = "{grow_mib}"\n'
    )
