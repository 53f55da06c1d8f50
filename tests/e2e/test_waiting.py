"""Visible waiting with the real llama-server: what unmodified clients make of a stream that begins before its
model is there, and of one whose model never comes."""

from __future__ import annotations

import json

import aiohttp
import anthropic
import openai
import pytest

from tests.e2e.conftest import Start

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
        assert set(states) <= {"queued", "loading"}
        assert not [event for event in events[len(beats) :] if event.startswith(": llama-router ")]
        assert events[-2:] == ["data: [DONE]", ""]
        async with client.post(up.url + "/v1/chat/completions", json=body) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
            assert ": llama-router" not in await answer.text()


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
