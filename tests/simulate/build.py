"""Small machines and traces whose times can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.scheduler.types import Command, Event, Tick
from router.simulate.machine import GIB, Machine, Spec, card
from router.simulate.trace import Request, Trace
from router.simulate.world import World


def machine(*, devices: Sequence[float] = (24,), **sizes: float) -> Machine:
    """Cards of so many GiB without margin; models that load in 1.2 s + GiB / 2, read 1000 and write 10 tokens
    per second."""
    specs = tuple(Spec(name, round(gib * GIB), 1000.0, 10.0) for name, gib in sizes.items())
    cards = tuple(card(f"gpu{n}", gib, margin_gib=0) for n, gib in enumerate(devices))
    return Machine(cards, specs)


def ask(
    number: int, model: str, at: float = 0.0, *, tokens: tuple[int, int] = (1000, 100), **more: Any
) -> Request:
    """A request that takes one second to its first token and ten more to its last, unless said otherwise."""
    return Request(number, more.pop("client", f"c{number}"), model, at, *tokens, **more)


def trace(on: Machine, *requests: Request, seconds: float = 600.0) -> Trace:
    return Trace("by hand", on, requests, seconds)


def ttfts(world: World) -> list[float]:
    """Seconds from sending to the first token, in the order of the trace."""
    return [first - sent for first, sent in zip(world.first, world.sent, strict=True)]


class Scripted:
    """A decider that says what the test says: the n-th answer to the n-th event of a kind, then nothing.

    `deadline` is due once.
    """

    def __init__(self, **answers: list[list[Command]]) -> None:
        self.answers = {kind: list(commands) for kind, commands in answers.items()}
        self.heard: list[tuple[float, Event]] = []
        self.deadline: float | None = None

    def handle(self, event: Event, now: float) -> list[Command]:
        self.heard.append((now, event))
        if isinstance(event, Tick):
            self.deadline = None
        waiting = self.answers.get(type(event).__name__, [])
        return waiting.pop(0) if waiting else []

    def next_deadline(self) -> float | None:
        return self.deadline

    def times(self, kind: type) -> list[float]:
        return [now for now, event in self.heard if isinstance(event, kind)]
