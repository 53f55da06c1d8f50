"""A router that is killed, with real llama-servers: the next one finds its models, and only its models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.conftest import Start
from tests.router_process import RouterProcess, is_alive

pytestmark = pytest.mark.e2e

MODELS = ("one", "two", "three")
MIB = 1 << 20


def loaded(up: RouterProcess) -> dict[str, int]:
    """The models that llama-servers run, with their pids."""
    lines = {child.pid: child.cmdline() for child in up.children()}
    return {Path(line[line.index("-m") + 1]).stem: pid for pid, line in lines.items()}


async def states(up: RouterProcess) -> dict[str, str]:
    return {model["id"]: model["status"]["value"] for model in (await up.get("/models"))["data"]}


async def action(up: RouterProcess, model: str) -> str | None:
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    async with up.client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers.get("X-Router-Action")


async def ledger(up: RouterProcess) -> dict[str, Any]:
    return {model["model"]: model for model in (await up.get("/vram?measure=1"))["models"]}


def resident(pid: int) -> tuple[int, int]:
    """Bytes of its own, and of files that it may share with others."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    sizes = {line[0]: int(line[1]) << 10 for line in lines if line[0] in ("RssAnon:", "RssFile:")}
    return sizes["RssAnon:"], sizes["RssFile:"]


@contextlib.asynccontextmanager
async def streaming(up: RouterProcess, model: str):
    """A stream that is being read, and does not end by itself soon."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 1_000_000,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "hello"}],
    }
    async with (
        aiohttp.ClientSession(up.url) as session,
        session.post("/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200
        assert await answer.content.readany()
        yield answer


async def kill_and_start_again(up: RouterProcess) -> None:
    assert await up.stop(signal.SIGKILL) == -signal.SIGKILL
    await up.start_again()


async def test_a_router_killed_with_three_models_and_two_streams_leaves_them_to_the_next(router: Start):
    async with router(*MODELS) as up:
        for model in MODELS:
            assert await action(up, model) == "loaded"
        before, pids = await ledger(up), loaded(up)
        async with streaming(up, "one"), streaming(up, "two"):
            await kill_and_start_again(up)
            begun = time.monotonic()
            assert await states(up) == dict.fromkeys(MODELS, "loaded")
            answered_seconds = time.monotonic() - begun
        assert loaded(up) == pids
        for model in MODELS:
            assert await action(up, model) == "already_loaded"
        after = await ledger(up)
        for model in MODELS:
            assert after[model]["reserved"] >= after[model]["measured"] > 0
            private, mapped = resident(pids[model])
            assert private - MIB <= after[model]["measured"] <= private + mapped + MIB, "as the kernel has it"
        # Nothing was asked of it. It may be less: pages of files are taken back when others need the memory.
        assert after["three"]["measured"] <= before["three"]["measured"] + 8 * MIB
        (device,) = [d for d in (await up.get("/vram"))["devices"] if d["id"] == "local/host"]
        assert device["ours"] == sum(one["measured"] for one in device["instances"])
        assert device["reserved"] == sum(one["reserved"] for one in device["instances"])
        assert "start " not in up.output, "nothing was started"
        print(f"loaded {answered_seconds:.3f} s after it listened")


async def test_a_child_that_was_killed_meanwhile_is_loaded_anew_and_the_others_are_not(router: Start):
    async with router(*MODELS) as up:
        for model in MODELS:
            await action(up, model)
        pids = loaded(up)
        await up.stop(signal.SIGKILL)
        dead = psutil.Process(pids["two"])
        dead.kill()
        await up.until(lambda: not is_alive(dead), "it is dead")
        await up.start_again()
        assert await states(up) == {"one": "loaded", "two": "unloaded", "three": "loaded"}
        assert [await action(up, model) for model in MODELS] == ["already_loaded", "loaded", "already_loaded"]
        assert {**loaded(up), "two": pids["two"]} == pids


async def test_a_child_whose_preset_changed_meanwhile_is_stopped_and_then_loaded_anew(router: Start):
    async with router(*MODELS) as up:
        for model in MODELS:
            await action(up, model)
        pids = loaded(up)
        await up.stop(signal.SIGKILL)
        up.config.write_text('[models."two"]\nctx_size = 256\n')
        await up.start_again()
        old = psutil.Process(pids["two"]) if psutil.pid_exists(pids["two"]) else None
        await up.until(lambda: old is None or not is_alive(old), "the one with the old preset is gone")
        assert [await action(up, model) for model in MODELS] == ["already_loaded", "loaded", "already_loaded"]
        now = loaded(up)
        assert (now["one"], now["three"]) == (pids["one"], pids["three"])
        assert now["two"] != pids["two"]


async def test_a_stranger_under_the_pid_of_a_dead_child_is_left_alone(router: Start):
    async with router(*MODELS) as up:
        for model in MODELS:
            await action(up, model)
        pids = loaded(up)
        await up.stop(signal.SIGKILL)
        dead = psutil.Process(pids["two"])
        dead.kill()
        await up.until(lambda: not is_alive(dead), "it is dead")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            _give_pid(up.state / "router.sqlite", "two#1", stranger.pid)
            await up.start_again()
            assert await states(up) == {"one": "loaded", "two": "unloaded", "three": "loaded"}
            assert [await action(up, model) for model in MODELS] == [
                "already_loaded",
                "loaded",
                "already_loaded",
            ]
            assert await up.stop() == 0
            assert stranger.poll() is None, "it is nothing of ours"
            stranger.communicate(b"\n")


async def test_a_restart_with_real_streams_cuts_none(router: Start):
    async with router("one") as up:
        assert await action(up, "one") == "loaded"
        pids = loaded(up)
        async with streaming(up, "one") as stream:
            await up.restart()
            async with asyncio.timeout(30):
                for _ in range(20):
                    assert b"error" not in await stream.content.readany()
            assert up.process.poll() is None
        assert await action(up, "one") == "already_loaded"
        assert loaded(up) == pids


def _give_pid(database: Path, instance: str, pid: int) -> None:
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        changed = opened.execute(
            "UPDATE rows SET value = json_set(value, '$.pid', ?) WHERE owner = 'children' AND key = ?",
            (pid, json.dumps(instance)),
        )
        assert changed.rowcount == 1
