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
from pathlib import Path
from typing import Final

import msgspec

from bench.proxy_client import DEADLINE_SECONDS, Load, Seen, cpu_seconds
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
    cheaper."""

    seconds: float = 2.0
    slow_readers: int = 1000
    has_wrk: bool = False


class Failed(Exception):
    """Answers were wrong; the message shows one."""


Values = dict[str, float]


def rate(contestant: Contestant, options: Options) -> Values:
    values: Values = {}
    for connections in (1, 16, 64):
        ask = _wrk if options.has_wrk else _requests
        per_second, p50, p99, cpu = ask(contestant, connections, options.seconds)
        values[f"rate_{connections}"] = per_second
        values[f"p50_{connections}"], values[f"p99_{connections}"] = p50, p99
        if connections == 64:
            values["cpu_request"] = cpu
    return values


def chunks(contestant: Contestant, options: Options) -> Values:
    values: Values = {}
    for streams, per_second in EVENTS_PER_SECOND.items():
        reset_peak(contestant.pids())
        wish: dict[str, int | float] = {"events": 0, "per_second": per_second}
        seen = _client(contestant, mode="streams", connections=streams, seconds=options.seconds, wish=wish)
        values[f"cpu_chunk_{streams}"] = 1e6 * seen.cpu_seconds / max(1, seen.count)
        values[f"delay_{streams}"] = seen.delay_us["99"]
    values["rss_streams"] = peak_mib(contestant.pids())
    return values


def first(contestant: Contestant, options: Options) -> Values:
    wish: dict[str, int | float] = {"events": 8}
    alone = _client(contestant, mode="requests", connections=1, seconds=options.seconds, wish=wish)
    idle = _client(
        contestant,
        mode="requests",
        connections=64,
        seconds=options.seconds,
        wish=wish,
        per_second=IDLE_PER_SECOND,
    )
    return {
        "first_p50": alone.first_us["50"],
        "first_p99": alone.first_us["99"],
        "first_idle_p50": idle.first_us["50"],
        "first_idle_p99": idle.first_us["99"],
    }


def memory(contestant: Contestant, options: Options) -> Values:
    """The clients look at their answers only after a while: who collects them shows it."""
    reset_peak(contestant.pids())
    wish: dict[str, int | float] = {"bytes": BIG_BYTES}
    hold = min(1.0, options.seconds)
    seen = _client(contestant, mode="big", connections=BIG_ANSWERS, seconds=hold, wish=wish)
    return {
        "rss_big": peak_mib(contestant.pids()),
        "cpu_big": 1e3 * seen.cpu_seconds / (BIG_ANSWERS * BIG_BYTES / 2**20),
    }


def slow(contestant: Contestant, options: Options) -> Values:
    with _slow_readers(contestant, options.slow_readers):
        beside = _client(
            contestant,
            mode="requests",
            connections=16,
            seconds=options.seconds,
            wish={"events": 8},
            per_second=IDLE_PER_SECOND,
        )
        resident = rss_mib(contestant.pids())
    return {
        "rss_slow": resident,
        "beside_p50": beside.first_us["50"],
        "beside_p99": beside.first_us["99"],
    }


ROWS: Final[dict[str, Callable[[Contestant, Options], Values]]] = {
    "rate": rate,
    "chunks": chunks,
    "first": first,
    "memory": memory,
    "slow": slow,
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


def _client(contestant: Contestant, **load: object) -> Seen:
    """Raises Failed when any answer was not what was asked for."""
    command = _command(contestant, load)
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        timeout=2 * DEADLINE_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failed(next((line for line in reversed(said) if "Error: " in line), "its client failed"))
    return _checked(done.stdout)


def _command(contestant: Contestant, load: dict[str, object]) -> list[str]:
    whole = msgspec.convert({"port": contestant.port, "pids": contestant.pids(), **load}, Load)
    return [sys.executable, "-m", "bench.proxy_client", msgspec.json.encode(whole).decode()]


def _checked(output: bytes) -> Seen:
    seen = msgspec.json.decode(output, type=Seen)
    if seen.failed or not seen.count:
        raise Failed(f"{seen.failed} of its answers failed: {seen.said or 'nothing came'}")
    return seen


@contextlib.contextmanager
def _slow_readers(contestant: Contestant, count: int) -> Iterator[None]:
    command = _command(contestant, {"mode": "slow", "connections": count, "wish": {"events": 0}})
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise Failed("the slow readers got no stream")
            time.sleep(0.5)
            yield
            process.stdin.close()
            _checked(process.stdout.read())
        finally:
            process.kill()
    time.sleep(0.5)  # a thousand connections are closed


def _requests(contestant: Contestant, connections: int, seconds: float) -> tuple[float, float, float, float]:
    seen = _client(contestant, mode="requests", connections=connections, seconds=seconds)
    per_second = seen.count / seen.seconds
    return per_second, seen.whole_us["50"], seen.whole_us["99"], 1e6 * seen.cpu_seconds / seen.count


_SCRIPT: Final = (
    f"wrk.method = 'POST'; wrk.body = '{PLAIN}'; wrk.headers['Content-Type'] = 'application/json'\n"
)
_UNITS: Final = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def _wrk(contestant: Contestant, connections: int, seconds: float) -> tuple[float, float, float, float]:
    url = f"http://127.0.0.1:{contestant.port}{PATH}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT)
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            script.name,
        ]
        before = cpu_seconds(contestant.pids())
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        spent = cpu_seconds(contestant.pids()) - before
    said = done.stdout
    if (refused := re.search(r"Non-2xx or 3xx responses: (\d+)", said)) is not None:
        raise Failed(f"{refused[1]} answers of {connections} connections were errors")
    count = re.search(r"(\d+) requests in ([\d.]+)s", said)
    assert count is not None, said
    if int(count[1]) == 0:
        raise Failed(f"no answer on {connections} connections")
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


def peak_mib(pids: tuple[int, ...]) -> float:
    return sum(_status_kib(pid, "VmHWM") for pid in pids) / 1024


def rss_mib(pids: tuple[int, ...]) -> float:
    return sum(_status_kib(pid, "VmRSS") for pid in pids) / 1024


def _status_kib(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, f"{name} of {pid}"
    return int(found[1])
