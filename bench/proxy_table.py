"""The one table of `bench/proxy`: a row per metric, a column per contestant, medians of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from bench.proxy_rows import Metric

_LABEL: Final = 50
_CELL: Final = 17
#: What is added by a proxy may be nothing: ratios of less than this many units say nothing.
_LEAST: Final = 1.0


@dataclass(slots=True)
class Results:
    """`samples[contestant][metric]` has a value per round, as it was measured; `failed[contestant][row]` says
    why one has none. `absent` says how to get who is not here."""

    contestants: list[str]
    metrics: list[Metric]
    about: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, contestant: str, values: dict[str, float]) -> None:
        own = self.samples.setdefault(contestant, {})
        for key, value in values.items():
            own.setdefault(key, []).append(value)

    def fail(self, contestant: str, row: str, why: str) -> None:
        self.failed.setdefault(contestant, {})[row] = why

    def values(self, contestant: str, metric: Metric) -> list[float]:
        """Round by round; what is added is over the same round without a proxy."""
        values = self.samples.get(contestant, {}).get(metric.key, [])
        direct = self.samples.get("direct", {}).get(metric.key, [])
        if not metric.is_added or contestant == "direct":
            return values
        return [value - base for value, base in zip(values, direct, strict=False)]

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
        return {"about": self.about, "absent": self.absent, "failed": self.failed, "rows": rows}


def render(results: Results) -> str:
    """A median with the half of its range; below it, as shares of nginx's and of ours."""
    lines = ["".join((" " * _LABEL, *(f"{name:>{_CELL}}" for name in results.contestants)))]
    for metric in results.metrics:
        columns = [results.values(name, metric) for name in results.contestants]
        if not any(columns):
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
    about = ", ".join(f"{key} {value}" for key, value in results.about.items())
    return "\n".join([*lines, about])


def _cells(results: Results, metric: Metric, columns: Sequence[list[float]]) -> list[str]:
    cells = []
    for name, values in zip(results.contestants, columns, strict=True):
        if not values:
            text = "-"
        else:
            spread = (max(values) - min(values)) / 2
            text = f"{_number(median(values))} ±{_number(spread)}"
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
