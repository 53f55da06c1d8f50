"""Every path of llama-server has its place here, or a reason why it has none."""

from __future__ import annotations

import re

import pytest

from router.admin import FAMILIES
from tests.admin.conftest import Api

#: What llama-server registers (tools/server/server.cpp, build 11434), as method and path.
LLAMA_SERVER = """
    GET /health                     GET /v1/health                  GET /metrics
    GET /props                      POST /props                     GET /models
    GET /v1/models                  POST /models                    DELETE /models
    POST /models/load               POST /models/unload             GET /models/sse
    POST /completion                POST /completions               POST /v1/completions
    POST /chat/completions          POST /v1/chat/completions       POST /v1/chat/completions/control
    POST /v1/responses              POST /responses                 POST /v1/messages
    POST /v1/messages/count_tokens  POST /infill                    POST /embedding
    POST /embeddings                POST /v1/embeddings             POST /rerank
    POST /reranking                 POST /v1/rerank                 POST /v1/reranking
    POST /v1/systemone              POST /tokenize                  POST /detokenize
    POST /apply-template            POST /v1/audio/transcriptions   POST /audio/transcriptions
    POST /chat/completions/input_tokens     POST /v1/chat/completions/input_tokens
    POST /responses/input_tokens            POST /v1/responses/input_tokens
    GET /lora-adapters              POST /lora-adapters             GET /slots
    POST /slots/:id_slot            GET /v1/stream                  DELETE /v1/stream
    POST /v1/streams/lookup         GET /tools                      POST /tools
    GET /cors-proxy                 POST /cors-proxy
"""

#: Not at their own paths. All of them are reached behind `/upstream/{model}`, by admins.
NOT_HERE = {
    "GET /tools": "runs commands on this machine where a model is started with --tools; it is no inference",
    "POST /tools": "as above",
    "GET /cors-proxy": "fetches any address from this machine, for a page that we have not",
    "POST /cors-proxy": "as above",
}


def served() -> set[str]:
    routes = (route for family in FAMILIES for route in family.ROUTES)
    return {re.sub(r"{(\w+)(?::[^}]*)?}", r":\1", f"{route.method} {route.path}") for route in routes}


def test_every_path_of_llama_server_is_served_or_left_out_for_a_reason():
    theirs = set(re.findall(r"[A-Z]+ /\S+", LLAMA_SERVER))
    assert len(theirs) == 51
    assert theirs - served() == NOT_HERE.keys()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/props", "/upstream/tiny/health", "/v1/stream"])
async def test_options_tells_the_methods_without_a_key(api: Api, path: str):
    await api.start(api_keys=("secret",))
    answer = await api.call("OPTIONS", path)
    assert answer.status == 204
    methods = answer.headers["Allow"].split(", ")
    assert "OPTIONS" in methods and len(methods) > 1
    assert ("HEAD" in methods) == ("GET" in methods)


async def test_every_get_answers_head_without_a_body(api: Api):
    await api.start()
    paths = [route.path for family in FAMILIES for route in family.ROUTES if route.method == "GET"]
    for path in paths:
        answer = await api.call("HEAD", path.replace("{model:.+}", "tiny"), allow_redirects=False)
        assert answer.body == b""
        assert answer.status < 500 or answer.status == 503, path
