"""Draw where the time of each request went, from the access log: `bench/plot LOG [--out FILE.svg]`.

    bench/plot LOG [--out FILE.svg] [--last N]     LOG may be - for standard input; text and JSON are read
    bench/plot --run [--requests N]                the log of a router started for it, with small models

A bar per request, where it stood on the clock, in four parts: queue, load, first token, generation. The
colour is what was done for it (already_loaded, loaded, queued, rejected), the shade the part. The SVG is
written by hand: rectangles and text need no library, and a browser tells the figures under the mouse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Final

# ruff: noqa: T201 - a command

PARTS: Final = ("queue", "load", "first token", "generation")
#: Of each action the colours of the four parts, from waiting (pale) to work (full).
COLOURS: Final = {
    "already_loaded": ("#d8ecd9", "#b3dab5", "#79bd7e", "#2f8f3a"),
    "loaded": ("#d9e6f5", "#aecbeb", "#6fa3d8", "#2266aa"),
    "queued": ("#fbe6cc", "#f6cb94", "#eda64a", "#c97a0e"),
    "rejected": ("#f3c9c9", "#e59a9a", "#d66a6a", "#b22222"),
}
_OTHER: Final = ("#e4e4e4", "#c9c9c9", "#a5a5a5", "#777777")
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1100, 190, 90, 64, 30
_MOST_ROW, _LEAST_ROW, _MOST_HEIGHT = 18.0, 3.0, 1600.0
#: Smaller rows have no room for a model's name.
_READABLE_ROW: Final = 9.0
_TICKS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 3600)

_TEXT_LINE = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[,.]\d+) \S+ router\.access: "
    r"(?P<client>\S+) (?P<method>\S+) (?P<path>\S+) (?P<status>\d+) (?P<model>\S+) (?P<action>[a-z_]+) "
    r"(?P<rest>.*\bqueue=.*)$"
)
_MILLISECONDS = re.compile(r"\b(queue|load|first|total)=([\d.]+)ms")


@dataclass(frozen=True, slots=True)
class Bar:
    """One request. `begun_at` is Unix time in seconds; `parts` are the seconds of PARTS."""

    model: str
    action: str
    status: int
    begun_at: float
    parts: tuple[float, float, float, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts)

    @property
    def ended_at(self) -> float:
        return self.begun_at + self.seconds


def read(lines: Iterable[str]) -> Iterator[Bar]:
    """Of the requests for a model, in the order of the log; all other lines are passed over."""
    for line in lines:
        bar = _json_bar(line) if line.startswith("{") else _text_bar(line)
        if bar is not None:
            yield bar


def _text_bar(line: str) -> Bar | None:
    found = _TEXT_LINE.match(line)
    if found is None:
        return None
    at = datetime.fromisoformat(found["time"].replace(",", ".")).timestamp()
    took = {name: float(ms) for name, ms in _MILLISECONDS.findall(found["rest"])}
    return _bar(
        found["model"], found["action"], int(found["status"]), at,
        took.get("queue"), took.get("load"), took.get("first"), took.get("total"),
    )  # fmt: skip


def _json_bar(line: str) -> Bar | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        if not isinstance(fields.get("model"), str):
            return None
        at = datetime.fromisoformat(fields["time"]).timestamp()
        ms = (fields.get(name) for name in ("queue_ms", "load_ms", "first_byte_ms", "total_ms"))
        return _bar(fields["model"], str(fields.get("action")), int(fields["status"]), at, *ms)
    except (ValueError, KeyError, TypeError):
        return None


def _bar(model: str, action: str, status: int, ended_at: float, *milliseconds: float | None) -> Bar:
    """The log's line is written at the end. What is left of the whole is generation, or, where nothing came,
    waiting for it."""
    queue, load, first, total = ((ms or 0.0) / 1e3 for ms in milliseconds)
    rest = max(0.0, total - queue - load - first)
    return Bar(model, action, status, ended_at - max(total, queue + load + first), (queue, load, first, rest))


# --- the picture ------------------------------------------------------------------------------------------


def draw(bars: Sequence[Bar], title: str) -> str:
    """An SVG. Raises ValueError where there is nothing to show."""
    if not bars:
        raise ValueError("no request for a model in it")
    bars = sorted(bars, key=lambda bar: bar.begun_at)
    start, end = bars[0].begun_at, max(bar.ended_at for bar in bars)
    span = max(end - start, 0.001)
    row = min(_MOST_ROW, max(_LEAST_ROW, _MOST_HEIGHT / len(bars)))
    height = _TOP + row * len(bars) + _BOTTOM
    scale = (_WIDTH - _LEFT - _RIGHT) / span
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}">',
        "<style>text { font: 11px sans-serif } .faint { fill: #555 }</style>",
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="white"/>',
        f'<text x="10" y="20">{escape(title)}</text>',
        *_legend(bars),
        *_axis(span, scale, height),
    ]
    for number, bar in enumerate(bars):
        out += _row(bar, _TOP + row * number, row, _LEFT + (bar.begun_at - start) * scale, scale)
    return "\n".join([*out, "</svg>", ""])


def _row(bar: Bar, y: float, row: float, x: float, scale: float) -> Iterator[str]:
    parts = ", ".join(
        f"{name} {seconds * 1e3:.0f} ms" for name, seconds in zip(PARTS, bar.parts, strict=True)
    )
    yield f"<g><title>{escape(f'{bar.model}: {bar.action}, {bar.status}; {parts}')}</title>"
    for colour, seconds in zip(_colours(bar.action), bar.parts, strict=True):
        if seconds > 0:
            # What took no time that can be seen is still there.
            width = max(seconds * scale, 0.5)
            place = f'x="{x:.1f}" y="{y + row * 0.1:.1f}" width="{width:.1f}" height="{row * 0.8:.1f}"'
            yield f'<rect {place} fill="{colour}"/>'
            x += seconds * scale
    if row >= _READABLE_ROW:
        middle = y + row / 2 + 4
        yield f'<text x="{_LEFT - 6}" y="{middle:.1f}" text-anchor="end">{escape(bar.model[:28])}</text>'
        said = f"{bar.seconds:.2f} s" + ("" if bar.status == 200 else f", {bar.status}")
        yield f'<text x="{x + 4:.1f}" y="{middle:.1f}" class="faint">{said}</text>'
    yield "</g>"


def _legend(bars: Sequence[Bar]) -> Iterator[str]:
    x = 10.0
    for action in [*COLOURS, *sorted({bar.action for bar in bars} - set(COLOURS))]:
        count = sum(bar.action == action for bar in bars)
        for part, colour in zip(PARTS, _colours(action), strict=True):
            told = f"<title>{escape(f'{action}: {part}')}</title>"
            yield f'<rect x="{x}" y="32" width="14" height="12" fill="{colour}">{told}</rect>'
            x += 14
        yield f'<text x="{x + 5}" y="42">{escape(action)} ({count})</text>'
        x += 30 + 6.5 * len(f"{action} ({count})")
    yield f'<text x="{x}" y="42" class="faint">pale to full: {", ".join(PARTS)}</text>'


def _axis(span: float, scale: float, height: float) -> Iterator[str]:
    step = next((tick for tick in _TICKS if span / tick <= 10), _TICKS[-1])
    for number in range(int(span / step) + 1):
        x = _LEFT + number * step * scale
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height - _BOTTOM:.0f}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{height - 12:.0f}" text-anchor="middle">{number * step:g} s</text>'


def _colours(action: str) -> tuple[str, ...]:
    return COLOURS.get(action, _OTHER)


# --- a run to look at -------------------------------------------------------------------------------------


def run(requests: int, log_format: str = "text") -> list[str]:
    """The access log of a router with room for two of three small models, and clients that ask for all of
    them."""
    from bench.proxy_contestants import Ours, Setting, post
    from router.models.demo_model import write_demo_model

    binary = shutil.which(os.environ.get("LLAMA_SERVER", "llama-server"))
    if binary is None:
        raise FileNotFoundError("no llama-server: bin/build-llama-server makes one")
    luck = random.Random(3)
    with tempfile.TemporaryDirectory(prefix="bench-plot-") as name:
        folder = Path(name)
        models = tuple(folder / f"{letter}.gguf" for letter in ("model-a", "model-b", "model-c"))
        for model in models:
            write_demo_model(model)
        setting = Setting(folder=folder, server=Path(binary).resolve(), models=models, models_max=2)
        router = Ours(setting)
        router.log_format = f'access_log_format = "{log_format}"'

        def ask(model: str) -> None:
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            with contextlib.suppress(OSError):  # a refusal has its bar too
                post(router.port, "/v1/chat/completions", {**body, "max_tokens": luck.choice((8, 64, 256))})

        with router.running(), ThreadPoolExecutor(4) as clients:
            list(clients.map(ask, luck.choices(setting.names, (6, 3, 1), k=requests)))
        return (router.folder / "output").read_text(errors="replace").splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/plot", description=__doc__.split("\n", 1)[0])
    parser.add_argument("log", nargs="?", help="the router's output or access log; - for standard input")
    parser.add_argument("--run", action="store_true", help="start a router and draw what it does")
    parser.add_argument("--requests", type=int, default=60, help="of the run")
    parser.add_argument("--last", type=int, default=400, help="so many requests at most, the latest")
    parser.add_argument("--out", type=Path, default=Path("requests.svg"))
    given = parser.parse_args(arguments)
    if given.run == (given.log is not None):
        parser.error("name a log, or --run")
    try:
        if given.run:
            lines: Iterable[str] = run(given.requests)
        else:
            lines = (
                sys.stdin if given.log == "-" else Path(given.log).read_text(errors="replace").splitlines()
            )
        bars = list(read(lines))[-given.last :]
        given.out.write_text(draw(bars, f"{len(bars)} requests, {'a run' if given.run else given.log}"))
    except (OSError, ValueError) as error:
        print(f"bench/plot: {error}", file=sys.stderr)
        return 1
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
