"""One run of `bench/proxy`: whose turn it is at what, round by round, and what becomes of who fails.

A row that somebody cannot do costs him that row and nobody else anything.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from bench.proxy_rows import ROWS, Options, Step
from bench.proxy_table import Results
from router.models.demo_model import write_demo_model
from tests.make_gguf import make_llama

SWAP: Final = "swap"
SWAP_KEYS: Final = tuple(metric.key for metric in proxy_swaps.METRICS)
#: After all rounds of the others: what was once taken for a thousand slow readers would be seen in every
#: later row of memory; and not everybody survives them.
LAST: Final = frozenset({"slow"})
#: What two models weigh that are swapped: enough to be read, and to be seen by a poll.
SWAP_MODEL_MIB: Final = 96
SWAP_ARGS: Final = ("--threads", "1")
#: What a swap takes of a contestant, and llama-server by itself, in each round.
SWAP_SECONDS: Final = 2.0
#: What one can do wrong who is started and asked: shown beside those who can do it.
FAILURES: Final = (Failed, OSError, RuntimeError, KeyError, subprocess.SubprocessError, psutil.Error)


@dataclass(slots=True)
class Run:
    """`results` and `progress` are right at any moment, also when a run is interrupted. `given` is what the
    command line says; `given_up` are steps that a contestant is not asked for again."""

    given: argparse.Namespace
    options: Options
    results: Results
    progress: Progress
    given_up: set[tuple[str, str]] = field(default_factory=set)

    def measure(self) -> None:
        rows = [row for row in (*ROWS, SWAP) if self.given.only is None or row in self.given.only]
        with tempfile.TemporaryDirectory(prefix="bench-proxy-") as name:
            folder = Path(name)
            fixed = [row for row in rows if row != SWAP]
            if fixed:
                (folder / "fixed").mkdir()
                self._fixed(folder / "fixed", fixed)
            if SWAP in rows:
                (folder / SWAP).mkdir()
                self._swaps(folder / SWAP)

    def _fixed(self, folder: Path, rows: Sequence[str]) -> None:
        self.results.metrics += proxy_rows.METRICS
        model = folder / "bench.gguf"
        write_demo_model(model)
        setting = Setting(
            folder=folder,
            server=upstream_program(folder),
            models=(model,),
            llama_server=self.given.llama_server,
            llama_swap=self.given.llama_swap,
            before=self.given.before,
        )
        with contextlib.ExitStack() as stack:
            contestants = self._entered(stack, CONTESTANTS, setting)
            for contestant in list(contestants):
                try:
                    _ask_once(contestant)
                except FAILURES as error:
                    self._fail(
                        contestant, "first request", error, [metric.key for metric in proxy_rows.METRICS]
                    )
                    contestants.remove(contestant)
            self._expect(rows, len(contestants))
            early = [row for row in rows if row not in LAST]
            late = [row for row in rows if row in LAST]
            for some in (early, late):
                for number in range(self.given.rounds):
                    for row in some:
                        self.progress.row(number, self.given.rounds, row)
                        for contestant in _rotated(contestants, number):
                            self.progress.turn(contestant.name)
                            for step in ROWS[row]:
                                self._turn(contestant, step, number)

    def _turn(self, contestant: Contestant, step: Step, number: int) -> None:
        """Who has died, or has taken too much, begins anew."""
        if (contestant.name, step.name) in self.given_up:
            return
        try:
            if contestant.has_died():
                contestant.restart()
                _ask_once(contestant)
            self.results.note(contestant.name, step.measure(contestant, self.options), number)
        except FAILURES as error:
            self._fail(contestant, f"{step.name}, round {number + 1}", error, step.keys)
            if isinstance(error, Failed) and error.is_final:
                contestant.stop()
                self.given_up.add((contestant.name, step.name))

    def _expect(self, rows: Sequence[str], contestants: int) -> None:
        steps = [step for row in rows for step in ROWS[row]]
        seconds = contestants * sum(self.options.seconds + step.beside_seconds for step in steps)
        if self.given.only is None or SWAP in self.given.only:
            seconds += SWAP_SECONDS * (1 + contestants / 2)
            rows = [*rows, SWAP]
        self.progress.say(
            f"{rough(self.given.rounds * seconds)} for {contestants} contestants: {', '.join(rows)}"
        )

    def _swaps(self, folder: Path) -> None:
        self.results.metrics += proxy_swaps.METRICS
        if self.given.llama_server is None:
            self.results.absent["llama-server"] = (
                "bin/build-llama-server, or --llama-server FILE; no row of swaps"
            )
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
            server=self.given.llama_server,
            models=models,
            models_max=1,
            args=SWAP_ARGS,
            llama_server=self.given.llama_server,
            llama_swap=self.given.llama_swap,
            before=self.given.before,
        )
        with contextlib.ExitStack() as stack:
            contestants = self._entered(stack, ROUTERS, setting)
            if self._is_wanted("direct") and "direct" not in self.results.contestants:
                self.results.contestants.insert(0, "direct")
            argv = None
            for contestant in list(contestants):
                first = setting.names[0]
                try:
                    proxy_swaps.first_token_ms(contestant.port, first)
                    argv = argv or proxy_swaps.argv_of(contestant)
                    contestant.unload(first)
                except FAILURES as error:
                    self._fail(contestant, "first load", error, SWAP_KEYS)
                    contestants.remove(contestant)
            for number in range(self.given.rounds):
                self.progress.row(number, self.given.rounds, SWAP)
                self._swap_round(setting, contestants, argv, number)

    def _swap_round(
        self, setting: Setting, contestants: Sequence[Contestant], argv: list[str] | None, number: int
    ) -> None:
        """`argv` is how the model is started where it is started by hand."""
        model, what = setting.models[0], f"{SWAP}, round {number + 1}"
        try:
            reference = proxy_swaps.own(setting, model, argv)
            proxy_swaps.forget(model)
            from_disk = proxy_swaps.own(setting, model, argv)
        except FAILURES as error:
            self.results.fail("direct", what, _said(error), SWAP_KEYS)
            return
        if "direct" in self.results.contestants:
            own = {"cold": reference.total_ms, "disk": from_disk.total_ms, "warm": reference.warm_ms}
            self.results.note("direct", own, number)
        for contestant in _rotated(contestants, number):
            self.progress.turn(contestant.name)
            try:
                self.results.note(
                    contestant.name, proxy_swaps.swaps(contestant, reference, from_disk), number
                )
            except FAILURES as error:
                self._fail(contestant, what, error, SWAP_KEYS)

    def _is_wanted(self, contestant: str) -> bool:
        return self.given.contestants is None or contestant in self.given.contestants

    def _entered(
        self, stack: contextlib.ExitStack, kinds: Sequence[type[Contestant]], setting: Setting
    ) -> list[Contestant]:
        entered = []
        for kind in kinds:
            if not self._is_wanted(kind.name):
                continue
            try:
                contestant = kind(setting)
                stack.enter_context(contestant.running())
            except Absent as absence:
                if kind is not Before:  # nobody has missed it
                    self.results.absent[kind.name] = str(absence)
                continue
            except FAILURES as error:
                self.results.fail(kind.name, "start", _said(error))
                continue
            entered.append(contestant)
            if kind.logs_requests and kind.name not in self.results.logging:
                self.results.logging.append(kind.name)
            if kind.name not in self.results.contestants:
                self.results.contestants.append(kind.name)
        return entered

    def _fail(self, contestant: Contestant, what: str, error: Exception, keys: Sequence[str]) -> None:
        match error:
            case Failed():
                short = error.short
            case TimeoutError():
                short = "no answer"
            case _:
                short = "failed"
        self.results.fail(contestant.name, what, _said(error), keys, short)
        self.progress.say(f"{contestant.name}, {what}: {_said(error)}")


def _ask_once(contestant: Contestant) -> None:
    """Its model is loaded then, and everything imported."""
    post(contestant.port, proxy_rows.PATH, {"model": "bench"})


def _rotated(contestants: Sequence[Contestant], by: int) -> Sequence[Contestant]:
    """Who comes first has the others' leavings in its caches."""
    start = by % max(1, len(contestants))
    return [*contestants[start:], *contestants[:start]]


def _said(error: Exception) -> str:
    kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:300]
