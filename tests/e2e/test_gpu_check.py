"""`bench/gpu_check` on the stub of NVML, where every figure is known beforehand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import gpu_measure
from bench.gpu_check import check, find_gpu, find_llama_server, main, render
from bench.gpu_shapes import SHAPES, Shape
from router.errors import StartupError
from router.gguf import read_gguf
from tests.e2e.stub_machine import child_environment, make_stub_machine
from tests.make_gguf import make_llama
from tests.stub_nvml.state import StubGpu, StubNvml

MIB, GIB = 1 << 20, 1 << 30
ALLOCATED_MIB, GROWN_MIB, CONTEXT_MIB = 500, 40, 600
LISTED = "  CUDA0: NVIDIA Stub (24576 MiB, 24000 MiB free)"
TINY = (Shape("first", make_llama, 2048, {}), Shape("second", make_llama, 1024, {"n_layers": 3}))
LARGE = Shape("large", make_llama, 2048, {"approx_mib": 40 * 1024, "weight_type": "f16"})


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubNvml:
    gpus = (
        StubGpu("GPU-small", "NVIDIA Stub", "00000000:01:00.0", 8 * GIB, 256 * MIB),
        StubGpu("GPU-large", "NVIDIA Stub", "00000000:02:00.0", 24 * GIB, 256 * MIB),
    )
    return make_stub_machine(tmp_path, monkeypatch, *gpus, listed=LISTED)


async def test_it_tells_what_was_predicted_what_is_held_and_when_it_was_back(
    stub: StubNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_measure, "POLLS", 20)
    stub.change(lag_ms=300)
    gpu, why = await find_gpu()
    assert gpu is not None and gpu.uuid == "GPU-large", why
    binary = await find_llama_server(None)
    config = child_environment(stub, alloc_mib=ALLOCATED_MIB, grow_mib=GROWN_MIB)
    report = await check(gpu, binary, tmp_path, (*TINY, LARGE), config)

    assert [row.model for row in report.rows] == ["first", "second"]
    for row in report.rows:
        assert (row.ready, row.worked) == (ALLOCATED_MIB * MIB, (ALLOCATED_MIB + GROWN_MIB) * MIB)
        assert row.predicted > row.context == CONTEXT_MIB * MIB
        assert row.learned_context == (ALLOCATED_MIB + GROWN_MIB) * MIB - (row.predicted - row.context)
        for seconds in row.back_seconds.values():
            assert seconds is not None and seconds > 0.2, "memory that is reported late was taken for back"
    assert set(report.left_out) == {"large"}
    together = 2 * (ALLOCATED_MIB + GROWN_MIB) * MIB
    assert report.together == {"models": 2, "processes": together, "device": together}
    assert all(0 < cost["median"] <= cost["p99"] <= cost["max"] for cost in report.poll_milliseconds.values())
    assert not report.too_low
    said = render(report)
    assert "540" in said and "grew by 40 MiB" in said and "large" in said
    assert json.loads(json.dumps(asdict(report)))["rows"][0]["model"] == "first"


async def test_a_prediction_that_is_too_low_is_said_aloud(stub: StubNvml, tmp_path: Path) -> None:
    gpu, _ = await find_gpu()
    assert gpu is not None
    config = child_environment(stub, alloc_mib=ALLOCATED_MIB, grow_mib=5 * GROWN_MIB)
    report = await check(gpu, await find_llama_server(None), tmp_path, TINY[:1], config)
    assert report.too_low == ["first"] and "TOO LOW: first" in render(report)


async def test_where_the_driver_does_not_tell_of_processes_that_is_what_is_learned(
    stub: StubNvml, tmp_path: Path
) -> None:
    stub.change(hide_pids=1)
    gpu, _ = await find_gpu()
    assert gpu is not None
    config = child_environment(stub, alloc_mib=ALLOCATED_MIB, grow_mib=GROWN_MIB)
    report = await check(gpu, await find_llama_server(None), tmp_path, TINY[:1], config)
    assert any("cannot be told" in note for note in report.notes)
    assert "cannot be told" in render(report)


async def test_a_llama_server_without_cuda_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stub_machine(tmp_path, monkeypatch)
    with pytest.raises(StartupError, match="sees no CUDA device"):
        await find_llama_server(None)


def test_without_a_gpu_it_says_so_in_one_line_and_that_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = make_stub_machine(tmp_path, monkeypatch)
    stub.change(init_err=12)
    assert main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "gpu_check: no NVIDIA GPU to check here (NVML: no driver library (libnvidia-ml.so.1))"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_its_models_are_read_and_are_of_the_size_their_names_promise(shape: Shape, tmp_path: Path) -> None:
    shape.write(tmp_path)
    path = tmp_path / f"{shape.name}.gguf"
    metadata = read_gguf(path)
    assert metadata.n_ctx_train is not None and metadata.n_ctx_train >= shape.ctx_size
    assert 0.5 * GIB < path.stat().st_size < 40 * GIB
    assert path.stat().st_blocks * 512 < 100 * MIB, "not a hole"
