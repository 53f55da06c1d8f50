"""Talks to a running router by its address or its socket: what every command but `serve` stands on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode, urlsplit

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from router.config import ServerConfig, load_config
from router.config.web import is_socket_path
from router.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
#: GET is answered from memory. A load or a drain has the deadlines of the router, and none here.
READ_SECONDS = 30.0

#: Fields of a query string, and of a JSON body.
Query: TypeAlias = Mapping[str, str] | None
Body: TypeAlias = Mapping[str, object]


class NoRouter(click.ClickException):
    """Nobody listens at `url`."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"no router answers at {url}; start one with: llama-router serve (or name it with --url)"
        )
        self.url = url


class RequestRefused(click.ClickException):
    """The router answered with an error; the message is the router's own, `status` the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Client:
    """A router by its `url`: an address ("http://host:port") or a Unix socket ("unix:/path", or the path
    alone). Every method raises click.ClickException with a message for people.
    """

    url: str
    api_key: str | None = None
    #: Limit for each read of an answer to GET or DELETE, in seconds; None: no limit.
    read_seconds: float | None = READ_SECONDS

    def get(self, path: str, query: Query = None) -> Any:
        """Return the decoded answer."""
        return self._call("GET", path, query, None, self.read_seconds)

    def post(self, path: str, body: Body, query: Query = None) -> Any:
        """Return the decoded answer, without a limit of time: a load lasts as long as it lasts."""
        return self._call("POST", path, query, body, None)

    def delete(self, path: str, query: Query = None) -> Any:
        """Return the decoded answer."""
        return self._call("DELETE", path, query, None, self.read_seconds)

    def lines(
        self, method: str, path: str, *, query: Query = None, body: Body | None = None
    ) -> Generator[str, None, None]:
        """Yield the lines of an answer as they come. Closing the generator ends the request."""
        with self._response(method, path, query, body, None) as response:
            if response.status >= 400:
                self._decoded(response)
            while line := response.readline():
                yield line.decode(errors="replace").rstrip("\r\n")

    def events(
        self, method: str, path: str, *, body: Body, on_comment: Callable[[str], None]
    ) -> Generator[str, None, None]:
        """Yield the data of each server-sent event as it comes. Comments tell what the request waits for."""
        data: list[str] = []
        for line in self.lines(method, path, body=body):
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith(":"):
                on_comment(line[1:].strip())
            elif not line and data:
                yield "\n".join(data)
                data.clear()
        if data:
            yield "\n".join(data)

    def _call(self, method: str, path: str, query: Query, body: Body | None, seconds: float | None) -> Any:
        with self._response(method, path, query, body, seconds) as response:
            return self._decoded(response)

    @contextmanager
    def _response(
        self, method: str, path: str, query: Query, body: Body | None, seconds: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection, prefix = self._connection()
        target = prefix + path + (f"?{urlencode(query)}" if query else "")
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            yield connection.getresponse()
        except (ConnectionRefusedError, FileNotFoundError, socket.gaierror) as error:
            raise NoRouter(self.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(f"{self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        """Return a connection that is not open yet, and what stands before each path."""
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

    def _decoded(self, response: http.client.HTTPResponse) -> Any:
        status = response.status
        try:
            answer = json.loads(response.read())
        except ValueError:
            raise click.ClickException(
                f"what answers at {self.url} is not llama-router (status {status})"
            ) from None
        if status < 400:
            return answer
        error = answer.get("error") if isinstance(answer, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        raise RequestRefused(str(message or f"{self.url} answered with status {status}"), status)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ModelName(click.ParamType[str]):
    """A model's name: any text, as the router checks it. A shell completes the names that there are."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return nothing where no router answers: a shell is no place for an error."""
        own = configured()
        client = Client(ctx.params.get("url") or own.url, ctx.params.get("api_key") or own.api_key)
        try:
            models = client.get("/models")["data"]
        except click.ClickException:
            return []
        names = [name for model in models for name in (model["id"], *model["aliases"])]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


MODEL: Final = ModelName()


def client_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--url`, `--api-key` and `--json`, which it gets as `client` and `as_json`."""

    @wraps(command)
    def with_client(*args: Any, url: str, api_key: str | None, **given: Any) -> None:
        command(*args, client=Client(url, api_key), **given)

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
        with_client = option(with_client)
    return with_client


def print_json(value: object) -> None:
    """Print what a command answers, for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_answer(answer: object, text: str, *, as_json: bool) -> None:
    """Print what a command answers: as JSON, or in words."""
    print_json(answer) if as_json else click.echo(text)


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
