"""Inference: every path that a loaded llama-server answers itself is found its instance here and passed
through."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from router.api.context import CONTEXT, Context
from router.api.head import read_head
from router.api.route import Route
from router.core.types import ModelName, State
from router.errors import ModelNotLoaded
from router.proxy import Ask, Dialect

#: POST paths whose JSON body names the model. llama-server serves them all; what a model cannot do it says
#: itself.
INFERENCE_PATHS: Final = (
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/completions",
    "/completions",
    "/completion",
    "/v1/embeddings",
    "/embeddings",
    "/embedding",
    "/v1/responses",
    "/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/reranking",
    "/rerank",
    "/reranking",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/chat/completions/input_tokens",
    "/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
    "/responses/input_tokens",
)
_ANTHROPIC_PATHS: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

_COMING_OR_THERE: Final = frozenset({State.PLANNED, State.STARTING, State.READY})


async def infer(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    body = await request.read()
    head = read_head(request, body)
    model = context.name_of(head.model)
    if not context.config.scheduler.autoload:
        _require_loaded(context, model)
    dialect = Dialect.ANTHROPIC if request.path in _ANTHROPIC_PATHS else Dialect.OPENAI
    ask = Ask(model, head.priority, head.keep_alive, head.size, dialect, head.stream)
    return await context.proxy.forward(request, body, ask)


def _require_loaded(context: Context, model: ModelName) -> None:
    if not any(one.state in _COMING_OR_THERE for one in context.pool.snapshot().of_model(model)):
        raise ModelNotLoaded(
            f"{model} is not loaded, and requests do not load models here (scheduler.autoload): "
            f'POST /models/load {{"model": "{model}"}} first'
        )


ROUTES = tuple(Route("POST", path, infer) for path in INFERENCE_PATHS)
