"""The command of one model as settings: what follows llama-server on its command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from router.presets.layer import LayerReader
from router.presets.options import spelling_of_arg

#: Where it listens and what it is called is the router's business; these need no word in a report.
_OURS: Final = frozenset({"host", "port", "alias", "metrics", "slots", "ui", "webui", "fit"})
_CONTAINERS: Final = frozenset({"docker", "podman"})
#: What `docker run` takes a value for, as far as such commands have it: to find the image.
_WITH_VALUE: Final = frozenset(
    {"--name", "-p", "--publish", "-v", "--volume", "-e", "--env", "--gpus", "--device", "--network", "--ipc"}
    | {"--shm-size", "-u", "--user", "--memory", "-m", "--cpus", "--runtime", "--entrypoint", "-w", "--mount"}
    | {"--security-opt", "--group-add", "--ulimit", "--label", "-l", "--restart", "--pull", "--add-host"}
)


class NotLlamaServer(Exception):
    """The command runs something else; the message says what."""


@dataclass(slots=True)
class Command:
    """`settings` have the keys of presets. `left_out` says what of the command is not in them."""

    program: str
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_command(text: str, folders: Sequence[Path]) -> Command:
    """Relative paths are relative to the first of `folders` where they exist, else to the last. Raises
    NotLlamaServer."""
    tokens, env = _tokens(text), dict[str, str]()
    while tokens and (tokens[0] == "env" or re.fullmatch(r"[A-Za-z_]\w*=.*", tokens[0])):
        name, _, value = tokens.pop(0).partition("=")
        if name != "env":
            env[name] = value
    mounts: list[tuple[str, str]] = []
    if tokens and Path(tokens[0]).name in _CONTAINERS:
        program, rest, mounts = "llama-server", *_of_container(tokens)
    elif tokens:
        program, rest = tokens[0], tokens[1:]
    else:
        raise NotLlamaServer("the command is empty")
    if "llama-server" not in Path(program).name:
        raise NotLlamaServer(f"{Path(program).name} is not llama-server")
    command = Command(program, env=env)
    _settle(command, [_outside(token, mounts) for token in rest], folders)
    return command


def without_comments(text: str) -> str:
    """Lines that begin with # are comments, for llama-swap before it looks for macros."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _tokens(text: str) -> list[str]:
    """As llama-swap splits it: a backslash joins lines, and every line end is a blank."""
    try:
        return shlex.split(re.sub(r"\\\s*\n", " ", without_comments(text)))
    except ValueError as error:
        raise NotLlamaServer(f"the command cannot be understood: {error}") from error


def _of_container(tokens: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments behind the image of llama.cpp, and its volumes as (inside, outside)."""
    mounts: list[tuple[str, str]] = []
    rest = tokens[tokens.index("run") + 1 :] if "run" in tokens else []
    while rest:
        token = rest.pop(0)
        option, has_value, value = token.partition("=")
        if token.startswith("-"):
            if option in _WITH_VALUE and not has_value and rest:
                value = rest.pop(0)
            if option in ("-v", "--volume"):
                outside, _, inside = value.partition(":")
                mounts.append((inside.partition(":")[0], outside))
            continue
        if "llama.cpp" not in token and "llama-server" not in token:
            raise NotLlamaServer(f"{token} runs in a container")
        return rest, mounts
    raise NotLlamaServer("it runs a container of which the image cannot be found")


def _outside(token: str, mounts: Sequence[tuple[str, str]]) -> str:
    for inside, outside in mounts:
        if inside and token.startswith(inside.rstrip("/") + "/"):
            return outside.rstrip("/") + token[len(inside.rstrip("/")) :]
    return token


def _settle(command: Command, tokens: list[str], folders: Sequence[Path]) -> None:
    wanted = list(_wanted(command, tokens))
    reader = LayerReader(folders)
    reader.set_args(wanted, "cmd")
    layer = reader.layer()
    command.settings |= layer.fields
    args = [token for group in layer.args.values() for token in group]
    if args:
        command.settings["args"] = args
    command.left_out += layer.problems
    command.left_out += [warning for warning in layer.warnings if "passed on as it is" not in warning]


def _wanted(command: Command, tokens: list[str]) -> Iterator[str]:
    """Every argument but those of the router's own business, and those that it refuses."""
    rest = [part for token in tokens for part in _split(token)]
    while rest:
        token = rest.pop(0)
        spelling = spelling_of_arg(token)
        count = spelling.values if spelling is not None else 0
        values, rest = rest[:count], rest[count:]
        name = spelling.option.name if spelling is not None else token.lstrip("-")
        if name in _OURS or (spelling is None and name in ("no-webui", "no-ui", "no-slots")):
            continue
        if spelling is not None and spelling.option.refused is not None:
            command.left_out.append(f"{token}: {spelling.option.refused}")
            continue
        yield from (token, *values)


def _split(token: str) -> list[str]:
    """llama-server wants `--option value`; people also write `--option=value` and are told so by it."""
    option, equals, value = token.partition("=")
    is_option = bool(equals) and option.startswith("--") and spelling_of_arg(option) is not None
    return [option, value] if is_option else [token]


def environment(lines: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that a model may be given, and the devices that CUDA_VISIBLE_DEVICES chose."""
    kept = {name: value for name, value in lines.items() if name != "CUDA_VISIBLE_DEVICES"}
    chosen = lines.get("CUDA_VISIBLE_DEVICES", "")
    return kept, tuple(f"cuda:{one.strip()}" for one in chosen.split(",") if one.strip())
