"""Whatever a child says, and in whatever pieces, a client hears the same through the router as without it;
and whoever breaks off, nothing is left behind.

`CONFORMANCE_EXCHANGES` makes it longer, `CONFORMANCE_SEED` other."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import uvloop

from router.proxy import ProxyContext, RequestInfo
from router.supervisor.pool import Pool
from tests.admin.fake_pool import FakePool
from tests.proxy.bench import Counted, proxy_server
from tests.proxy.exchanges import Framing, Request, make
from tests.proxy.wire import Headers, Message, ScriptedChild, read_answer
from tests.waiting import until

EXCHANGES = int(os.environ.get("CONFORMANCE_EXCHANGES", "5000"))
SEED = int(os.environ.get("CONFORMANCE_SEED", "1"))
CLIENTS = 16
DEADLINE = 30.0
#: Of the connection, or ours: they need not be the same on both.
_OWN = {"connection", "keep-alive", "transfer-encoding", "x-accel-buffering"}
_NOT_FOR_THE_CHILD = {"connection", "transfer-encoding", "content-length", "authorization"}


def test_5000_exchanges_are_the_same_through_the_router_as_without_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("router.proxy.failures.EXIT_NOTICE_SECONDS", 0.01)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(compare(tmp_path, EXCHANGES, SEED))
    for what in ("same", "cut", "error event", "502", "client left", "kept connection"):
        assert seen[what] > EXCHANGES / 250, f"hardly any {what}: {seen}"


def test_the_same_on_the_loop_of_asyncio(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("router.proxy.failures.EXIT_NOTICE_SECONDS", 0.01)
    with asyncio.Runner() as runner:
        assert runner.run(compare(tmp_path, EXCHANGES // 10, SEED + 1))["same"]


async def compare(folder: Path, count: int, seed: int) -> Counter[str]:
    luck = random.Random(seed)
    groups = [[_in_few_pieces(one, luck) for one in group] for group in _groups(luck, count)]
    scripts = {one.name: one for group in groups for one in group}
    before = _resources()
    async with ScriptedChild(folder / "direct.sock", scripts) as direct:  # noqa: SIM117 - the line
        async with (
            ScriptedChild(folder / "behind.sock", scripts) as behind,
            Router(behind.path) as router,
        ):
            seen: Counter[str] = Counter()
            waiting = iter(groups)

            async def work(own: random.Random) -> None:
                for group in waiting:
                    async with asyncio.timeout(DEADLINE):
                        said = await converse(await asyncio.open_unix_connection(direct.path), group, own)
                        heard = await converse(await router.connect(), group, own)
                    for request, without, through in zip(group, said, heard, strict=False):
                        seen[judge(request, without, through)] += 1
                        heard_by_child(request, direct, behind)

            await _all(work(random.Random(luck.random())) for _ in range(CLIENTS))
            seen["kept connection"] = behind.served - behind.opened
            assert not router.proxy.in_flight.requests
            assert router.counted.count == 0
            await until(lambda: router.pool.open_leases == 0, "a lease is left")
            assert len(set(router.pool.released)) == len(router.pool.released), "released twice"
            assert not router.proxy.traffic.flows
            router.proxy.close()
            await until(lambda: behind.connections == 0, "a connection to the child is left")
    await until(lambda: _resources() == before, f"left: {before} before, now {_resources()}")
    return seen


def judge(request: Request, without: Message, through: Message) -> str:
    """What it is a case of; fails when a client would be told something else."""
    answer = request.answer
    name = (
        f"{request.name}: {request.method} of {len(request.body)} bytes, old: {request.is_old}, answered "
        f"{answer.status} by {len(answer.body)} bytes {answer.framing.value}, dies after "
        f"{answer.dies_after}; heard: {through.start}"
    )
    if request.leaves_after is not None:
        return "client left"
    if not without.has_head:  # the child died before it had answered
        assert through.status == 502, name
        if request.method != "HEAD":
            assert json.loads(through.body)["error"]["code"] == "upstream_failed", name
        return "502"
    assert through.has_head, f"nothing came through of {name}"
    assert (through.status, _reason(through)) == (without.status, _reason(without)), name
    assert _kept(through.headers) == _kept(without.headers), name
    if not request.is_old:
        interim = [line for line in without.interim if " 100 " not in line]
        assert through.interim == interim, name
    if without.is_complete and answer.dies_after is None:
        assert through.is_complete, f"cut: {name}"
        assert through.body == without.body == answer.body, name
        assert through.trailers == (b"" if request.is_old else without.trailers), name
        return "same"
    if answer.framing is Framing.UNTIL_CLOSED and not through.is_reset:
        assert answer.body.startswith(through.body), name  # that it ended early nobody can see
        return "same"
    if answer.is_event_stream and answer.framing is Framing.CHUNKED:
        assert through.is_complete, name
        passed, _, event = through.body.rpartition(b"data: ")
        assert json.loads(event)["error"]["code"] == "upstream_failed", name
        assert answer.body.startswith(passed.removesuffix(b"\n\n")), name
        return "error event"
    assert not through.is_complete, f"taken for complete: {name}"
    assert answer.body.startswith(through.body), name
    return "cut"


def heard_by_child(request: Request, direct: ScriptedChild, behind: ScriptedChild) -> None:
    """The child got the same request, once."""
    if request.leaves_after is not None:
        return
    (without,), (through,) = direct.heard[request.name], behind.heard[request.name]
    assert through.start.split(" ")[:2] == without.start.split(" ")[:2]
    assert through.body == without.body == request.body
    own = {k: v for k, v in _sorted(through.headers) if k not in _NOT_FOR_THE_CHILD}
    assert own == {k: v for k, v in _sorted(without.headers) if k not in _NOT_FOR_THE_CHILD}
    if request.method == "POST":
        assert through.get("Content-Length") == str(len(request.body))


async def converse(
    ends: tuple[asyncio.StreamReader, asyncio.StreamWriter], group: list[Request], luck: random.Random
) -> list[Message]:
    """Say all requests of the group one behind the other, without waiting, and read their answers."""
    reader, writer = ends
    heard: list[Message] = []

    async def say() -> None:
        for request in group:
            for part in request.parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    # A child that answers and goes away early closes on whoever still speaks.
    saying = asyncio.get_running_loop().create_task(say())
    try:
        for request in group:
            if request.leaves_after is not None:
                await reader.read(max(1, request.leaves_after))
                writer.transport.abort()
                return [*heard, Message()]
            heard.append(await read_answer(reader, to_head=request.method == "HEAD"))
        return heard
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        writer.close()


class Router:
    """Nothing but the proxy, over one child."""

    def __init__(self, path: str) -> None:
        self.pool = FakePool({"m": [path]})
        self.proxy = ProxyContext(cast(Pool, self.pool))
        self.counted = Counted()

    async def __aenter__(self) -> Router:
        self._server = proxy_server(
            self.proxy, lambda _: RequestInfo("m"), self.counted, shutdown_seconds=1.0
        )
        await self._server.start()
        await self._server.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._server.addresses[0][:2], limit=1 << 22)


def _groups(luck: random.Random, count: int) -> list[list[Request]]:
    """What is said on one connection each: so many requests altogether, or a few more."""
    groups: list[list[Request]] = []
    names = (f"e{n}" for n in itertools.count())
    number = 0
    while number < count:
        size = luck.choices((1, 2, 3, 5), (20, 2, 1, 1))[0]
        group = [make(next(names), luck, pipelined=size > 1) for _ in range(size)]
        # Without the router a connection ends with whatever its child does not keep it for.
        while not all(one.answer.keeps_connection for one in group[:-1]):
            group.pop(0)
        groups.append(group)
        number += len(group)
    return groups


def _in_few_pieces(request: Request, luck: random.Random) -> Request:
    """As most clients say it: its head in one, and mostly its body with it."""
    whole = b"".join(request.parts)
    body = whole.index(b"\r\n\r\n") + 4
    match luck.randrange(4):
        case 0:
            return request
        case 1:
            parts = (whole[:body], *(whole[at : at + 1000] for at in range(body, len(whole), 1000)))
            return replace(request, parts=parts)
        case _:
            return replace(request, parts=(whole,))


def _kept(headers: Headers) -> list[tuple[str, str]]:
    return [(k, v) for k, v in _sorted(headers) if k not in _OWN and not k.startswith("x-router-")]


def _sorted(headers: Headers) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in headers)


def _reason(message: Message) -> str:
    return message.start.split(" ", 2)[2]


def _resources() -> tuple[int, int]:
    """Tasks and sockets."""
    return len(asyncio.all_tasks()), sum(map(_is_socket, Path("/proc/self/fd").iterdir()))


def _is_socket(fd: Path) -> bool:
    try:
        return str(fd.readlink()).startswith("socket:")
    except OSError:  # that of the listing itself
        return False


async def _all(work: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(cast(Coroutine[Any, Any, None], one))
