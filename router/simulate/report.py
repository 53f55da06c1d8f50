"""What a run amounts to, in figures; and the figures as a table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final

from router.simulate.world import Outcome, World

SLO_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One decider on one trace; seconds unless the name says otherwise.

    Time to first token counts requests that were answered, and those whose clients gave up with what they
    waited: leaving it out would reward whoever starves. Refused requests and those that their clients meant
    to cancel are not in it. `goodput_per_hour`: answers whose first token came within the SLO, per hour of
    the trace. `within_slo` is their share of all that were sent and not meant to be cancelled.
    `swaps_per_100`: loads begun per 100 requests sent. `loading_share`: share of the time in which a device
    is being loaded, mean of the devices. `fairness`: Jain's index of the clients' shares within the SLO, 1
    = all alike. `of_best`: goodput as a share of the best goodput known for this trace.
    """

    sent: int
    answered: int
    refused: int
    gave_up: int
    cancelled: int
    mean_ttft: float
    p95_ttft: float
    p99_ttft: float
    longest_wait: float
    swaps_per_100: float
    loading_share: float
    within_slo: float
    goodput_per_hour: float
    fairness: float
    of_best: float = math.nan


def measure(world: World, slo_seconds: float = SLO_SECONDS) -> Figures:
    """The figures of a finished run."""
    waits: list[float] = []
    longest = 0.0
    counts = [0] * len(Outcome)
    good = 0
    judged: dict[str, int] = defaultdict(int)
    met: dict[str, int] = defaultdict(int)
    for number, outcome in enumerate(world.outcome):
        counts[outcome] += 1
        if outcome == Outcome.UNSENT:
            continue
        request = world.trace.requests[number]
        wait = min(world.first[number], world.ended[number]) - world.sent[number]
        longest = max(longest, wait)
        if outcome in (Outcome.DONE, Outcome.GAVE_UP):
            waits.append(wait)
        if request.cancel is None:
            judged[request.client] += 1
            if outcome == Outcome.DONE and wait <= slo_seconds:
                met[request.client] += 1
                good += 1
    sent = len(world.outcome) - counts[Outcome.UNSENT]
    waits.sort()
    devices = world.trace.machine.devices
    loading = sum(world.tally.loading_seconds.values()) / len(devices) / max(world.now, 1e-9)
    return Figures(
        sent=sent,
        answered=counts[Outcome.DONE],
        refused=counts[Outcome.REFUSED],
        gave_up=counts[Outcome.GAVE_UP],
        cancelled=counts[Outcome.CANCELLED],
        mean_ttft=sum(waits) / len(waits) if waits else 0.0,
        p95_ttft=quantile(waits, 0.95),
        p99_ttft=quantile(waits, 0.99),
        longest_wait=longest,
        swaps_per_100=100.0 * world.tally.loads / max(1, sent),
        loading_share=loading,
        within_slo=good / max(1, sum(judged.values())),
        goodput_per_hour=good * 3600.0 / world.trace.seconds,
        fairness=jain([met[client] / total for client, total in judged.items()]),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the (sorted) values do not exceed; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: (sum)^2 / (n * sum of squares); 1 of none and of all zero."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def mean(several: Sequence[Figures]) -> Figures:
    """The mean of each figure, counts rounded; of the longest wait the longest."""
    averaged: dict[str, float] = {}
    for one in fields(Figures):
        values = [getattr(figures, one.name) for figures in several]
        averaged[one.name] = max(values) if one.name == "longest_wait" else sum(values) / len(values)
    for name in ("sent", "answered", "refused", "gave_up", "cancelled"):
        averaged[name] = round(averaged[name])
    return Figures(**averaged)  # type: ignore[arg-type]  # the counts are ints by now


def as_json(figures: Figures) -> Mapping[str, float | int | None]:
    """For msgspec or json: numbers rounded to what they mean, None for what is not known."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else round(value, 4)
        for name, value in asdict(figures).items()
    }


_COLUMNS: Final = (
    ("mean", "TTFT s", lambda f: f"{f.mean_ttft:.1f}"),
    ("p95", "TTFT s", lambda f: f"{f.p95_ttft:.1f}"),
    ("p99", "TTFT s", lambda f: f"{f.p99_ttft:.1f}"),
    ("longest", "wait s", lambda f: f"{f.longest_wait:.0f}"),
    ("swaps", "/100 req", lambda f: f"{f.swaps_per_100:.1f}"),
    ("loading", "% time", lambda f: f"{100 * f.loading_share:.1f}"),
    ("in SLO", "%", lambda f: f"{100 * f.within_slo:.1f}"),
    ("goodput", "/h", lambda f: f"{f.goodput_per_hour:.0f}"),
    ("of best", "%", lambda f: "-" if math.isnan(f.of_best) else f"{100 * f.of_best:.1f}"),
    ("fair", "Jain", lambda f: f"{f.fairness:.2f}"),
    ("sent", "", lambda f: str(f.sent)),
    ("refused", "", lambda f: str(f.refused)),
    ("gave up", "", lambda f: str(f.gave_up)),
)


def table(rows: Mapping[str, Figures]) -> str:
    """The figures for people: one line per decider, numbers aligned."""
    cells = [["", *(c[0] for c in _COLUMNS)], ["", *(c[1] for c in _COLUMNS)]]
    cells += [[name, *(column[2](figures) for column in _COLUMNS)] for name, figures in rows.items()]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    lines.insert(2, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)
