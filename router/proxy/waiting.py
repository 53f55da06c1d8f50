"""Visible waiting: a streamed request whose model is not there yet is told what it waits for and how long it
may take. By comments, which no client of server-sent events shows, or by Anthropic's pings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import msgspec

from router.core.types import State
from router.core.views import Snapshot
from router.pool import Pool
from router.proxy.ask import Account, Ask, Dialect
from router.proxy.client import Client

#: What who waits is told may be so old.
PICTURE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Patience:
    """After `head_seconds` a stream that waits for its model is begun, and gets a sign of life every
    `beat_seconds`. 0: never.
    """

    head_seconds: float = 1.5
    beat_seconds: float = 5.0


class Pictures:
    """Of the scheduler, one for all who wait: hundreds may, and each picture is of everything."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._latest: Snapshot | None = None
        self._taken_at = 0.0

    def latest(self) -> Snapshot:
        """Not older than PICTURE_SECONDS."""
        now = asyncio.get_running_loop().time()
        if self._latest is None or now - self._taken_at > PICTURE_SECONDS:
            self._latest, self._taken_at = self._pool.snapshot(), now
        return self._latest


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is told. `position` counts models, 1 is next; requests for the same model are served together."""

    model: str
    state: str
    waited_seconds: float
    position: int | None = None
    expected_seconds: float | None = None
    waits_for: str | None = None


class Waiting:
    """`with Waiting(...) as waiting` from the request's arrival on; `over()` once its model is there."""

    def __init__(
        self, pictures: Pictures, patience: Patience, client: Client, ask: Ask, account: Account
    ) -> None:
        self._pictures = pictures
        self._patience = patience
        self._client = client
        self._ask = ask
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._begun_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self.again()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()

    def over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def again(self) -> None:
        """It waits once more: its child has died."""
        self.over()  # two clocks would tell more than one answer can hold
        seconds = self._patience.beat_seconds if self._client.has_begun else self._patience.head_seconds
        if self._ask.stream and self._patience.head_seconds and seconds:
            self._timer = self._loop.call_later(seconds, self._beat)

    def _beat(self) -> None:
        place = self._place()
        event = _event(place, self._ask.dialect)
        if not self._client.has_begun:
            self._account.action = place.state
            self._client.write(self._client.early_head())
            self._client.say(event)
        elif not self._client.is_full:
            self._client.say(event)
        self.again()

    def _place(self) -> Place:
        """Sets the account's seconds as far as they are known."""
        now, model, picture = self._loop.time(), self._ask.model, self._pictures.latest()
        waited = now - self._begun_at
        loading = next((i for i in picture.of_model(model) if i.state is State.STARTING), None)
        queue = next((queue for queue in picture.queues if queue.model == model), None)
        loaded_for = min(waited, picture.now - loading.since) if loading is not None else 0.0
        self._account.queue_seconds, self._account.load_seconds = waited - loaded_for, loaded_for
        expected = queue.expected_seconds if queue is not None else None
        return Place(
            model=model,
            state="loading" if loading is not None else "queued",
            waited_seconds=round(waited, 1),
            position=queue.position if queue is not None else None,
            expected_seconds=round(expected, 1) if expected is not None else None,
            waits_for=queue.reason if queue is not None else None,
        )


def _event(place: Place, dialect: Dialect) -> bytes:
    told = msgspec.json.encode(place)
    match dialect:
        case Dialect.OPENAI:
            return b": llama-router " + told + b"\n\n"
        case Dialect.ANTHROPIC:
            return b": llama-router " + told + b'\nevent: ping\ndata: {"type": "ping"}\n\n'
