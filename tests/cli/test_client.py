"""How commands find their router, and what they say when there is none."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from router.cli import cli
from router.cli.client import Client, address_of, configured
from router.config import ServerConfig
from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received, free_port


def failure(client: Client) -> str:
    with pytest.raises(click.ClickException) as raised:
        client.get("/models")
    return raised.value.message


def test_when_no_router_runs_it_says_how_to_start_one():
    message = failure(Client(f"http://127.0.0.1:{free_port()}"))
    assert "no router answers at" in message
    assert "llama-router serve" in message


@pytest.mark.parametrize("url", ["http://", "ftp://host", "http://host:port", "http://[::1"])
def test_what_is_no_address_is_refused(url: str):
    assert "is not an address" in failure(Client(url))


def test_something_else_at_that_address_is_recognised():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        async def answer() -> str:
            call = asyncio.to_thread(failure, Client(url))
            task = asyncio.get_running_loop().create_task(call)
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                await asyncio.to_thread(connection.recv, 4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            return await task

        assert "is not llama-router" in asyncio.run(answer())


async def test_the_key_and_the_address_come_from_the_environment_too(api: Api):
    await api.start(api_keys=("secret",))
    environment = {"LLAMA_ROUTER_URL": api.url, "LLAMA_ROUTER_API_KEY": "secret"}
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["ps"], env=environment)
    assert result.output == "No model is loaded.\n"
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["ps"], env={"LLAMA_ROUTER_URL": api.url})
    assert result.exit_code == 1
    assert "a valid key is needed" in result.output


async def test_an_address_may_be_written_without_its_scheme(api: Api):
    await api.start()
    assert await asyncio.to_thread(Client(api.url.removeprefix("http://")).get, "/health") == {"status": "ok"}


async def test_a_router_may_be_named_by_its_socket(api: Api, tmp_path: Path):
    await api.start()
    path = tmp_path / "router.sock"
    await api.listen_on_path(path)
    for url in (f"unix:{path}", str(path), f"unix://{path}"):
        assert await asyncio.to_thread(Client(url).get, "/health") == {"status": "ok"}
    assert "no router answers at unix:/nowhere.sock" in failure(Client("unix:/nowhere.sock"))


async def test_without_a_word_it_is_the_router_of_the_own_configuration(api: Api, tmp_path: Path):
    await api.start(api_keys=("secret",))
    host, port = api.url.removeprefix("http://").split(":")
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\nhost = "{host}"\nport = {port}\napi_keys = ["secret"]\n')
    environment = {"LLAMA_ROUTER_CONFIG": str(config), "LLAMA_ROUTER_URL": None}
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["ps"], env=environment)
    assert result.output == "No model is loaded.\n"
    # The keys of the configuration are for that router alone.
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["ps", "--url", api.url], env=environment)
    assert "a valid key is needed" in result.output


def test_a_configuration_that_is_wrong_does_not_hinder(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    result = CliRunner().invoke(
        cli, ["ps"], env={"LLAMA_ROUTER_CONFIG": str(config), "LLAMA_ROUTER_URL": None}
    )
    assert "Traceback" not in result.output
    assert "prot" not in result.output


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ('host = "0.0.0.0"\nport = 9000', "http://127.0.0.1:9000"),
        ('host = "::"', "http://[::1]:8080"),
        ('host = "/run/x/router.sock"', "unix:/run/x/router.sock"),
    ],
)
def test_an_address_to_listen_on_becomes_one_to_call(tmp_path: Path, monkeypatch, server: str, url: str):
    config = tmp_path / "config.toml"
    config.write_text(f"[server]\n{server}\n")
    monkeypatch.setenv("LLAMA_ROUTER_CONFIG", str(config))
    assert configured().url == url


async def test_events_come_as_they_are_sent_and_end_with_their_reader(api: Api):
    sent, left = asyncio.Event(), asyncio.Event()
    comments: list[str] = []

    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b": a comment\n\ndata: one\ndata: more\n\nid: 7\ndata:two\n\n")
        await sent.wait()
        await connection.chunk(b"data: three\n\n")
        await connection.until_client_left()
        left.set()

    await api.start(script=script)
    loop = asyncio.get_running_loop()

    def read() -> list[str]:
        client = Client(api.url)
        events = client.events("POST", "/v1/completions", body={"model": "tiny"}, on_comment=comments.append)
        first = [next(events), next(events)]
        loop.call_soon_threadsafe(sent.set)
        first.append(next(events))
        events.close()
        return first

    assert await asyncio.to_thread(read) == ["one\nmore", "two", "three"]
    assert comments == ["a comment"]
    async with asyncio.timeout(10):
        await left.wait()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("[::]", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        (("gpu.lan", "127.0.0.1"), "http://gpu.lan:8080"),
        ("/run/a.sock,127.0.0.1", "unix:/run/a.sock"),
    ],
)
def test_the_first_address_of_a_router_is_the_one_to_call(host: Any, url: str):
    assert address_of(ServerConfig(host=host)) == url
