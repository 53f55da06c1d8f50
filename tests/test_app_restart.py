"""A new process takes the place of a running router: nobody is refused, no stream cut, nothing unloaded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from tests.make_gguf import make_llama
from tests.router_process import RouterProcess, is_alive
from tests.test_app import Stream, binary
from tests.waiting import until

Start = Callable[..., Any]

#: "tiny" speaks until somebody ends it, "other" answers at once.
TALKATIVE = """
[child]
stop_grace_seconds = 1.0
[models."tiny"]
env = { FAKE_LLAMA_TOKENS = "100000", FAKE_LLAMA_TOKEN_SECONDS = "0.02" }
"""
#: Requests per second, whether they are answered or not.
RATE = 200
#: Tokens that "tiny" is busy with for longer than a restart takes, and not for ever.
SOME = "500"


@pytest.fixture
def router() -> Iterator[Start]:
    """A router with two models, not started yet; in a short folder, as the paths of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(kind: type[RouterProcess] = RouterProcess, *args: str, config: str = "") -> RouterProcess:
            made = kind(folder, binary(folder), *args, config=config)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


def pids(up: RouterProcess) -> list[int]:
    return sorted(child.pid for child in up.children())


async def shown(up: RouterProcess, model: str) -> str:
    return next(m["status"]["value"] for m in (await up.get("/models"))["data"] if m["id"] == model)


class Clients:
    """Each asks for one short answer after the other, half of them on a new connection each time."""

    def __init__(self, up: RouterProcess, count: int) -> None:
        self._up = up
        self._count = count
        self._stop = asyncio.Event()
        self.answers: Counter[str] = Counter()

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.ensure_future(self._ask(number % 2 == 0)) for number in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        wanted = self.answers.total() + count
        await self._up.until(lambda: self.answers.total() >= wanted, f"{count} more answers")

    async def _ask(self, is_new: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=is_new)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(self._up.url, connector=connector, timeout=timeout) as session:
            while not self._stop.is_set():
                try:
                    async with session.post("/v1/chat/completions", json={"model": "other"}) as answer:
                        body = await answer.json()
                        said = body["choices"][0]["message"]["content"] if answer.status == 200 else body
                        self.answers[f"{answer.status} {answer.headers.get('X-Router-Action')} {said}"] += 1
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self.answers[repr(error)] += 1


async def test_under_load_no_request_fails_no_stream_is_cut_and_no_model_is_unloaded(router: Start):
    async with router(config=TALKATIVE) as up, contextlib.AsyncExitStack() as cleanup:
        assert (await up.chat("other"))[0] == 200
        stream = await cleanup.enter_async_context(Stream(up, "tiny"))
        before = pids(up)
        async with Clients(up, 4) as clients:
            await clients.more(100)
            successor = await up.restart()
            await clients.more(200)
        assert list(clients.answers) == ["200 already_loaded token0 token1 token2 token3 token4 "]
        assert pids(up) == before
        assert up.process.poll() is None, "the former one still has its stream"
        seen = len(stream.data)
        while len(stream.data) < seen + 10_000:
            more = await stream.next()
            assert more and b"error" not in more
            stream.data += more
        assert successor.is_running()


async def test_at_200_requests_per_second_none_fails_no_stream_is_cut_and_no_model_is_unloaded(
    router: Start,
):
    async with router(config=TALKATIVE) as up, contextlib.AsyncExitStack() as cleanup:
        assert (await up.chat("other"))[0] == 200
        stream = await cleanup.enter_async_context(Stream(up, "tiny"))
        before = pids(up)
        answers: Counter[str] = Counter()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(up.url, connector=connector, timeout=timeout) as session:
            loop = asyncio.get_running_loop()
            begun, sent, restarting = loop.time(), 0, None
            async with asyncio.TaskGroup() as asking:
                while restarting is None or not restarting.done() or sent < 1000:
                    while sent < (loop.time() - begun) * RATE:
                        asking.create_task(_ask(session, answers))
                        sent += 1
                    if restarting is None and sent >= RATE:
                        restarting = asking.create_task(up.restart())
                    await asyncio.sleep(0.5 / RATE)
                seconds = loop.time() - begun
        assert answers == {"200 already_loaded": sent}
        assert sent / seconds > 0.9 * RATE
        assert pids(up) == before
        more = await stream.next()
        assert more and b"error" not in more


async def _ask(session: aiohttp.ClientSession, answers: Counter[str]) -> None:
    try:
        body = {"model": "other", "max_tokens": 1}
        async with session.post("/v1/chat/completions", json=body) as answer:
            text = await answer.text()
            said = answer.headers.get("X-Router-Action") if answer.status == 200 else text
            answers[f"{answer.status} {said}"] += 1
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        answers[repr(error)] += 1


async def test_the_former_process_ends_with_its_last_stream_and_the_next_goes_on(router: Start):
    config = TALKATIVE.replace("100000", SOME)
    async with router(config=config) as up:
        async with Stream(up, "tiny") as stream:
            await up.restart()
            assert (await stream.rest())[-1] == "[DONE]"
        await up.until(lambda: up.process.poll() is not None, "the former process has ended")
        assert up.process.returncode == 0
        assert await shown(up, "tiny") == "loaded"
        assert "Traceback" not in up.output


async def test_whom_the_former_process_streams_from_is_not_evicted_before_that_is_over(router: Start):
    async with router(config=TALKATIVE + "[scheduler]\nmodels_max = 1\n") as up:
        async with Stream(up, "tiny") as stream:
            (tiny,) = up.children()
            await up.restart()
            waiting = asyncio.ensure_future(up.chat("other"))
            await _until_waiting(up, "other")
            assert await stream.next()
            assert up.children() == [tiny]
        assert (await waiting)[0] == 200, "the client of the stream has left: now it makes room"
        assert tiny.pid not in pids(up)


async def test_a_model_whose_settings_changed_serves_its_stream_to_the_end_and_is_then_loaded_anew(
    router: Start,
):
    async with router(config=TALKATIVE.replace("100000", SOME)) as up:
        async with Stream(up, "tiny") as stream:
            (old,) = up.children()
            up.config.write_text(up.config.read_text() + "ctx_size = 1024\n")
            await up.restart()
            assert (await up.chat("tiny", max_tokens=1))[0] == 200
            assert (await stream.rest())[-1] == "[DONE]"
        await up.until(lambda: old.pid not in pids(up), "the old one is gone")
        (new,) = up.children()
        assert "1024" in new.cmdline()


async def test_a_broken_configuration_leaves_the_running_process_and_says_why(router: Start):
    async with router() as up:
        await up.chat("tiny")
        before = pids(up)
        up.config.write_text("[server]\nprot = 1\n")
        async with up.client.post("/restart") as answer:
            assert answer.status == 500
            error = (await answer.json())["error"]
        assert error["code"] == "restart_failed"
        assert "prot" in error["message"] and "port" in error["message"]
        assert (await up.chat("tiny"))[0] == 200
        assert pids(up) == before
        up.config.write_text("")
        await up.restart()
        assert pids(up) == before


async def test_a_signal_restarts_it_too(router: Start):
    async with router() as up:
        await up.chat("tiny")
        before = pids(up)
        up.send(signal.SIGUSR2)
        await up.until(lambda: up.process.poll() is not None, "the former process has ended")
        (child,) = up.children()
        (successor,) = [
            one
            for one in psutil.process_iter()
            if one.pid not in before and str(up.config) in _arguments(one)
        ]
        up.successor = successor
        assert [child.pid] == before
        assert await shown(up, "tiny") == "loaded"


async def test_it_can_be_restarted_again_and_again(router: Start):
    async with router() as up:
        await up.chat("tiny")
        before, former = pids(up), set()
        for _ in range(3):
            former.add((await up.restart()).pid)
            assert (await up.chat("tiny"))[0] == 200
        assert len(former) == 3
        assert pids(up) == before
        assert await up.stop() == 0
        assert not up.children()
        assert not up.sockets()


async def test_a_stream_outlives_two_restarts_and_is_not_evicted_in_between(router: Start):
    async with router(config=TALKATIVE + "[scheduler]\nmodels_max = 1\n") as up:
        async with Stream(up, "tiny") as stream:
            (tiny,) = up.children()
            between = await up.restart()
            await up.restart()
            waiting = asyncio.ensure_future(up.chat("other"))
            await _until_waiting(up, "other")
            more = await stream.next()
            assert more and b"error" not in more
            assert up.children() == [tiny]
            assert is_alive(between), "it hands on when the first one's stream ends"
        assert (await waiting)[0] == 200
        await up.until(lambda: up.process.poll() is not None and not is_alive(between), "both have ended")


async def test_a_request_on_an_old_connection_is_served_by_the_new_process(router: Start):
    async with router() as up:
        parts = urlsplit(up.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        request = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        await up.restart()
        make_llama(up.models / "third.gguf", sparse=True)
        async with up.client.get("/models?reload=1") as answer:
            assert answer.status == 200
        writer.write(request)
        answered = await asyncio.wait_for(reader.read(), 30)
        assert b"200 OK" in answered and b"third" in answered
        assert b"connection: close" in answered.lower(), "the next request comes to the new process"
        writer.close()


async def test_a_request_that_waits_for_room_is_taken_along(router: Start):
    async with router(config=TALKATIVE + "[scheduler]\nmodels_max = 1\n") as up:
        async with Stream(up, "tiny"):
            waiting = asyncio.ensure_future(up.chat("other"))
            await _until_waiting(up, "other")
            await up.restart()
            await _until_waiting(up, "other")
        assert (await waiting)[0] == 200


async def test_a_stream_that_has_been_told_that_it_waits_is_taken_along_too(router: Start):
    config = TALKATIVE + "[scheduler]\nmodels_max = 1\n[server]\nstream_head_seconds = 0.1\n"
    async with router(config=config + "stream_heartbeat_seconds = 0.1\n") as up:
        async with Stream(up, "tiny"), Stream(up, "other") as waiting:
            assert (await waiting.next()).startswith(b": llama-router ")
            await up.restart()
            await _until_waiting(up, "other")
            told = waiting.data.count(b": llama-router ")
            while waiting.data.count(b": llama-router ") < told + 2:
                waiting.data += await waiting.next()
            assert b"data: " not in waiting.data
            (tiny,) = up.children()
            tiny.kill()
            rest = await waiting.rest()
        assert rest[-1] == "[DONE]"
        assert not any("error" in event for event in rest)


async def test_an_unload_that_waits_for_a_stream_is_not_forgotten(router: Start):
    async with router(config=TALKATIVE) as up:
        async with Stream(up, "tiny") as stream:
            unloading = asyncio.ensure_future(_unload(up, "tiny"))
            await until(
                lambda: up.get("/vram"),
                holds=lambda vram: [one["state"] for one in vram["models"]] == ["draining"],
            )
            await up.restart()
            assert b"error" not in await stream.next()
            assert not unloading.done()
        assert await unloading == 200
        assert not up.children()


async def _unload(up: RouterProcess, model: str) -> int:
    async with up.client.post("/models/unload", json={"model": model}) as answer:
        return answer.status


async def test_a_load_in_progress_is_waited_for(router: Start):
    config = '[models."tiny"]\nenv = { FAKE_LLAMA_LOAD_SECONDS = "1" }\n'
    async with router(config=config) as up:
        waiting = asyncio.ensure_future(up.chat("tiny"))
        await up.until(up.children, "it loads")
        loading = pids(up)
        await up.restart()
        assert (await waiting)[0] == 200
        assert pids(up) == loading


async def test_a_stop_while_the_former_process_still_streams_ends_both(router: Start):
    config = "[server]\nshutdown_grace_seconds = 0.2\n" + TALKATIVE
    async with router(config=config) as up, Stream(up, "tiny") as stream:
        await up.restart()
        up.send(signal.SIGTERM)
        assert "error" in json.loads((await stream.rest())[-1])
        await up.until(up.has_ended, "both have ended")
        assert not up.children()
        assert not up.sockets()


async def test_no_connection_is_refused_meanwhile(router: Start):
    async with router() as up:
        parts = urlsplit(up.url)
        assert parts.hostname and parts.port
        restarting = asyncio.ensure_future(up.restart())
        tried = 0
        while not restarting.done():
            with socket.create_connection((parts.hostname, parts.port), timeout=5):
                tried += 1
            await asyncio.sleep(0.002)  # one client after the other
        await restarting
        assert tried > 20


class Patched(RouterProcess):
    """Runs `patch` before it begins, and so does each process that takes its place."""

    patch = ""

    def command(self) -> list[str]:
        python, _, _, *rest = super().command()
        return [python, "-c", f"{self.patch}\nfrom router.__main__ import main\nmain()", *rest]


class LosesItsSuccessors(Patched):
    """Each process that takes its place fails after the models were let go of, as long as `broken` exists."""

    @property
    def broken(self) -> Path:
        return self.folder / "broken"

    @property
    def patch(self) -> str:  # type: ignore[override]
        return f"""
import os, pathlib
import router.app.restart
from router.hosts.local import LocalHost
router.app.restart.PAUSES_SECONDS = (0.0, 0.1)
instances = LocalHost.instances
async def fail(self):
    if successor and pathlib.Path({str(self.broken)!r}).exists():
        raise OSError(5, "Input/output error")
    return await instances(self)
successor = "LLAMA_ROUTER_HANDOVER" in os.environ
LocalHost.instances = fail
"""


async def test_one_that_fails_after_the_models_were_let_go_of_is_followed_by_another(router: Start):
    async with router(LosesItsSuccessors) as up:
        await up.chat("tiny")
        before = pids(up)
        up.broken.touch()
        restarting = asyncio.ensure_future(up.restart())
        await up.until(lambda: "trying again" in up.output, "the first one has failed")
        up.broken.unlink()
        await restarting
        assert await shown(up, "tiny") == "loaded"
        assert pids(up) == before


class LosesItsSuccessorsLate(LosesItsSuccessors):
    """They fail in a step that comes after they have adopted the models."""

    owner, name = "", ""

    @property
    def patch(self) -> str:  # type: ignore[override]
        return f"""
import os, pathlib, pkgutil
import router.app.restart
router.app.restart.PAUSES_SECONDS = (0.0, 0.1)
owner = pkgutil.resolve_name({self.owner!r})
step = owner.{self.name}
def fail(*args, **kwargs):
    if successor and pathlib.Path({str(self.broken)!r}).exists():
        raise OSError(5, "Input/output error")
    return step(*args, **kwargs)
successor = "LLAMA_ROUTER_HANDOVER" in os.environ
owner.{self.name} = fail
"""


LATE_STEPS = {
    "memory is measured": ("router.supervisor.pool:Pool", "measure"),
    "downloads go on": ("router.downloads:Downloads", "listen"),
    "it listens": ("router.app.serving:_Server", "_listen"),
    "it is about to say that it serves": ("router.app.serving", "_settle_memory"),
}


@pytest.mark.parametrize(("owner", "name"), LATE_STEPS.values(), ids=list(LATE_STEPS))
async def test_one_that_fails_after_it_has_adopted_the_models_ends_none_of_them(
    router: Start, owner: str, name: str
):
    async with router(type("Late", (LosesItsSuccessorsLate,), {"owner": owner, "name": name})) as up:
        await up.chat("tiny")
        before = pids(up)
        up.broken.touch()
        restarting = asyncio.ensure_future(up.restart())
        await up.until(lambda: "trying again" in up.output, "the first one has failed")
        up.broken.unlink()
        await restarting
        assert pids(up) == before
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"


async def test_where_no_next_process_serves_it_exits_for_its_supervisor_and_the_models_are_adopted(
    router: Start,
):
    async with router(LosesItsSuccessors) as up:
        await up.chat("tiny")
        before = pids(up)
        up.broken.touch()
        async with up.client.post("/restart") as answer:
            assert answer.status == 500
            message = (await answer.json())["error"]["message"]
        assert "this one exits" in message and "Input/output error" in message
        await up.until(up.has_ended, "it has exited")
        assert up.process.returncode == 1, "systemd starts another, as it does not with 2"
        assert "all stays as it was" not in up.output
        parts = urlsplit(up.url)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((parts.hostname, parts.port), timeout=5)
        assert pids(up) == before
        await up.start_again()
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
        assert pids(up) == before


class HangsInItsStore(Patched):
    """A disk that does not answer any more, for its database and its logs."""

    patch = """
import time
import router.app.last_resort
import router.app.serving
import router.db.store
from router.process import LogFile
router.app.last_resort.SPARE_SECONDS = router.app.serving.SPARE_SECONDS = 3.0
execute = router.db.store.Store._execute
def hang(self, statement, row):
    if statement.startswith("DELETE FROM rows") and row[0] == "children":
        time.sleep(3600)
    return execute(self, statement, row)
router.db.store.Store._execute = hang
LogFile.trim = lambda self: time.sleep(3600)
"""


async def test_a_shutdown_ends_though_the_disk_does_not_answer(router: Start):
    config = "[server]\nshutdown_grace_seconds = 0.5\n[child]\nstop_grace_seconds = 0.5\n"
    async with router(HangsInItsStore, config=config) as up:
        await up.chat("tiny")
        assert await up.stop() == 70
        assert not up.children()
        assert "the shutdown has not ended within 4 s: exiting" in up.output


async def _until_waiting(up: RouterProcess, model: str) -> None:
    await until(lambda: up.get(f"/explain?model={model}"), holds=lambda found: found["waiting"])


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


#: Of the slow one; the file is expected to be read in 1 s.
LOAD_SECONDS = 1.5
SLOW = f"""
[models.tiny]
env = {{ FAKE_LLAMA_LOAD_SECONDS = "{LOAD_SECONDS}" }}
"""


async def expected_load_seconds(up: RouterProcess) -> dict[str, float]:
    async with up.client.get("/metrics") as response:
        text = await response.text()
    found = re.findall(r'^llama_router_expected_load_seconds\{model="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {model: float(seconds) for model, seconds in found}


async def test_how_long_a_model_takes_to_load_is_known_after_a_stop_and_after_a_restart(router: Start):
    async with router(config=SLOW) as up:
        at_first = await expected_load_seconds(up)
        assert at_first["tiny"] < LOAD_SECONDS
        assert (await up.chat("tiny"))[0] == 200
        measured = (await expected_load_seconds(up))["tiny"]
        assert measured >= LOAD_SECONDS
        await up.stop()
        await up.start_again()
        again = await expected_load_seconds(up)
        assert again["tiny"] >= LOAD_SECONDS
        assert again["other"] == at_first["other"], "it was never loaded"
        await up.restart()
        await up.client.close()
        async with aiohttp.ClientSession(up.url) as up.client:
            assert (await expected_load_seconds(up))["tiny"] >= LOAD_SECONDS


@pytest.mark.parametrize("hosts", [("127.0.0.1", "[::1]", "SOCKET"), ("127.0.0.1", "127.0.0.2", "127.0.0.3")])
async def test_all_addresses_are_handed_over(router: Start, hosts: tuple[str, ...]):
    up = router(config=TALKATIVE)
    path = up.folder / "router.sock"
    up = router(
        RouterProcess,
        *(arg for one in hosts for arg in ("--host", one.replace("SOCKET", str(path)))),
        config=TALKATIVE,
    )
    async with up:
        port = up.url.rpartition(":")[2]

        async def served_everywhere() -> bool:
            for host in hosts:
                connector = aiohttp.UnixConnector(str(path)) if host == "SOCKET" else None
                url = "http://any" if host == "SOCKET" else f"http://{host}:{port}"
                async with (
                    aiohttp.ClientSession(connector=connector) as client,
                    client.get(url + "/v1/models") as answer,
                ):
                    if answer.status != 200:
                        return False
            return True

        assert (await up.chat("other"))[0] == 200
        assert await served_everywhere()
        children = pids(up)
        for _ in range(2):
            await up.restart()
            assert await served_everywhere()
            assert pids(up) == children, "nothing was unloaded"
