"""Inference: every path that a loaded llama-server answers itself is found its instance here and passed
through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
from aiohttp import web

from router.admin.autoload import AUTOLOAD, require_loadable
from router.admin.context import CONTEXT
from router.admin.dialect import dialect_of
from router.admin.form import FormFields
from router.admin.head import HEAD_FIELDS, read_form_head, read_head
from router.admin.json_fields import JsonFields
from router.admin.requests import CONVERSATION
from router.admin.route import Query, Route
from router.admin.streams import forward_to_its_end
from router.errors import (
    AmbiguousModel,
    LoadFailed,
    ModelNotFound,
    ModelNotLoaded,
    ModelTooLarge,
    ModelUnusable,
    NoRoom,
    QueueFull,
    Unloaded,
    UpstreamFailed,
    WaitTimeout,
)
from router.proxy import RequestInfo, read_body

#: POST paths whose JSON body names the model. llama-server serves them all; what a model cannot do it says
#: itself.
INFERENCE_PATHS: Final = (
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/chat/completions/control",
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
    "/v1/systemone",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/chat/completions/input_tokens",
    "/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
    "/responses/input_tokens",
)
#: Of these, those whose answer llama-server streams where `stream` is true; elsewhere the field means
#: nothing.
STREAMED_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion"}
    | {"/v1/responses", "/responses", "/v1/messages", "/infill"}
)
#: POST paths whose form (multipart/form-data) names the model, beside the file it brings.
FORM_PATHS: Final = ("/v1/audio/transcriptions", "/audio/transcriptions")

#: What any request that needs a model may be answered instead.
REFUSALS: Final = (
    ModelNotFound, AmbiguousModel, ModelNotLoaded, ModelUnusable, ModelTooLarge, QueueFull, NoRoom,
    WaitTimeout, LoadFailed, Unloaded, UpstreamFailed,
)  # fmt: skip
#: For whom the body has no room for a name.
MODEL: Final = Query("model", "The model's name or alias, where the body has none")


class Named(msgspec.Struct, frozen=True):
    """What the router itself reads of a body; the rest is llama-server's."""

    model: str = ""
    stream: bool = False
    keep_alive: float | str | None = None


async def infer(request: web.Request) -> web.StreamResponse:
    """Passed to the model that the body names, which is loaded for it; the answer passes as it comes."""
    context = request.app[CONTEXT]
    fields = JsonFields(HEAD_FIELDS)
    body = await read_body(request, fields.feed)
    head = read_head(request, fields.text(body))
    model = context.name_or_default(head.model)
    require_loadable(request, context, model)
    is_stream = head.stream and request.path in STREAMED_PATHS
    ask = RequestInfo(model, head.priority, head.keep_alive, head.size, dialect_of(request), is_stream)
    if head.stream and (conversation := request.headers.get(CONVERSATION)):
        lasting = replace(ask, outlives_client=True)
        return await forward_to_its_end(context, request, body, lasting, conversation)
    return await context.proxy.forward(request, body, ask)


async def infer_from_form(request: web.Request) -> web.StreamResponse:
    """Passed to the model that a field of the form names, which may stand before or behind the file."""
    if request.content_type != "multipart/form-data":
        return await infer(request)
    context = request.app[CONTEXT]
    fields = FormFields.of(request.headers["Content-Type"], ("model", "stream", "keep_alive"))
    body = await read_body(request, fields.feed)
    head = read_form_head(request, fields)
    model = context.name_or_default(head.model)
    require_loadable(request, context, model)
    ask = RequestInfo(model, head.priority, head.keep_alive, stream=head.stream)
    return await context.proxy.forward(request, body, ask)


ROUTES = (
    *(
        Route(
            "POST",
            path,
            infer,
            summary=f"{path} of the model that the body names",
            query=(MODEL, AUTOLOAD),
            body=Named,
            answer=Any,
            media=("application/json", "text/event-stream"),
            refusals=REFUSALS,
        )
        for path in INFERENCE_PATHS
    ),
    *(
        Route(
            "POST",
            path,
            infer_from_form,
            summary=f"{path} of the model that the form names",
            query=(MODEL, AUTOLOAD),
            body=Named,
            takes="multipart/form-data",
            answer=Any,
            media=("application/json", "text/event-stream", "text/plain"),
            refusals=REFUSALS,
        )
        for path in FORM_PATHS
    ),
)
