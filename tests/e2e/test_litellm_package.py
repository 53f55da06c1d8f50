"""The `litellm` package as a client, unmodified: through a cold model, a warm one and a swap, in the words
of OpenAI and of Anthropic."""

from __future__ import annotations

import pytest

from tests.e2e.client_program import run
from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e

PROGRAM = """
import litellm

def chat(model, **more):
    return litellm.completion(model=model, messages=HELLO, max_tokens=8, api_key=key, num_retries=0, **more)

here = {"api_base": url + "/v1"}
told["answers"] = []
for model in ("one", "one", "two", "one"):
    answer = chat("openai/" + model, **here)
    told["answers"].append([bool(answer.choices[0].message.content), answer.usage.completion_tokens])
chunks = list(chat("openai/two", stream=True, **here))
told["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

tools = [{"type": "function", "function": {"name": "set_light", "description": "Switch the light",
                                           "parameters": LIGHT}}]
answer = chat("openai/speaker", tools=tools, **here)
calls = answer.choices[0].message.tool_calls
told["tool_calls"] = [[one.function.name, one.function.arguments] for one in calls]

# Without a format LiteLLM sends null, which llama-server does not take.
words = ["hello world", "the router"]
answer = litellm.embedding("openai/embedding", words, encoding_format="float", api_key=key, **here)
told["embedded"] = [len(one["embedding"]) for one in answer.data]

# LiteLLM puts /v1/messages behind the base for Anthropic's own words.
answer = chat("anthropic/one", api_base=url)
told["anthropic"] = [bool(answer.choices[0].message.content), answer.usage.completion_tokens]
told["anthropic_streamed"] = "".join(
    chunk.choices[0].delta.content or "" for chunk in chat("anthropic/two", api_base=url, stream=True))

told["errors"] = []
for model, base in (("openai/nobody", url + "/v1"), ("anthropic/nobody", url)):
    try:
        chat(model, api_base=base)
    except litellm.NotFoundError as error:
        told["errors"].append("not found" in str(error))
"""


async def test_litellm(router: Start):
    async with router(
        "one", "two", "embedding", "speaker", args=("--models-max", "1", "--api-key", "secret")
    ) as up:
        told = await run(PROGRAM, up.url)
        assert told["answers"] == [[True, 8]] * 4
        assert told["streamed"]
        assert told["tool_calls"] == [["set_light", '{"on": true}']]
        assert told["embedded"] == [64, 64]
        assert told["anthropic"] == [True, 8]
        assert told["anthropic_streamed"]
        assert told["errors"] == [True, True]
