"""Visible waiting: a streamed request that has nothing of its answer yet is told what it waits for (its
model, a slot of it, its prompt to be processed) and how long that may take. By comments, which no client of
server-sent events shows, or by Anthropic's pings."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Final, Self

import msgspec

from router.proxy.answer import Answer
from router.proxy.ask import Dialect, RequestInfo, RequestStats
from router.proxy.client import Client
from router.proxy.telling import takes_events
from router.scheduler.types import State
from router.scheduler.views import Snapshot
from router.supervisor.pool import Pool
from router.supervisor.stall import InstanceTraffic

#: What llama-server says itself in a stream that is silent (`--sse-ping-interval`, 30 s): no event has come
#: yet.
_PING: Final = b":\n\n"
#: What who waits is told may be so old.
PICTURE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class HeartbeatConfig:
    """After `head_seconds` a stream of which nothing has come is begun, and gets a sign of life every
    `beat_seconds` until something comes. 0: never.
    """

    head_seconds: float = 1.5
    beat_seconds: float = 5.0


class SnapshotCache:
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
    """What is told. `state` is "queued" or "loading" while the model is not there, "queued" also for a slot
    of it, and "processing" once llama-server may work on the prompt. `position`, 1 is next, counts models, as
    requests for the same model are served together; for a slot it counts requests.
    """

    model: str
    state: str
    waited_seconds: float
    position: int | None = None
    expected_seconds: float | None = None
    waits_for: str | None = None


class Serving(msgspec.Struct, frozen=True, gc=False):
    """Where a request is once it has a lease: the requests of its instance, its number among them, and how
    many of them the instance serves at a time (`parallel`), None where that is not known.
    """

    flow: InstanceTraffic
    number: int
    slots: int | None


class Waiting:
    """`with Waiting(...) as waiting` from the request's arrival on; `served` once it has a lease, and it ends
    by itself when something of the answer has come. `answer` is what the child says.
    """

    def __init__(
        self,
        pictures: SnapshotCache,
        patience: HeartbeatConfig,
        client: Client,
        ask: RequestInfo,
        account: RequestStats,
    ) -> None:
        self._pictures = pictures
        self._patience = patience
        self._client = client
        self._ask = ask
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._begun_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._serving: Serving | None = None
        self._has_seen_head = False
        self._ping_bytes = 0
        self.answer: Answer | None = None

    def __enter__(self) -> Self:
        self.again()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()

    def served(self, serving: Serving) -> None:
        """It has a lease."""
        self._serving = serving

    def over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def again(self) -> None:
        """It waits once more: its child has died."""
        self._serving = self.answer = None
        self._set_timer()

    def go_on(self, serving: Serving, answer: Answer | None, waited_seconds: float) -> None:
        """Begin with a request that has waited for so long at a child already."""
        self._serving, self.answer = serving, answer
        self._begun_at -= waited_seconds
        self._beat()

    def _set_timer(self) -> None:
        self.over()  # two clocks would tell more than one answer can hold
        seconds = self._patience.beat_seconds if self._client.has_begun else self._patience.head_seconds
        if self._ask.stream and self._patience.head_seconds and seconds:
            self._timer = self._loop.call_later(seconds, self._beat)

    def _beat(self) -> None:
        if self._has_come():
            self._timer = None
            return
        client = self._client
        if not client.has_begun:
            event = self._event()
            client.write(client.early_head())
            client.say(event)
        elif not client.is_early and not self._has_seen_head:
            self._has_seen_head = True  # the child's own came meanwhile, and is a sign of life itself
        elif not client.is_full and takes_events(client, self.answer):
            client.say(self._event())
        self._set_timer()

    def _has_come(self) -> bool:
        """Whether something of the answer has come that is more than a sign of life."""
        sent, answer = self._account.sent_bytes, self.answer
        if sent - self._ping_bytes == len(_PING) and answer is not None and answer.has_last(_PING):
            self._ping_bytes = sent
        return sent > self._ping_bytes

    def _event(self) -> bytes:
        serving = self._serving
        return _event(self._place() if serving is None else self._place_at_child(serving), self._ask.dialect)

    def _place(self) -> Place:
        """Before there is a lease. Sets the account's action, where the client has no head yet, and its
        seconds as far as they are known.
        """
        now, model, picture = self._loop.time(), self._ask.model, self._pictures.latest()
        waited = now - self._begun_at
        loading = next((i for i in picture.of_model(model) if i.state is State.STARTING), None)
        queue = next((queue for queue in picture.queues if queue.model == model), None)
        loaded_for = min(waited, picture.now - loading.since) if loading is not None else 0.0
        self._account.queue_seconds, self._account.load_seconds = waited - loaded_for, loaded_for
        expected = queue.expected_seconds if queue is not None else None
        state = "loading" if loading is not None else "queued"
        if not self._client.has_begun:
            self._account.action = state
        return Place(
            model=model,
            state=state,
            waited_seconds=round(waited, 1),
            position=queue.position if queue is not None else None,
            expected_seconds=round(expected, 1) if expected is not None else None,
            waits_for=queue.reason if queue is not None else None,
        )

    def _place_at_child(self, serving: Serving) -> Place:
        """llama-server gives its slots to requests in the order in which they came, and begins a stream when
        it has a slot (b11434).
        """
        model, waited = self._ask.model, self._loop.time() - self._begun_at
        slots, now = serving.slots, monotonic()
        ages = [now - at for number, at in serving.flow.open.items() if number < serving.number]
        has_slot = self.answer is not None and self.answer.head is not None
        if has_slot or slots is None or len(ages) < slots:
            return Place(model, "processing", round(waited, 1), waits_for="its prompt to be processed")
        usual = next((m.hold_seconds for m in self._pictures.latest().models if m.name == model), None)
        position = len(ages) - slots + 1
        expected = None if usual is None else _slot_free_in(ages[:slots], usual, position)
        return Place(
            model,
            "queued",
            round(waited, 1),
            position,
            None if expected is None else round(expected, 1),
            f"a slot: {len(ages)} requests came before, and the model serves {slots} at a time",
        )


def _slot_free_in(ages: list[float], usual: float, position: int) -> float:
    """Seconds until as many as `position` requests have ended, where those that are served have run for
    `ages` and each takes as long as is usual.
    """
    ends = sorted(max(0.0, usual - age) for age in ages)
    for _ in range(position - 1):
        heapq.heappush(ends, heapq.heappop(ends) + usual)
    return ends[0]


def _event(place: Place, dialect: Dialect) -> bytes:
    told = msgspec.json.encode(place)
    match dialect:
        case Dialect.OPENAI:
            return b": llama-router " + told + b"\n\n"
        case Dialect.ANTHROPIC:
            return b": llama-router " + told + b'\nevent: ping\ndata: {"type": "ping"}\n\n'
