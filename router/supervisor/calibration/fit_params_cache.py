"""What llama-fit-params has answered: read at the start, asked for once, kept until a file or a program is
another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Self

import msgspec

from router.db.store import Store, Table
from router.memory.estimate import fit_params
from router.memory.estimate.fit_params import FitRow, Question
from router.memory.estimate.learning import FORGET_SECONDS
from router.models.catalog.candidate import Stamp
from router.supervisor.calibration.kept import stale

#: Asked at a time: one for those who wait for a load, one for those who do not.
AT_A_TIME: Final = 2
#: A load waits no longer than this, also for its turn. It takes some 0.3 s, and a GPU has to be opened.
LOAD_PATIENCE_SECONDS: Final = 3.0

#: Its rows, none where it has no answer.
Answer = tuple[FitRow, ...]


class _Kept(msgspec.Struct, frozen=True):
    """An answer, and the files that it is about."""

    rows: Answer
    files: tuple[Stamp, ...]


#: By the key of the question.
ANSWERS: Final = Table("fit_params", str, _Kept)


class FitParamsCache:
    """An async context manager: entering reads what is kept. `of` never waits."""

    def __init__(
        self,
        store: Store,
        *,
        ask: Callable[..., Awaitable[Answer | None]] = fit_params.ask,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ask = ask
        self._now = now
        self._answers: dict[str, Answer] = {}
        self._turn = asyncio.Semaphore(AT_A_TIME)
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self._store.delete_old(ANSWERS, older_than=self._now() - FORGET_SECONDS)
        kept = await self._store.rows(ANSWERS)
        gone = await asyncio.to_thread(lambda: set(stale((key, one.files) for key, one in kept.items())))
        for key, one in kept.items():
            if key in gone:
                await self._store.delete(ANSWERS, key)
            else:
                self._answers[key] = one.rows
        return self

    async def __aexit__(self, *_: object) -> None:
        """What was answered is kept already."""

    def of(self, question: Question) -> Answer | None:
        """The answer; None when it was never asked for."""
        return self._answers.get(question.key)

    async def close(self) -> None:
        """Ask no more, and return when nobody is being asked: the next router does."""
        self._is_closed = True
        for _ in range(AT_A_TIME):
            await self._turn.acquire()

    async def ask(self, question: Question, files: tuple[Stamp, ...], *, within_seconds: float) -> Answer:
        """The answer, asked for where it is not known. One that does not come in time counts as none until
        the next start."""
        if self._is_closed:
            return ()
        try:
            async with asyncio.timeout(within_seconds), self._turn:
                if question.key not in self._answers and not self._is_closed:
                    await self._put(question, files)
        except TimeoutError:
            self._answers.setdefault(question.key, ())
        return self._answers.get(question.key, ())

    async def _put(self, question: Question, files: tuple[Stamp, ...]) -> None:
        rows = await self._ask(question.argv, question.env, is_urgent=question.touches_gpus)
        self._answers[question.key] = answer = rows or ()
        await self._store.put(ANSWERS, question.key, _Kept(answer, files), self._now())
