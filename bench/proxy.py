"""What it costs to stand between a client and llama-server: ours beside others, in one table from one run.

    bench/proxy [--seconds S] [--rounds N] [--only ROW,...] [--contestants NAME,...] [--json FILE]

Everything is set up here and torn down again. The rows `rate`, `chunks`, `first`, `memory` and `slow` have a
fixed upstream (`proxy_upstream.py`) behind each proxy, `swap` the real llama-server. Within a round each
contestant has its turn at each row; what is added is over the same round without a proxy. CPU is that of the
proxy's own processes alone. Figures of a busy machine are printed with its load, never asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import proxy_rows, proxy_swaps
from bench.proxy_contestants import (
    CONTESTANTS,
    ROUTERS,
    Absent,
    Before,
    Contestant,
    Setting,
    post,
    upstream_program,
)
from bench.proxy_rows import ROWS, Failed, Options, has_wrk
from bench.proxy_table import Results, render
from router.demo_model import write_demo_model
from tests.make_gguf import make_llama

# ruff: noqa: T201 - a command

SWAP: Final = "swap"
#: At the very end: it takes long, as a thousand buffers of the kernel are to be filled; what was once taken
#: for them would be seen in every later row of memory; and not everybody survives it.
LAST: Final = frozenset({"slow"})
#: What two models weigh that are swapped: enough to be read, and to be seen by a poll.
SWAP_MODEL_MIB: Final = 96
SWAP_ARGS: Final = ("--threads", "1")
#: A process for what is open on both sides of a thousand streams.
FILES_WANTED: Final = 16384


def run(given: argparse.Namespace) -> Results:
    rows = [row for row in (*ROWS, SWAP) if given.only is None or row in given.only]
    options = Options(given.seconds, given.slow_readers, has_wrk(given.seconds))
    results = Results([], [], _about(given, options))
    _raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as name:
        folder = Path(name)
        fixed = [row for row in rows if row != SWAP]
        if fixed:
            (folder / "fixed").mkdir()
            _measure_fixed(folder / "fixed", fixed, options, given, results)
        if SWAP in rows:
            (folder / SWAP).mkdir()
            _measure_swaps(folder / SWAP, given, results)
    results.about["load average after"] = f"{os.getloadavg()[0]:.1f}"
    return results


def _measure_fixed(
    folder: Path, rows: Sequence[str], options: Options, given: argparse.Namespace, results: Results
) -> None:
    model = folder / "bench.gguf"
    write_demo_model(model)
    setting = Setting(
        folder=folder,
        server=upstream_program(folder),
        models=(model,),
        llama_server=given.llama_server,
        llama_swap=given.llama_swap,
        before=given.before,
    )
    with contextlib.ExitStack() as stack:
        contestants = _entered(stack, CONTESTANTS, setting, given, results)
        for contestant in list(contestants):
            try:
                post(contestant.port, proxy_rows.PATH, {"model": "bench"})  # loaded, and everything imported
            except OSError as error:
                results.fail(contestant.name, "first request", str(error))
                contestants.remove(contestant)
        for number in range(given.rounds):
            for row in rows:
                if row in LAST and number < given.rounds - 1:
                    continue
                for contestant in _rotated(contestants, number):
                    _note(f"round {number + 1}: {row}, {contestant.name}")
                    with _failing(results, contestant, row):
                        results.note(contestant.name, ROWS[row](contestant, options))
    results.metrics += proxy_rows.METRICS


def _measure_swaps(folder: Path, given: argparse.Namespace, results: Results) -> None:
    if given.llama_server is None:
        results.absent["llama-server"] = "bin/build-llama-server, or --llama-server FILE; no row of swaps"
        return
    models = tuple(
        make_llama(
            folder / f"{name}.gguf",
            name=name,
            seed=seed,
            weight_type="f16",
            approx_mib=SWAP_MODEL_MIB,
            n_embd=512,
        )
        for seed, name in enumerate(("model-a", "model-b"))
    )
    setting = Setting(
        folder=folder,
        server=given.llama_server,
        models=models,
        models_max=1,
        args=SWAP_ARGS,
        llama_server=given.llama_server,
        llama_swap=given.llama_swap,
        before=given.before,
    )
    with contextlib.ExitStack() as stack:
        contestants = _entered(stack, ROUTERS, setting, given, results)
        if (
            given.contestants is None or "direct" in given.contestants
        ) and "direct" not in results.contestants:
            results.contestants.insert(0, "direct")
        argv = None
        for contestant in contestants:
            first = setting.names[0]
            proxy_swaps.first_token_ms(contestant.port, first)
            argv = argv or proxy_swaps.argv_of(contestant)
            contestant.unload(first)
        for number in range(given.rounds):
            reference = proxy_swaps.own(setting, models[0], argv)
            proxy_swaps.forget(models[0])
            from_disk = proxy_swaps.own(setting, models[0], argv)
            if "direct" in results.contestants:
                own = {"cold": reference.total_ms, "disk": from_disk.total_ms, "warm": reference.warm_ms}
                results.note("direct", own)
            for contestant in _rotated(contestants, number):
                _note(f"round {number + 1}: swap, {contestant.name}")
                with _failing(results, contestant, SWAP):
                    results.note(contestant.name, proxy_swaps.swaps(contestant, reference, from_disk))
    results.metrics += proxy_swaps.METRICS


def _entered(
    stack: contextlib.ExitStack,
    kinds: Sequence[type[Contestant]],
    setting: Setting,
    given: argparse.Namespace,
    results: Results,
) -> list[Contestant]:
    entered = []
    for kind in kinds:
        if given.contestants is not None and kind.name not in given.contestants:
            continue
        try:
            contestant = kind(setting)
            stack.enter_context(contestant.running())
        except Absent as absence:
            if kind is not Before:  # nobody has missed it
                results.absent[kind.name] = str(absence)
            continue
        entered.append(contestant)
        if kind.name not in results.contestants:
            results.contestants.append(kind.name)
    return entered


def _rotated(contestants: Sequence[Contestant], by: int) -> Sequence[Contestant]:
    """Who comes first has the others' leavings in its caches."""
    start = by % max(1, len(contestants))
    return [*contestants[start:], *contestants[:start]]


@contextlib.contextmanager
def _failing(results: Results, contestant: Contestant, row: str) -> Iterator[None]:
    """One that cannot do something is shown so, beside those that can."""
    try:
        yield
    except (Failed, OSError, RuntimeError, KeyError, subprocess.SubprocessError) as error:
        results.fail(contestant.name, row, " ".join(f"{type(error).__name__}: {error}".split())[:300])


def _about(given: argparse.Namespace, options: Options) -> dict[str, object]:
    return {
        "rounds": given.rounds,
        "seconds each": given.seconds,
        "slow readers": options.slow_readers,
        "clients": "wrk and our own"
        if options.has_wrk
        else "our own (apt-get install wrk for a cheaper one)",
        "cores": os.cpu_count(),
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _raise_file_limit() -> None:
    """For everybody: whoever is started here inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bench/proxy", description=__doc__.split("\n", 1)[0])
    made.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--only", type=_names((*ROWS, SWAP)), help=", ".join((*ROWS, SWAP)))
    known = [kind.name for kind in CONTESTANTS]
    made.add_argument("--contestants", type=_names(known), help=", ".join(known))
    made.add_argument("--slow-readers", type=int, default=1000)
    made.add_argument("--llama-server", type=_program, default=_program(os.environ.get("LLAMA_SERVER", "")))
    made.add_argument("--llama-swap", type=_program, default=_program("llama-swap"))
    made.add_argument(
        "--before", type=Path, metavar="FOLDER", help="another checkout of ours to compare with"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    return made


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return given

    return names


def _program(named: str) -> Path | None:
    found = shutil.which(named)
    return Path(found).resolve() if found is not None else None


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    results = run(given)
    print(render(results))
    if given.json is not None:
        given.json.write_text(json.dumps(results.to_json(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
