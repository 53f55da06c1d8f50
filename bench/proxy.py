"""What it costs to stand between a client and llama-server: ours beside others, in one table from one run.

    bench/proxy [--seconds S] [--rounds N] [--only ROW,...] [--contestants NAME,...] [--json FILE] [...]

By itself it takes about 9 minutes on 2 cores, where nginx, wrk and a llama-server are there: 3 rounds of 2
seconds for each measurement. Everything is set up here and torn down again. The rows `rate`, `chunks`,
`first`, `memory` and `slow` have a fixed upstream (`proxy_upstream.py`) behind each proxy, `swap` the real
llama-server. Within a round each contestant has its turn at each row; what is added is over the same round
without a proxy. CPU is that of the proxy's own processes alone. Who does not do what is asked within bounds
(`proxy_bounds.py`) has a cell that says so, and the rest goes on; Ctrl-C or SIGTERM prints what there is.
Figures of a busy machine are printed with its load, never asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from bench import proxy_rows, proxy_swaps
from bench.proxy_bounds import Failed
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
from bench.proxy_progress import Progress, rough
from bench.proxy_rows import ROWS, Options, Step, has_wrk
from bench.proxy_table import Results, render
from router.demo_model import write_demo_model
from tests.make_gguf import make_llama

# ruff: noqa: T201 - a command

SWAP: Final = "swap"
#: After all rounds of the others: what was once taken for a thousand slow readers would be seen in every
#: later row of memory; and not everybody survives them.
LAST: Final = frozenset({"slow"})
#: What two models weigh that are swapped: enough to be read, and to be seen by a poll.
SWAP_MODEL_MIB: Final = 96
SWAP_ARGS: Final = ("--threads", "1")
#: What a swap takes of a contestant, and llama-server by itself, in each round.
SWAP_SECONDS: Final = 2.0
#: Above every program that is not real-time itself, below the kernel's own threads.
REAL_TIME_PRIORITY: Final = 10
#: A process for what is open on both sides of a thousand streams.
FILES_WANTED: Final = 16384


def run(given: argparse.Namespace, results: Results, progress: Progress) -> None:
    rows = [row for row in (*ROWS, SWAP) if given.only is None or row in given.only]
    options = Options(given.seconds, given.slow_readers, has_wrk(given.seconds))
    results.about.update(_about(given, options))
    _raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="bench-proxy-") as name:
        folder = Path(name)
        fixed = [row for row in rows if row != SWAP]
        if fixed:
            (folder / "fixed").mkdir()
            _measure_fixed(folder / "fixed", fixed, options, given, results, progress)
        if SWAP in rows:
            (folder / SWAP).mkdir()
            _measure_swaps(folder / SWAP, given, results, progress)


def _measure_fixed(
    folder: Path,
    rows: Sequence[str],
    options: Options,
    given: argparse.Namespace,
    results: Results,
    progress: Progress,
) -> None:
    results.metrics += proxy_rows.METRICS
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
                _ask_once(contestant)
            except OSError as error:
                results.fail(contestant.name, "first request", str(error))
                contestants.remove(contestant)
        _expect(rows, len(contestants), options, given, progress)
        early = [row for row in rows if row not in LAST]
        late = [row for row in rows if row in LAST]
        given_up: set[tuple[str, str]] = set()
        for some in (early, late):
            for number in range(given.rounds):
                for row in some:
                    progress.row(number, given.rounds, row)
                    for contestant in _rotated(contestants, number):
                        progress.turn(contestant.name)
                        for step in ROWS[row]:
                            if (contestant.name, step.name) not in given_up and not _measured(
                                contestant, step, number, options, results, progress
                            ):
                                given_up.add((contestant.name, step.name))


def _measured(
    contestant: Contestant,
    step: Step,
    number: int,
    options: Options,
    results: Results,
    progress: Progress,
) -> bool:
    """Whether it may be asked again in the next round. Who has died, or has taken too much, begins anew."""
    try:
        if contestant.has_died():
            contestant.restart()
            _ask_once(contestant)
        results.note(contestant.name, step.measure(contestant, options), number)
    except FAILURES as error:
        _fail(results, progress, contestant, f"{step.name}, round {number + 1}", error, step.keys)
        if isinstance(error, Failed) and error.is_final:
            contestant.stop()
            return False
    return True


def _ask_once(contestant: Contestant) -> None:
    """Its model is loaded then, and everything imported."""
    post(contestant.port, proxy_rows.PATH, {"model": "bench"})


def _expect(
    rows: Sequence[str], contestants: int, options: Options, given: argparse.Namespace, progress: Progress
) -> None:
    steps = [step for row in rows for step in ROWS[row]]
    seconds = contestants * sum(options.seconds + step.beside_seconds for step in steps)
    if given.only is None or SWAP in given.only:
        seconds += SWAP_SECONDS * (1 + contestants / 2)
    progress.say(f"{rough(given.rounds * seconds)} for {contestants} contestants: {', '.join(rows)}")


def _measure_swaps(folder: Path, given: argparse.Namespace, results: Results, progress: Progress) -> None:
    results.metrics += proxy_swaps.METRICS
    keys = [metric.key for metric in proxy_swaps.METRICS]
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
        for contestant in list(contestants):
            first = setting.names[0]
            try:
                proxy_swaps.first_token_ms(contestant.port, first)
                argv = argv or proxy_swaps.argv_of(contestant)
                contestant.unload(first)
            except FAILURES as error:
                _fail(results, progress, contestant, "first load", error, keys)
                contestants.remove(contestant)
        for number in range(given.rounds):
            progress.row(number, given.rounds, SWAP)
            try:
                reference = proxy_swaps.own(setting, models[0], argv)
                proxy_swaps.forget(models[0])
                from_disk = proxy_swaps.own(setting, models[0], argv)
            except FAILURES as error:
                results.fail("direct", f"{SWAP}, round {number + 1}", _said(error), keys)
                continue
            if "direct" in results.contestants:
                own = {"cold": reference.total_ms, "disk": from_disk.total_ms, "warm": reference.warm_ms}
                results.note("direct", own, number)
            for contestant in _rotated(contestants, number):
                progress.turn(contestant.name)
                try:
                    results.note(contestant.name, proxy_swaps.swaps(contestant, reference, from_disk), number)
                except FAILURES as error:
                    _fail(results, progress, contestant, f"{SWAP}, round {number + 1}", error, keys)


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
        except FAILURES as error:
            results.fail(kind.name, "start", _said(error))
            continue
        entered.append(contestant)
        if kind.logs_requests and kind.name not in results.logging:
            results.logging.append(kind.name)
        if kind.name not in results.contestants:
            results.contestants.append(kind.name)
    return entered


def _rotated(contestants: Sequence[Contestant], by: int) -> Sequence[Contestant]:
    """Who comes first has the others' leavings in its caches."""
    start = by % max(1, len(contestants))
    return [*contestants[start:], *contestants[:start]]


#: What one can do wrong who is started and asked: shown beside those who can do it.
FAILURES: Final = (Failed, OSError, RuntimeError, KeyError, subprocess.SubprocessError, psutil.Error)


def _fail(
    results: Results,
    progress: Progress,
    contestant: Contestant,
    what: str,
    error: Exception,
    keys: Sequence[str],
) -> None:
    short = (
        error.short
        if isinstance(error, Failed)
        else "no answer"
        if isinstance(error, TimeoutError)
        else "failed"
    )
    results.fail(contestant.name, what, _said(error), keys, short)
    progress.say(f"{contestant.name}, {what}: {_said(error)}")


def _said(error: Exception) -> str:
    kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:300]


def _about(given: argparse.Namespace, options: Options) -> dict[str, object]:
    return {
        "rounds": given.rounds,
        "seconds each": given.seconds,
        "slow readers": options.slow_readers,
        "clients": "wrk and our own"
        if options.has_wrk
        else "our own (apt-get install wrk for a cheaper one)",
        "cores": os.cpu_count(),
        "scheduling": "real-time" if given.real_time else "as usual",
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _raise_file_limit() -> None:
    """For everybody: whoever is started here inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _become_real_time() -> None:
    """Everybody who is started here too, and nobody else on this machine gets between them. In turns, so that
    one who never rests does not keep the others, nor the one who watches its memory, from a processor. Raises
    PermissionError."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bench/proxy",
        description=__doc__.split("\n", 1)[0],
        epilog="By itself it takes about 9 minutes on 2 cores; in proportion to --seconds and --rounds. "
        "It says how long when it begins.",
    )
    made.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--only", type=_names((*ROWS, SWAP)), help=", ".join((*ROWS, SWAP)))
    known = [kind.name for kind in CONTESTANTS]
    made.add_argument("--contestants", type=_names(known), help=", ".join(known))
    made.add_argument("--slow-readers", type=int, default=1000)
    made.add_argument("--llama-server", type=_program, default=_program(os.environ.get("LLAMA_SERVER", "")))
    made.add_argument("--llama-swap", type=_program, default=_program("llama-swap"))
    made.add_argument(
        "--before", type=Path, metavar="FOLDER", help="another checkout of ours to compare with"
    )
    made.add_argument(
        "--real-time",
        action="store_true",
        help="before every other program of this machine, which needs the right to it: where others use its "
        "processors; compare such figures with one another alone",
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
    if given.real_time:
        try:
            _become_real_time()
        except PermissionError:
            message = "--real-time: no right to it; try sudo, or an rtprio in /etc/security/limits.conf"
            print(message, file=sys.stderr)
            return 2
    results, progress = Results([], [], {}), Progress()
    status = 0
    try:
        run(given, results, progress)
    except KeyboardInterrupt:
        results.about["interrupted in"] = progress.doing
        status = 130
    finally:
        results.about["load average after"] = f"{os.getloadavg()[0]:.1f}"
        print(render(results))
        if given.json is not None:
            given.json.write_text(json.dumps(results.to_json(), indent=2))
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is measured is printed then too
    sys.exit(main())
