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
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.proxy_contestants import CONTESTANTS
from bench.proxy_progress import Progress
from bench.proxy_rows import ROWS, Options, has_wrk
from bench.proxy_run import SWAP, Run
from bench.proxy_table import Results, render

# ruff: noqa: T201 - a command

#: Above every program that is not real-time itself, below the kernel's own threads.
REAL_TIME_PRIORITY: Final = 10
#: A process for what is open on both sides of a thousand streams.
FILES_WANTED: Final = 16384


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
        help="before every other program of this machine, all of them alike, which needs the right to it: "
        "steadier rates, but no steadier p99, where others use its processors, whose work stands still then; "
        "compare such figures with one another alone",
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
    options = Options(given.seconds, given.slow_readers, has_wrk(given.seconds))
    results, progress = Results([], [], _about(given, options)), Progress()
    status = 0
    _raise_file_limit()
    try:
        Run(given, options, results, progress).measure()
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
