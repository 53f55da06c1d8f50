"""Inputs of models that cannot split them, with the real llama-server: whatever fits the context is answered,
and what does not is refused with 400."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SMALL
from tests.make_gguf import CLS, LAST, MEAN, RANK, make_bert, make_gemma3, make_llama
from tests.router_process import RouterProcess

CONTEXT = 3072
#: A token of every vocabulary here.
TOKEN = 5

CONFIG = """
[models.one-slot]
parallel = 1
[models.four-slots]
ctx_size = 12288
kv_unified = false
[models.three-slots]
parallel = 3
[models.five-slots-apart]
parallel = 5
kv_unified = false
[models.odd-step]
parallel = 3
ubatch_size = 512
[models.decoder-five-slots]
parallel = 5
[models.small-step]
ubatch_size = 512
[models.large-step]
ubatch_size = 3072
[models.short]
ctx_size = 1024
[models.decoder]
embedding = true
[models.decoder-mean]
embedding = true
pooling = "mean"
[models.decoder-slots]
ctx_size = 6144
parallel = 2
kv_unified = false
embedding = true
pooling = "cls"
"""


@pytest.fixture
def embedder(folder: Path, llama_server: Path) -> RouterProcess:
    made = RouterProcess(folder, llama_server, *SMALL, config=CONFIG)
    for name in ("mean", "one-slot", "four-slots", "small-step", "large-step", "short"):
        make_bert(made.models / f"{name}.gguf", name=name, n_ctx_train=CONTEXT, pooling=MEAN)
    for name in ("three-slots", "five-slots-apart", "odd-step"):
        make_bert(made.models / f"{name}.gguf", name=name, n_ctx_train=CONTEXT, pooling=MEAN)
    make_bert(made.models / "odd-context.gguf", n_ctx_train=514, pooling=MEAN)
    mean = {"llama.pooling_type": MEAN}
    make_llama(made.models / "decoder-five-slots.gguf", n_ctx_train=CONTEXT, extra=mean)
    make_bert(made.models / "cls.gguf", name="cls", n_ctx_train=CONTEXT, pooling=CLS)
    make_bert(made.models / "rank.gguf", name="rank", n_ctx_train=CONTEXT, pooling=RANK)
    keys = {"gemma-embedding.pooling_type": MEAN}
    make_gemma3(made.models / "windows.gguf", architecture="gemma-embedding", n_ctx_train=CONTEXT, extra=keys)
    for name in ("decoder", "decoder-mean", "decoder-slots"):
        make_llama(made.models / f"{name}.gguf", name=name, n_ctx_train=CONTEXT)
    not_causal = {"llama.attention.causal": False, "llama.pooling_type": LAST}
    make_llama(made.models / "not-causal.gguf", n_ctx_train=CONTEXT, extra=not_causal)
    make_llama(made.models / "last.gguf", n_ctx_train=CONTEXT, extra={"llama.pooling_type": LAST})
    return made


async def ask(router: RouterProcess, path: str, **body: Any) -> tuple[int, Any]:
    async with router.client.post(path, json=body) as answer:
        return answer.status, json.loads(await answer.read())


def assert_too_long(status: int, answer: Any) -> None:
    assert status == 400, answer
    assert answer["error"]["type"] == "exceed_context_size_error"


@pytest.mark.parametrize(
    "model",
    [
        "mean", "one-slot", "four-slots", "large-step", "cls", "windows", "decoder", "decoder-mean",
        "decoder-slots", "not-causal",
    ],
)  # fmt: skip
async def test_an_input_as_long_as_the_context_is_embedded_and_a_longer_one_is_refused(
    embedder: RouterProcess, model: str
):
    pooled = model != "decoder"  # without a pooling only llama.cpp's own path gives an embedding per token
    path, key = ("/v1/embeddings", "input") if pooled else ("/embedding", "content")
    async with embedder as router:
        status, answer = await ask(router, path, model=model, **{key: [TOKEN] * (CONTEXT - 1)})
        assert status == 200, answer
        assert_too_long(*await ask(router, path, model=model, **{key: [TOKEN] * (CONTEXT + 1)}))
        status, answer = await ask(router, path, model=model, **{key: "hello"})
        assert status == 200, answer


async def test_it_is_refused_alike_on_every_path_and_in_every_form_of_an_input(embedder: RouterProcess):
    long, text = [TOKEN] * (CONTEXT + 9), "a " * (CONTEXT + 9)
    async with embedder as router:
        for path, key in (("/v1/embeddings", "input"), ("/embeddings", "input"), ("/embedding", "content")):
            for value in (long, text, [text], ["a", text], ["a", text, "b"], [long, [TOKEN]]):
                assert_too_long(*await ask(router, path, model="mean", **{key: value}))
        for path in ("/v1/rerank", "/rerank", "/v1/reranking"):
            for documents in ([text], ["a", text]):
                refused = await ask(router, path, model="rank", query="a", documents=documents)
                assert_too_long(*refused)
            assert_too_long(*await ask(router, path, model="rank", query=text, documents=["a"]))
        status, answer = await ask(
            router, "/v1/rerank", model="rank", query="a", documents=["b", "a " * (CONTEXT - 10)]
        )
        assert status == 200 and len(answer["results"]) == 2, answer
        refused = await ask(router, "/v1/embeddings", model="mean", input=text, stream=True)
        assert_too_long(*refused)


async def test_many_inputs_in_one_request_are_all_embedded(embedder: RouterProcess):
    lengths = [1, CONTEXT - 1, 700, 2500, 3, 1024, 2048]
    async with embedder as router:
        for model in ("mean", "four-slots"):
            status, answer = await ask(
                router, "/v1/embeddings", model=model, input=[[TOKEN] * n for n in lengths]
            )
            assert status == 200, answer
            assert len(answer["data"]) == len(lengths)
            asked = (
                ask(router, "/v1/embeddings", model=model, input=[TOKEN] * n) for n in (*lengths, *lengths)
            )
            assert {status for status, _ in await asyncio.gather(*asked)} == {200}


async def test_a_step_or_context_that_is_set_bounds_the_input_and_is_named(embedder: RouterProcess):
    async with embedder as router:
        for model, most in (("small-step", 512), ("short", 1024)):
            status, answer = await ask(router, "/v1/embeddings", model=model, input=[TOKEN] * most)
            assert status == 200, answer
            status, answer = await ask(router, "/v1/embeddings", model=model, input=[TOKEN] * (most + 1))
            assert_too_long(status, answer)
            assert f"at most {most} tokens" in answer["error"]["message"]
            assert "ubatch_size" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        ("odd-context", 514), ("three-slots", CONTEXT), ("five-slots-apart", 765), ("odd-step", 510),
        ("decoder-five-slots", CONTEXT - 2),
    ],
)  # fmt: skip
async def test_mean_pooling_is_served_whatever_the_number_of_slots(
    embedder: RouterProcess, model: str, longest: int
):
    """llama-server aborts at its start where the step is no multiple of the slots."""
    async with embedder as router:
        status, answer = await ask(router, "/v1/embeddings", model=model, input=[TOKEN] * longest)
        assert status == 200, answer
        assert_too_long(*await ask(router, "/v1/embeddings", model=model, input=[TOKEN] * (longest + 9)))


async def test_a_model_that_can_split_an_input_refuses_one_beyond_its_context_too(embedder: RouterProcess):
    async with embedder as router:
        status, answer = await ask(router, "/v1/embeddings", model="last", input=[TOKEN] * (CONTEXT - 9))
        assert status == 200, answer
        refused = await ask(router, "/v1/embeddings", model="last", input=[TOKEN] * (CONTEXT + 9))
        assert_too_long(*refused)
