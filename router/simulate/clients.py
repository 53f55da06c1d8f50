"""A seeded generator of traces: kinds of clients, who ask for what and when, and the named traces.

The shapes follow published traces: lognormal think times, Gamma gaps whose coefficient of variation says
how bursty they are, Zipf popularity, exponential answers (ServeGen, BurstGPT), prefixes that grow from call
to call (Mooncake's toolagent). The same name, seed and length give the same trace on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from router.errors import StartupError
from router.scheduler.types import ModelName
from router.simulate.machine import MACHINES, Machine, Spec
from router.simulate.trace import Request, Trace

ZIPF_EXPONENT: Final = 1.0
CONTEXT_TOKENS: Final = 32768

#: Seconds until a client of a kind gives up without a first token. 600 s is the default of the OpenAI
#: client library.
PATIENCE: Final[Mapping[str, float]] = {
    "chat": 180.0, "side": 120.0, "agent": 600.0, "batch": 600.0, "editor": 15.0, "embed": 120.0,
    "open": 600.0,
}  # fmt: skip


@dataclass(slots=True)
class Draft:
    """A trace in the making. Closed loops need to know when an answer ends on an idle machine; this is
    where it is kept."""

    machine: Machine
    rng: Random
    seconds: float
    requests: list[Request] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    specs: Mapping[ModelName, Spec] = field(init=False)

    def __post_init__(self) -> None:
        self.specs = self.machine.by_name()

    def add(
        self,
        kind: str,
        client: str,
        model: ModelName,
        tokens: tuple[int, int],
        *,
        at: float = 0.0,
        after: int | None = None,
        delay: float | None = None,
        cancel: float | None = None,
        session: str | None = None,
        fresh: int | None = None,
    ) -> int:
        """Append a request of `tokens` (input, output) and return its id: sent at `at`, or `delay`
        seconds after `after` (by default what is left until `at`). `fresh` is how much of its input no
        earlier request of its session has shown the model; only the nominal end depends on it."""
        if delay is None:
            delay = 0.0 if after is None else max(0.0, at - self.ends[after])
        start = at if after is None else self.ends[after] + delay
        spec = self.specs[model]
        took = spec.prefill_seconds(fresh or tokens[0]) + spec.decode_seconds(tokens[1])
        number = len(self.requests)
        self.requests.append(
            Request(
                number, client, model, start, *tokens, kind, after, delay, PATIENCE[kind], cancel, session
            )
        )
        self.ends.append(start + (took if cancel is None else min(took, cancel)))
        return number

    def lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(self.rng.gauss(0.0, sigma))

    def tokens(self, median: float, sigma: float = 0.7) -> int:
        return max(1, min(CONTEXT_TOKENS, round(self.lognormal(median, sigma))))

    def answer(self, mean: float) -> int:
        return max(1, min(4096, round(self.rng.expovariate(1.0 / mean))))

    def gap(self, mean: float, cv: float) -> float:
        """A Gamma gap of `mean` seconds and coefficient of variation `cv`: 1 is Poisson, more is burstier."""
        shape = 1.0 / (cv * cv)
        return self.rng.gammavariate(shape, mean / shape)

    def pick(self, models: Sequence[ModelName]) -> ModelName:
        """A model by Zipf's law, the first being the most popular."""
        weights = [1.0 / rank**ZIPF_EXPONENT for rank in range(1, len(models) + 1)]
        return self.rng.choices(models, weights)[0]


def chat(draft: Draft, client: str, models: Sequence[ModelName], side: ModelName | None) -> None:
    """A person: conversations of a few turns with pauses to read and think. One second after each answer
    the chat page asks `side` for tags, and after the first one for a title."""
    start = draft.gap(120.0, 2.0)
    last: int | None = None
    conversation = 0
    while start < draft.seconds:
        model, session = draft.pick(models), f"{client}/{conversation}"
        context = draft.tokens(300)
        for turn in range(draft.rng.randint(2, 10)):
            fresh = draft.tokens(60)
            context = min(CONTEXT_TOKENS, context + fresh)
            output = draft.answer(320)
            last = draft.add(
                "chat", client, model, (context, output),
                at=start, after=last, delay=draft.lognormal(25.0, 0.9) if turn else None,
                session=session, fresh=fresh if turn else None,
            )  # fmt: skip
            context = min(CONTEXT_TOKENS, context + output)
            for name, length in (("title", 12), ("tags", 24))[0 if turn == 0 else 1 :]:
                if side is not None:
                    draft.add(
                        "side", f"{client}/{name}", side, (min(context, 2000), length), after=last, delay=1.0
                    )
            if draft.ends[last] > draft.seconds:
                return
        conversation += 1
        start = draft.ends[last] + draft.gap(240.0, 1.5) if last is not None else draft.seconds


def agent(draft: Draft, client: str, models: Sequence[ModelName]) -> None:
    """A program that works on tasks of 10 to 100 calls, alternating two models that share its growing
    context."""
    start = draft.gap(60.0, 1.5)
    last: int | None = None
    task = 0
    while start < draft.seconds:
        first = draft.pick(models)
        pair = (first, draft.pick([model for model in models if model != first]))
        seen = dict.fromkeys(pair, 0)
        context, speaker = draft.tokens(2500, 0.4), 0
        for call in range(draft.rng.randint(10, 100)):
            context = (
                context + draft.tokens(350) if context < CONTEXT_TOKENS - 4096 else draft.tokens(6000, 0.3)
            )
            output = draft.answer(200)
            model = pair[speaker]
            fresh = max(1, context - seen[model] if seen[model] <= context else context)
            last = draft.add(
                "agent", client, model, (context, output),
                at=start, after=last, delay=draft.lognormal(1.0, 0.8) if call else None,
                session=f"{client}/{task}", fresh=fresh,
            )  # fmt: skip
            context += output
            seen[model] = context
            if draft.rng.random() < 0.35:
                speaker = 1 - speaker
            if draft.ends[last] > draft.seconds:
                return
        task += 1
        start = draft.ends[last] + draft.gap(300.0, 1.5) if last is not None else draft.seconds


def batch(draft: Draft, client: str, models: Sequence[ModelName], mean_gap: float = 1800.0) -> None:
    """A job now and then: 100 to 1,000 short requests for one model, sent by 4 to 16 workers that each
    wait for their answer and send the next some milliseconds later."""
    start = draft.gap(mean_gap / 2, 1.0)
    while start < draft.seconds:
        model = draft.pick(models)
        count = round(10 ** draft.rng.uniform(2.0, 3.0))
        workers = draft.rng.randint(4, 16)
        last: list[int | None] = [None] * workers
        for n in range(count):
            worker = n % workers
            last[worker] = draft.add(
                "batch", client, model, (draft.tokens(500), draft.answer(60)),
                at=start, after=last[worker], delay=draft.lognormal(0.005, 0.7) if n >= workers else None,
            )  # fmt: skip
        start = max([start, *(draft.ends[n] for n in last if n is not None)]) + draft.gap(mean_gap, 1.0)


def editor(draft: Draft, client: str, model: ModelName) -> None:
    """An editor that completes code as its user types and cancels 60 % of the completions because the
    user typed on."""
    start = draft.gap(200.0, 1.5)
    last: int | None = None
    while start < draft.seconds:
        stop = start + draft.lognormal(180.0, 0.6)
        pause: float | None = None
        while last is None or pause is None or draft.ends[last] < min(stop, draft.seconds):
            cancel = draft.rng.uniform(0.15, 1.2) if draft.rng.random() < 0.6 else None
            last = draft.add(
                "editor", client, model, (draft.tokens(900, 0.4), draft.answer(40)),
                at=start, after=last, delay=pause, cancel=cancel, session=client, fresh=60,
            )  # fmt: skip
            pause = draft.lognormal(2.5, 0.8)
        start = draft.ends[last] + draft.gap(400.0, 1.5)


def embed(draft: Draft, client: str, model: ModelName, mean_gap: float = 12.0, cv: float = 3.0) -> None:
    """Embedding calls: an open loop, bursty, one token out."""
    at = draft.gap(mean_gap, cv)
    while at < draft.seconds:
        draft.add("embed", client, model, (draft.tokens(250), 1), at=at)
        at += draft.gap(mean_gap, cv)


def open_loop(draft: Draft, models: Sequence[ModelName], per_second: float, cv: float) -> None:
    """Everybody at once and nobody waiting: Gamma arrivals of `per_second` altogether, bursty per model,
    Zipf by model."""
    total = sum(1.0 / rank**ZIPF_EXPONENT for rank in range(1, len(models) + 1))
    for rank, model in enumerate(models, 1):
        mean = total * rank**ZIPF_EXPONENT / per_second
        at = draft.gap(mean, cv) * draft.rng.random()
        while at < draft.seconds:
            draft.add("open", model, model, (draft.tokens(400), draft.answer(250)), at=at)
            at += draft.gap(mean, cv)


def _home(draft: Draft) -> None:
    for n in range(3):
        chat(draft, f"chat{n}", ["chat-8b", "chat-27b", "vision-12b", "reason-32b"], "title-1b")
    agent(draft, "agent0", ["coder-14b", "reason-32b", "chat-8b"])
    editor(draft, "editor0", "coder-14b")
    batch(draft, "batch0", ["chat-8b", "vision-12b"], 3600.0)
    embed(draft, "embed0", "embed-4b", 20.0)


def _lab(draft: Draft) -> None:
    talkers = [
        "chat-8b", "chat-27b", "chat-14b", "reason-32b", "vision-12b", "moe-60b", "chat-4b", "roleplay-24b",
        "translate-9b",
    ]  # fmt: skip
    for n in range(14):
        chat(draft, f"chat{n}", talkers, "title-1b")
    for n in range(4):
        agent(draft, f"agent{n}", ["coder-32b", "chat-8b", "coder-7b", "reason-32b", "moe-60b"])
    for n in range(3):
        editor(draft, f"editor{n}", "coder-7b")
    for n in range(2):
        batch(draft, f"batch{n}", ["chat-8b", "translate-9b", "audio-3b", "vision-12b"])
    embed(draft, "embed0", "embed-4b", 3.0)


def _agents(draft: Draft) -> None:
    for n in range(5):
        agent(draft, f"agent{n}", ["coder-14b", "reason-32b", "chat-8b", "coder-27b", "chat-14b"])
    chat(draft, "chat0", ["chat-8b", "chat-14b", "vision-12b"], "title-1b")
    embed(draft, "embed0", "embed-4b", 10.0)


def _bursts(draft: Draft) -> None:
    open_loop(draft, [spec.name for spec in draft.machine.specs], 0.15, 3.0)


#: Named traces. "bursts" is an open loop of the kind papers simulate; the others are closed loops, as
#: people and programs are.
TRACES: Final[Mapping[str, Callable[[Draft], None]]] = {
    "home": _home,
    "lab": _lab,
    "agents": _agents,
    "bursts": _bursts,
}


def generate(name: str, seed: int, minutes: float) -> Trace:
    """The trace `name` of `minutes`, from `seed`. StartupError if there is no such trace."""
    if name not in TRACES:
        raise StartupError(f"there is no trace {name!r}; there are {', '.join(TRACES)}, or name a file")
    draft = Draft(MACHINES[name], Random(f"{name}/{seed}"), minutes * 60.0)
    TRACES[name](draft)
    return Trace(name, draft.machine, tuple(draft.requests), draft.seconds)
