"""llama-fit-params as a second opinion: asked with what it understands, believed where it says more."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from router.gguf import read_gguf
from router.memory.estimate import Estimate, Layout, LoadSettings, Prepared, estimate
from router.memory.estimate.fit_params import FitRow, ask, beyond, counts, fit_params_argv, parse_fit_params
from router.memory.estimate.values import Counted
from tests.make_gguf import make_gemma3, make_llama
from tests.memory.estimate.cases import CASES, REPACKED_CASES, Case
from tests.memory.estimate.made_up import HOST, MIB, gpu, llama, on_gpus, on_host
from tests.memory.estimate.reported import find_llama_server

GEMMA = llama(n_layers=12, architecture="gemma3", attention__sliding_window=1024)
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
    with pytest.raises(TimeoutError):
        await ask(script(tmp_path, body), ENVIRONMENT, timeout_seconds=0.5)
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def rows(*mib: tuple[str, int, int, int]) -> tuple[FitRow, ...]:
    return tuple(FitRow(name, m * MIB, k * MIB, c * MIB) for name, m, k, c in mib)


def counted_and_ours(prepared: Prepared, layout: Layout) -> tuple[tuple[Counted, ...], Estimate]:
    ours = estimate(prepared, layout)
    return counts(prepared, layout, ours), ours


def test_a_larger_answer_tells_by_how_much_on_which_device() -> None:
    prepared, layout = Prepared.of(llama(), LoadSettings()), on_gpus(gpu(0, 24))
    counted, ours = counted_and_ours(prepared, layout)
    gpu_bytes = ours.bytes_of("weights", "kv", "compute", device="box/cuda:0")
    more = beyond(rows(("CUDA0", gpu_bytes // MIB + 500, 0, 0), ("Host", 1, 0, 0)), counted)
    assert more is not None
    assert more == pytest.approx((500 * MIB, 0), abs=MIB)


def test_a_smaller_answer_changes_nothing() -> None:
    counted, _ = counted_and_ours(Prepared.of(llama(), LoadSettings()), on_host())
    assert beyond(rows(("Host", 1, 1, 1)), counted) == (0,)


def test_logits_that_the_server_does_not_reserve_are_taken_off() -> None:
    prepared, layout = Prepared.of(llama(n_vocab=262_144), LoadSettings()), on_host()
    counted, ours = counted_and_ours(prepared, layout)
    surplus = 512 * 262_144 * 4 // MIB
    told = ours.bytes_of("weights") // MIB, ours.bytes_of("kv") // MIB, surplus
    assert beyond(rows(("Host", *told)), counted) == (0,)
    on_gpu = on_gpus(gpu(0, 24))
    counted, ours = counted_and_ours(prepared, on_gpu)
    assert counted[0].surplus_compute > 500 * MIB
    assert counted[1].surplus_compute == 0, "the logits are where the output is"


def test_windows_that_slots_share_are_not_counted_for_each_slot() -> None:
    prepared = Prepared.of(GEMMA, LoadSettings())
    layout = on_host(32_768)
    counted, ours = counted_and_ours(prepared, layout)
    apart = Prepared.of(GEMMA, LoadSettings(parallel=4, kv_unified=False))
    theirs = estimate(apart, layout).bytes_of("kv")
    assert theirs > ours.bytes_of("kv")
    told = (ours.bytes_of("weights") // MIB, theirs // MIB, ours.bytes_of("compute") // MIB)
    assert beyond(rows(("Host", *told)), counted) == (0,)


def test_an_answer_about_other_devices_is_not_used() -> None:
    counted, _ = counted_and_ours(Prepared.of(llama(), LoadSettings()), on_host())
    assert beyond(rows(("CUDA0", 99_999, 0, 0), ("Host", 99_999, 0, 0)), counted) is None


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


@pytest.mark.e2e
@needs_it
@pytest.mark.parametrize("case", [*CASES, *REPACKED_CASES], ids=lambda case: case.name)
async def test_the_real_one_raises_no_estimate_that_holds_against_the_server(
    case: Case, tmp_path: Path
) -> None:
    """These are the models of the table, which never takes less than the server says."""
    assert REAL is not None
    _, model, argv = case.predict(tmp_path)
    prepared, layout = Prepared.of(read_gguf(model), case.settings), Layout(HOST, (), 0, (), case.ctx_size)
    args = (*argv, "-np", str(case.settings.n_slots))
    answer = await ask(fit_params_argv(REAL, model, args), dict(os.environ), timeout_seconds=60)
    assert answer is not None
    assert beyond(answer, counted_and_ours(prepared, layout)[0]) == (0,)
