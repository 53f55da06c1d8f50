"""Print what random work on three GPUs comes to: out of memory, margins, evictions, refusals, utilisation.

    bench/memory_seeds [--seeds 60] [--first 0] [--jobs 2] [--by ledger|no-promises|file-size ...] [--json]

The devices are those of the stub NVML library; children are fake llama-servers that allocate in steps while
they load, grow at their first request and die where something does not fit. Memory comes back late, other
programs take some, children are killed. Everything else is the router's own. The same work is done twice:
admitted by the ledger, and by file size only, which shows that the check can fail. Exits with status 1 when
the ledger let a child run out of memory or broke a margin, or when a request was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.memory_machine import Admission, Outcome, run
from bench.memory_work import draw

# ruff: noqa: T201 - it is a command

#: A refusal by one of these codes is the router's word on what it cannot do; "cut off" without a kill is not.
FAULTS = ("lost", "cut off", "no answer")
BY = {
    "ledger": Admission.LEDGER,
    "no-promises": Admission.UNPROMISED,
    "file-size": Admission.FILE_SIZE,
}


async def run_seeds(seeds: Iterable[int], admission: Admission, *, jobs: int, **work: Any) -> list[Outcome]:
    """Some at a time: most of a seed is waiting. `work` goes to `draw`."""
    turn = asyncio.Semaphore(jobs)

    async def run_one(seed: int) -> Outcome:
        async with turn:
            outcome = await run(draw(seed, **work), admission, luck=random.Random(seed))
            _tell(seed, admission, outcome)
            return outcome

    return list(await asyncio.gather(*(run_one(seed) for seed in seeds)))


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The table's figures, summed over seeds; shares are averages over the time in which somebody waited."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    answers = sum((outcome.answers for outcome in outcomes), Counter[str]())
    waited = sum(outcome.demand_seconds for outcome in outcomes) or 1.0
    return {
        "seeds": len(outcomes),
        "requests": answers.total(),
        "served": answers["served"],
        **{name: number for name, number in sorted(answers.items()) if name != "served"},
        "loads begun": counts["loads"],
        "loads ready": counts["ready"],
        "evictions": counts["evictions"],
        "host said no": counts["refused by the host"],
        "out of memory, our fault": sum(verdict.out_of_memory for verdict in verdicts),
        "out of memory, explained by others": sum(verdict.out_of_memory_explained for verdict in verdicts),
        "margin broken, our fault": sum(verdict.violations for verdict in verdicts),
        "margin broken, explained by others": sum(verdict.violations_explained for verdict in verdicts),
        "worst breach MiB": max((verdict.worst_bytes for verdict in verdicts), default=0) >> 20,
        "seeds with a breach": sum(bool(v.out_of_memory or v.violations) for v in verdicts),
        "reserved %": round(100 * sum(outcome.reserved_share for outcome in outcomes) / waited, 1),
        "used %": round(100 * sum(outcome.used_share for outcome in outcomes) / waited, 1),
        "seconds with demand": round(waited, 1),
        "broken invariants": sum(len(outcome.broken) for outcome in outcomes),
    }


def is_right(outcomes: Sequence[Outcome]) -> bool:
    """And that there was work at all: nothing goes wrong where nothing runs."""
    answers = sum((outcome.answers for outcome in outcomes), Counter[str]())
    return answers["served"] * 2 >= answers.total() and not any(
        outcome.verdict.out_of_memory
        or outcome.verdict.violations
        or outcome.broken
        or any(outcome.answers[fault] for fault in FAULTS)
        for outcome in outcomes
    )


def render(tables: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    lines = [f"{'admission by':38}" + "".join(f"{title:>18}" for title in tables)]
    for name in names:
        cells = (table.get(name, 0) for table in tables.values())
        lines.append(f"{name:38}" + "".join(f"{cell:>18g}" for cell in cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench/memory_seeds", description="memory admission under random work")
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--by", nargs="+", choices=BY, default=["ledger", "file-size"], help="admission")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    tables, is_well = {}, True
    for admission in (BY[name] for name in options.by):
        begun = time.monotonic()
        seeds = range(options.first, options.first + options.seeds)
        outcomes = asyncio.run(run_seeds(seeds, admission, jobs=options.jobs))
        table = tables[admission.value] = summary(outcomes)
        table["seconds in all"] = round(time.monotonic() - begun, 1)
        is_well = is_well and (admission is not Admission.LEDGER or is_right(outcomes))
    print(json.dumps(tables, indent=1) if options.json else render(tables))
    return 0 if is_well else 1


def _tell(seed: int, admission: Admission, outcome: Outcome) -> None:
    verdict = outcome.verdict
    print(
        f"seed {seed}, {admission.value}: {outcome.seconds:.1f} s, {outcome.counts['ready']} loads, "
        f"{verdict.out_of_memory} out of memory, {verdict.violations} margins broken, "
        f"{dict(outcome.answers)}",
        file=sys.stderr,
    )
    for blamed in (verdict.blamed if admission is Admission.LEDGER else []) + outcome.broken:
        print(f"  {blamed}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
