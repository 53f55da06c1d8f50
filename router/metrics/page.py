"""All metrics as one text, each family once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from router import __version__
from router.metrics.children import Child, child_families
from router.metrics.decisions import DecisionMetrics
from router.metrics.requests import RequestMetrics
from router.metrics.state import Seen, state_families

if TYPE_CHECKING:
    from prometheus_client import Metric


class Page:
    """Owns what is counted. `requests` and `decisions` are told what happens."""

    def __init__(self) -> None:
        self.requests = RequestMetrics()
        self.decisions = DecisionMetrics()

    def render(self, seen: Seen, answers: Mapping[Child, str | None], accept: str) -> tuple[bytes, str]:
        """The text and its content type, by the Accept header. Takes milliseconds per hundred models: a
        thread's work."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        once = CollectorRegistry()
        once.register(_Once(self.families(seen, answers)))
        return encode(once), content_type

    def families(self, seen: Seen, answers: Mapping[Child, str | None]) -> list[Metric]:
        """All that is told."""
        from prometheus_client import ProcessCollector

        return [
            *ProcessCollector(registry=None).collect(),
            *self.requests.collect(),
            *self.decisions.collect(),
            *_about(),
            *state_families(seen),
            *child_families(answers),
        ]


class _Once:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _about() -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    yield InfoMetricFamily("llama_router_build", "The version of the router.", value={"version": __version__})
