"""All metrics as one text, each family once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, disable_created_metrics
from prometheus_client.core import InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from router import __version__
from router.metrics.children import Child, child_families
from router.metrics.decisions import DecisionMetrics
from router.metrics.requests import RequestMetrics
from router.metrics.state import Seen, state_families


class Page:
    """Owns what is counted. `requests` and `decisions` are told what happens."""

    def __init__(self) -> None:
        # When each series began, as a further series: nobody looks at it, and it is a sixth of the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry: Final = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = RequestMetrics(self._registry)
        self.decisions = DecisionMetrics(self._registry)

    def render(self, seen: Seen, answers: Mapping[Child, str | None], accept: str) -> tuple[bytes, str]:
        """The text and its content type, by the Accept header. Takes milliseconds per hundred models: a
        thread's work."""
        encode, content_type = choose_encoder(accept)
        once = CollectorRegistry()
        once.register(_Once(self.families(seen, answers)))
        return encode(once), content_type

    def families(self, seen: Seen, answers: Mapping[Child, str | None]) -> list[Metric]:
        """All that is told."""
        return [*self._registry.collect(), *_about(), *state_families(seen), *child_families(answers)]


class _Once(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

    def describe(self) -> Iterable[Metric]:
        return ()  # no names to be compared: they are ours


def _about() -> Iterator[Metric]:
    yield InfoMetricFamily("llama_router_build", "The version of the router.", value={"version": __version__})
