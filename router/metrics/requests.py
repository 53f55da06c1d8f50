"""What requests took, counted when they have ended: nobody else keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram

from router.proxy import RequestStats
from router.scheduler.types import ModelName

#: From an answer out of a warm cache to a load that a queue stands before. Each bucket is a line for every
#: model in every scrape: no more than a picture needs.
SECONDS: Final = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS_PER_SECOND: Final = (2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 200.0, 500.0)

#: The actions of requests that waited for a load.
_OF_A_LOAD: Final = ("loaded", "queued")
#: The histograms of each model, and what they tell.
_HISTOGRAMS: Final = {
    "request_queue_seconds": "Wait of a request before its model's load began.",
    "request_load_seconds": "Wait of a request for the load of its model, where it did.",
    "request_first_token_seconds": "From a request's arrival to the first byte of its answer.",
    "request_duration_seconds": "From a request's arrival to the end of its answer.",
    "generation_tokens_per_second": "Speed of generation of an answer, as llama-server tells it.",
}
_TOKENS: Final = {
    "prompt_tokens": "Tokens of prompts, cached ones among them.",
    "cached_prompt_tokens": "Tokens of prompts found in a cache.",
    "generated_tokens": "Tokens of answers.",
}
#: Model, action, error and status.
_Outcome: TypeAlias = tuple[ModelName, str, str | None, int]


class RequestMetrics:
    """Only requests for a model that is known are counted: a name that a client made up must not become a
    series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "llama_router_requests",
            "Requests by what was done for them (already_loaded, loaded, queued, rejected), HTTP status "
            "(499: the client left) and the code of the error that ended them.",
            ("model", "action", "status", "error"),
            registry=registry,
        )
        self._histograms = [
            Histogram(
                f"llama_router_{name}",
                help_,
                ("model",),
                buckets=SECONDS if name.endswith("_seconds") else TOKENS_PER_SECOND,
                registry=registry,
            )
            for name, help_ in _HISTOGRAMS.items()
        ]
        self._tokens = [
            Counter(f"llama_router_{name}", help_, ("model",), registry=registry)
            for name, help_ in _TOKENS.items()
        ]
        #: The series of each outcome: `labels` takes longer than to count.
        self._series: dict[_Outcome, tuple[Callable[[float], None], ...]] = {}

    def ended(self, stats: RequestStats, status: int, total_seconds: float) -> None:
        """One request is over, however it ended; nothing in its stats changes any more."""
        outcome = (stats.model, stats.action, stats.error, status)
        series = self._series.get(outcome) or self._find(outcome)
        requests, queue, load, first_token, duration, speed, prompt, cached, generated = series
        requests(1)
        queue(stats.queue_seconds)
        if stats.action in _OF_A_LOAD:
            load(stats.load_seconds)
        if stats.first_byte_seconds is not None:
            first_token(stats.queue_seconds + stats.load_seconds + stats.first_byte_seconds)
        duration(total_seconds)
        if stats.tokens_per_second is not None:
            speed(stats.tokens_per_second)
        if stats.prompt_tokens:
            prompt(stats.prompt_tokens)
        if stats.cached_tokens:
            cached(stats.cached_tokens)
        if stats.completion_tokens:
            generated(stats.completion_tokens)

    def _find(self, outcome: _Outcome) -> tuple[Callable[[float], None], ...]:
        model, action, error, status = outcome
        found = self._series[outcome] = (
            self._requests.labels(model, action, str(status), error or "").inc,
            *(histogram.labels(model).observe for histogram in self._histograms),
            *(counter.labels(model).inc for counter in self._tokens),
        )
        return found
