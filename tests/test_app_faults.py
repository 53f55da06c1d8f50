"""Children that fail while they serve, seen by the clients of a running router."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import binary

Start = Callable[..., RouterProcess]
STALL = "serving_stall_seconds = 0.5\n"


@pytest.fixture
def router() -> Iterator[Start]:
    """A router with two models, not started yet; in a short folder, as the paths of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(config: str = "", **env: str) -> RouterProcess:
            made = RouterProcess(folder, binary(folder), config=config, env=env)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


def of_tiny(env: str, child: str = "") -> str:
    return f'[child]\n{child}[models."tiny"]\nenv = {{ {env} }}\n'


async def test_a_child_that_answers_health_and_nothing_else_is_ended_and_loaded_anew(router: Start):
    async with router(of_tiny('FAKE_LLAMA_HANG_AFTER = "2"', STALL)) as up:
        assert (await up.chat("tiny"))[0] == 200
        (stuck,) = up.children()
        status, answer = await up.chat("tiny")
        assert (status, answer["error"]["code"]) == (502, "upstream_failed")
        assert "stuck: it neither answered nor worked" in answer["error"]["message"]
        assert (await up.chat("tiny"))[0] == 200, "the next request loads it anew"
        assert stuck.pid not in [child.pid for child in up.children()]


async def test_a_stream_that_stands_still_ends_with_an_error_event(router: Start):
    async with router(of_tiny('FAKE_LLAMA_HANG_MID_STREAM = "3"', STALL)) as up:
        assert (await up.chat("tiny"))[0] == 200
        events = await up.events("tiny")
        assert "[DONE]" not in events
        error = json.loads(events[-1])["error"]
        assert error["code"] == "upstream_failed"
        assert "stuck" in error["message"]
        assert (await up.chat("tiny"))[0] == 200


async def test_a_child_that_was_frozen_is_ended_too_and_others_serve_on(router: Start):
    async with router("[child]\n" + STALL) as up:
        await up.chat("tiny")
        (frozen,) = up.children()
        await up.chat("other")
        frozen.send_signal(signal.SIGSTOP)
        stuck = asyncio.create_task(up.chat("tiny"))
        while not stuck.done():
            assert (await up.chat("other"))[0] == 200
            await asyncio.sleep(0.02)
        status, answer = await stuck
        assert status == 502
        assert "stuck" in answer["error"]["message"]
        assert (await up.chat("tiny"))[0] == 200


async def test_a_long_prompt_without_a_word_is_left_in_peace(router: Start):
    async with router(of_tiny('FAKE_LLAMA_BUSY_SECONDS = "3"', STALL)) as up:
        assert (await up.chat("tiny"))[0] == 200
        (child,) = up.children()
        assert (await up.events("tiny"))[-1] == "[DONE]"
        assert [one.pid for one in up.children()] == [child.pid]
