"""`run`: a chat in the terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from router.cli import cli
from router.cli.client import Client
from router.cli.run import Chat, _say, _talk, waiting_words
from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received
from tests.cli.conftest import Terminal


def chunk(**delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


class Child:
    """Answers every chat with the number of messages it was told."""

    def __init__(self) -> None:
        self.told: list[dict] = []
        self.left = asyncio.Event()
        self.stops_after: int | None = None

    async def __call__(self, received: Received, connection: Connection) -> None:
        body = json.loads(received.body)
        self.told.append(body)
        count = len(body["messages"])
        if not body.get("stream"):
            await connection.answer(b'{"choices": [{"message": {"content": "all at once"}}]}')
            return
        await connection.begin_stream()
        await connection.chunk(chunk(reasoning_content="hm"))
        for word in ("you ", "said ", f"{count}"):
            await connection.chunk(chunk(content=word))
            if self.stops_after == count:
                await connection.until_client_left()
                self.left.set()
                return
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end_stream()


@pytest.fixture
async def child(api: Api) -> Child:
    made = Child()
    await api.start(script=made)
    return made


async def test_a_prompt_is_answered_and_nothing_else_is_printed(api: Api, child: Child):
    result = await Terminal(api).run(
        "run", "tiny", "what", "now?", "--max-tokens", "9", "--system", "be brief"
    )
    assert result.stdout == "you said 2\n"
    (told,) = child.told
    assert told["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what now?"},
    ]
    assert told["max_tokens"] == 9
    assert "temperature" not in told


async def test_what_is_piped_in_goes_with_the_prompt(api: Api, child: Child):
    def run() -> str:
        args = ["run", "tiny", "sum up:", "--url", api.url]
        return CliRunner().invoke(cli, args, input="a long text\n").stdout

    assert await asyncio.to_thread(run) == "you said 1\n"
    assert child.told[0]["messages"][0]["content"] == "sum up:\n\na long text"


async def test_as_json_it_is_the_answer_of_the_model(api: Api, child: Child):
    result = await Terminal(api).run("run", "tiny", "hello", "--json")
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "all at once"


async def test_with_nothing_to_ask_it_says_so(api: Api, child: Child):
    result = await Terminal(api).run("run", "tiny", status=2)
    assert "nothing to ask" in result.output
    assert not child.told


async def test_a_model_that_is_not_there_is_told_in_the_routers_words(api: Api, child: Child):
    assert "there are: " in (await Terminal(api).run("run", "nobody", "hello", status=1)).output


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """What a person types; an exception for a key that is none."""
    left: Iterator[str | type[BaseException]] = iter((*lines, EOFError))

    def say(_: str = "") -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", say)


async def talk(api: Api) -> Chat:
    chat = Chat(Client(api.url), "tiny")
    await asyncio.to_thread(_talk, chat)
    return chat


@pytest.fixture(autouse=True)
def _own_history(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


async def test_a_chat_remembers_what_was_said(api: Api, child: Child, monkeypatch, capsys):
    typed(monkeypatch, "one", "two")
    await talk(api)
    assert [len(told["messages"]) for told in child.told] == [1, 3]
    assert child.told[1]["messages"][1] == {"role": "assistant", "content": "you said 1"}
    assert "you said 3" in capsys.readouterr().out


async def test_commands_are_obeyed_and_not_asked(api: Api, child: Child, monkeypatch, capsys):
    typed(
        monkeypatch,
        "/system be kind",
        "one",
        "/clear",
        "two",
        "/model other",
        "three",
        "/what",
        "/help",
        "/bye",
        "x",
    )
    await talk(api)
    told = [[one["content"] for one in body["messages"]] for body in child.told]
    assert told == [["be kind", "one"], ["be kind", "two"], ["be kind", "two", "you said 2", "three"]]
    assert [body["model"] for body in child.told] == ["tiny", "tiny", "other"]
    captured = capsys.readouterr()
    assert "there is no /what" in captured.err
    assert "/clear" in captured.out


async def test_lines_in_triple_quotes_are_one_question(api: Api, child: Child, monkeypatch):
    typed(monkeypatch, '"""first', "second", 'third"""', "", KeyboardInterrupt)
    await talk(api)
    assert [one["messages"][0]["content"] for one in child.told] == ["first\nsecond\nthird"]


async def test_a_failure_ends_the_answer_and_not_the_chat(api: Api, child: Child, monkeypatch, capsys):
    typed(monkeypatch, "/model nobody", "one", "/model tiny", "two")
    await talk(api)
    assert "there are: " in capsys.readouterr().err
    assert [one["messages"][0]["content"] for one in child.told] == ["two"], "what had no answer is forgotten"


async def test_an_answer_that_is_stopped_ends_its_request_and_is_remembered(
    api: Api, child: Child, monkeypatch, capsys
):
    child.stops_after = 1
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    chat = Chat(Client(api.url), "tiny")

    def pressed(pieces):
        for kind, piece in pieces:
            yield kind, piece
            if kind == "content":
                raise KeyboardInterrupt

    answer = chat.ask("one")
    await asyncio.to_thread(_say, pressed(answer))
    await asyncio.to_thread(answer.close)
    async with asyncio.timeout(10):
        await child.left.wait()
    assert chat.messages[-1] == {"role": "assistant", "content": "you "}
    assert "(stopped)" in capsys.readouterr().out


async def test_an_error_in_the_stream_is_told(api: Api):
    async def broken(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(chunk(content="half") + b'data: {"error": {"message": "it died"}}\n\n')
        await connection.end_stream()

    await api.start(script=broken)
    with pytest.raises(click.ClickException, match="it died"):
        await asyncio.to_thread(_say, Chat(Client(api.url), "tiny").ask("one"))


def test_what_a_chat_waits_for_is_said_in_words():
    place = {"model": "b", "state": "queued", "waited_seconds": 3.4, "waits_for": "a to become idle"}
    assert waiting_words(place) == "b waits for a to become idle (3 s)"
    assert waiting_words({**place, "waits_for": None}) == "b waits for its turn (3 s)"
    assert waiting_words({**place, "state": "loading"}) == "b loads (3 s)"
    assert waiting_words({}) == waiting_words(["what"]) == ""
