"""What is counted of a request when it ends."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from router.metrics.requests import SECONDS, TOGETHER, RequestMetrics
from router.proxy import RequestStats

DURATION = "llama_router_request_duration_seconds"


def ended(*accounts: tuple[RequestStats, int, float]) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = RequestMetrics()
    registry.register(metrics)
    for account, status, seconds in accounts:
        metrics.ended(account, status, seconds)
    return registry


def test_the_first_token_is_counted_from_the_arrival():
    account = RequestStats("a", "loaded", queue_seconds=1.0, load_seconds=2.0, first_byte_seconds=0.5)
    registry = ended((account, 200, 4.0))
    values = {
        name: registry.get_sample_value(f"llama_router_request_{name}_seconds_sum", {"model": "a"})
        for name in ("queue", "load", "first_token", "duration")
    }
    assert values == {"queue": 1.0, "load": 2.0, "first_token": 3.5, "duration": 4.0}


def test_a_request_that_found_its_model_loaded_waited_for_no_load():
    registry = ended((RequestStats("a", "already_loaded"), 200, 0.1))
    assert registry.get_sample_value("llama_router_request_load_seconds_count", {"model": "a"}) == 0


def test_every_value_falls_where_prometheus_client_would_count_it():
    values = [0.0, 0.024, 0.025, 0.0251, 0.1, 1.0, 59.9, 300.0, 300.1, 1e6]
    ours = ended(*((RequestStats("a", "already_loaded"), 200, value) for value in values))
    theirs = CollectorRegistry()
    histogram = Histogram(
        DURATION,
        "From a request's arrival to the end of its answer.",
        ("model",),
        buckets=SECONDS,
        registry=theirs,
    )
    for value in values:
        histogram.labels("a").observe(value)
    expected = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert [line for line in generate_latest(ours).splitlines() if DURATION.encode() in line] == expected


def test_outcomes_are_told_apart_and_tokens_added_up():
    good = RequestStats(
        "a", "already_loaded", prompt_tokens=10, cached_tokens=4, completion_tokens=5, tokens_per_second=60.0
    )
    registry = ended((good, 200, 1.0), (good, 200, 1.0), (RequestStats("a", error="no_room"), 503, 1.0))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"llama_router_{name}", {"model": "a", **labels})

    assert value("requests_total", action="already_loaded", status="200", error="") == 2
    assert value("requests_total", action="rejected", status="503", error="no_room") == 1
    assert value("prompt_tokens_total") == 20
    assert value("cached_prompt_tokens_total") == 8
    assert value("generated_tokens_total") == 10
    assert value("generation_tokens_per_second_bucket", le="50.0") == 0
    assert value("generation_tokens_per_second_bucket", le="75.0") == 2


def test_all_that_have_ended_are_counted_however_many_they_are_and_whoever_counts():
    metrics, registry = RequestMetrics(), CollectorRegistry()
    registry.register(metrics)

    def counted() -> float | None:
        name = "llama_router_requests_total"
        return registry.get_sample_value(
            name, {"model": "a", "action": "already_loaded", "status": "200", "error": ""}
        )

    for number in range(1, 2 * TOGETHER + 2):
        metrics.ended(RequestStats("a", "already_loaded"), 200, 0.1)
        assert len(metrics._over) < TOGETHER
        if number % 7 == 0:
            assert counted() == number
    with metrics._counting:  # somebody counts just now: who is served does not wait for that
        for _ in range(2 * TOGETHER):
            metrics.ended(RequestStats("a", "already_loaded"), 200, 0.1)
    assert counted() == 4 * TOGETHER + 1
