"""llama-fit-params as a second opinion: asked with what it understands, believed where it says more."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from router.estimate import Layout, LoadSettings, Prepared, estimate
from router.estimate.fit_params import FitRow, ask, fit_params_argv, parse_fit_params, raised
from router.gguf import read_gguf
from tests.estimate.made_up import HOST, MIB, gpu, llama, on_gpus, on_host
from tests.estimate.reported import find_llama_server
from tests.make_gguf import make_gemma3, make_llama

BINARY, MODEL = Path("/bin/llama-fit-params"), Path("/models/m.gguf")


def argv(*server_args: str) -> list[str]:
    return fit_params_argv(BINARY, MODEL, server_args)


def test_flags_that_it_knows_are_passed_on() -> None:
    assert argv("-c", "8192", "-ngl", "99", "--swa-full", "-ctk", "q8_0", "-ts", "3,1") == [
        str(BINARY), "-m", str(MODEL), "-c", "8192", "-ngl", "99", "--swa-full", "-ctk", "q8_0", "-ts", "3,1",
        "--no-repack", "-fitp", "on",
    ]  # fmt: skip


def test_flags_that_it_would_refuse_are_left_out_with_their_values() -> None:
    server = (
        "--host",
        "127.0.0.1",
        "-c",
        "4096",
        "-kvu",
        "--embedding",
        "-cram",
        "0",
        "-md",
        "draft.gguf",
        "-np",
        "2",
    )
    assert argv(*server) == argv("-c", "4096", "-np", "2")


def test_a_value_that_looks_like_a_flag_is_a_value() -> None:
    assert argv("-ngl", "-1", "-c", "512")[3:-3] == ["-ngl", "-1", "-c", "512"]


def test_a_flag_whose_value_is_missing_does_no_harm() -> None:
    assert argv("-c")[3:-3] == ["-c"]


def test_its_answer_is_one_line_per_device_with_the_host_last() -> None:
    assert parse_fit_params("CUDA0 4420 1024 300 \nHost 281 0 12 \n") == (
        FitRow("CUDA0", 4420 * MIB, 1024 * MIB, 300 * MIB),
        FitRow("Host", 281 * MIB, 0, 12 * MIB),
    )


@pytest.mark.parametrize(
    "output", ["", "\n", "error: bad\n", "CUDA0 1 2 3\n", "Host 1 2\n", "Host -1 2 3\n", "Host ² 1 1"]
)
def test_anything_else_is_no_answer(output: str) -> None:
    assert parse_fit_params(output) is None


def script(folder: Path, body: str) -> list[str]:
    path = folder / "fit"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


ENVIRONMENT = {"PATH": os.environ["PATH"]}


async def test_an_answer_is_read(tmp_path: Path) -> None:
    rows = await ask(script(tmp_path, "echo 'Host 281 0 12 '"), ENVIRONMENT)
    assert rows == (FitRow("Host", 281 * MIB, 0, 12 * MIB),)


async def test_no_backtrace_is_made_of_an_abort(tmp_path: Path) -> None:
    rows = await ask(script(tmp_path, 'echo "Host $GGML_NO_BACKTRACE 0 0"'), ENVIRONMENT)
    assert rows is not None
    assert rows[0].model_bytes == 1 * MIB


@pytest.mark.parametrize("body", ["echo 'Host 1 1 1'; exit 1", "kill -ABRT $$", "echo nonsense"])
async def test_a_failure_is_no_answer(body: str, tmp_path: Path) -> None:
    assert await ask(script(tmp_path, body), ENVIRONMENT) is None


async def test_a_program_that_is_not_there_is_no_answer(tmp_path: Path) -> None:
    assert await ask([str(tmp_path / "nope")], ENVIRONMENT) is None


async def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f"echo $$ > {pid_file}; exec sleep 600"
    assert await ask(script(tmp_path, body), ENVIRONMENT, timeout_seconds=0.5) is None
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def rows(*mib: tuple[str, int, int, int]) -> tuple[FitRow, ...]:
    return tuple(FitRow(name, m * MIB, k * MIB, c * MIB) for name, m, k, c in mib)


def test_a_larger_answer_raises_the_estimate_and_says_so() -> None:
    prepared, layout = Prepared.of(llama(), LoadSettings()), on_gpus(gpu(0, 24))
    ours = estimate(prepared, layout)
    gpu_bytes = ours.bytes_of("weights", "kv", "compute", device="box/cuda:0")
    more = raised(ours, rows(("CUDA0", gpu_bytes // MIB + 500, 0, 0), ("Host", 1, 0, 0)), prepared, layout)
    assert more.footprint["box/cuda:0"] == pytest.approx(ours.footprint["box/cuda:0"] + 500 * MIB, abs=MIB)
    assert more.footprint[HOST.id] == ours.footprint[HOST.id]
    assert "llama-fit-params counts" in more.terms[-1].explanation


def test_a_smaller_answer_changes_nothing() -> None:
    prepared, layout = Prepared.of(llama(), LoadSettings()), on_host()
    ours = estimate(prepared, layout)
    assert raised(ours, rows(("Host", 1, 1, 1)), prepared, layout) == ours


def test_logits_that_the_server_does_not_reserve_are_taken_off() -> None:
    prepared, layout = Prepared.of(llama(n_vocab=262_144), LoadSettings()), on_host()
    ours = estimate(prepared, layout)
    counted = ours.bytes_of("weights") // MIB, ours.bytes_of("kv") // MIB
    surplus = 512 * 262_144 * 4 // MIB
    assert raised(ours, rows(("Host", *counted, surplus)), prepared, layout) == ours


def test_an_answer_about_other_devices_is_not_used() -> None:
    prepared, layout = Prepared.of(llama(), LoadSettings()), on_host()
    ours = estimate(prepared, layout)
    assert raised(ours, rows(("CUDA0", 99_999, 0, 0), ("Host", 99_999, 0, 0)), prepared, layout) == ours


# --- the real one
# ----------------------------------------------------------------------------------------------------

SERVER = find_llama_server()
REAL = SERVER.with_name("llama-fit-params") if SERVER else None
needs_it = pytest.mark.skipif(
    REAL is None or not REAL.exists(), reason="no llama-fit-params beside llama-server"
)


@pytest.mark.e2e
@needs_it
async def test_the_real_one_agrees_on_weights_and_context(tmp_path: Path) -> None:
    assert REAL is not None
    model = make_llama(
        tmp_path / "m.gguf", n_layers=4, n_embd=1024, n_ff=4096, n_heads=16, n_heads_kv=8, sparse=True
    )
    answer = await ask(fit_params_argv(REAL, model, ("-c", "8192", "-np", "1")), dict(os.environ))
    assert answer is not None
    ours = estimate(
        Prepared.of(read_gguf(model), LoadSettings(parallel=1, repack=False)), Layout(HOST, (), 0, (), 8192)
    )
    assert 0 <= ours.bytes_of("weights") - answer[0].model_bytes < MIB
    assert ours.bytes_of("kv") == answer[0].context_bytes


@pytest.mark.e2e
@needs_it
async def test_the_real_one_has_no_answer_for_a_file_it_cannot_load(tmp_path: Path) -> None:
    assert REAL is not None
    broken = make_gemma3(tmp_path / "m.gguf")
    broken.write_bytes(broken.read_bytes()[:5000])
    assert await ask(fit_params_argv(REAL, broken, ()), dict(os.environ)) is None
