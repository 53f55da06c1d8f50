"""The command of one model as settings: what follows llama-server on its command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from router.config import Config
from router.engines.llama_server import refused_variable
from router.models.catalog.scan import options_for
from router.presets.layer import Layer, LayerReader, merge
from router.presets.options import Options

#: Where it listens and what it is called is the router's business; these need no word in a report.
_OURS: Final = frozenset({"host", "port", "alias", "metrics", "slots", "ui", "webui", "fit"})
_CONTAINERS: Final = frozenset({"docker", "podman"})
#: They start what stands behind them, with another priority, on other cores, ...
_STARTERS: Final = frozenset(
    {"env", "exec", "sudo", "nice", "ionice", "chrt", "taskset", "numactl", "nohup", "setsid", "stdbuf"}
)
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh"})
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
#: What `docker run` takes a value for, as far as such commands have it: to find the image.
_WITH_VALUE: Final = frozenset({
    "--name", "-p", "--publish", "-v", "--volume", "-e", "--env", "--gpus", "--device", "--network",
    "--ipc", "--shm-size", "-u", "--user", "--memory", "-m", "--cpus", "--runtime", "--entrypoint",
    "-w", "--mount", "--security-opt", "--group-add", "--ulimit", "--label", "-l", "--restart",
    "--pull", "--add-host", "--env-file", "--hostname", "-h", "--log-driver", "--log-opt", "--tmpfs",
    "--cpuset-cpus", "--cap-add", "--cap-drop", "--platform", "--userns", "--network-alias", "--net",
    "--memory-swap", "--pids-limit",
})  # fmt: skip
#: llama-server's variables that stand for options.
_VARIABLE: Final = "LLAMA_ARG_"
#: What chooses the devices that a process sees, and how devices are called here.
_DEVICES: Final[Mapping[str, str]] = MappingProxyType(
    {"CUDA_VISIBLE_DEVICES": "cuda"}
    | dict.fromkeys(("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"), "rocm")
)
_NUMBERED: Final = re.compile(r"(?:CUDA|ROCm)(\d{1,3})", re.IGNORECASE)


class NotCarriedOver(Exception):
    """A model cannot become one of ours; the message says why."""


class NotLlamaServer(NotCarriedOver):
    """The command runs something else, which the argument names."""

    def __str__(self) -> str:
        return f"{super().__str__()}; only llama-server is started here"


@dataclass(slots=True)
class ImportedCommand:
    """`settings` have the keys of presets. `left_out` says what of the command is not in them."""

    program: str
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_command(text: str, folders: Sequence[Path], environ: Mapping[str, str]) -> ImportedCommand:
    """Relative paths are relative to the first of `folders` where they exist, else to the last. `environ` are
    the variables that are set for it. Raises NotLlamaServer."""
    env = dict(environ)
    starters, tokens = _unwrapped(_tokens(text))
    env |= dict(token.split("=", 1) for token in starters if _is_assignment(token))
    mounts: list[tuple[str, str]] = []
    if tokens and Path(tokens[0]).name in _CONTAINERS:
        program, (rest, mounts, env) = "llama-server", _of_container(tokens)
    elif tokens:
        program, rest = tokens[0], tokens[1:]
    else:
        raise NotLlamaServer("the command is empty")
    if "llama-server" not in Path(program).name:
        raise NotLlamaServer(f"{Path(program).name} is not llama-server")
    command = ImportedCommand(program)
    if others := [token for token in starters if token != "env" and not _is_assignment(token)]:
        command.left_out.append(f"{shlex.join(others)}: the router starts llama-server itself")
    below = _of_environment(command, env, folders)
    _settle(command, below, [_outside(token, mounts) for token in rest], folders)
    _place(command, env)
    return command


def _options() -> Options:
    """Those of the llama-server that is to run in place of the one that the command names."""
    return options_for(Config())


def without_comments(text: str) -> str:
    """Lines that begin with # are comments, for llama-swap before it looks for macros."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _tokens(text: str) -> list[str]:
    """As llama-swap splits it: a backslash joins lines, and every line end is a blank."""
    try:
        return shlex.split(re.sub(r"\\\s*\n", " ", without_comments(text)))
    except ValueError as error:
        raise NotLlamaServer(f"the command cannot be understood: {error}") from error


def _unwrapped(tokens: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the program, variables among it, and the program with its arguments."""
    if len(tokens) > 2 and Path(tokens[0]).name in _SHELLS and re.fullmatch(r"-\w*c", tokens[1]):
        if re.search(r"[;&|<>`$(]", tokens[2]):
            raise NotLlamaServer(f"{tokens[0]} runs a script")
        return _unwrapped(_tokens(tokens[2]))
    is_start = bool(tokens) and (Path(tokens[0]).name in _STARTERS or _is_assignment(tokens[0]))
    if not is_start:
        return [], tokens
    names = (_is_assignment(token) or Path(token).name for token in tokens)
    at = next((n for n, name in enumerate(names) if name in _CONTAINERS or "llama-server" in str(name)), None)
    if at is None:
        rest = [token for token in tokens if token not in _STARTERS and not _is_assignment(token)]
        return [], rest
    return tokens[:at], tokens[at:]


def _is_assignment(token: str) -> bool:
    return _ASSIGNMENT.fullmatch(token) is not None


def _of_container(tokens: list[str]) -> tuple[list[str], list[tuple[str, str]], dict[str, str]]:
    """The arguments behind the image of llama.cpp, its volumes as (inside, outside), and its variables."""
    mounts: list[tuple[str, str]] = []
    env: dict[str, str] = {}
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
            if option == "--mount":
                given = dict(part.partition("=")[::2] for part in value.split(","))
                inside = next((given[key] for key in ("target", "dst", "destination") if key in given), "")
                mounts.append((inside, given.get("source", given.get("src", ""))))
            if option == "--device" and re.fullmatch(r"nvidia\.com/gpu=(?!all$).+", value):
                chosen = [*filter(None, [env.get("CUDA_VISIBLE_DEVICES")]), value.partition("=")[2]]
                env["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
            if option in ("-e", "--env") and "=" in value:
                name, _, env[name] = value.partition("=")
            if option == "--gpus" and value.strip("\"'").startswith("device="):
                env["CUDA_VISIBLE_DEVICES"] = value.strip("\"'").removeprefix("device=")
            continue
        if "llama.cpp" not in token and "llama-server" not in token:
            raise NotLlamaServer(f"{token} runs in a container")
        if rest[:1] in (["--server"], ["-s"]):  # of the image `full`, which runs other programs as well
            rest = rest[1:]
        return rest, mounts, {name: _outside(value, mounts) for name, value in env.items()}
    raise NotLlamaServer("it runs a container of which the image cannot be found")


def _outside(token: str, mounts: Sequence[tuple[str, str]]) -> str:
    option, joined = _options().split(token)
    if joined is not None:
        return f"{option}={_outside(joined, mounts)}"
    for inside, outside in mounts:
        if inside and token.startswith(inside.rstrip("/") + "/"):
            return outside.rstrip("/") + token[len(inside.rstrip("/")) :]
    return token


def _settle(command: ImportedCommand, below: Layer, tokens: list[str], folders: Sequence[Path]) -> None:
    """As for llama-server, an argument goes before the variable that means the same."""
    wanted = list(_wanted(command, tokens))
    reader = LayerReader(folders, options=_options())
    reader.set_args(wanted, "cmd")
    layer = merge([below, reader.layer()])
    command.settings |= {key: value for key, value in layer.fields.items() if key != "env"}
    args = [token for group in layer.args.values() for token in group]
    if args:
        command.settings["args"] = args
    command.left_out += layer.problems
    command.left_out += [warning for warning in layer.warnings if "passed on as it is" not in warning]


def _of_environment(command: ImportedCommand, env: Mapping[str, str], folders: Sequence[Path]) -> Layer:
    """The settings that variables are; those that are none, and that a model may be given, become its own."""
    reader = LayerReader(folders, is_ini=True, options=_options())
    for name, value in env.items():
        spelling = _options().find(name)
        if name in _DEVICES:
            continue
        if name.startswith(_VARIABLE) or (spelling is not None and spelling.option.env == name):
            if spelling is None or spelling.option.name not in _OURS:
                reader.set_option(_option_of(name), value, name)
        elif (reason := refused_variable(name)) is not None:
            command.left_out.append(f"{name}: {reason}")
        else:
            command.env[name] = value
    return reader.layer()


def _option_of(variable: str) -> str:
    """The variables of switches that llama-server has no more, LLAMA_ARG_NO_MMAP, go by the option's name."""
    old = _options().find(variable.removeprefix(_VARIABLE).lower())
    is_old = _options().find(variable) is None and old is not None and old.switch is not None
    return variable.removeprefix(_VARIABLE).lower() if is_old else variable


def _place(command: ImportedCommand, env: Mapping[str, str]) -> None:
    """The devices that a variable has chosen. llama-server numbers those that it sees: its CUDA0 is the first
    of them."""
    name = next((name for name in _DEVICES if name in env), None)
    if name is None:
        return
    chosen = list(takewhile(_is_device, (one.strip() for one in env[name].split(","))))
    if not chosen:
        command.settings["n_gpu_layers"] = 0
        command.settings.pop("devices", None)
        return
    devices = [f"{_DEVICES[name]}:{one}" if one.isdecimal() else one for one in chosen]
    named = [_NUMBERED.fullmatch(one) for one in command.settings.get("devices", ())]
    numbers = [int(found[1]) for found in named if found is not None and int(found[1]) < len(devices)]
    command.settings["devices"] = [devices[number] for number in numbers] or devices


def _is_device(name: str) -> bool:
    """The first name that is none hides all behind it."""
    return name not in ("", "-1", "none", "void", "NoDevFiles")


def _wanted(command: ImportedCommand, tokens: list[str]) -> Iterator[str]:
    """Every argument but those of the router's own business, and those that it refuses."""
    for argument in _options().parse(tokens):
        spelling, name = argument.spelling, argument.name
        if name in _OURS or (spelling is None and name in ("no-webui", "no-ui", "no-slots")):
            continue
        if spelling is not None and spelling.option.refused is not None:
            command.left_out.append(f"{argument.text}: {spelling.option.refused}")
            continue
        yield from argument.tokens
