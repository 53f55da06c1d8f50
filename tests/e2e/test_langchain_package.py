"""The `langchain-openai` package, unmodified: through a cold model, a warm one and a swap."""

from __future__ import annotations

import pytest

from tests.e2e.client_program import run
from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e

PROGRAM = """
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

def chat(model, **more):
    return ChatOpenAI(model=model, base_url=url + "/v1", api_key=key, max_retries=0, max_tokens=8, **more)

told["answers"] = []
for model in ("one", "one", "two", "one"):
    answer = chat(model).invoke("hello")
    told["answers"].append([answer.response_metadata["model_name"], bool(answer.content),
                            answer.usage_metadata["output_tokens"]])
chunks = list(chat("two", stream_usage=True).stream("hello"))
told["streamed"] = "".join(chunk.content for chunk in chunks)
told["streamed_tokens"] = sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata)

tool = {"title": "set_light", "description": "Switch the light", **LIGHT}
bound = chat("speaker").bind_tools([tool])
told["tool_calls"] = bound.invoke("light, please").tool_calls
whole = None
for chunk in bound.stream("light, please"):
    whole = chunk if whole is None else whole + chunk
told["streamed_tool_calls"] = whole.tool_calls

embeddings = OpenAIEmbeddings(model="embedding", base_url=url + "/v1", api_key=key, max_retries=0,
                              check_embedding_ctx_length=False)
told["embedded"] = [len(one) for one in embeddings.embed_documents(["hello world", "the router"])]
told["responses"] = bool(chat("one", use_responses_api=True).invoke("hello").content)
"""


async def test_langchain(router: Start):
    async with router(
        "one", "two", "embedding", "speaker", args=("--models-max", "1", "--api-key", "secret")
    ) as up:
        told = await run(PROGRAM, up.url)
        assert told["answers"] == [["one", True, 8], ["one", True, 8], ["two", True, 8], ["one", True, 8]]
        assert told["streamed"]
        assert told["streamed_tokens"] == 8
        for calls in (told["tool_calls"], told["streamed_tool_calls"]):
            assert [(call["name"], call["args"]) for call in calls] == [("set_light", {"on": True})]
        assert told["embedded"] == [64, 64]
        assert told["responses"]
