"""What llama-servers tell becomes one page."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from router.metrics import children
from router.metrics.children import Child, ask_children, child_families
from router.metrics.page import _Once
from tests.admin.upstream import Connection, Received, Upstream
from tests.metrics.lint import complaints, families

ANSWER = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 12
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
"""


def page(answers: dict[Child, str | None]) -> str:
    registry = CollectorRegistry()
    registry.register(_Once(list(child_families(answers))))
    return generate_latest(registry).decode()


def test_each_family_is_told_once_with_a_row_for_every_child():
    text = page({Child("a", 0, ""): ANSWER, Child("b", 0, ""): ANSWER, Child("b", 1, ""): ANSWER})
    assert not complaints(text)
    samples = families(text)["llamacpp_prompt_tokens"].samples
    assert [(one.labels["model"], one.labels["replica"], one.value) for one in samples] == [
        ("a", "0", 12.0),
        ("b", "0", 12.0),
        ("b", "1", 12.0),
    ]


def test_one_that_does_not_answer_or_speaks_nonsense_is_said_and_hides_nobody():
    text = page({Child("a", 0, ""): None, Child("b", 0, ""): "{{{ 1 2", Child("c", 0, ""): ANSWER})
    told = families(text)["llama_router_child_metrics_told"].samples
    assert {one.labels["model"]: one.value for one in told} == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert len(families(text)["llamacpp_requests_processing"].samples) == 1


def test_a_counter_that_is_not_named_as_one_is_named_so():
    text = page({Child("a", 0, ""): "# TYPE llamacpp:n_decode counter\nllamacpp:n_decode 3\n"})
    assert 'llamacpp_n_decode_total{model="a",replica="0"} 3.0' in text


def test_children_of_different_versions_do_not_mix_types():
    other = ANSWER.replace("requests_processing gauge", "requests_processing counter")
    text = page({Child("a", 0, ""): ANSWER, Child("b", 0, ""): other})
    assert text.count("# TYPE llamacpp_requests_processing") == 1


async def test_all_are_asked_at_once_and_a_busy_one_holds_nobody_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(children, "ANSWER_SECONDS", 0.2)
    asked = asyncio.Barrier(2)

    async def quick(_: Received, connection: Connection) -> None:
        await asked.wait()
        await connection.answer(ANSWER.encode(), head="Content-Type: text/plain")

    async def busy(_: Received, connection: Connection) -> None:
        await asked.wait()
        await connection.until_client_left()

    async with (
        Upstream(tmp_path / "a", quick) as a,
        Upstream(tmp_path / "b", busy) as b,
        asyncio.timeout(10),
    ):
        answers = await ask_children([Child("a", 0, a.path), Child("b", 0, b.path)])
    assert list(answers.values()) == [ANSWER, None]
