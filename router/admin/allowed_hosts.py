"""Which names this router answers to. A page of any web site can let its own name lead to this machine (DNS
rebinding); to the browser our answers are then that page's own. The name gives it away: it is the Host."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from aiohttp import web

from router.config import ServerConfig
from router.config.web import host_of, host_pattern, ip_of, is_socket_path
from router.errors import Forbidden, InvalidRequest

#: Names of the machine that runs containers, as seen from within one (Docker, Podman).
_MACHINE_NAMES: Final = ("host.docker.internal", "host.containers.internal")
#: Hosts whose verdict is kept.
_KEPT: Final = 256


class HostNotAllowed(Forbidden):
    """The request names a host that is none of this router's (server.allowed_hosts)."""

    code = "host_not_allowed"


class AllowedHosts:
    """Without API keys: this machine's loopback names and addresses, the names in `server.host` and
    `server.allowed_hosts`; and, once the router listens beyond loopback, every IP address (none can be
    rebound: there is no name) and the machine's own names.

    With API keys a rebound page gets nothing, as it has none: only what `server.allowed_hosts` says is
    checked then.
    """

    def __init__(self, server: ServerConfig, hostname: str | None = None) -> None:
        patterns = frozenset(map(host_pattern, server.allowed_hosts))
        self._is_any = "*" in patterns or bool(server.api_keys and not patterns)
        self._suffixes = tuple(one[1:] for one in patterns if one.startswith("*."))
        listening = (one for one in server.hosts if not is_socket_path(one))
        self._names = patterns | {one.lower().removesuffix(".") for one in listening}
        self._is_beyond_loopback = False
        self._hostname = socket.gethostname() if hostname is None else hostname
        self._allows = lru_cache(maxsize=_KEPT)(self._judge)

    def listen_on(self, addresses: Iterable[str]) -> None:
        """Told once the addresses of the TCP sockets are known."""
        listening = [ip_of(one.partition("%")[0]) for one in addresses]
        if any(one is None or not one.is_loopback for one in listening):
            self._is_beyond_loopback = True
            own = self._hostname.lower().removesuffix(".")
            short = own.partition(".")[0]
            self._names |= {own, short, f"{short}.local", *_MACHINE_NAMES}
        self._allows.cache_clear()

    def allows(self, value: str) -> bool:
        """Whether a request may have this Host. Raises ValueError for what names no host."""
        return self._allows(value)

    def check(self, hosts: Iterable[str], transport: asyncio.Transport | None) -> None:
        """`hosts` are those of `hosts_of`. Raises HostNotAllowed, and InvalidRequest for a Host that is none.
        (An HTTP/1.1 request without a Host, or with two, is refused by the connection.) What comes over a
        Unix socket comes from no browser, and may have any.
        """
        for value in hosts:
            try:
                is_allowed = self.allows(value)
            except ValueError as error:
                if is_over_unix_socket(transport):
                    continue
                raise InvalidRequest(f"Host: {error}") from error
            if not is_allowed and not is_over_unix_socket(transport):
                raise HostNotAllowed(
                    f'"{host_of(value)}" is no name of this router, and a web page could have made it one '
                    f'(DNS rebinding): set server.allowed_hosts = ["{host_of(value)}"], or server.api_keys'
                )

    def _judge(self, value: str) -> bool:
        name = host_of(value)
        if self._is_any or name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        address = ip_of(name)
        if address is not None:
            return address.is_loopback or self._is_beyond_loopback
        return name.endswith(self._suffixes)


ALLOWED_HOSTS = web.AppKey("allowed_hosts", AllowedHosts)


def hosts_of(request: web.Request) -> list[str]:
    """The Host, and what an absolute target names (RFC 9112, 3.2.2): both count."""
    target = request.raw_path
    named = [] if target.startswith("/") or "://" not in target else [target.partition("://")[2]]
    return [*request.headers.getall("Host", []), *(re.split("[/?#]", one)[0] for one in named)]


def is_over_unix_socket(transport: asyncio.Transport | None) -> bool:
    own = transport.get_extra_info("socket") if transport is not None else None
    return own is not None and own.family == socket.AF_UNIX
