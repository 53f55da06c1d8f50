"""The ground a server stands on: its sockets, and as many files as it may have."""

from __future__ import annotations

import errno
import resource
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from router.config import ServerConfig
from router.descriptors import check_left, is_out_of_files
from router.errors import StartupError
from router.process import get_status_at


def bind(server: ServerConfig) -> tuple[socket.socket, ...]:
    """Sockets on every address of `server.host`, not listening yet; a host that ends with .sock is the path
    of a Unix socket. Raises StartupError that says what to do."""
    if server.host.endswith(".sock"):
        return (_bound_path(Path(server.host).expanduser()),)
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"cannot listen on {server.host!r}: {error.strerror or error}") from error
    bound: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            # With port 0 the first address draws one, and the others take the same.
            port = bound[0].getsockname()[1] if bound else server.port
            bound.append(_bound(family, (str(address[0]), port)))
    except OSError as error:
        for one in bound:
            one.close()
        raise StartupError(_bind_words(server, error)) from error
    return tuple(bound)


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
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def _bound(family: int, address: tuple[str, int]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _bind_words(server: ServerConfig, error: OSError) -> str:
    where = f"{server.host}:{server.port}"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"cannot listen on {where}: another program does already; stop it, or choose another --port"
            )
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
