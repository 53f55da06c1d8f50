"""The one table of `bench/proxy`: a row per metric, a column per contestant, medians of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from bench.proxy_rows import Metric

_LABEL: Final = 50
_CELL: Final = 19
#: What is added by a proxy may be nothing: ratios of less than this many units say nothing.
_LEAST: Final = 1.0


@dataclass(slots=True)
class Results:
    """`samples[contestant][metric]` has values by round, as they were measured; `failed[contestant][what]`
    says why one is missing, and `short[contestant][metric]` so in a cell. `absent` says how to get who is
    not here; `logging` are those who write a line for each request."""

    contestants: list[str]
    metrics: list[Metric]
    about: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    short: dict[str, dict[str, str]] = field(default_factory=dict)
    logging: list[str] = field(default_factory=list)

    def note(self, contestant: str, values: dict[str, float], number: int) -> None:
        own = self.samples.setdefault(contestant, {})
        for key, value in values.items():
            own.setdefault(key, {})[number] = value

    def fail(
        self, contestant: str, what: str, why: str, keys: Sequence[str] = (), short: str = "failed"
    ) -> None:
        self.failed.setdefault(contestant, {})[what] = why
        self.short.setdefault(contestant, {}).update(dict.fromkeys(keys, short))

    def values(self, contestant: str, metric: Metric) -> list[float]:
        """Round by round; what is added is over the same round without a proxy."""
        values = self.samples.get(contestant, {}).get(metric.key, {})
        direct = self.samples.get("direct", {}).get(metric.key, {})
        if not metric.is_added or contestant == "direct":
            return list(values.values())
        return [value - direct[number] for number, value in values.items() if number in direct]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "key": metric.key,
                "label": metric.label.strip(),
                "unit": metric.unit,
                "added_to_direct": metric.is_added,
                "values": {
                    name: values for name in self.contestants if (values := self.values(name, metric))
                },
            }
            for metric in self.metrics
        ]
        return {
            "about": self.about,
            "absent": self.absent,
            "failed": self.failed,
            "logging": self.logging,
            "rows": rows,
        }


def render(results: Results) -> str:
    """A median with the half of its range, of one round alone; below it, as shares of nginx's and of ours."""
    lines = ["".join((" " * _LABEL, *(f"{name:>{_CELL}}" for name in results.contestants)))]
    for metric in results.metrics:
        columns = [results.values(name, metric) for name in results.contestants]
        if not any(columns) and not any(metric.key in short for short in results.short.values()):
            continue
        unit = f" ({metric.unit})" if metric.unit else ""
        lines.append(f"{metric.label + unit:<{_LABEL}}" + "".join(_cells(results, metric, columns)))
        for base, words in (("nginx", "      x nginx"), ("ours", "      x ours")):
            ratios = _ratios(results, metric, base)
            if any(ratios):
                lines.append(f"{words:<{_LABEL}}" + "".join(f"{ratio:>{_CELL}}" for ratio in ratios))
    lines += [f"absent: {name}: {how}" for name, how in results.absent.items()]
    lines += [
        f"failed: {name}, {row}: {why}" for name, rows in results.failed.items() for row, why in rows.items()
    ]
    if results.logging:
        lines.append(f"a line is logged for each request by {' and '.join(results.logging)}, by no others")
    about = ", ".join(f"{key} {value}" for key, value in results.about.items())
    return "\n".join([*lines, about])


def _cells(results: Results, metric: Metric, columns: Sequence[list[float]]) -> list[str]:
    cells = []
    for name, values in zip(results.contestants, columns, strict=True):
        if not values:
            short = results.short.get(name, {}).get(metric.key)
            text = f"no: {short}" if short is not None else "-"
        else:
            text = _number(median(values))
            if len(values) > 1:
                text += f" ±{_number((max(values) - min(values)) / 2)}"
            if metric.is_added and name == "direct":
                text = f"({text})"
        cells.append(f"{text:>{_CELL}}")
    return cells


def _ratios(results: Results, metric: Metric, base: str) -> list[str]:
    reference = results.values(base, metric) if base in results.contestants else []
    if not reference or median(reference) < _LEAST:
        return [""] * len(results.contestants)
    ratios = []
    for name in results.contestants:
        values = results.values(name, metric)
        is_shown = values and name != base and not (metric.is_added and name == "direct")
        ratios.append(f"{median(values) / median(reference):.2f}" if is_shown else "")
    return ratios


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
