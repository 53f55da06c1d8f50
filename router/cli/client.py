"""Talks to a running router by its address or its socket: what every command but `serve` stands on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import click
from click.core import ParameterSource

from router.config import ServerConfig, load_config
from router.config.web import is_socket_path
from router.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
#: Reading is answered from memory. A load or a drain lasts as long as it lasts: the router knows its
#: deadlines.
READ_SECONDS = 30.0

_F = TypeVar("_F", bound=Callable[..., Any])


class NoRouter(click.ClickException):
    """Nobody listens at `url`."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"no router answers at {url}; start one with: llama-router serve (or name it with --url)"
        )
        self.url = url


class Refused(click.ClickException):
    """The router answered with an error, in its words. `code` is the error's."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Client:
    """`url` is an address ("http://host:port") or a Unix socket ("unix:/path", or the path alone). Every call
    raises click.ClickException with a message for people."""

    url: str
    api_key: str | None = None
    read_seconds: float | None = READ_SECONDS

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._call("GET", path, query, None, self.read_seconds)

    def post(self, path: str, body: Mapping[str, object], query: Mapping[str, str] | None = None) -> Any:
        return self._call("POST", path, query, body, None)

    def delete(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._call("DELETE", path, query, None, self.read_seconds)

    def lines(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Generator[str, None, None]:
        """The lines of an answer as they come. Closing the iterator ends the request."""
        with self._asked(method, path, query, body, None) as response:
            if response.status >= 400:
                self._read(response.status, response.read())
            while line := response.readline():
                yield line.decode(errors="replace").rstrip("\r\n")

    def events(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        on_comment: Callable[[str], None] = lambda _: None,
    ) -> Generator[str, None, None]:
        """The data of every server-sent event, as it comes. Comments say what is waited for."""
        data: list[str] = []
        for line in self.lines(method, path, query=query, body=body):
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith(":"):
                on_comment(line[1:].strip())
            elif not line and data:
                yield "\n".join(data)
                data.clear()
        if data:
            yield "\n".join(data)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, object] | None,
        timeout_seconds: float | None,
    ) -> Any:
        with self._asked(method, path, query, body, timeout_seconds) as response:
            return self._read(response.status, response.read())

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, object] | None,
        timeout_seconds: float | None,
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection, prefix = self._connection()
        target = prefix + path + (f"?{urlencode(query)}" if query else "")
        try:
            connection.connect()
            connection.sock.settimeout(timeout_seconds)
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            yield connection.getresponse()
        except (ConnectionRefusedError, FileNotFoundError, socket.gaierror) as error:
            raise NoRouter(self.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(f"{self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        if self.url.startswith(("unix:", "/")):
            return _UnixConnection(self.url.removeprefix("unix:").removeprefix("//")), ""
        try:
            parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise click.ClickException(f"{self.url} is not an address: {error}") from error
        if not host or parts.scheme not in ("http", "https"):
            raise click.ClickException(f"{self.url} is not an address like {DEFAULT_URL}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(host, port, timeout=CONNECT_SECONDS), parts.path.rstrip("/")

    def _read(self, status: int, body: bytes) -> Any:
        try:
            answer = json.loads(body)
        except ValueError:
            raise click.ClickException(
                f"what answers at {self.url} is not llama-router (status {status})"
            ) from None
        if status < 400:
            return answer
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            raise Refused(f"{self.url} answered with status {status}", status, None)
        message = error.get("message") or f"{self.url} answered with status {status}"
        raise Refused(str(message), status, error.get("code"))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def client_options(command: _F) -> _F:
    """`--url`, `--api-key` and `--json`, as every command that asks a running router has them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option(
            "--api-key",
            envvar="LLAMA_ROUTER_API_KEY",
            callback=_or_configured_key,
            help="A key of the router. [$LLAMA_ROUTER_API_KEY]",
        ),
        click.option(
            "--url",
            envvar="LLAMA_ROUTER_URL",
            is_eager=True,
            callback=_or_configured_url,
            help="The router's address, or unix:/path/to/socket. "
            f"[$LLAMA_ROUTER_URL, else that of config.toml, else {DEFAULT_URL}]",
        ),
    ):
        command = option(command)
    return command


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _or_configured_url(ctx: click.Context, _: click.Parameter, given: str | None) -> str:
    return given or configured().url


def _or_configured_key(ctx: click.Context, _: click.Parameter, given: str | None) -> str | None:
    """The keys of our configuration are for the router that it configures, and shown to nobody else."""
    is_ours = ctx.get_parameter_source("url") in (ParameterSource.DEFAULT, None)
    return given or (configured().api_key if is_ours else None)


def configured() -> Client:
    """The router that the configuration of this user describes."""
    try:
        server = load_config(None).server
    except ConfigError:  # of no concern here; `config check` says what is wrong
        return Client(DEFAULT_URL)
    key = next(iter((*server.admin_keys, *server.api_keys)), None)
    return Client(address_of(server), key)


def address_of(server: ServerConfig) -> str:
    """Where a router that is configured so can be called from its own machine."""
    first = server.hosts[0]
    if is_socket_path(first):
        return f"unix:{Path(first).expanduser()}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"
