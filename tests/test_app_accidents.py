"""What else may befall a running router: folders that vanish, locks of others, kills at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.make_gguf import make_llama
from tests.router_process import REPOSITORY, RouterProcess, is_alive
from tests.test_app import Stream, binary, serve

Start = Callable[..., RouterProcess]


@pytest.fixture
def router() -> Iterator[Start]:
    """A router with two models, not started yet; in a short folder, as the paths of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(*args: str, config: str = "") -> RouterProcess:
            made = RouterProcess(folder, binary(folder), *args, config=config)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


def pids(up: RouterProcess) -> list[int]:
    return sorted(child.pid for child in up.children())


async def action(up: RouterProcess, model: str) -> str:
    async with up.client.post("/v1/chat/completions", json={"model": model}) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["X-Router-Action"]


# --- folders ---


async def test_a_model_whose_socket_was_removed_is_loaded_anew_when_its_stream_is_over(router: Start):
    """A cleaner of temporary files does that."""
    config = '[child]\nenv = { FAKE_LLAMA_TOKENS = "40", FAKE_LLAMA_TOKEN_SECONDS = "0.05" }\n'
    async with router(config=config) as up, Stream(up, "tiny") as stream:
        (before,) = pids(up)
        for path in (up.state / "run").glob("*.sock"):
            path.unlink()
        asking = asyncio.ensure_future(action(up, "tiny"))
        assert (await stream.rest())[-1] == "[DONE]", "who is connected is served to the end"
        assert await asking in ("loaded", "queued")
        (now,) = pids(up)
        assert now != before
        assert await action(up, "tiny") == "already_loaded"


async def test_a_runtime_folder_that_was_removed_is_made_again_and_held(router: Start):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        shutil.rmtree(up.state / "run")
        assert await action(up, "other") == "loaded"
        assert await action(up, "tiny") in ("already_loaded", "loaded", "queued")
        assert (up.state / "run").stat().st_mode & 0o777 == 0o700
        another = serve(up.models, "--port", "0", "--state-dir", str(up.state))
        assert another.returncode == 2
        assert f"another llama-router (pid {up.process.pid})" in another.stderr
        assert await up.stop() == 0
        assert not up.children()
        assert not up.sockets()


async def test_a_log_folder_that_was_removed_is_made_again(router: Start):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        shutil.rmtree(up.state / "logs")
        assert await action(up, "tiny") == "already_loaded"
        assert await action(up, "other") == "loaded"
        assert [path.name.partition("-")[0] for path in (up.state / "logs").iterdir()] == ["other"]


async def test_where_no_folder_of_logs_can_be_made_models_are_loaded_without(router: Start):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        shutil.rmtree(up.state / "logs")
        (up.state / "logs").touch()
        assert await action(up, "other") == "loaded"
        await up.until(lambda: "going on without it" in up.output, "it has said so")
        async with up.client.get("/models/log", params={"model": "other"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        assert "Traceback" not in up.output


async def test_a_state_folder_that_was_removed_as_a_whole_costs_no_model_its_service(router: Start):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        shutil.rmtree(up.state)
        assert await action(up, "other") == "loaded"
        assert await action(up, "tiny") in ("already_loaded", "loaded", "queued")
        assert await up.stop() == 0
        assert not up.children()


# --- nobody reads ---


async def test_a_log_that_nobody_reads_holds_up_no_request(router: Start):
    """A pager, a terminal that was stopped with Ctrl-S, a journal that hangs."""
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        assert await up.stop() == 0
        with subprocess.Popen(
            up.command(), cwd=REPOSITORY, env=up._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                address = (await asyncio.to_thread(process.stdout.readline)).decode().split()[4]
                async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=20)) as client:
                    for _ in range(1500):  # more lines than a pipe holds
                        async with client.get("/v1/models") as answer:
                            assert answer.status == 200
                process.terminate()
                assert await asyncio.to_thread(process.wait) == 0
            finally:
                process.kill()


# --- locks of others ---


async def test_while_somebody_locks_the_database_models_are_loaded_and_afterwards_they_outlive_a_kill(
    router: Start,
):
    async with router() as up:
        with contextlib.closing(
            sqlite3.connect(up.state / "router.sqlite", isolation_level=None)
        ) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            assert await action(up, "tiny") == "loaded"
            await up.until(lambda: "database is locked" in up.output, "it is told")
        await up.until(lambda: "can be used again" in up.output, "what is known is written")
        before = pids(up)
        assert await up.stop(signal.SIGKILL) == -signal.SIGKILL
        await up.start_again()
        assert await action(up, "tiny") == "already_loaded"
        assert pids(up) == before


# --- kills and restarts at any moment ---


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 20, 40, 80, 160, 320, 640])
async def test_a_router_killed_at_any_moment_of_a_load_leaves_nothing_that_the_next_does_not_own(
    router: Start, milliseconds: int
):
    config = '[child]\nenv = { FAKE_LLAMA_LOAD_SECONDS = "0.3" }\n'
    async with router(config=config) as up:
        asking = asyncio.ensure_future(up.chat("tiny"))
        await asyncio.sleep(milliseconds / 1000)
        assert await up.stop(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.wait({asking})
        asking.exception()
        await up.start_again()
        assert await action(up, "tiny") in ("loaded", "queued", "already_loaded")
        assert len(pids(up)) == 1, "none of before beside it"
        assert await up.stop() == 0
        assert not up.children()
        assert not up.sockets()


async def test_two_restarts_at_once_are_one(router: Start):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        before = pids(up)
        answers = await asyncio.gather(*(up.client.post("/restart") for _ in range(3)))
        said = [(answer.status, (await answer.json())["pid"]) for answer in answers]
        assert said == [said[0]] * 3
        assert said[0][0] == 200
        up.successor = psutil.Process(said[0][1])
        assert await action(up, "tiny") == "already_loaded"
        assert pids(up) == before
        await up.until(lambda: up.process.poll() is not None, "the former one has ended")


async def test_a_router_that_is_killed_while_it_hands_over_loses_no_model(router: Start):
    """At whichever moment: the next finds the children, by what it was told or by the database."""
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        before = pids(up)
        for milliseconds in (50, 200, 400, 600, 800):
            asking = asyncio.ensure_future(up.client.post("/restart"))
            await asyncio.sleep(milliseconds / 1000)
            routers = [up.process.pid, *(one.pid for one in psutil.Process(up.process.pid).children())]
            routers = [pid for pid in routers if pid not in before]
            for pid in routers:
                with contextlib.suppress(ProcessLookupError, psutil.Error):
                    psutil.Process(pid).kill()
            await up.until(lambda: len(_mine(up)) == len(before), "both are dead")
            await asyncio.wait({asking})
            asking.exception()
            await asyncio.to_thread(up.process.wait)
            await up.start_again()
            assert await action(up, "tiny") == "already_loaded"
            assert pids(up) == before


@pytest.mark.parametrize("milliseconds", [0, 300, 600, 900, 1200, 1500])
async def test_a_stop_in_the_middle_of_a_restart_ends_both_and_leaves_nothing(
    router: Start, milliseconds: int
):
    async with router() as up:
        assert await action(up, "tiny") == "loaded"
        asking = asyncio.ensure_future(up.client.post("/restart"))
        await up.until(lambda: len(psutil.Process(up.process.pid).children()) > 1, "the next one starts")
        await asyncio.sleep(milliseconds / 1000)
        up.send(signal.SIGTERM)
        await asyncio.wait({asking})
        assert await asyncio.to_thread(up.process.wait) == 0
        if asking.exception() is None and asking.result().status == 200:
            # A quick machine: the stop came too late to be one of the next process as well.
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process((await asking.result().json())["pid"]).terminate()
        await up.until(lambda: not _mine(up), "nothing is left of either")
        assert not up.sockets()


def _mine(up: RouterProcess) -> list[psutil.Process]:
    """Every process that names this router's folder, routers and children."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(up.state) in " ".join(one.cmdline()) and is_alive(one):
                found.append(one)
    return found
