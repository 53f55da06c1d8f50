"""Inference: every path that a loaded llama-server answers itself is found its instance here and passed
through."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec

from router.admin.autoload import AUTOLOAD, require_loadable
from router.admin.dialect import dialect_of
from router.admin.form import FormFields
from router.admin.head import HEAD_FIELDS, read_form_head, read_head
from router.admin.json_fields import JsonFields
from router.admin.route import HttpRequest, Pending, ProxiedRoute, Query
from router.admin.streams import hold_for_conversation
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
from router.proxy import RequestInfo
from router.proxy.request import CONVERSATION

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


def infer(request: Pending) -> RequestInfo:
    """Passed to the model that the body names, which is loaded for it; the answer passes as it comes."""
    context, fields = request.context, request.fields
    text = fields.text(request.body) if isinstance(fields, JsonFields) else request.body.joined()
    head = read_head(request, text)
    model = context.name_or_default(head.model)
    require_loadable(request, context, model)
    on_abandoned = None
    if head.stream and (conversation := request.headers.get(CONVERSATION)):
        on_abandoned = partial(hold_for_conversation, context, conversation)
    return RequestInfo(
        model,
        head.priority,
        head.keep_alive,
        head.size,
        dialect_of(request.path),
        head.stream and request.path in STREAMED_PATHS,
        on_abandoned=on_abandoned,
    )


def infer_from_form(request: Pending) -> RequestInfo:
    """Passed to the model that a field of the form names, which may stand before or behind the file."""
    if request.content_type != "multipart/form-data":
        return infer(request)
    context, fields = request.context, request.fields
    if not isinstance(fields, FormFields):
        fields = form_fields(request)
        fields.feed(request.body.joined())
    head = read_form_head(request, fields)
    model = context.name_or_default(head.model)
    require_loadable(request, context, model)
    return RequestInfo(model, head.priority, head.keep_alive, stream=head.stream)


def json_fields(_: HttpRequest) -> JsonFields:
    return JsonFields(HEAD_FIELDS)


def form_fields(request: HttpRequest) -> FormFields:
    return FormFields.of(request.headers["Content-Type"], ("model", "stream", "keep_alive"))


def form_or_json_fields(request: HttpRequest) -> FormFields | JsonFields:
    return (form_fields if request.content_type == "multipart/form-data" else json_fields)(request)


ROUTES = (
    *(
        ProxiedRoute(
            "POST",
            path,
            plan=infer,
            fields=json_fields,
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
        ProxiedRoute(
            "POST",
            path,
            plan=infer_from_form,
            fields=form_or_json_fields,
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
