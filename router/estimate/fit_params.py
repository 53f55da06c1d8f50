"""A second opinion from llama.cpp itself: `llama-fit-params -fitp on` prints what it would allocate, and
loads nothing.

It is optional (not every distribution ships it), knows only some of the server's flags, reserves logits for
a whole step where the server reserves one row per slot, and aborts on models that it cannot load: no answer
is a normal answer. `ask` alone does I/O here.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.estimate.context import ubatch
from router.estimate.layout import Layout
from router.estimate.total import Prepared
from router.estimate.values import MIB, Estimate, Term

TIMEOUT_SECONDS = 10.0
_MAX_OUTPUT_BYTES = 1 << 20

_FLAGS_WITH_VALUE = frozenset((
    "-c", "--ctx-size", "-np", "--parallel", "-b", "--batch-size", "-ub", "--ubatch-size",
    "-ngl", "--gpu-layers", "--n-gpu-layers", "-ts", "--tensor-split", "-sm", "--split-mode",
    "-mg", "--main-gpu", "-dev", "--device", "-ot", "--override-tensor",
    "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn",
    "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-fa", "--flash-attn", "-lm", "--load-mode",
    "--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx",
    "--override-kv",
))  # fmt: skip
_FLAGS_ALONE = frozenset((
    "-cmoe", "--cpu-moe", "-nkvo", "--no-kv-offload", "-kvo", "--kv-offload", "--swa-full",
    "--no-op-offload", "--op-offload", "--mmap", "--no-mmap", "--mlock",
))  # fmt: skip
"""What llama-fit-params accepts of a server's flags and memory depends on. Anything else it answers with rc
1."""


@dataclass(frozen=True, slots=True)
class FitRow:
    """One line of the answer, for a device by llama.cpp's name
    (`CUDA0`, `Host`). MiB are rounded down there."""

    name: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int


def fit_params_argv(binary: Path, model: Path, server_args: Sequence[str]) -> list[str]:
    """The command line that asks about a server's: only flags on the allow-list, and never repacked weights,
    which a CPU build would leave out of its answer."""
    argv = [str(binary), "-m", str(model)]
    args = iter(server_args)
    for arg in args:
        if arg in _FLAGS_ALONE:
            argv.append(arg)
        elif arg in _FLAGS_WITH_VALUE:
            argv += [arg, *(value for value in (next(args, None),) if value is not None)]
    return [*argv, "--no-repack", "-fitp", "on"]


def parse_fit_params(output: str) -> tuple[FitRow, ...] | None:
    """The rows of the answer, GPUs in the order of the model's
    devices and the host last; None if it is none."""
    rows = []
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != 4 or not all(field.isascii() and field.isdigit() for field in fields[1:]):
            continue
        model, context, compute = (int(field) * MIB for field in fields[1:])
        rows.append(FitRow(fields[0], model, context, compute))
    return tuple(rows) if rows and rows[-1].name == "Host" else None


async def ask(
    argv: Sequence[str], environment: Mapping[str, str], timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[FitRow, ...] | None:
    """Run it and parse its answer; None when it is missing, fails, aborts, takes too long or says something
    else.

    A GPU build creates a context on every device it may see, for the time of the call: `environment` decides
    which.
    """
    env = {**environment, "GGML_NO_BACKTRACE": "1"}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(timeout_seconds):
            assert process.stdout is not None, "stdout is a pipe"
            output = await process.stdout.read(_MAX_OUTPUT_BYTES)
            code = await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return parse_fit_params(output.decode("utf-8", "replace")) if code == 0 else None


def raised(estimated: Estimate, rows: Sequence[FitRow], prepared: Prepared, layout: Layout) -> Estimate:
    """The estimate, raised on every device for which llama.cpp counts more.

    Its compute buffers hold logits for a whole step; the rows of it that the server does not reserve are
    taken off, which leaves a lower bound of what the server needs.
    """
    devices = [*layout.device_ids, layout.host.id] if layout.gpus else [layout.host.id]
    if len(rows) != len(devices):
        return estimated
    more = []
    for row, device in zip(rows, devices, strict=True):
        compute = max(0, row.compute_bytes - _surplus_logits(prepared, layout))
        theirs = row.model_bytes + row.context_bytes + compute
        ours = estimated.bytes_of("weights", "repacked", "kv", "state", "compute", "unknown", device=device)
        why = f"llama-fit-params counts {theirs / MIB:.0f} MiB of weights, context and compute buffer"
        more.append(Term(device, "second-opinion", theirs - ours, why))
    return Estimate.of([*estimated.terms, *more], is_guess=estimated.is_guess)


def _surplus_logits(prepared: Prepared, layout: Layout) -> int:
    if prepared.shape is None or prepared.settings.embedding:
        return 0
    n_tokens = ubatch(prepared.settings, layout.ctx_size)
    return 4 * max(0, n_tokens - prepared.settings.n_slots) * prepared.shape.n_vocab
