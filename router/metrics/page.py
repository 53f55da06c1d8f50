"""All metrics as one text, each family once."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Info, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder

from router import __version__
from router.metrics.children import Child, child_families
from router.metrics.decisions import DecisionMetrics
from router.metrics.requests import RequestMetrics
from router.metrics.state import Seen, state_families


class Page:
    """Owns what is counted. `requests` and `decisions` are told what happens."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = RequestMetrics(self._registry)
        self.decisions = DecisionMetrics(self._registry)
        build = Info("llama_router_build", "The version of the router.", registry=self._registry)
        build.info({"version": __version__})

    def render(self, seen: Seen, answers: Mapping[Child, str | None], accept: str) -> tuple[bytes, str]:
        """The text and its content type, by the Accept header. Takes milliseconds per hundred models: a
        thread's work.
        """
        encode, content_type = choose_encoder(accept)
        return encode(Families(self.families(seen, answers))), content_type

    def families(self, seen: Seen, answers: Mapping[Child, str | None]) -> list[Metric]:
        """All that is told."""
        return [*self._registry.collect(), *state_families(seen), *child_families(answers)]


class Families(CollectorRegistry):
    """A registry of what is collected already, which is all that an encoder asks for."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
