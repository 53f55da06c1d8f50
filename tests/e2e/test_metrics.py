"""What Prometheus collects of a router with real llama-servers, and the dashboard that asks for it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import Running, running
from tests.metrics.lint import complaints

pytestmark = pytest.mark.e2e

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "llama-router.json"
#: Nothing has failed in this test, and nobody waits: their series begin with the first that does.
NOT_YET = {
    "llama_router_load_failures_total",
    "llama_router_queue_oldest_seconds",
}


def queries(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:llama_router|llamacpp|process)_\w+", query))


async def measured(router: Running) -> None:
    """What the loaded models take was measured: how wrong the prediction was is known from then on."""
    pool = router.pool
    async with asyncio.timeout(60):
        while any(
            not (known := pool.standing(one.id)) or not known.measured for one in pool.snapshot().instances
        ):
            await pool.measure()


async def test_every_metric_that_the_dashboard_asks_for_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], "[scheduler]\nmodels_max = 1\nlinger = 0\n") as router:
        for model in ("a", "b", "b"):
            assert (await router.chat(model)).status == 200
        await measured(router)
        async with router.session.get("/metrics") as answer:
            text = await answer.text()
        assert router.starts() == ["a", "b"], "nobody is loaded for it"
    assert complaints(text) == []
    told = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    announced = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    asked = {name for query in queries(json.loads(DASHBOARD.read_text())) for name in names(query)}
    assert len(asked) > 25
    assert asked - told.keys() == NOT_YET & asked
    assert announced >= NOT_YET
    assert told["llamacpp_tokens_predicted_total"]["model"] == "b", "of what is loaded, and that is b"


async def test_what_llama_server_counted_agrees_with_what_the_router_counted(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        answers = [await router.chat("a", tokens=tokens) for tokens in (3, 5)]
        async with router.session.get("/metrics") as answer:
            text = await answer.text()
        async with router.session.get("/metrics?model=a") as answer:
            assert "llamacpp:tokens_predicted_total 8" in await answer.text(), "its own words, unchanged"
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    used = sum(one.body["usage"]["completion_tokens"] for one in answers)
    assert told["llamacpp_tokens_predicted_total"] == told["llama_router_generated_tokens_total"] == used == 8
    assert told["llama_router_prompt_tokens_total"] == sum(
        one.body["usage"]["prompt_tokens"] for one in answers
    )
