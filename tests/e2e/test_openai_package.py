"""The `openai` package, unmodified, against the running router: through a cold model, a warm one and a
swap."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]

LIGHT: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switch the light",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}


@pytest.fixture
async def client(router: Start) -> AsyncIterator[openai.AsyncOpenAI]:
    up = router("one", "two", "embedding", "speaker", args=("--models-max", "1", "--api-key", "secret"))
    async with up, openai.AsyncOpenAI(base_url=up.url + "/v1", api_key="secret", max_retries=0) as client:
        yield client


async def test_chat(client: openai.AsyncOpenAI):
    for model in ("one", "one", "two", "one"):
        answer = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=8)
        assert answer.model == model
        assert answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8


async def test_chat_streamed(client: openai.AsyncOpenAI):
    for model in ("one", "two"):
        stream = await client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8


async def test_completions(client: openai.AsyncOpenAI):
    answer = await client.completions.create(model="one", prompt="hello", max_tokens=8)
    assert answer.choices[0].text
    stream = await client.completions.create(model="two", prompt="hello", max_tokens=8, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream])


async def test_embeddings(client: openai.AsyncOpenAI):
    answer = await client.embeddings.create(model="embedding", input=["hello world", "the router"])
    assert [len(one.embedding) for one in answer.data] == [64, 64]
    assert any(answer.data[0].embedding)


async def test_tools(client: openai.AsyncOpenAI):
    answer = await client.chat.completions.create(model="speaker", messages=HELLO, tools=[LIGHT])
    calls = answer.choices[0].message.tool_calls or []
    told = [(call.function.name, call.function.arguments) for call in calls if call.type == "function"]
    assert (answer.choices[0].finish_reason, told) == ("tool_calls", [("set_light", '{"on": true}')])
    stream = await client.chat.completions.create(model="speaker", messages=HELLO, tools=[LIGHT], stream=True)
    pieces = [
        call.function
        async for chunk in stream
        for call in (chunk.choices[0].delta.tool_calls or [] if chunk.choices else [])
        if call.function is not None
    ]
    assert "".join(piece.name or "" for piece in pieces) == "set_light"
    assert "".join(piece.arguments or "" for piece in pieces) == '{"on": true}'


async def test_responses(client: openai.AsyncOpenAI):
    for model in ("one", "one", "two"):
        answer = await client.responses.create(model=model, input="hello", max_output_tokens=8)
        assert (answer.model, answer.status) == (model, "completed")
        assert answer.output_text
    stream = await client.responses.create(model="one", input="hello", max_output_tokens=8, stream=True)
    events = [event async for event in stream]
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_transcription_is_passed_to_the_model_that_the_form_names(client: openai.AsyncOpenAI):
    """A model without ears says so itself: the request has reached it."""
    with pytest.raises(openai.InternalServerError, match="does not support audio input"):
        await client.audio.transcriptions.create(model="two", file=("a.wav", b"RIFF" + bytes(5000)))


async def test_models(client: openai.AsyncOpenAI):
    listed = [model async for model in client.models.list()]
    assert {model.id for model in listed} == {"one", "two", "embedding", "speaker"}
    assert (await client.models.retrieve("one")).id == "one"


async def test_its_errors_are_of_the_right_kind(client: openai.AsyncOpenAI):
    with pytest.raises(openai.NotFoundError, match="did you mean 'one'"):
        await client.chat.completions.create(model="onee", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="one", messages="hello")  # type: ignore[arg-type]
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()
