"""The ground a server stands on: its sockets, and as many files as it may have."""

from __future__ import annotations

import errno
import logging
import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.config import ServerConfig
from router.config.web import ip_of, is_socket_path
from router.descriptors import check_left, is_out_of_files
from router.errors import StartupError
from router.process import get_status_at

log = logging.getLogger("router.app")

#: All addresses of this machine, of one family each; the second also takes IPv4 where the first is not asked
#: for.
_ANY_4: Final = "0.0.0.0"
_ANY_6: Final = "::"
#: What is missing where a machine has no IPv6, or has it switched off.
_NO_IPV6: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True)
class _Address:
    """One address to listen on, or the path of a Unix socket. `is_one_of_several`: its name stands for others
    as well.
    """

    family: int
    at: tuple[Any, ...]  # as socket.bind takes it; the port comes with it. Of a Unix socket: (path,)
    is_one_of_several: bool = False

    @property
    def host(self) -> str:
        return str(self.at[0])

    def with_port(self, port: int) -> tuple[Any, ...]:
        return (self.at[0], port, *self.at[2:])


def bind(server: ServerConfig) -> tuple[socket.socket, ...]:
    """Sockets on every address of `server.host`, not listening yet; a host that ends with .sock is the path
    of a Unix socket. "::" takes IPv4 as well. Raises StartupError that says what to do."""
    bound: list[socket.socket] = []
    try:
        addresses = _addresses(server)
        takes_ipv4 = not any(one.host == _ANY_4 for one in addresses)
        port, left_out = server.port, None
        for one in addresses:
            if one.family == socket.AF_UNIX:
                bound.append(_bound_path(Path(one.host).expanduser()))
                continue
            try:
                bound.append(_bound(one, port, takes_ipv4=takes_ipv4))
            except OSError as error:
                left_out = StartupError(bind_words(_written(one.host, port), error))
                # "localhost" is ::1 as well, also where there is no IPv6.
                if not one.is_one_of_several or error.errno not in _NO_IPV6:
                    raise left_out from error
                log.warning("%s; the other addresses of that name are served", left_out.message)
            else:
                # With port 0 the first address draws one, and the others take the same.
                port = bound[-1].getsockname()[1]
        if left_out is not None and not bound:
            raise left_out
    except StartupError:
        for made in bound:
            made.close()
        raise
    return tuple(bound)


def _addresses(server: ServerConfig) -> list[_Address]:
    """Those of all hosts, each once, without those that a wildcard takes anyway. Raises StartupError."""
    found: dict[tuple[int, tuple[Any, ...]], _Address] = {}
    for host in server.hosts:
        if is_socket_path(host):
            found[socket.AF_UNIX, (host,)] = _Address(socket.AF_UNIX, (host,))
            continue
        try:
            infos = socket.getaddrinfo(host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise StartupError(f"cannot listen on {host!r}: {error.strerror or error}") from error
        keys = list(dict.fromkeys((family, address) for family, _, _, _, address in infos))
        for key in keys:
            found.setdefault(key, _Address(*key, is_one_of_several=len(keys) > 1))
    addresses = list(found.values())
    wildcards = {one.host for one in addresses} & {_ANY_4, _ANY_6}
    taken = {socket.AF_INET} if wildcards else set()
    if _ANY_6 in wildcards:
        taken.add(socket.AF_INET6)
    return [one for one in addresses if one.host in wildcards or one.family not in taken]


def _bound_path(path: Path) -> socket.socket:
    """For its owner alone. What a router left there that is gone is taken away."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                try:
                    other.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
        made.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            words = "another program does already; stop it, or choose another --host"
        else:
            words = error.strerror or str(error)
        raise StartupError(f"cannot listen on {path}: {words}") from error
    return made


def url_of(bound: socket.socket) -> str:
    name = bound.getsockname()
    if isinstance(name, str):  # the path of a Unix socket, which only a service manager opens
        return f"unix:{name}"
    return f"http://{_written(*name[:2])}"


def own_address(bound: socket.socket) -> Any:
    """Where this machine itself reaches a listening socket, as `socket.connect` takes it."""
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return name
    host, *more = name
    return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *more)


async def is_answered(bound: socket.socket, timeout_seconds: float) -> bool:
    """Whether a request to a listening socket of this process is answered in time, with whatever status.
    Where no file is left to ask with, nothing is held against it: what runs is served.
    """
    address = own_address(bound)
    status = await get_status_at(bound.family, address, "/health", timeout_seconds=timeout_seconds)
    if status is not None:
        return True
    try:
        check_left(2)  # one to ask with, and one to accept it with
    except OSError as error:
        return is_out_of_files(error)
    return False


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_on_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return bound.family == socket.AF_UNIX or _is_loopback(bound.getsockname()[0])


def _is_loopback(host: str) -> bool:
    address = ip_of(host)
    return address is not None and address.is_loopback


def _bound(address: _Address, port: int, *, takes_ipv4: bool) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            is_for_both = address.host == _ANY_6 and takes_ipv4
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_for_both)
        made.bind(address.with_port(port))
    except OSError:
        made.close()
        raise
    return made


def bind_words(where: str, error: OSError) -> str:
    """What is wrong with listening `where`, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"cannot listen on {where}: another program does already; stop it, or choose another --port"
            )
        case errno.EAFNOSUPPORT:
            return (
                f"cannot listen on {where}: this machine has no IPv6; --host 0.0.0.0 is all of its addresses"
            )
        case errno.EADDRNOTAVAIL:
            return f"cannot listen on {where}: this machine has no such address"
        case errno.EACCES:
            return f"cannot listen on {where}: ports below 1024 need privileges; choose another --port"
        case _:
            return f"cannot listen on {where}: {error.strerror or error}"


def allow_many_files() -> None:
    """A request has two sockets, and 1024 files, the usual soft limit, are soon used up: take what may
    be taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
