"""Hold the router's figures of GPU memory against a real NVIDIA GPU: one command, a table, what was learned.

    bench/gpu_check [--llama-server PATH] [--folder DIR] [--json]

Finds a llama-server that uses CUDA (or builds it), writes models of real shapes without their data (sparse
files, all zeros), and loads them through a whole router on the device with the most free memory: each alone,
then all that fit together. Per model: what was predicted, what NVML says its process holds when it is ready
and after work, and how long after the end of the process its memory was back. Then what one look at the
devices costs. Without an NVIDIA GPU it says so in one line, and exits with status 0. Status 1: a prediction
was too low.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.gpu_measure import Check, Report, poll_costs
from bench.gpu_shapes import SHAPES, Shape
from router.engines.llama_server import list_devices
from router.errors import RouterError, StartupError
from router.memory.devices import DeviceInfo, Devices
from tests.e2e.running import running

# ruff: noqa: T201 - it is a command

ROOT = Path(__file__).resolve().parent.parent
MIB, GIB = 1 << 20, 1 << 30


# --- before ---


async def find_gpu() -> tuple[DeviceInfo | None, str]:
    """The healthy NVIDIA device with the most free memory; without one, why."""
    async with Devices(enabled={"amd": False}) as devices:
        sample = await devices.sample(now=time.monotonic())
    found = [info for info in sample.devices.values() if info.kind == "cuda"]
    healthy = [info for info in found if info.free_bytes is not None and info.pool == info.id]
    if healthy:
        return max(healthy, key=lambda info: info.free_bytes or 0), ""
    return None, "; ".join(
        [*(f"{info.label}: {info.error}" for info in found), *sample.notes]
    ) or "none found"


async def find_llama_server(given: str | None) -> Path:
    """One that sees a CUDA device; built where there is none at all. Raises StartupError."""
    command = [sys.executable, "-IS", str(ROOT / "bin" / "build-llama-server")]
    command += ["--llama-server", given] if given else []
    built = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        raise StartupError("there is no llama-server, and none could be built")
    path = Path(built.stdout.strip())
    listed = await list_devices(path)
    if "CUDA" not in listed.partition("Available devices:")[2]:
        raise StartupError(
            f"{path} sees no CUDA device. Name one that does (--llama-server, LLAMA_SERVER), or install the "
            "CUDA toolkit and remove the one that was found, so that a new one is built"
        )
    return path


# --- all of it ---


async def check(
    gpu: DeviceInfo, binary: Path, folder: Path, shapes: Sequence[Shape] = SHAPES, config: str = ""
) -> Report:
    """Everything, on that device. Models are written into `folder` and stay there."""
    report = Report(gpu.label, gpu.driver, str(binary))
    (folder / "models").mkdir(exist_ok=True)
    for shape in shapes:
        shape.write(folder / "models")
        config += f'[models."{shape.name}"]\nctx_size = {shape.ctx_size}\ndevices = ["{gpu.uuid}"]\n'
    os.environ["LLAMA_SERVER"] = str(binary)
    async with (
        running(folder, [shape.name for shape in shapes], config) as router,
        Devices(enabled={"amd": False}) as devices,
    ):
        doing = Check(router, devices, gpu, report)
        for shape in shapes:
            await doing.one(shape)
            print(f"  {shape.name}: {report.left_out.get(shape.name, 'done')}", file=sys.stderr)
        loaded = [shape for shape in shapes if shape.name not in report.left_out]
        await doing.together(_that_fit(loaded, report, gpu))
        report.poll_milliseconds = await poll_costs([os.getpid()])
    return report


def _that_fit(shapes: Sequence[Shape], report: Report, gpu: DeviceInfo) -> list[Shape]:
    """The first ones that fit into 90 % of what is free, by their predictions."""
    left = int((gpu.free_bytes or 0) * 0.9) - GIB
    predicted = {row.model: row.predicted for row in report.rows}
    chosen = []
    for shape in shapes:
        if predicted[shape.name] <= left:
            chosen.append(shape)
            left -= predicted[shape.name]
    return chosen


def render(report: Report) -> str:
    lines = [
        f"{report.device}, driver {report.driver}, {report.llama_server}",
        "",
        _line(
            "MiB", "predicted", "ready", "worked", "over", "context", "was", "load s", "TERM ms", "KILL ms"
        ),
    ]
    for row in report.rows:
        over = None if row.worked is None else row.predicted - row.worked
        sizes = (row.predicted, row.ready, row.worked, over, row.context, row.learned_context)
        back = (row.back_seconds.get(signal) for signal in ("SIGTERM", "SIGKILL"))
        lines.append(_line(row.model, *map(_mib, sizes), f"{row.load_seconds:.1f}", *map(_ms, back)))
    lines += [f"{name:16}not loaded: {why}" for name, why in report.left_out.items()]
    if report.together:
        both = report.together
        held, lost = _mib(both["processes"]), _mib(both["device"])
        lines += [
            "",
            f"{both['models']} together: processes hold {held} MiB, the device lost {lost} MiB",
        ]
    for what, cost in report.poll_milliseconds.items():
        figures = ", ".join(f"{name} {value:.2f} ms" for name, value in cost.items())
        lines.append(f"one poll, {what}: {figures}")
    return "\n".join([*lines, "", *_learned(report)])


def _learned(report: Report) -> list[str]:
    """In words: what of the router's assumptions this machine confirms, and what it does not."""
    known = [row for row in report.rows if row.worked is not None]
    lines = list(report.notes)
    if not known:
        return [
            *lines,
            "Learned: NVML did not tell what a process holds; the ledger goes by free memory here.",
        ]
    contexts = [row.learned_context or 0 for row in known]
    assumed = max(row.context for row in known)
    least, most = _mib(min(contexts)), _mib(max(contexts))
    lines.append(
        f"Learned: beyond what llama.cpp counts a process took {least} to {most} MiB here; {_mib(assumed)} "
        "MiB are assumed (memory.context_overhead_mib)."
    )
    grown = max((row.worked or 0) - (row.ready or 0) for row in known)
    lines.append(f"Learned: after it was ready a process grew by {_mib(grown)} MiB at most.")
    late = [seconds for row in known for seconds in row.back_seconds.values() if seconds is not None]
    if late:
        lines.append(
            f"Learned: memory was back {max(late) * 1000:.0f} ms after the end of a process at the latest."
        )
    if report.too_low:
        lines.append(f"TOO LOW: {', '.join(report.too_low)} took more than was predicted.")
    return lines


def _line(name: str, *cells: str) -> str:
    return f"{name:16}" + "".join(f"{cell:>10}" for cell in cells)


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:.0f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "bench/gpu_check", description="the router's memory figures on a real GPU"
    )
    parser.add_argument("--llama-server", help="one that uses CUDA; default: the one found, or a new build")
    parser.add_argument("--folder", type=Path, help="keep the models there; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    gpu, why = asyncio.run(find_gpu())
    if gpu is None:
        print(f"gpu_check: no NVIDIA GPU to check here ({why})")
        return 0
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-check-")))
        try:
            binary = asyncio.run(find_llama_server(options.llama_server))
            report = asyncio.run(check(gpu, binary, folder))
        except RouterError as error:
            print(f"gpu_check: {error.message}", file=sys.stderr)
            return 2
    print(json.dumps(asdict(report), indent=1) if options.json else render(report))
    return 1 if report.too_low else 0


if __name__ == "__main__":
    sys.exit(main())
