"""Visible waiting with the real llama-server: what unmodified clients make of a stream that begins before its
model is there, and of one whose model never comes."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import anthropic
import openai
import pytest

from tests.e2e.conftest import Start
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.waiting import until

pytestmark = pytest.mark.e2e

#: A small model is there in less than a tenth of a second.
SOON = "[server]\nstream_head_seconds = 0.005\nstream_heartbeat_seconds = 0.01\n"
BROKEN = SOON + '[models."broken"]\nflags = { override-kv = "llama.block_count=int:7" }\n'
HELLO = "hello"


def gpt(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def claude(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


async def test_the_head_and_signs_of_life_come_before_the_model(router: Start):
    body = {"model": "one", "messages": [{"role": "user", "content": HELLO}], "max_tokens": 4, "stream": True}
    async with router("one", config=SOON) as up, aiohttp.ClientSession() as client:
        async with client.post(up.url + "/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            assert answer.content_type == "text/event-stream"
            assert answer.headers["X-Router-Action"] in ("queued", "loading")
            assert int(answer.headers["X-Router-Queue-Ms"]) < 2000
            events = (await answer.text()).split("\n\n")
        beats = [event for event in events if event.startswith(": llama-router ")]
        assert beats
        states = [json.loads(beat.removeprefix(": llama-router "))["state"] for beat in beats]
        assert states[0] in ("queued", "loading")
        assert set(states) <= {"queued", "loading", "processing"}
        assert not [event for event in events[len(beats) :] if event.startswith(": llama-router ")]
        assert events[-2:] == ["data: [DONE]", ""]
        async with client.post(up.url + "/v1/chat/completions", json=body) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
            assert ": llama-router" not in (await answer.text()).partition("data: ")[2]


async def test_the_openai_package_streams_through_a_cold_model(router: Start):
    async with router("one", config=SOON) as up, gpt(up.url) as client:
        stream = await client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": HELLO}], max_tokens=8, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_the_anthropic_package_streams_through_a_cold_model(router: Start):
    async with (
        router("one", config=SOON) as up,
        claude(up.url) as client,
        client.messages.stream(
            model="one", messages=[{"role": "user", "content": HELLO}], max_tokens=8
        ) as stream,
    ):
        message = await stream.get_final_message()
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 8


async def test_the_openai_package_raises_what_a_load_failed_with(router: Start):
    async with router("broken", config=BROKEN) as up, gpt(up.url) as client:
        stream = await client.chat.completions.create(
            model="broken", messages=[{"role": "user", "content": HELLO}], stream=True
        )
        with pytest.raises(openai.APIError, match="broken") as raised:
            [chunk async for chunk in stream]
    assert raised.value.code == "load_failed"


async def test_the_anthropic_package_raises_what_a_load_failed_with(router: Start):
    async with router("broken", config=BROKEN) as up, claude(up.url) as client:
        with pytest.raises(anthropic.APIStatusError, match="broken"):
            async with client.messages.stream(
                model="broken", messages=[{"role": "user", "content": HELLO}], max_tokens=8
            ) as stream:
                await stream.get_final_message()


ONE_SLOT = """
[server]
stream_head_seconds = 0.2
stream_heartbeat_seconds = 0.1
[child]
parallel = 1
ctx_size = 16384
"""
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": HELLO}], "max_tokens": 2},
    "/v1/completions": {"prompt": HELLO, "max_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": HELLO}], "max_tokens": 2},
    "/v1/responses": {"input": HELLO, "max_output_tokens": 2},
}


async def waited(up: RouterProcess, count: int) -> None:
    """Until so many requests are with the model, all for half a second."""
    await until(
        lambda: up.get("/requests"),
        holds=lambda found: len(found["data"]) >= count and found["data"][-1]["age_seconds"] >= 0.5,
    )


async def test_streams_that_wait_for_a_slot_hear_their_place_on_every_path_and_their_bytes_are_the_same(
    router: Start,
):
    async with router(config=ONE_SLOT) as up, aiohttp.ClientSession() as client:
        make_llama(up.models / "slow.gguf", approx_mib=60, n_ctx_train=16384)
        async with up.client.get("/models?reload=1"):
            pass
        long = {"model": "slow", "prompt": HELLO, "ignore_eos": True, "n_predict": 1500, "stream": True}
        async with client.post(up.url + "/completion", json=long) as running:
            await running.content.readuntil(b"\n\n")

            async def ask(path: str) -> tuple[aiohttp.ClientResponse, str]:
                body = {"model": "slow", "stream": True, **BODIES[path]}
                async with client.post(up.url + path, json=body) as answer:
                    return answer, await answer.text()

            asked = [asyncio.ensure_future(ask(path)) for path in BODIES]
            plain = asyncio.ensure_future(up.chat("slow", max_tokens=2))
            await waited(up, len(BODIES) + 2)
            running.close()
        for path, (answer, text) in zip(BODIES, await asyncio.gather(*asked), strict=True):
            assert answer.status == 200
            assert answer.headers["X-Router-Action"] == "already_loaded"
            events = [event for event in text.split("\n\n") if event]
            beats = [event for event in events if event.startswith(": llama-router ")]
            told = json.loads(beats[0].removeprefix(": llama-router ").split("\n")[0])
            assert (told["state"], told["model"]) == ("queued", "slow"), path
            assert 1 <= told["position"] <= len(BODIES) + 1
            assert events[: len(beats)] == beats, "none is within the stream"
            assert ("event: ping" in beats[0]) is (path == "/v1/messages")
            assert "error" not in events[-1], events[-1]
        assert (await plain)[0] == 200


async def test_a_refusal_after_a_wait_for_a_slot_ends_the_stream_with_an_error(router: Start):
    async with router(config=ONE_SLOT) as up, gpt(up.url) as client, claude(up.url) as other:
        make_llama(up.models / "slow.gguf", approx_mib=60, n_ctx_train=16384)
        async with up.client.get("/models?reload=1"):
            pass
        long = {"model": "slow", "prompt": HELLO, "ignore_eos": True, "n_predict": 1500, "stream": True}
        async with up.client.post("/completion", json=long) as running:
            await running.content.readuntil(b"\n\n")
            text = "word " * 20_000

            async def openai_stream() -> None:
                async for _ in await client.chat.completions.create(
                    model="slow", messages=[{"role": "user", "content": text}], max_tokens=2, stream=True
                ):
                    pass

            async def anthropic_stream() -> None:
                async with other.messages.stream(
                    model="slow", messages=[{"role": "user", "content": text}], max_tokens=2
                ) as stream:
                    async for _ in stream:
                        pass

            asked = [asyncio.ensure_future(one()) for one in (openai_stream, anthropic_stream)]
            await waited(up, 3)
            running.close()
        first, second = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, openai.APIError) and "context" in str(first), first
    assert isinstance(second, anthropic.APIError) and "context" in str(second), second
