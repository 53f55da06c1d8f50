"""What requests took, counted as they end: nobody else keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from router.core.types import ModelName
from router.proxy import Account

#: From an answer out of a warm cache to a load that a queue stands before. Each bucket is a line for every
#: model in every scrape: no more than a picture needs.
SECONDS: Final = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS_PER_SECOND: Final = (2, 5, 10, 20, 35, 50, 75, 100, 200, 500)

_OF_A_MODEL: Final = ("model",)


@dataclass(frozen=True, slots=True)
class _Model:
    """The series of one model: looked up once, as a request passes through all of them."""

    queue: Histogram
    load: Histogram
    first_token: Histogram
    duration: Histogram
    speed: Histogram
    prompt: Counter
    cached: Counter
    generated: Counter


class RequestMetrics:
    """Collectors in `registry`. Only requests for a model that is known are counted: a name that a client
    made up must not become a series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, help_: str) -> Histogram:
            return Histogram(name, help_, _OF_A_MODEL, buckets=SECONDS, registry=registry)

        def tokens(name: str, help_: str) -> Counter:
            return Counter(name, help_, _OF_A_MODEL, registry=registry)

        self._requests = Counter(
            "llama_router_requests_total",
            "Requests by what was done for them (already_loaded, loaded, queued, rejected), HTTP status "
            "(499: the client left) and the code of the error that ended them.",
            ("model", "action", "status", "error"),
            registry=registry,
        )
        self._queue = seconds(
            "llama_router_request_queue_seconds", "Wait of a request before its model's load began."
        )
        self._load = seconds(
            "llama_router_request_load_seconds", "Wait of a request for the load of its model, where it did."
        )
        self._first_token = seconds(
            "llama_router_request_first_token_seconds",
            "From a request's arrival to the first byte of its answer.",
        )
        self._duration = seconds(
            "llama_router_request_duration_seconds", "From a request's arrival to the end of its answer."
        )
        self._speed = Histogram(
            "llama_router_generation_tokens_per_second",
            "Speed of generation of an answer, as llama-server tells it.",
            _OF_A_MODEL,
            buckets=TOKENS_PER_SECOND,
            registry=registry,
        )
        self._prompt = tokens(
            "llama_router_prompt_tokens_total", "Tokens of prompts, cached ones among them."
        )
        self._cached = tokens(
            "llama_router_cached_prompt_tokens_total", "Tokens of prompts found in a cache."
        )
        self._generated = tokens("llama_router_generated_tokens_total", "Tokens of answers.")
        self._models: dict[ModelName, _Model] = {}

    def ended(self, account: Account, status: int, total_seconds: float) -> None:
        """One request is over, however it ended."""
        self._requests.labels(account.model, account.action, str(status), account.error or "").inc()
        one = self._models.get(account.model) or self._of_model(account.model)
        one.queue.observe(account.queue_seconds)
        if account.action in ("loaded", "queued"):
            one.load.observe(account.load_seconds)
        if account.first_byte_seconds is not None:
            waited = account.queue_seconds + account.load_seconds
            one.first_token.observe(waited + account.first_byte_seconds)
        one.duration.observe(total_seconds)
        if account.tokens_per_second is not None:
            one.speed.observe(account.tokens_per_second)
        one.prompt.inc(account.prompt_tokens or 0)
        one.cached.inc(account.cached_tokens or 0)
        one.generated.inc(account.completion_tokens or 0)

    def _of_model(self, model: ModelName) -> _Model:
        made = self._models[model] = _Model(
            self._queue.labels(model),
            self._load.labels(model),
            self._first_token.labels(model),
            self._duration.labels(model),
            self._speed.labels(model),
            self._prompt.labels(model),
            self._cached.labels(model),
            self._generated.labels(model),
        )
        return made
