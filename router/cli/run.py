"""`llama-router run`: a chat with a model in the terminal, or one answer to what is piped in."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from router.cli.client import MODEL, Client, client_options, print_json
from router.cli.numbers import FiniteRange
from router.cli.progress import show_line

_HELP: Final = """\
/clear            forget what was said
/system TEXT      tell the model who it is
/model NAME       go on with another model
/bye              leave (Ctrl-D too)
Ctrl-C stops an answer. A line that begins and ends with \"\"\" may hold several."""
_QUOTES: Final = '"""'


@dataclass(slots=True)
class Chat:
    """What was said so far. `options` go into every request."""

    client: Client
    model: str
    options: dict[str, object] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Generator[tuple[str, str], None, None]:
        """Pieces of the answer as they come, each with its kind: "reasoning" or "content". What was answered
        until the iterator is closed is remembered."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        body = {"model": self.model, "stream": True, "messages": self.messages, **self.options}
        try:
            path = "/v1/chat/completions"
            for event in self.client.events("POST", path, body=body, on_comment=_hint):
                if event == "[DONE]":
                    break
                for kind, piece in _pieces(event):
                    if kind == "content":
                        said.append(piece)
                    yield kind, piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()  # a question without an answer would confuse the next one

    def begin_anew(self) -> None:
        self.messages = [one for one in self.messages if one["role"] == "system"]

    def tell_system(self, text: str) -> None:
        self.messages = [one for one in self.messages if one["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})


@click.command()
@client_options
@click.argument("model", type=MODEL)
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="Tell the model who it is.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="End an answer after so many tokens.")
@click.option("--temperature", type=FiniteRange(min=0), help="0: always the likeliest word.")
def run(
    client: Client,
    as_json: bool,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Chat with MODEL, which is loaded if it must be.

    With a PROMPT, or with text on standard input, one answer is printed and that is all.
    """
    given = {"max_tokens": max_tokens, "temperature": temperature}
    chat = Chat(client, model, {name: value for name, value in given.items() if value is not None})
    chat.tell_system(system)
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    question = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if as_json:
        chat.messages.append({"role": "user", "content": _required(question)})
        body = {"model": model, "messages": chat.messages, **chat.options}
        print_json(chat.client.post("/v1/chat/completions", body))
    elif question or not sys.stdin.isatty():
        _say(chat.ask(_required(question)))
    else:
        _talk(chat)


def _required(question: str) -> str:
    if not question:
        raise click.UsageError("nothing to ask: give a prompt, or text on standard input")
    return question


def _talk(chat: Chat) -> None:
    with _history():
        click.echo(f"{chat.model}; /help tells more, /bye leaves", err=True)
        while (text := _read()) is not None:
            try:
                if not _obeyed(chat, text):
                    _say(chat.ask(text))
            except click.ClickException as error:
                error.show()
            except EOFError:
                return


def _read() -> str | None:
    """What the person says next; None at the end."""
    try:
        text = input(">>> ")
        if text.startswith(_QUOTES):
            while not text.rstrip().endswith(_QUOTES) or len(text.strip()) < 2 * len(_QUOTES):
                text += "\n" + input("... ")
            text = text.strip().removeprefix(_QUOTES).removesuffix(_QUOTES)
        return text.strip()
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:
        click.echo("\n(/bye or Ctrl-D leaves)", err=True)
        return ""


def _obeyed(chat: Chat, text: str) -> bool:
    """Whether it was a command and no question. Raises EOFError for /bye."""
    command, _, rest = text.partition(" ")
    match command:
        case "":
            pass
        case "/bye" | "/exit" | "/quit":
            raise EOFError
        case "/clear":
            chat.begin_anew()
        case "/system":
            chat.tell_system(rest)
        case "/model" if rest:
            chat.model = rest
        case "/help" | "/?":
            click.echo(_HELP)
        case _ if command.startswith("/") and "/" not in command[1:]:
            click.echo(f"there is no {command}; /help tells what there is", err=True)
        case _:
            return False
    return True


def _say(pieces: Generator[tuple[str, str], None, None]) -> None:
    """Print as it comes; what the model thinks only on a terminal. Ctrl-C ends the answer, and with it the
    request."""
    last = ""
    try:
        for kind, piece in pieces:
            if kind == "reasoning" and not sys.stdout.isatty():
                continue
            if not last:
                _hint("")
            if last and kind != last:
                click.echo("\n")
            last = kind
            click.echo(click.style(piece, dim=True) if kind == "reasoning" else piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _hint("")
        if not sys.stdin.isatty():
            raise
        pieces.close()
        click.echo(click.style(" (stopped)", dim=True), nl=False)
    click.echo()


def _hint(comment: str) -> None:
    """What is waited for, on a line that changes, for somebody who looks; "" clears it."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return
    try:
        place = json.loads(comment.removeprefix("llama-router ")) if comment else {}
    except ValueError:
        return  # of somebody between us and the router
    show_line(waiting_words(place))


def waiting_words(place: Any) -> str:
    """Where a request stands that waits for its model, as its stream tells; empty for nothing."""
    if not isinstance(place, dict) or "model" not in place:
        return ""
    doing = (
        "loads" if place.get("state") == "loading" else f"waits for {place.get('waits_for') or 'its turn'}"
    )
    return f"{place['model']} {doing} ({place.get('waited_seconds') or 0:.0f} s)"


def _pieces(event: str) -> Iterator[tuple[str, str]]:
    """Raises click.ClickException for an error in the stream."""
    data: Any = json.loads(event)
    if error := data.get("error"):
        raise click.ClickException(error.get("message") or str(error))
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or {}
        for key, kind in (("reasoning_content", "reasoning"), ("content", "content")):
            if delta.get(key):
                yield kind, delta[key]


@contextmanager
def _history() -> Iterator[None]:
    """Lines can be edited and called back, also those of earlier chats."""
    try:
        import readline
    except ImportError:
        yield
        return
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(base) / "llama-router" / "chat_history"
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)
