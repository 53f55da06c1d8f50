"""What `bench/proxy` measures of a contestant against the fixed upstream, once each round."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bench.proxy_bounds import DEADLINE_SECONDS, STALL_SECONDS, Failed, line_of, output_of, peak_mib, rss_mib
from bench.proxy_client import Load, Seen, cpu_seconds
from bench.proxy_contestants import ROOT, Contestant

PATH: Final = "/v1/chat/completions"
PLAIN: Final = '{"model":"bench","messages":[{"role":"user","content":"hello"}]}'
BIG_BYTES: Final = 26 << 20
BIG_ANSWERS: Final = 8
#: What 64 connections ask together when nobody is in a hurry; what clients ask beside slow readers.
IDLE_PER_SECOND: Final = 300.0
#: As fast as a model of 8 billion parameters on a good GPU; slower where there are more streams.
EVENTS_PER_SECOND: Final = {64: 50.0, 256: 25.0}


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `is_added`: what the same row says of `direct` is subtracted."""

    key: str
    label: str
    unit: str
    is_added: bool = False
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """`slow_readers` is how many clients hardly read; `has_wrk` that requests are sent by wrk, which is
    cheaper. The rest: see `Load`."""

    seconds: float = 2.0
    slow_readers: int = 1000
    has_wrk: bool = False
    deadline_seconds: float = DEADLINE_SECONDS
    stall_seconds: float = STALL_SECONDS


Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a row. `keys` are the metrics that it gives, or that it is to blame for; it takes
    `beside_seconds` more than `Options.seconds`."""

    name: str
    keys: tuple[str, ...]
    measure: Callable[[Contestant, Options], Values]
    beside_seconds: float = 0.0


def rate(contestant: Contestant, options: Options, *, connections: int) -> Values:
    ask = _wrk if options.has_wrk else _requests
    per_second, p50, p99, cpu = ask(contestant, connections, options)
    values = {f"rate_{connections}": per_second, f"p50_{connections}": p50, f"p99_{connections}": p99}
    return values | ({"cpu_request": cpu} if connections == 64 else {})


def chunks(contestant: Contestant, options: Options, *, streams: int) -> Values:
    reset_peak(contestant.pids())
    wish: dict[str, int | float] = {"events": 0, "per_second": EVENTS_PER_SECOND[streams]}
    seen = _client(contestant, options, mode="streams", connections=streams, wish=wish)
    values = {
        f"cpu_chunk_{streams}": 1e6 * seen.cpu_seconds / max(1, seen.count),
        f"delay_{streams}": seen.delay_us["99"],
    }
    return values | ({"rss_streams": peak_mib(contestant.pids())} if streams == 256 else {})


def first_alone(contestant: Contestant, options: Options) -> Values:
    seen = _client(contestant, options, mode="requests", wish={"events": 8})
    return {"first_p50": seen.first_us["50"], "first_p99": seen.first_us["99"]}


def first_idle(contestant: Contestant, options: Options) -> Values:
    seen = _client(
        contestant,
        options,
        mode="requests",
        connections=64,
        wish={"events": 8},
        per_second=IDLE_PER_SECOND,
    )
    return {"first_idle_p50": seen.first_us["50"], "first_idle_p99": seen.first_us["99"]}


def memory(contestant: Contestant, options: Options) -> Values:
    """The clients look at their answers only after a while: who collects them shows it."""
    reset_peak(contestant.pids())
    wish: dict[str, int | float] = {"bytes": BIG_BYTES}
    hold = min(1.0, options.seconds)
    seen = _client(contestant, options, mode="big", connections=BIG_ANSWERS, seconds=hold, wish=wish)
    return {
        "rss_big": peak_mib(contestant.pids()),
        "cpu_big": 1e3 * seen.cpu_seconds / (BIG_ANSWERS * BIG_BYTES / 2**20),
    }


def slow(contestant: Contestant, options: Options) -> Values:
    with _slow_readers(contestant, options):
        beside = _client(
            contestant,
            options,
            mode="requests",
            connections=16,
            wish={"events": 8},
            per_second=IDLE_PER_SECOND,
        )
        resident = rss_mib(contestant.pids())
    return {
        "rss_slow": resident,
        "beside_p50": beside.first_us["50"],
        "beside_p99": beside.first_us["99"],
    }


#: What a step takes besides was seen on 2 cores.
ROWS: Final[dict[str, tuple[Step, ...]]] = {
    "rate": tuple(
        Step(
            f"rate of {n}",
            (f"rate_{n}", f"p50_{n}", f"p99_{n}", *(("cpu_request",) if n == 64 else ())),
            partial(rate, connections=n),
            0.1,
        )
        for n in (1, 16, 64)
    ),
    "chunks": tuple(
        Step(
            f"chunks of {n} streams",
            (f"cpu_chunk_{n}", f"delay_{n}", *(("rss_streams",) if n == 256 else ())),
            partial(chunks, streams=n),
            0.6,
        )
        for n in EVENTS_PER_SECOND
    ),
    "first": (
        Step("first byte, alone", ("first_p50", "first_p99"), first_alone, 0.4),
        Step("first byte, 64 connections", ("first_idle_p50", "first_idle_p99"), first_idle, 0.4),
    ),
    "memory": (Step("memory", ("rss_big", "cpu_big"), memory),),
    "slow": (Step("slow", ("rss_slow", "beside_p50", "beside_p99"), slow, 9.0),),
}

METRICS: Final = (
    *(
        metric
        for n in (1, 16, 64)
        for metric in (
            Metric(f"rate_{n}", f"requests per second, {n} connections", "", more_is_better=True),
            Metric(f"p50_{n}", "  added latency, median", "us", is_added=True),
            Metric(f"p99_{n}", "  added latency, p99", "us", is_added=True),
        )
    ),
    Metric("cpu_request", "CPU per request, 64 connections", "us"),
    *(
        metric
        for n, per_second in EVENTS_PER_SECOND.items()
        for metric in (
            Metric(f"cpu_chunk_{n}", f"CPU per chunk, {n} streams x {per_second:.0f}/s", "us"),
            Metric(f"delay_{n}", "  added delay of a chunk, p99", "us", is_added=True),
        )
    ),
    Metric("first_p50", "added time to first byte, alone, median", "us", is_added=True),
    Metric("first_p99", "  p99", "us", is_added=True),
    Metric(
        "first_idle_p50", f"  64 connections, {IDLE_PER_SECOND:.0f}/s together, median", "us", is_added=True
    ),
    Metric("first_idle_p99", "  p99", "us", is_added=True),
    Metric("rss_streams", "peak RSS, 256 streams", "MiB"),
    Metric("rss_big", f"peak RSS, {BIG_ANSWERS} answers of {BIG_BYTES >> 20} MiB, read late", "MiB"),
    Metric("cpu_big", "  CPU per MiB of them", "ms"),
    Metric("rss_slow", "RSS, slow readers of an endless stream", "MiB"),
    Metric("beside_p50", "  others' added time to first byte, median", "us", is_added=True),
    Metric("beside_p99", "  p99", "us", is_added=True),
)


# --- the clients ------------------------------------------------------------------------------------------


def _client(contestant: Contestant, options: Options, **load: object) -> Seen:
    """Raises Failed when any answer was not what was asked for, or was not there in time."""
    with _started(contestant, options, load, stdin=subprocess.DEVNULL) as client:
        return _checked(output_of(client, contestant, options.seconds + 2 * options.deadline_seconds))


def _started(
    contestant: Contestant, options: Options, load: dict[str, object], stdin: int
) -> subprocess.Popen[bytes]:
    common = {
        "port": contestant.port,
        "pids": contestant.pids(),
        "seconds": options.seconds,
        "deadline_seconds": options.deadline_seconds,
        "stall_seconds": options.stall_seconds,
    }
    said = msgspec.json.encode(msgspec.convert(common | load, Load)).decode()
    command = [sys.executable, "-m", "bench.proxy_client", said]
    return subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _checked(output: bytes) -> Seen:
    seen = msgspec.json.decode(output, type=Seen)
    if seen.missing:
        raise Failed(f"only {seen.missing} in time", seen.missing)
    if seen.failed or not seen.count:
        said = f"{seen.failed} of its answers failed: {seen.said or 'nothing came'}"
        raise Failed(said, f"{seen.failed} failed" if seen.failed else "no answer")
    return seen


@contextlib.contextmanager
def _slow_readers(contestant: Contestant, options: Options) -> Iterator[None]:
    load: dict[str, object] = {
        "mode": "slow",
        "connections": options.slow_readers,
        "wish": {"events": 0},
    }
    with _started(contestant, options, load, stdin=subprocess.PIPE) as process:
        try:
            if (line := line_of(process, contestant, 2 * options.deadline_seconds)) != b"ready\n":
                _checked(line or output_of(process, contestant, options.deadline_seconds))
            time.sleep(0.5)
            yield
            _checked(output_of(process, contestant, options.deadline_seconds))
        finally:
            process.kill()
    time.sleep(0.5)  # a thousand connections are closed


def _requests(
    contestant: Contestant, connections: int, options: Options
) -> tuple[float, float, float, float]:
    seen = _client(contestant, options, mode="requests", connections=connections)
    per_second = seen.count / seen.seconds
    return per_second, seen.whole_us["50"], seen.whole_us["99"], 1e6 * seen.cpu_seconds / seen.count


_SCRIPT: Final = (
    f"wrk.method = 'POST'; wrk.body = '{PLAIN}'; wrk.headers['Content-Type'] = 'application/json'\n"
)
_UNITS: Final = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def _wrk(contestant: Contestant, connections: int, options: Options) -> tuple[float, float, float, float]:
    url = f"http://127.0.0.1:{contestant.port}{PATH}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT)
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(options.seconds))}s",
            "--latency",
            "-s",
            script.name,
        ]
        before = cpu_seconds(contestant.pids())
        wrk = subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with wrk:
            said = output_of(wrk, contestant, options.seconds + options.deadline_seconds).decode()
        spent = cpu_seconds(contestant.pids()) - before
    if (refused := re.search(r"Non-2xx or 3xx responses: (\d+)", said)) is not None:
        raise Failed(f"{refused[1]} answers of {connections} connections were errors", "errors")
    count = re.search(r"(\d+) requests in ([\d.]+)s", said)
    assert count is not None, said
    if int(count[1]) == 0:
        raise Failed(f"no answer on {connections} connections", "no answer")
    shares = dict(re.findall(r"^ +(50|99)% +(\S+)$", said, re.MULTILINE))
    p50, p99 = (_microseconds(shares[share]) for share in ("50", "99"))
    return int(count[1]) / float(count[2]), p50, p99, 1e6 * spent / int(count[1])


def _microseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert found is not None, text
    return float(found[1]) * _UNITS[found[2]]


def has_wrk(seconds: float) -> bool:
    """wrk counts in whole seconds."""
    return seconds >= 1 and shutil.which("wrk") is not None


# --- memory -----------------------------------------------------------------------------------------------


def reset_peak(pids: tuple[int, ...]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
