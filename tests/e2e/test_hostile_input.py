"""Ten thousand requests that mean no good, on raw sockets: the router serves on, and nothing outside its
folders has changed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.conftest import Start
from tests.e2e.hostile import FIELDS, ODD_VALUES, PATHS, Hostile, draw
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import binary

SEED = int(os.environ.get("HOSTILE_SEED", "1"))
COUNT = 10_000
#: So many talk at once, and whoever is answered properly says so much in one breath.
TALKERS = 32
BREATH = 16
#: Whoever is not answered by then is waited for, as its request has not ended.
PATIENCE_SECONDS = 0.3
MOST_GROWTH_BYTES = 200 << 20


class Talk:
    """One after another of what was drawn, on connections of their own."""

    def __init__(self, up: RouterProcess) -> None:
        where = urlsplit(up.url)
        self._where = where.hostname, where.port
        self.statuses: dict[str, Counter[int]] = {}
        self.wrong: list[str] = []

    async def say(self, breath: list[Hostile]) -> None:
        """`breath` is several whole requests, which must get as many answers, or a single other one."""
        reader, writer = await asyncio.open_connection(*self._where)
        try:
            writer.write(b"".join(one.data for one in breath))
            if breath[0].is_whole:
                for before, one in zip([None, *breath], breath, strict=False):
                    got = await answer(reader, one.data)
                    self._note(one, got, before)
                    if got is None:
                        return
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):  # it may be waiting for more
                    while (got := await answer(reader, breath[0].data)) is not None:
                        self._note(breath[0], got, None)
                    return
            writer.write_eof()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # The rest of what is refused is not read, and its sender may see a reset instead of the answer.
            if breath[0].is_whole:
                self.wrong.append(f"{[one.kind for one in breath]}: {error!r}")
        finally:
            writer.close()

    def _note(self, said: Hostile, got: tuple[int, bytes] | None, before: Hostile | None) -> None:
        if got is None:
            behind = f" behind {before.data[:300]!r}" if before is not None else ""
            self.wrong.append(f"{said.kind}: no answer to {said.data[:300]!r}{behind}")
            return
        status, body = got
        self.statuses.setdefault(said.kind, Counter())[status] += 1
        if status >= 500 and status not in (501, 503, 505):
            self.wrong.append(f"{said.kind}: {status} {body[:300]!r} to {said.data[:300]!r}")
        if status >= 400 and body and not is_error(body):
            self.wrong.append(f"{said.kind}: {status} {body[:300]!r} to {said.data[:300]!r}")


def is_error(body: bytes) -> bool:
    """Whether a client can read what was wrong."""
    try:
        error = json.loads(body)["error"]
        return bool(error["message"] and error["type"])
    except (ValueError, KeyError, TypeError):
        return False


async def answer(reader: asyncio.StreamReader, said: bytes) -> tuple[int, bytes] | None:
    """Status and body of the next answer; None: there is no further one."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    status = int(head.split(" ", 2)[1])
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if said.startswith(b"HEAD ") or status in (204, 304):
        return status, b""
    if "chunked" in fields.get("transfer-encoding", ""):
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return status, body
    return status, await reader.readexactly(int(fields.get("content-length", 0)))


def breaths(drawn: Iterable[Hostile]) -> Iterator[list[Hostile]]:
    """Several whole ones together, each of the others alone."""
    together: list[Hostile] = []
    for one in drawn:
        if not one.is_whole:
            yield [one]
        else:
            together.append(one)
            if len(together) == BREATH:
                yield together
                together = []
    if together:
        yield together


def seen(folder: Path, besides: tuple[Path, ...]) -> dict[str, tuple[int, int, int]]:
    """Everything below `folder`, but what may change."""
    found = {}
    for path in folder.rglob("*"):
        if not any(path == one or one in path.parents for one in besides):
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the paths of Unix sockets are bounded. What the router has is two folders deeper."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        inner = Path(name) / "a" / "b"
        inner.mkdir(parents=True)
        for above in (inner, inner.parent, inner.parent.parent):
            (above / "canary").write_text("sings")
            (above / "canary.gguf").write_text("sings")
        yield inner


async def test_hostile_requests_leave_the_router_serving_and_touch_nothing(folder: Path):
    home = folder / "home"
    home.mkdir()
    env = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
    }
    # Whatever it is asked to fetch, there is nobody to fetch it from.
    env |= {"HF_ENDPOINT": "http://127.0.0.1:1", "PYTHONDONTWRITEBYTECODE": "1"}
    limits = ("max_body_mib = 1", "request_head_seconds = 2.0", "request_body_seconds = 2.0")
    config = "\n".join(("[server]", *limits, "access_log = false\n"))
    up = RouterProcess(folder, binary(folder), config=config, env=env)
    for model in ("tiny", "other"):
        make_llama(up.models / f"{model}.gguf", sparse=True)
    changing = (up.state, folder / "output", folder / "no-cache")
    async with up:
        assert (await up.chat("tiny"))[0] == 200
        before = seen(folder.parent.parent, changing)
        process = psutil.Process(up.process.pid)
        files, memory = process.num_fds(), process.memory_info().rss

        talk = Talk(up)
        queue = breaths(draw(SEED, COUNT))

        async def go_on() -> None:
            while (breath := next(queue, None)) is not None:
                await talk.say(breath)

        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for _ in range(TALKERS):
                group.create_task(go_on())

        assert not talk.wrong, f"HOSTILE_SEED={SEED}:\n" + "\n".join(islice(talk.wrong, 20))
        kinds = {one.kind for one in draw(SEED, 16)} - {"truncated"}
        assert talk.statuses.keys() >= kinds, "every kind was answered"
        assert min(talk.statuses["two lengths"]) >= 400, "and nothing was smuggled in behind another"

        assert up.process.poll() is None
        async with up.client.get("/health") as health:
            assert health.status == 200
        for model in ("tiny", "other"):
            assert (await up.chat(model))[0] == 200
        assert "Traceback" not in up.output
        assert seen(folder.parent.parent, changing) == before
        await up.until(lambda: process.num_fds() <= files + 8, "the connections are closed")
        assert process.memory_info().rss - memory < MOST_GROWTH_BYTES
        assert await up.stop() == 0
    assert not list(folder.parent.parent.rglob("owned"))


@pytest.mark.e2e
async def test_what_reaches_a_real_llama_server_does_not_end_it(router: Start):
    """Odd values in the right places, to every path that a model answers. One that would generate for long
    is left alone after a moment."""
    chance = random.Random(SEED)
    paths = [path for path in PATHS if path.startswith("/v1/") or path.count("/") == 1]
    paths = [path for path in paths if path not in ("/models", "/v1/streams/lookup", "/props")]
    async with router("one") as up:
        assert (await up.chat("one"))[0] == 200
        (child,) = up.children()
        seen = Counter[int]()
        fields = [name for name in FIELDS if name != "keep_alive"]  # 0 would unload it, as it should

        async def ask() -> None:
            odd = {name: chance.choice(ODD_VALUES) for name in chance.sample(fields, chance.randrange(1, 6))}
            usual = {
                "messages": [{"role": "user", "content": "x"}],
                "prompt": "x",
                "input": "x",
                "content": "x",
            }
            body = json.dumps({"max_tokens": 4, "n_predict": 4} | usual | odd | {"model": "one"})
            with suppress(TimeoutError):
                async with asyncio.timeout(2), up.client.post(chance.choice(paths), data=body) as answer:
                    await answer.read()
                    seen[answer.status] += 1

        async def go_on() -> None:
            for _ in range(60):
                await ask()

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(go_on())
        assert seen[200] > 10 and seen[400] > 10, seen
        assert not seen[502], "no answer was missing"
        assert [one.pid for one in up.children()] == [child.pid]
        assert (await up.chat("one"))[0] == 200
