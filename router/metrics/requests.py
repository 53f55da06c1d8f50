"""What requests took, counted as they end: nobody else keeps it.

Counted by hand and told as prometheus_client tells it: a request is counted in nine series, and each of its
own counters takes a lock and a walk through the buckets for that."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from router.core.types import ModelName
from router.proxy import Account

if TYPE_CHECKING:
    from prometheus_client import Metric

#: From an answer out of a warm cache to a load that a queue stands before. Each bucket is a line for every
#: model in every scrape: no more than a picture needs.
SECONDS: Final = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS_PER_SECOND: Final = (2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 200.0, 500.0)

_OF_A_MODEL: Final = ("model",)


class _Histogram:
    """`counts` are per bucket, the last of what is above all `bounds`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def told(self) -> tuple[list[tuple[str, float]], float]:
        """The buckets, each with all below it, and the sum. From any thread."""
        from prometheus_client.utils import floatToGoString

        total, sofar, buckets = self.total, 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts.copy(), strict=True):
            sofar += count
            buckets.append((floatToGoString(bound), float(sofar)))  # type: ignore[no-untyped-call]
        return buckets, total


class _Model:
    """The series of one model."""

    __slots__ = ("cached", "duration", "first_token", "generated", "load", "prompt", "queue", "speed")

    def __init__(self) -> None:
        self.queue, self.load = _Histogram(SECONDS), _Histogram(SECONDS)
        self.first_token, self.duration = _Histogram(SECONDS), _Histogram(SECONDS)
        self.speed = _Histogram(TOKENS_PER_SECOND)
        self.prompt = self.cached = self.generated = 0


class _Outcome:
    """What is counted of requests that ended alike."""

    __slots__ = ("count", "is_of_load", "model")

    def __init__(self, model: _Model, is_of_load: bool) -> None:
        self.model = model
        self.is_of_load = is_of_load
        self.count = 0


#: The families that each model has a series of, in the order in which they are told.
_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[_Model], _Histogram]], ...]] = (
    (
        "llama_router_request_queue_seconds",
        "Wait of a request before its model's load began.",
        lambda one: one.queue,
    ),
    (
        "llama_router_request_load_seconds",
        "Wait of a request for the load of its model, where it did.",
        lambda one: one.load,
    ),
    (
        "llama_router_request_first_token_seconds",
        "From a request's arrival to the first byte of its answer.",
        lambda one: one.first_token,
    ),
    (
        "llama_router_request_duration_seconds",
        "From a request's arrival to the end of its answer.",
        lambda one: one.duration,
    ),
    (
        "llama_router_generation_tokens_per_second",
        "Speed of generation of an answer, as llama-server tells it.",
        lambda one: one.speed,
    ),
)
_COUNTERS: Final[tuple[tuple[str, str, Callable[[_Model], int]], ...]] = (
    (
        "llama_router_prompt_tokens_total",
        "Tokens of prompts, cached ones among them.",
        lambda one: one.prompt,
    ),
    (
        "llama_router_cached_prompt_tokens_total",
        "Tokens of prompts found in a cache.",
        lambda one: one.cached,
    ),
    ("llama_router_generated_tokens_total", "Tokens of answers.", lambda one: one.generated),
)


class RequestMetrics:
    """Only requests for a model that is known are counted: a name that a client made up must not become a
    series."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[ModelName, str, int, str | None], _Outcome] = {}
        self._models: dict[ModelName, _Model] = {}

    def ended(self, account: Account, status: int, total_seconds: float) -> None:
        """One request is over, however it ended."""
        kind = (account.model, account.action, status, account.error)
        outcome = self._outcomes.get(kind)
        if outcome is None:
            one = self._models.setdefault(account.model, _Model())
            outcome = self._outcomes[kind] = _Outcome(one, account.action in ("loaded", "queued"))
        outcome.count += 1
        one, queue, load = outcome.model, account.queue_seconds, account.load_seconds
        one.queue.observe(queue)
        if outcome.is_of_load:
            one.load.observe(load)
        if account.first_byte_seconds is not None:
            one.first_token.observe(queue + load + account.first_byte_seconds)
        one.duration.observe(total_seconds)
        if account.tokens_per_second is not None:
            one.speed.observe(account.tokens_per_second)
        one.prompt += account.prompt_tokens or 0
        one.cached += account.cached_tokens or 0
        one.generated += account.completion_tokens or 0

    def collect(self) -> Iterator[Metric]:
        """From any thread."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "llama_router_requests_total",
            "Requests by what was done for them (already_loaded, loaded, queued, rejected), HTTP status "
            "(499: the client left) and the code of the error that ended them.",
            labels=("model", "action", "status", "error"),
        )
        for (model, action, status, error), outcome in self._outcomes.copy().items():
            requests.add_metric((model, action, str(status), error or ""), outcome.count)
        yield requests
        models = self._models.copy()
        for name, help_, histogram_of in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, help_, labels=_OF_A_MODEL)
            for model, one in models.items():
                buckets, total = histogram_of(one).told()
                histogram.add_metric((model,), buckets, total)
            yield histogram
        for name, help_, count_of in _COUNTERS:
            counter = CounterMetricFamily(name, help_, labels=_OF_A_MODEL)
            for model, one in models.items():
                counter.add_metric((model,), count_of(one))
            yield counter
