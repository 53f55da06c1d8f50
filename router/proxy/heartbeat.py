"""Heartbeats: a streamed request of which nothing has come yet is told what it waits for (its model, a slot
of an instance, its prompt to be processed) and how long that may take. By comments, which no client of
server-sent events shows, or by Anthropic's pings."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from time import monotonic
from typing import Final

import msgspec

from router.proxy.answer import Answer
from router.proxy.client import ClientResponse
from router.proxy.errors import takes_events
from router.proxy.info import Dialect, RequestInfo, RequestStats
from router.scheduler.types import State
from router.scheduler.views import Snapshot
from router.supervisor.pool import Pool
from router.supervisor.stall import InstanceTraffic

#: What llama-server sends itself in a stream that is silent (`--sse-ping-interval`, 30 s): no event has come
#: yet.
_PING: Final = b":\n\n"
#: The most that the snapshot behind a heartbeat may be old.
SNAPSHOT_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class HeartbeatConfig:
    """After `head_seconds` a stream of which nothing has come is begun, and gets a heartbeat every
    `beat_seconds` until something comes. 0: never.
    """

    head_seconds: float = 1.5
    beat_seconds: float = 5.0


class SnapshotCache:
    """One snapshot of the scheduler for all requests that wait: there may be hundreds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._latest: Snapshot | None = None
        #: Monotonic time.
        self._taken_at = 0.0

    def latest(self) -> Snapshot:
        """Not older than SNAPSHOT_SECONDS."""
        now = monotonic()
        if self._latest is None or now - self._taken_at > SNAPSHOT_SECONDS:
            self._latest, self._taken_at = self._pool.snapshot(), now
        return self._latest


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of a heartbeat. `state` is "queued" or "loading" while the model is not ready, "queued"
    also for a slot of an instance, and "processing" once llama-server may work on the prompt. `position`, 1
    is next, counts models, as requests for the same model are served together; for a slot it counts requests.
    """

    model: str
    state: str
    waited_seconds: float
    position: int | None = None
    expected_seconds: float | None = None
    waits_for: str | None = None


class Serving(msgspec.Struct, frozen=True, gc=False):
    """Where a request is once it has a lease: the traffic of its instance, its number there, and how many
    requests the instance serves at a time, None where that is not known.
    """

    traffic: InstanceTraffic
    number: int
    slots: int | None


class Heartbeat:
    """The heartbeats of one request: `start` sends the first, and they end by themselves when something of
    the answer has come."""

    def __init__(
        self,
        snapshots: SnapshotCache,
        config: HeartbeatConfig,
        client: ClientResponse,
        info: RequestInfo,
        stats: RequestStats,
        begun_at: float,
    ) -> None:
        """`begun_at`: when the request arrived, in monotonic time."""
        self._snapshots = snapshots
        self._config = config
        self._client = client
        self._info = info
        self._stats = stats
        self._begun_at = begun_at
        self._timer: asyncio.TimerHandle | None = None
        #: None: the request waits for a lease.
        self._serving: Serving | None = None
        #: Whether the instance's own head was sent since the last heartbeat.
        self._has_seen_head = False
        #: As many bytes of the answer are a ping of llama-server's.
        self._ping_bytes = 0
        #: The instance's answer, once it begins.
        self.answer: Answer | None = None

    def start(self, serving: Serving | None, answer: Answer | None) -> None:
        self._serving, self.answer = serving, answer
        self._beat()

    def serving(self, serving: Serving) -> None:
        """The request has a lease."""
        self._serving = serving

    def requeue(self) -> None:
        """The request waits for a lease once more: its instance has died."""
        self._serving = self.answer = None
        self._set_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self.stop()
        seconds = self._config.beat_seconds if self._client.has_begun else self._config.head_seconds
        if seconds:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._beat)

    def _beat(self) -> None:
        if self._has_come():
            self._timer = None
            return
        client = self._client
        if not client.has_begun:
            event = self._event()
            client.write(client.early_head())
            client.send_event(event)
        elif not client.is_early and not self._has_seen_head:
            self._has_seen_head = True  # the instance's own head came meanwhile, and shows that it works
        elif not client.is_full and takes_events(client, self.answer):
            client.send_event(self._event())
        self._set_timer()

    def _has_come(self) -> bool:
        """Whether something of the answer has come that is more than a ping."""
        sent, answer = self._stats.sent_bytes, self.answer
        if sent - self._ping_bytes == len(_PING) and answer is not None and answer.has_last(_PING):
            self._ping_bytes = sent
        return sent > self._ping_bytes

    def _event(self) -> bytes:
        serving = self._serving
        place = self._place() if serving is None else self._place_at_instance(serving)
        return _event(place, self._info.dialect)

    def _place(self) -> Place:
        """Before there is a lease. Sets the action of the stats, where the client has no head yet, and their
        seconds as far as they are known.
        """
        model, snapshot = self._info.model, self._snapshots.latest()
        waited = monotonic() - self._begun_at
        loading = next((i for i in snapshot.of_model(model) if i.state is State.STARTING), None)
        queue = next((queue for queue in snapshot.queues if queue.model == model), None)
        loaded_for = min(waited, snapshot.now - loading.since) if loading is not None else 0.0
        self._stats.queue_seconds, self._stats.load_seconds = waited - loaded_for, loaded_for
        expected = queue.expected_seconds if queue is not None else None
        state = "loading" if loading is not None else "queued"
        if not self._client.has_begun:
            self._stats.action = state
        return Place(
            model=model,
            state=state,
            waited_seconds=round(waited, 1),
            position=queue.position if queue is not None else None,
            expected_seconds=round(expected, 1) if expected is not None else None,
            waits_for=queue.reason if queue is not None else None,
        )

    def _place_at_instance(self, serving: Serving) -> Place:
        """llama-server gives its slots to requests in the order in which they came, and begins a stream when
        it has a slot (b11434).
        """
        model, slots, now = self._info.model, serving.slots, monotonic()
        waited = now - self._begun_at
        ages = [now - at for number, at in serving.traffic.open.items() if number < serving.number]
        has_slot = self.answer is not None and self.answer.head is not None
        if has_slot or slots is None or len(ages) < slots:
            return Place(model, "processing", round(waited, 1), waits_for="its prompt to be processed")
        usual = next((m.hold_seconds for m in self._snapshots.latest().models if m.name == model), None)
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
    encoded = msgspec.json.encode(place)
    match dialect:
        case Dialect.OPENAI:
            return b": llama-router " + encoded + b"\n\n"
        case Dialect.ANTHROPIC:
            return b": llama-router " + encoded + b'\nevent: ping\ndata: {"type": "ping"}\n\n'
