"""`llama-router simulate`: replay a trace in virtual time and print how each policy fares on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import click
import msgspec

from router import simulate as sim
from router.cli.numbers import FiniteRange
from router.errors import StartupError
from router.scheduler.scheduler import Settings


@click.command()
@click.option(
    "--trace", "name", default="home", metavar="NAME|FILE",
    help=f"A named trace ({', '.join(sim.TRACES)}), or a file: a trace, or what `journal --export` prints."
    "  [default: home]",
)  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Seed of a named trace.")
@click.option("--seeds", metavar="1,2,3", help="Several seeds: the table shows their mean.")
@click.option(
    "--minutes", type=FiniteRange(min=0.1), help="Length of the trace.  [default: 60, of a file all]"
)
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(list(sim.CONTESTANTS)), metavar="NAME",
    help=f"Only these; repeatable. One of {', '.join(sim.CONTESTANTS)}.",
)  # fmt: skip
@click.option(
    "--slo", "slo_seconds", type=FiniteRange(min=0, min_open=True), default=sim.SLO_SECONDS,
    show_default=True, metavar="SECONDS", help="Answers whose first token came within this count as good.",
)  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=NUMBER",
    help=f"A number of the scheduler; repeatable. One of {', '.join(f.name for f in fields(Settings))}.",
)  # fmt: skip
@click.option("--no-best", is_flag=True, help="Leave out the offline search for the best schedule.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the trace as JSONL as well."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: each seed and the mean.")
def simulate(
    name: str,
    seed: int,
    seeds: str | None,
    minutes: float | None,
    policies: tuple[str, ...],
    slo_seconds: float,
    changes: tuple[str, ...],
    no_best: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Replay a trace of requests in virtual time and compare how policies fare on it.

    Nothing is started and no model is needed. Our policies run in the router's own scheduler; beside them
    stand imitations of llama.cpp's router, llama-swap and Ollama, and the best schedule that an offline
    search finds.
    """
    settings = _settings(changes)
    numbers = _seeds(seeds) if seeds is not None else [seed]
    if name not in sim.TRACES and len(numbers) > 1:
        raise click.UsageError("--seeds is for named traces; a file is what it is")
    results: list[sim.Comparison] = []
    for number in numbers:
        trace = _trace(name, number, minutes)
        if save is not None:
            sim.write_trace(trace, save)
        results.append(sim.compare(trace, policies, slo_seconds, settings, with_best=not no_best))
    mean = sim.average(results)
    if as_json:
        click.echo(_json(mean, results, numbers))
    else:
        click.echo(_heading(mean, name, numbers))
        click.echo(sim.table(mean.rows))


def _trace(name: str, seed: int, minutes: float | None) -> sim.Trace:
    try:
        if name in sim.TRACES:
            return sim.generate(name, seed, 60.0 if minutes is None else minutes)
        if not Path(name).exists():
            raise StartupError(
                f"there is no trace {name!r}; there are {', '.join(sim.TRACES)}, and no such file"
            )
        return sim.read_trace(Path(name), minutes)
    except StartupError as error:
        raise click.BadParameter(error.message, param_hint="--trace") from error


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            "expected numbers with commas between: 1,2,3", param_hint="--seeds"
        ) from error


def _settings(changes: Sequence[str]) -> Settings:
    settings = Settings()
    numbers = {f.name: type(getattr(settings, f.name)) for f in fields(Settings)}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in numbers:
            raise click.BadParameter(f"{name!r} is none of {', '.join(numbers)}", param_hint="--set")
        try:
            settings = replace(settings, **{name: numbers[name](value)})
        except ValueError as error:
            raise click.BadParameter(
                f"{change!r}: not a {numbers[name].__name__}", param_hint="--set"
            ) from error
    return settings


def _heading(mean: sim.Comparison, name: str, seeds: Sequence[int]) -> str:
    which = (
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, " if name in sim.TRACES else ""
    )
    goal = f"SLO {mean.slo_seconds:g} s to the first token"
    return f"trace {mean.trace}, {which}{mean.minutes:.0f} minutes, {goal}\n"


def _json(mean: sim.Comparison, results: Sequence[sim.Comparison], seeds: Sequence[int]) -> str:
    def rows(one: sim.Comparison) -> dict[str, object]:
        return {label: sim.as_json(figures) for label, figures in one.rows.items()}

    document = {
        "trace": mean.trace,
        "minutes": mean.minutes,
        "slo_seconds": mean.slo_seconds,
        "mean": rows(mean),
        "seeds": {str(seed): rows(one) for seed, one in zip(seeds, results, strict=True)},
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
