"""What every loaded llama-server tells of itself, with a `model` label. Nobody is loaded or woken for it, and
one that is too busy to answer is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from router.engines.llama_server import METRICS_PATH
from router.process import get_answer
from router.scheduler.types import ModelName

if TYPE_CHECKING:
    from prometheus_client import Metric

#: A llama-server answers between two batches; Prometheus itself gives up after 10 s.
ANSWER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Child:
    """`replica` counts the loaded ones of a model from 0: the number of an instance would make a new series
    with each load."""

    model: ModelName
    replica: int
    socket: str


async def ask_children(children: Iterable[Child]) -> Mapping[Child, str | None]:
    """What each of them answers, None for those that do not in time. All at once."""
    asked = tuple(children)
    answers = await asyncio.gather(
        *(get_answer(Path(one.socket), METRICS_PATH, timeout_seconds=ANSWER_SECONDS) for one in asked)
    )
    texts = (None if answer is None else answer.decode(errors="replace") for answer in answers)
    return dict(zip(asked, texts, strict=True))


def child_families(answers: Mapping[Child, str | None]) -> Iterator[Metric]:
    """Each family once, with the samples of all children; `llamacpp:x` becomes `llamacpp_x`, as colons belong
    to the rules of whoever collects, and what only grows ends with `_total`."""
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.parser import text_string_to_metric_families

    told = GaugeMetricFamily(
        "llama_router_child_metrics_told",
        "1: the llama-server told its metrics; 0: it was too busy, or they were not understood.",
        labels=("model", "replica"),
    )
    merged: dict[str, Metric] = {}
    for child, text in answers.items():
        try:
            families = [] if text is None else list(text_string_to_metric_families(text))
        except ValueError:
            families = []
        for family in families:
            _merge(merged, family, child)
        told.add_metric((child.model, str(child.replica)), int(bool(families)))
    yield told
    yield from merged.values()


def _merge(merged: dict[str, Metric], family: Metric, child: Child) -> None:
    from prometheus_client import Metric

    name = family.name.replace(":", "_")
    known = merged.setdefault(name, Metric(name, family.documentation, family.type))
    if known.type != family.type:  # of another version
        return
    for sample in family.samples:
        labels = {**sample.labels, "model": child.model, "replica": str(child.replica)}
        known.add_sample(sample.name.replace(":", "_"), labels, sample.value)
