"""Whose words a client understands: errors on Anthropic's paths have Anthropic's shape, others OpenAI's."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from router.proxy import Dialect

#: A client of Anthropic's may have any of the router's paths before them (`/upstream/{model}`).
ANTHROPIC_PATHS: Final = ("/v1/messages", "/v1/messages/count_tokens")


def dialect_of(request: web.Request) -> Dialect:
    return Dialect.ANTHROPIC if request.path.endswith(ANTHROPIC_PATHS) else Dialect.OPENAI
