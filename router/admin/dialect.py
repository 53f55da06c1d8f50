"""Whose words a client understands: errors on Anthropic's paths have Anthropic's shape, others OpenAI's."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from router.proxy import Dialect

#: A client of Anthropic's may have any of the router's paths before them (`/upstream/{model}`).
ANTHROPIC_PATHS: Final = ("/v1/messages", "/v1/messages/count_tokens")


@lru_cache(maxsize=64)
def dialect_of(path: str) -> Dialect:
    return Dialect.ANTHROPIC if path.endswith(ANTHROPIC_PATHS) else Dialect.OPENAI
