"""Who a client is, as far as an address tells, and whether it is on this machine."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from ipaddress import IPv6Address, ip_network
from typing import Any, Final, Protocol

from multidict import CIMultiDictProxy

from router.config.web import ip_of


class FromClient(Protocol):
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...


#: Clients of a Unix socket have no address; they count as one.
UNIX: Final = "unix"
#: A reverse proxy says for whom it asks: what comes from this machine then need not be from its users.
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def client_of(peername: Any) -> str:
    """The client that a share is counted for: an IPv4 address, the /64 network of an IPv6 address (one
    subscriber has at least that much), or UNIX. `peername` is as the transport tells it.
    """
    return _client(str(peername[0])) if isinstance(peername, tuple) and peername else UNIX


def shown_address(address: str | None) -> str | None:
    """A client's address as logs and lists show it: an IPv4 client of a socket for both families has
    "::ffff:" before it there, which no filter of a log expects."""
    if address is None or not address.startswith("::ffff:"):
        return address
    found = ip_of(address)
    return address if found is None else str(found)


def is_local(request: FromClient) -> bool:
    """Whether a user of this machine asks, without a proxy between that asks for others."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    peername = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not isinstance(peername, tuple):
        return True
    address = ip_of(str(peername[0]).partition("%")[0])
    return address is not None and address.is_loopback


@lru_cache(maxsize=1024)
def _client(text: str) -> str:
    address = ip_of(text.partition("%")[0])
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(ip_network((address, 64), strict=False))
    return str(address) if address is not None else text
