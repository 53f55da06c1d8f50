"""What a family of endpoints is made of: routes as data, each with who may use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from aiohttp import web

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Access(Enum):
    """PUBLIC needs no key; INFERENCE one of `server.api_keys`; ADMIN one of `server.admin_keys`, where
    there are any."""

    PUBLIC = "public"
    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. `path` is in aiohttp's notation: "/v1/models/{model}".

    `endless`: its answer ends only with its client; a shutdown does not wait for it, but cancels it."""

    method: str
    path: str
    handler: Handler
    access: Access = Access.INFERENCE
    endless: bool = False


#: The routes whose answers end only with their clients.
ENDLESS = web.AppKey("endless", set[web.AbstractRoute])
