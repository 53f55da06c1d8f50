"""How commands find their router, and what they say when there is none."""

from __future__ import annotations

import asyncio
import socket

import click
import pytest
from click.testing import CliRunner

from router.cli import cli
from router.cli.client import Client
from tests.api.conftest import Api
from tests.api.upstream import free_port


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
