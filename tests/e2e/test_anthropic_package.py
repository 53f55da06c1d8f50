"""The `anthropic` package, unmodified: through a cold model, a warm one and a swap."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e

HELLO: list[MessageParam] = [{"role": "user", "content": "hello"}]
LIGHT: ToolParam = {
    "name": "set_light",
    "description": "Switch the light",
    "input_schema": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
}


@pytest.fixture
async def client(router: Start) -> AsyncIterator[anthropic.AsyncAnthropic]:
    up = router("one", "two", "speaker", args=("--models-max", "1", "--api-key", "secret"))
    async with up, anthropic.AsyncAnthropic(base_url=up.url, api_key="secret", max_retries=0) as client:
        yield client


async def test_messages(client: anthropic.AsyncAnthropic):
    for model in ("one", "one", "two", "one"):
        answer = await client.messages.create(model=model, messages=HELLO, max_tokens=8, system="be brief")
        assert (answer.model, answer.role, answer.stop_reason) == (model, "assistant", "max_tokens")
        (block,) = answer.content
        assert block.type == "text"
        assert block.text
        assert answer.usage.output_tokens == 8


async def test_messages_streamed(client: anthropic.AsyncAnthropic):
    for model in ("one", "one", "two"):
        async with client.messages.stream(model=model, messages=HELLO, max_tokens=8) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            whole = await stream.get_final_message()
        assert whole.content[0].type == "text"
        assert text == whole.content[0].text
        assert whole.usage.output_tokens == 8


async def test_tools(client: anthropic.AsyncAnthropic):
    answer = await client.messages.create(model="speaker", messages=HELLO, max_tokens=64, tools=[LIGHT])
    calls = [(block.name, block.input) for block in answer.content if block.type == "tool_use"]
    assert (answer.stop_reason, calls) == ("tool_use", [("set_light", {"on": True})])


async def test_count_tokens(client: anthropic.AsyncAnthropic):
    short = await client.messages.count_tokens(model="one", messages=HELLO)
    longer = await client.messages.count_tokens(model="two", messages=[*HELLO, *HELLO, *HELLO])
    assert 0 < short.input_tokens < longer.input_tokens


async def test_its_errors_are_of_the_right_kind(client: anthropic.AsyncAnthropic):
    with pytest.raises(anthropic.NotFoundError, match="did you mean 'one'") as unknown:
        await client.messages.create(model="onee", messages=HELLO, max_tokens=8)
    assert isinstance(unknown.value.body, dict)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        async with client.messages.stream(model="onee", messages=HELLO, max_tokens=8):
            pass
    with pytest.raises(anthropic.BadRequestError, match="keep_alive takes seconds"):
        strange = {"keep_alive": "until tomorrow"}
        await client.messages.create(model="one", messages=HELLO, max_tokens=8, extra_body=strange)
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError):
        await stranger.messages.create(model="one", messages=HELLO, max_tokens=8)
