"""A second opinion before a child is started: asked once, kept, heeded, and never waited for too long."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from router.db.store import Store
from router.ids import Definition
from router.memory.estimate.fit_params import FitRow, Question
from router.memory.estimate.learning import Prediction
from router.memory.estimate.values import Counted
from router.scheduler.types import Learned, Model
from router.supervisor.calibration import Learning, learner
from router.supervisor.calibration import fit_params_cache as opinions_module
from router.supervisor.calibration.fit_params_cache import ANSWERS, FitParamsCache
from router.supervisor.pool import Pool
from tests.fake_host import GIB
from tests.supervisor.calibration.test_learner import (
    GPU,
    Bench,
    MeasuredHost,
    learning_pool,
    model,
    out_of_memory,
    predictions_of,
)
from tests.waiting import until


class FitParams:
    """Stands for the program: counts `gib` on the GPU, or has no answer, or never comes back."""

    def __init__(self, gib: float | None = None, *, hangs: bool = False) -> None:
        self.gib, self.hangs = gib, hangs
        self.asked: list[tuple[str, ...]] = []

    async def __call__(self, argv, env, *, is_urgent: bool):
        self.asked.append(tuple(argv))
        if self.hangs:
            await asyncio.Event().wait()
        if self.gib is None:
            return None
        return FitRow("CUDA0", int(self.gib * GIB), 0, 0), FitRow("Host", 0, 0, 0)


def asking(*models: Model, touches_gpus: bool = True) -> dict[str, tuple[Prediction, ...]]:
    """The predictions of these models, each with its question."""

    def with_question(one: Prediction) -> Prediction:
        counted = (Counted(one.predicted[0]), Counted(0))
        question = Question(f"about {one.id}", ("ask", one.key), {}, counted, (0, 0), touches_gpus)
        return replace(one, question=question)

    return {name: tuple(map(with_question, places)) for name, places in predictions_of(*models).items()}


@asynccontextmanager
async def asked_pool(fit: FitParams, *models: Model, store: Store | None = None, holds: float = 1.0, **more):
    async with Store(None) as memory:
        kept = store or memory
        host, questions = MeasuredHost(**{m.name: holds for m in models}), asking(*models, **more)
        opinions = FitParamsCache(kept, ask=fit)
        async with learning_pool(
            host, *models, store=kept, opinions=opinions, predictions=questions
        ) as bench:
            yield bench


def opinion(bench: Bench, name: str = "a") -> str:
    return bench.pool.standings(name)[0].opinion


async def test_what_it_counts_more_is_reserved_before_the_child_is_started():
    fit = FitParams(8)
    async with asked_pool(fit, model("a", 5)) as bench:
        assert opinion(bench) == "open"
        await bench.pool.load("a")
        assert bench.starts("a") == [5 * GIB, 8 * GIB], "planned anew, and only then started"
        assert len(bench.host.started) == 1
        assert opinion(bench) == "more"
        standing = bench.pool.standings("a")[0]
        assert (standing.beyond[GPU], standing.reserved[GPU]) == (3 * GIB, 8 * GIB)


async def test_it_is_asked_once_and_what_it_says_outlives_the_router(tmp_path: Path):
    fit = FitParams(8)
    async with Store(tmp_path / "db") as store, asked_pool(fit, model("a", 5), store=store) as bench:
        await bench.pool.load("a")
        await bench.unload("a")
        await bench.pool.load("a")
        assert len(fit.asked) == 1
    async with Store(tmp_path / "db") as store, asked_pool(fit, model("a", 5), store=store) as bench:
        assert bench.pool.standings("a")[0].reserved[GPU] == 8 * GIB, "before anybody asks"
        await bench.pool.load("a")
        assert bench.starts("a") == [8 * GIB]
        assert len(fit.asked) == 1


@pytest.mark.parametrize(("gib", "said"), [(None, "none"), (4.0, "agrees")])
async def test_no_answer_and_a_smaller_one_change_nothing(gib: float | None, said: str, tmp_path: Path):
    fit = FitParams(gib)
    for _ in range(2):
        async with Store(tmp_path / "db") as store, asked_pool(fit, model("a", 5), store=store) as bench:
            await bench.pool.load("a")
            assert bench.starts("a") == [5 * GIB]
            assert opinion(bench) == said
    assert len(fit.asked) == 1, "what failed once fails again"


async def test_a_load_waits_for_it_no_longer_than_its_patience(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner, "LOAD_PATIENCE_SECONDS", 0.01)
    fit = FitParams(hangs=True)
    async with asked_pool(fit, model("a", 5), model("b", 5)) as bench:
        async with asyncio.timeout(10):
            await bench.pool.load("a")
            await bench.unload("a")
            await bench.pool.load("a")
        assert bench.starts("a") == [5 * GIB, 5 * GIB]
        assert (opinion(bench, "a"), opinion(bench, "b")) == ("none", "open")
        assert len(fit.asked) == 1


async def test_no_more_than_two_are_asked_at_a_time():
    running = most = 0

    async def ask(*_: object, is_urgent: bool):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with Store(None) as store, FitParamsCache(store, ask=ask) as opinions:
        questions = [Question(str(n), (), {}, (), (), touches_gpus=True) for n in range(9)]
        answers = await asyncio.gather(*(opinions.ask(one, (), within_seconds=10) for one in questions))
    assert most == opinions_module.AT_A_TIME
    assert answers == [()] * 9


async def test_who_hands_over_waits_for_what_is_being_asked_and_asks_no_more():
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def ask(*_: object, is_urgent: bool) -> tuple[FitRow, ...]:
        asked.set()
        await may_answer.wait()
        return (FitRow("Host", GIB, 0, 0),)

    async with Store(None) as store, FitParamsCache(store, ask=ask) as opinions, asyncio.TaskGroup() as tasks:
        first, second = (Question(name, (), {}, (), (), touches_gpus=False) for name in "ab")
        asking = tasks.create_task(opinions.ask(first, (), within_seconds=10))
        await asked.wait()
        closing = tasks.create_task(opinions.close())
        await asyncio.sleep(0)
        assert not closing.done(), "its end would be nobody's to notice"
        may_answer.set()
        await closing
        assert (await asking)[0].model_bytes == GIB
        assert await opinions.ask(second, (), within_seconds=10) == ()
        assert opinions.of(second) is None
        assert set(await store.rows(ANSWERS)) == {"a"}


async def test_a_measurement_has_the_last_word_over_a_count():
    async with asked_pool(FitParams(8), model("a", 5), holds=2) as bench:
        await bench.pool.load("a")
        await bench.use("a", times=12)
        assert bench.pool.standings("a")[0].confidence == "proven"
        assert bench.reserved("a") < 3 * GIB


async def test_running_out_of_memory_is_still_believed_after_the_opinion_came():
    async with asked_pool(FitParams(8), model("a", 5)) as bench:
        bench.host.fail_next = [out_of_memory()]
        await bench.pool.load("a")
        first, second, third = bench.starts("a")
        assert (first, second) == (5 * GIB, 8 * GIB)
        assert third >= second * 1.15 - 1


async def test_models_on_the_host_are_asked_about_before_anybody_wants_them():
    fit = FitParams(8)
    async with asked_pool(fit, model("a", 5), model("b", 5), touches_gpus=False) as bench:
        told = _tell(bench.learning, bench.pool)
        try:
            await until(lambda: {opinion(bench, "a"), opinion(bench, "b")} == {"more"})
            await until(lambda: len(bench.events(Learned)) == 2)
        finally:
            told.cancel()
        await bench.pool.load("b")
        assert bench.starts("b") == [8 * GIB]
        assert len(fit.asked) == 2


async def test_one_load_with_other_settings_is_asked_about_too():
    fit, own = FitParams(8), model("a", 5)
    other = replace(own, definition=Definition(own.definition.hash, "ctx_size=7"))
    async with asked_pool(fit, own) as bench:
        (asked,) = asking(own)["a"]
        assert asked.question is not None
        question = replace(asked.question, key="with other settings")
        places = (replace(asked, key="a otherwise", question=question),)
        await bench.pool.load("a", overrides=bench.learning.vary(other, places))
        assert bench.starts("a") == [5 * GIB, 8 * GIB]
        assert bench.pool.standings("a")[0].opinion == "open", "of its own settings nothing was asked"


async def test_a_gpu_is_not_touched_before_its_memory_is_reserved():
    fit = FitParams(8)
    async with asked_pool(fit, model("a", 5)) as bench:
        told = _tell(bench.learning, bench.pool)
        for _ in range(20):
            await asyncio.sleep(0)
        told.cancel()
        assert not fit.asked


def _tell(learning: Learning, pool: Pool) -> asyncio.Task[None]:
    async def tell() -> None:
        async for event in learning.second_opinions():
            pool.tell(event)

    return asyncio.get_running_loop().create_task(tell())
