"""What requests took, counted when they have ended: nobody else keeps it.

Counted by hand and told as prometheus_client tells it: a request is counted in nine series, and each of its
own counters takes a lock and a walk through the buckets for that. Many are counted together, which takes a
third of the time that one by one would."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from router.proxy import RequestStats
from router.scheduler.types import ModelName

if TYPE_CHECKING:
    from prometheus_client import Metric

#: From an answer out of a warm cache to a load that a queue stands before. Each bucket is a line for every
#: model in every scrape: no more than a picture needs.
SECONDS: Final = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS_PER_SECOND: Final = (2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 200.0, 500.0)

#: So many are counted together, unless somebody looks earlier.
TOGETHER: Final = 32

_OF_A_MODEL: Final = ("model",)
#: Those that waited for a load.
_OF_A_LOAD: Final = ("loaded", "queued")
#: Its account, its status, its seconds.
_Over: TypeAlias = tuple[RequestStats, int, float]
#: What is alike in requests that ended alike: the model, the action and the error of the account; the status.
_Kind: TypeAlias = tuple[tuple[ModelName, str, str | None], int]
_KIND: Final = attrgetter("model", "action", "error")
#: What is counted of an account.
_FIGURES: Final = attrgetter(
    "queue_seconds",
    "load_seconds",
    "first_byte_seconds",
    "tokens_per_second",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
)


class _Histogram:
    """`counts` are per bucket, the last of what is above all `bounds`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, values: Sequence[float]) -> None:
        ordered, below = sorted(values), 0
        for number, bound in enumerate((*self.bounds, float("inf"))):
            upto = bisect_right(ordered, bound)
            self.counts[number] += upto - below
            below = upto
            if upto == len(ordered):
                break
        self.total = sum(values, self.total)

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

    def count(self, over: Sequence[_Over], is_of_load: bool) -> None:
        accounts, _, seconds = zip(*over, strict=True)
        queue, load, first, speed, prompt, cached, generated = zip(*map(_FIGURES, accounts), strict=True)
        self.queue.observe(queue)
        if is_of_load:
            self.load.observe(load)
        waits = zip(queue, load, first, strict=True)
        self.first_token.observe(
            [queued + loaded + last for queued, loaded, last in waits if last is not None]
        )
        self.duration.observe(seconds)
        self.speed.observe([one for one in speed if one is not None])
        self.prompt += sum(filter(None, prompt))
        self.cached += sum(filter(None, cached))
        self.generated += sum(filter(None, generated))


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
        self._over: deque[_Over] = deque()  # not yet counted
        self._counting = threading.Lock()
        self._outcomes = Counter[_Kind]()
        self._models: dict[ModelName, _Model] = {}

    def ended(self, account: RequestStats, status: int, total_seconds: float) -> None:
        """One request is over, however it ended; nothing in its account changes any more."""
        self._over.append((account, status, total_seconds))
        # Where somebody else counts just now, the next request sees to it.
        if len(self._over) >= TOGETHER and self._counting.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._counting.release()

    def _count(self) -> None:
        """All that have ended. By whoever is `_counting`."""
        alike = defaultdict[_Kind, list[_Over]](list)
        for _ in range(len(self._over)):
            over = self._over.popleft()
            alike[_KIND(over[0]), over[1]].append(over)
        for kind, those in alike.items():
            (model, action, _), _ = kind
            self._outcomes[kind] += len(those)
            self._models.setdefault(model, _Model()).count(those, action in _OF_A_LOAD)

    def collect(self) -> Iterator[Metric]:
        """From any thread."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        with self._counting:
            self._count()
        requests = CounterMetricFamily(
            "llama_router_requests_total",
            "Requests by what was done for them (already_loaded, loaded, queued, rejected), HTTP status "
            "(499: the client left) and the code of the error that ended them.",
            labels=("model", "action", "status", "error"),
        )
        for ((model, action, error), status), count in self._outcomes.copy().items():
            requests.add_metric((model, action, str(status), error or ""), count)
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
