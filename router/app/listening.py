"""The ground a server stands on: its sockets, and as many files as it may have."""

from __future__ import annotations

import errno
import logging
import resource
import socket
from contextlib import ExitStack, suppress
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

_BIND_FAILURES: Final = {
    errno.EADDRINUSE: "another program does already; stop it, or choose another --port",
    errno.EAFNOSUPPORT: "this machine has no IPv6; --host 0.0.0.0 is all of its addresses",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "ports below 1024 need privileges; choose another --port",
}


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


def bind(server: ServerConfig) -> tuple[socket.socket, ...]:
    """Sockets on every address of `server.host`, not listening yet; a host that ends with .sock is the path
    of a Unix socket. "::" takes IPv4 as well. Raises StartupError that says what to do."""
    addresses = _addresses(server)
    takes_ipv4 = not any(one.host == _ANY_4 for one in addresses)
    bound: list[socket.socket] = []
    port, left_out = server.port, None
    with ExitStack() as opened:
        for one in addresses:
            try:
                with ExitStack() as opening:  # closes at once what cannot be bound
                    made = opening.enter_context(socket.socket(one.family, socket.SOCK_STREAM))
                    if one.family == socket.AF_UNIX:
                        _bind_path(made, Path(one.host).expanduser())
                    else:
                        _bind_port(made, one, port, takes_ipv4=takes_ipv4)
                        # With port 0 the first address draws one, and the others take the same.
                        port = made.getsockname()[1]
                    opened.push(opening.pop_all())
                bound.append(made)
            except OSError as error:
                left_out = StartupError(bind_words(_written(one.host, port), error))
                # "localhost" is ::1 as well, also where there is no IPv6.
                if not one.is_one_of_several or error.errno not in _NO_IPV6:
                    raise left_out from error
                log.warning("%s; the other addresses of that name are served", left_out.message)
        if left_out is not None and not bound:
            raise left_out
        opened.pop_all()
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


def _bind_path(made: socket.socket, path: Path) -> None:
    """For its owner alone. What a router left there that is gone is taken away. Raises StartupError."""
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
        if error.errno == errno.EADDRINUSE:
            words = "another program does already; stop it, or choose another --host"
        else:
            words = error.strerror or str(error)
        raise StartupError(f"cannot listen on {path}: {words}") from error


def _bind_port(made: socket.socket, address: _Address, port: int, *, takes_ipv4: bool) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == socket.AF_INET6:
        is_for_both = address.host == _ANY_6 and takes_ipv4
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_for_both)
    made.bind((address.at[0], port, *address.at[2:]))


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
    address = ip_of(bound.getsockname()[0]) if bound.family != socket.AF_UNIX else None
    return bound.family == socket.AF_UNIX or (address is not None and address.is_loopback)


def bind_words(where: str, error: OSError) -> str:
    """What is wrong with listening `where`, and what to do."""
    why = _BIND_FAILURES.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {where}: {why}"


def allow_many_files() -> None:
    """A request has two sockets, and 1024 files, the usual soft limit, are soon used up: take what may
    be taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
