"""A second opinion from llama.cpp itself: `llama-fit-params -fitp on` prints what it would allocate, and
loads nothing.

It is optional (not every distribution ships it), knows only some of the server's flags, reserves logits for
a whole step where the server reserves one row per slot, and aborts on models that it cannot load: no answer
is a normal answer. `ask` alone does I/O here.

    counted = counts(prepared, layout, estimated)       what it should say, if the estimate is right
    rows = await ask(fit_params_argv(...), environment)
    beyond(rows, counted)                               what it counts more, row by row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from router.memory.estimate.context import context_terms, ubatch
from router.memory.estimate.layout import Layout, layer_devices
from router.memory.estimate.total import Prepared
from router.memory.estimate.values import MIB, Counted, Estimate
from router.process import output_of

TIMEOUT_SECONDS = 10.0
_NICENESS = 10

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


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about one placement, and what is made of the answer.

    `key` is one for all that would be answered alike. Row by row, `counted` is what the answer should be, and
    `places` the position of the memory among those that a prediction counts. `touches_gpus`: for the time of
    the call it takes memory on each GPU that `env` lets it see.
    """

    key: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    counted: tuple[Counted, ...]
    places: tuple[int, ...]
    touches_gpus: bool

    def beyond(self, rows: Sequence[FitRow], n_places: int) -> tuple[int, ...]:
        """Bytes per place that an answer counts beyond the estimate; nothing where it is about others."""
        found = [0] * n_places
        for place, size in zip(self.places, beyond(rows, self.counted) or (), strict=False):
            found[place] += size
        return tuple(found)


async def ask(
    argv: Sequence[str],
    environment: Mapping[str, str],
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    is_urgent: bool = True,
) -> tuple[FitRow, ...] | None:
    """Run it and parse its answer; None when it is missing, fails, aborts or says something else.

    A GPU build creates a context on every device it may see, for the time of the call: `environment` decides
    which. One that is not urgent leaves the processor to others. Raises TimeoutError.
    """
    env = {**environment, "GGML_NO_BACKTRACE": "1"}
    niceness = 0 if is_urgent else _NICENESS
    try:
        said = await output_of(argv, env, timeout_seconds=timeout_seconds, niceness=niceness)
    except TimeoutError:
        raise
    except OSError:
        return None
    return parse_fit_params(said.data.decode("utf-8", "replace")) if said.status == 0 else None


def counts(prepared: Prepared, layout: Layout, estimated: Estimate) -> tuple[Counted, ...]:
    """What it should say of this layout, in the order of its answer: the GPUs, then the host."""
    devices = [*layout.device_ids, layout.host.id] if layout.gpus else [layout.host.id]
    logits, contexts = _surplus_logits(prepared, layout), _surplus_contexts(prepared, layout)
    return tuple(
        Counted(
            estimated.bytes_of("weights", "repacked", "kv", "state", "compute", "unknown", device=device),
            contexts.get(device, 0),
            logits.get(device, 0),
        )
        for device in devices
    )


def beyond(rows: Sequence[FitRow], counted: Sequence[Counted]) -> tuple[int, ...] | None:
    """Bytes that llama.cpp counts more than the estimate, row by row; None for an answer about other devices.

    What it counts and the server does not reserve is taken off first: that leaves a lower bound of what the
    server needs.
    """
    if len(rows) != len(counted):
        return None
    return tuple(
        max(
            0,
            row.model_bytes
            + max(0, row.context_bytes - ours.surplus_context)
            + max(0, row.compute_bytes - ours.surplus_compute)
            - ours.bytes,
        )
        for row, ours in zip(rows, counted, strict=True)
    )


def _surplus_logits(prepared: Prepared, layout: Layout) -> dict[str, int]:
    """It reserves logits for a whole step, on the device of the output; the server a row per slot."""
    if prepared.shape is None or prepared.settings.embedding:
        return {}
    n_tokens = ubatch(prepared.shape, prepared.settings, layout.ctx_size)
    rows = max(0, n_tokens - prepared.settings.n_slots)
    return {layer_devices(layout, prepared.shape.n_layers_all)[-1]: 4 * rows * prepared.shape.n_vocab}


def _surplus_contexts(prepared: Prepared, layout: Layout) -> dict[str, int]:
    """It does not know of a cache that slots share: sliding windows are larger when each has its own."""
    if prepared.shape is None or not prepared.settings.is_unified:
        return {}
    surplus: dict[str, int] = {}
    apart = replace(prepared.settings, parallel=prepared.settings.n_slots, kv_unified=False)
    for sign, settings in ((1, apart), (-1, prepared.settings)):
        for term in context_terms(prepared.shape, settings, layout):
            if term.kind == "kv":
                surplus[term.device] = surplus.get(term.device, 0) + sign * term.bytes
    return {device: max(0, size) for device, size in surplus.items()}
