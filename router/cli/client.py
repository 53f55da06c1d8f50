"""Talks to a running router by its address: what every command but `serve` stands on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import click

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


@dataclass(frozen=True, slots=True)
class Client:
    """Every call raises click.ClickException with a message for people."""

    url: str
    api_key: str | None = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._call("GET", path, query, None, READ_SECONDS)

    def post(self, path: str, body: Mapping[str, object], query: Mapping[str, str] | None = None) -> Any:
        return self._call("POST", path, query, body, None)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, object] | None,
        timeout_seconds: float | None,
    ) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection, prefix = self._connection()
        target = prefix + path + (f"?{urlencode(query)}" if query else "")
        try:
            connection.connect()
            connection.sock.settimeout(timeout_seconds)
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return self._read(response.status, response.read())
        except (ConnectionRefusedError, FileNotFoundError, socket.gaierror) as error:
            raise NoRouter(self.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(f"{self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
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
        message = error.get("message") if isinstance(error, dict) else None
        raise click.ClickException(str(message or f"{self.url} answered with status {status}"))


def client_options(command: _F) -> _F:
    """`--url`, `--api-key` and `--json`, as every command that asks a running router has them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option(
            "--api-key", envvar="LLAMA_ROUTER_API_KEY", help="A key of the router. [$LLAMA_ROUTER_API_KEY]"
        ),
        click.option(
            "--url",
            envvar="LLAMA_ROUTER_URL",
            default=DEFAULT_URL,
            help=f"The router's address. [$LLAMA_ROUTER_URL, else {DEFAULT_URL}]",
        ),
    ):
        command = option(command)
    return command


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
