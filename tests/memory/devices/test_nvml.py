"""The calls into pynvml, made in this process over the stub that needs no compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pynvml
import pytest

from router.memory.devices.nvml import Card, NvmlFailed, card_count, open_session
from tests.memory.devices.conftest import GIB, MIB
from tests.stub_nvml.python_library import PythonNvml
from tests.stub_nvml.state import StubNvml, hold_allocation


class Recorded(PythonNvml):
    """Remembers which calls were made, and lacks those that an old library has not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[str] = []
        self.lacks: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in self.lacks:
            raise AttributeError(name)
        call = super().__getattr__(name)

        def recorded(*args: Any) -> int:
            self.calls.append(name)
            return call(*args)

        return recorded


@pytest.fixture
def library(stub: StubNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    library = Recorded(stub.folder)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    # It keeps the functions it has looked up, of whatever library it had before.
    pynvml._nvmlGetFunctionPointer_cache.clear()
    assert open_session() == "570.86.15"
    yield library
    pynvml._nvmlGetFunctionPointer_cache.clear()


def test_processes_are_read_before_memory(library):
    """What is allocated in between is then missing from free and not yet in used: that errs to the safe
    side."""
    Card(0).read()
    order = {name: library.calls.index(name) for name in library.calls}
    assert order["nvmlDeviceGetComputeRunningProcesses_v3"] < order["nvmlDeviceGetMemoryInfo_v2"]
    assert order["nvmlDeviceGetMemoryInfo_v2"] < order["nvmlDeviceGetGraphicsRunningProcesses_v3"]


def test_a_library_without_the_new_functions_is_asked_for_the_old_ones(library, stub):
    """pynvml raises an error for it that is none of its own family."""
    library.lacks = {
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    }
    held = hold_allocation(stub.folder, {0: GIB}, pid=4711)
    (gpu,) = Card(0).read()
    assert gpu.error is None
    assert gpu.processes is not None
    assert [(process.pid, process.bytes) for process in gpu.processes] == [(4711, GIB)]
    assert (gpu.total_bytes, gpu.reserved_bytes, gpu.free_bytes) == (24 * GIB, 0, 23 * GIB - 400 * MIB)
    assert gpu.temperature_celsius == 41
    held.close()


def test_a_library_without_any_process_list_says_why(library):
    library.lacks = {
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    }
    (gpu,) = Card(0).read()
    assert gpu.processes is None
    assert gpu.process_error
    assert gpu.error is None


def test_a_card_remembers_who_it_is_until_something_is_wrong(library, stub):
    card = Card(1)
    card.read()
    library.calls.clear()
    card.read()
    assert "nvmlDeviceGetUUID" not in library.calls
    stub.gpu(1, memerr=15)
    assert card.read()[0].error == "GPU is lost (it fell off the bus, or its driver was unloaded)"
    stub.gpu(1, memerr=0)
    library.calls.clear()
    assert card.read()[0].error is None
    assert "nvmlDeviceGetUUID" in library.calls


def test_a_card_that_is_not_there_fails_in_words(library, stub):
    assert card_count() == 2
    stub.gpu(1, err=16)
    with pytest.raises(NvmlFailed, match="requires a reset"):
        Card(1).read()
