"""Who may do what: API keys as Bearer token or x-api-key, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from router.admin.client_address import is_local
from router.admin.route import ROUTE_OF, Access, Handler, HttpRequest
from router.errors import Forbidden, Unauthorized


class Keys:
    """The configured keys. Without any, everything is open; an admin key opens what an API key opens."""

    def __init__(self, api_keys: Iterable[str] = (), admin_keys: Iterable[str] = ()) -> None:
        self._admin = [_digest(key) for key in admin_keys]
        self._api = [_digest(key) for key in api_keys]
        #: Whether inference needs one.
        self.are_asked_for: Final = bool(self._api)
        #: Whether anything needs one.
        self.are_any: Final = bool(self._api or self._admin)

    def check(self, presented: Iterable[str], access: Access) -> None:
        """Raises Unauthorized (no valid key) or Forbidden (a valid one that is not enough)."""
        if not self._api and not (self._admin and access is Access.ADMIN):
            return
        digests = [_digest(key) for key in presented]
        is_admin = _has(self._admin, digests)
        is_known = _has(self._api, digests) or is_admin
        match access:
            case Access.PUBLIC:
                return
            case Access.ADMIN if self._admin:
                if is_admin:
                    return
                if is_known:
                    raise Forbidden("this path needs an admin key (server.admin_keys)")
            case _:
                if is_known or not self._api:
                    return
        raise Unauthorized("a valid key is needed: Authorization: Bearer KEY, or x-api-key: KEY")


KEYS = web.AppKey("keys", Keys)


@web.middleware
async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    route = request.app[ROUTE_OF].get(request.match_info.route)
    # Unknown paths need a key as well, so that they tell nothing to strangers.
    access = route.access if route is not None else Access.INFERENCE
    request.app[KEYS].check(_presented_by(request), access)
    return await handler(request)


def require_admin(request: web.Request) -> None:
    """For the part of a handler that only an admin may use. Raises Unauthorized or Forbidden."""
    request.app[KEYS].check(_presented_by(request), Access.ADMIN)


def require_key_or_local(keys: Keys, request: HttpRequest) -> None:
    """For what users have said: where no key is asked for, only users of this machine may read it. Raises
    Forbidden."""
    if not keys.are_any and not is_local(request):
        raise Forbidden(
            f"{request.path} shows what clients have sent; from other machines it needs a key "
            "(server.admin_keys or server.api_keys)"
        )


def presented(authorization: str, x_api_key: str) -> list[str]:
    """llama-server takes a bare key in Authorization as well; Anthropic's clients send x-api-key."""
    scheme, _, rest = authorization.strip().partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else scheme
    return [key for key in (token, x_api_key.strip()) if key]


def _presented_by(request: web.Request) -> list[str]:
    return presented(request.headers.get("Authorization", ""), request.headers.get("x-api-key", ""))


def _digest(key: str) -> bytes:
    # Digests have one length: a comparison tells nothing of how long the right key is.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _has(known: list[bytes], presented: list[bytes]) -> bool:
    found = False
    for one in known:
        for other in presented:
            found |= hmac.compare_digest(one, other)
    return found
