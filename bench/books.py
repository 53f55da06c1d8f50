"""What the router's books cost per request for a model that is ready: `python -m bench.books`.

A real Pool with its Scheduler, its learner and all that follows its journal, over a host without processes:
what each request costs beside its bytes, in microseconds of processor time of the whole process (lines are
written by a thread, to a process that reads them). A request is `whole`; `by lease` takes
and gives back as one does that may have to wait; the others are its parts alone, as often as a request needs
them: together they take less, as the processor knows what comes next. Each figure is the least of many short
rounds, as others may use the machine. The figures are printed, never asserted."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, cast

from router.admin import CONTEXT, Context, Known, application
from router.admin.access_log import ACCESS_LOG
from router.app.read_ahead import ReadAhead
from router.cli.log_lines import AsyncLogHandler, Lines
from router.config import Config, ServerConfig
from router.db.store import Store
from router.ids import Definition
from router.memory.estimate.learning import Prediction
from router.models.catalog import Catalog
from router.models.definitions import Definitions
from router.observability.journal import Entry, Journal
from router.proxy import RequestStats
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Acquire, Grant, Model, Pinned, Placement, Release
from router.supervisor.calibration import Learning
from router.supervisor.pool import Pool
from tests.fake_host import GIB, FakeHost

ROUNDS: Final = 50
ASKED = ("127.0.0.1", "POST", "/v1/chat/completions")
REQUEST_STATS = RequestStats(
    "m0",
    "already_loaded",
    first_byte_seconds=0.012,
    instance="m0#1",
    prompt_tokens=20,
    cached_tokens=3,
    completion_tokens=64,
    tokens_per_second=80.0,
)


@dataclass(frozen=True, slots=True)
class Scene:
    """`models` are ready, and `held` leases of the one that is asked for are out all the time."""

    name: str
    models: int = 1
    held: int = 0
    ttl: float | None = None
    log_format: str = "text"


SCENES = (
    Scene("one model"),
    Scene("64 leases out", held=64, ttl=600.0),
    Scene("20 models with ttl", models=20, ttl=600.0),
    Scene("access log as JSON", log_format="json"),
)


class SchedulerState:
    """The parts, put together as `router.app` does it."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        host = FakeHost(total_gib=1000.0)
        device = host.device
        places = (Placement("local", {device.id: 4 * GIB}, (device.id,)),)
        names = [f"m{number}" for number in range(scene.models)]
        self.models = {n: Model(n, places, Definition("1"), ttl=scene.ttl, load_seconds=0.01) for n in names}
        prediction = Prediction("key", "card", (device.id,), (4 * GIB,), (0,), (23 * GIB,))
        self.store = Store(folder / "books.sqlite")
        self.learning = Learning(self.store)
        self.learning.define(self.models, dict.fromkeys(names, (prediction,)), (device,))
        self.scheduler = Scheduler(
            self.models, (device,), make_policy("lru"), Settings(evict_on_memory_pressure=True)
        )
        self.pool = Pool(
            self.scheduler,
            [host],
            lambda *_: cast(Any, None),
            Journal(),
            definitions=self.models,
            learner=self.learning,
        )
        config = Config(server=ServerConfig(access_log_format=cast(Any, scene.log_format)))
        self.app = application(config.server)
        known = Known.of(Catalog(), Definitions({}, {}, config, folder))
        nothing = cast(Any, None)  # reloads and tasks, which there are none of
        self.context = self.app[CONTEXT] = Context(config, known, self.pool, nothing, nothing, nothing)
        ahead = ReadAhead(lambda _: (), lambda: 0)
        self.pool.journal.follow(ahead.heard, *ahead.HEARD)
        self.pool.journal.follow(_keep_pins, Pinned)


def _keep_pins(entry: Entry) -> None:
    """As long as no pin is set, nothing."""


@asynccontextmanager
async def books(scene: Scene) -> AsyncIterator[SchedulerState]:
    with tempfile.TemporaryDirectory() as folder:
        made = SchedulerState(scene, Path(folder))
        async with made.store, made.learning, made.pool:
            await asyncio.gather(*(made.pool.load(name) for name in made.models))
            held = [made.pool.acquire_nowait("m0") for _ in range(scene.held)]
            yield made
            for lease in held:
                assert lease is not None, "it was ready"
                made.pool.release(lease)


def parts(made: SchedulerState) -> dict[str, Callable[[], object]]:
    """What is to be timed: each call is one request's share."""
    pool, scheduler, log = made.pool, made.scheduler, made.app[ACCESS_LOG]
    loop, numbers, requests = asyncio.get_running_loop(), count(), made.context.metrics.requests
    acquire, release, granted = Acquire("r0", "m0", None, None, 64.0), Release("r0"), Grant("r0", "m0#1")

    def whole() -> None:
        lease = pool.acquire_nowait("m0", size=64.0)
        assert lease is not None, "it is ready"
        pool.release(lease)
        log.ended(*ASKED, REQUEST_STATS, 200, 0.8)

    def leased() -> None:
        lease = pool.acquire_nowait("m0", size=64.0)
        assert lease is not None, "it is ready"
        pool.release(lease)

    def decided() -> None:
        name = f"x{next(numbers)}"
        scheduler.handle(Acquire(name, "m0", size=64.0), loop.time())
        scheduler.handle(Release(name), loop.time())

    def journal() -> None:
        pool.journal.record(1.0, acquire, [granted], is_routine=True)
        pool.journal.record(1.0, release, [], is_routine=True)

    def counted() -> None:
        requests.ended(REQUEST_STATS, 200, 0.8)

    def ended() -> None:
        log.ended(*ASKED, REQUEST_STATS, 200, 0.8)

    return {
        "whole": whole,
        "acquire, release": leased,
        "core": decided,
        "journal": journal,
        "metrics, line": ended,
        "metrics": counted,
    }


async def measure(scene: Scene, requests: int, handler: logging.Handler) -> dict[str, float]:
    """By turns, so that what others do to the machine meets all of them."""
    async with books(scene) as made:
        timed = parts(made)
        found = dict.fromkeys((*timed, "by lease"), math.inf)
        for _ in range(ROUNDS):
            for name, one in timed.items():
                with clocked(found, name, requests, handler):
                    for _ in range(requests):
                        one()
            with clocked(found, "by lease", requests, handler):
                for _ in range(requests):
                    async with made.pool.lease("m0"):
                        pass
        return found


@contextmanager
def clocked(found: dict[str, float], name: str, requests: int, handler: logging.Handler) -> Iterator[None]:
    """A round ends when its lines are written."""
    begun = time.process_time()
    yield
    handler.flush()
    found[name] = min(found[name], (time.process_time() - begun) / requests * 1e6)


@contextmanager
def logging_to_a_reader() -> Iterator[logging.Handler]:
    """As under systemd: a pipe, and somebody who reads it."""
    with subprocess.Popen(("cat",), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        handler = AsyncLogHandler(TextIOWrapper(cast(IO[bytes], reader.stdin)))
        handler.setFormatter(Lines())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        yield handler
        handler.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=250, help="of a round [%(default)s]")
    asked = parser.parse_args()
    with logging_to_a_reader() as handler:
        rows = {scene.name: asyncio.run(measure(scene, asked.requests, handler)) for scene in SCENES}
    names = list(next(iter(rows.values())))
    sys.stdout.write(f"{'us per request':20}" + "".join(f"{name:>{len(name) + 2}}" for name in names) + "\n")
    for scene, found in rows.items():
        figures = "".join(f"{found[name]:{len(name) + 2}.1f}" for name in names)
        sys.stdout.write(f"{scene:20}{figures}\n")


if __name__ == "__main__":
    main()
