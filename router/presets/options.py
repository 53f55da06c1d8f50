"""llama-server's options: by any of their names, what values they take, and which are not for presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.presets.llama_options import LLAMA_OPTIONS


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `refused` says why a preset may not set it."""

    args: tuple[str, ...]
    negations: tuple[str, ...] = ()
    metavar: str = ""
    env: str = ""

    @property
    def name(self) -> str:
        """The long name without dashes; of several the last, as llama-server's own preset writer does."""
        return self.args[-1].lstrip("-")

    @property
    def values(self) -> int:
        return 2 if self.metavar == "START END" else int(bool(self.metavar))

    @property
    def is_path(self) -> bool:
        return self.metavar in ("FNAME", "FILE", "PATH", "DIR", "JINJA_TEMPLATE_FILE")

    @property
    def refused(self) -> str | None:
        return _REFUSED.get(self.name)


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a name stands for: an option, or its negation. With `switch` it is an old on/off option, and these
    are the values of `option` that took its place when it was on and off (None: nothing to set).
    """

    option: Option
    is_negation: bool = False
    switch: tuple[str | None, str | None] | None = None

    @property
    def values(self) -> int:
        """How many values follow it on a command line."""
        return 0 if self.switch is not None else self.option.values


def spelling_of(name: str) -> Spelling | None:
    """The option called `name` in an INI preset: a long or short name without dashes, or an environment name.

    As on a command line, `_` is as good as `-` in a long name. None: llama-server has no such option.
    """
    name = name.lstrip("-")
    return _SPELLINGS.get(name) or _SPELLINGS.get(name.replace("_", "-"))


def spelling_of_arg(arg: str) -> Spelling | None:
    """The option that the command line argument `arg` ("--ctx-size", "-c", "--ctx_size") stands for."""
    return _ARGS.get(arg.replace("_", "-") if arg.startswith("--") else arg)


def split_arg(arg: str) -> tuple[str, str | None]:
    """`--ctx-size=4096` as the option and its value, as other programs spell it; llama-server does not. An
    argument that is no known option with a value is returned whole."""
    option, equals, value = arg.partition("=")
    if equals and option.startswith("-") and spelling_of_arg(option) is not None:
        return option, value
    return arg, None


def nearest_option(name: str) -> str | None:
    """The option name nearest to a misspelt one."""
    near = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), _SPELLINGS, n=1)
    return near[0] if near else None


def all_options() -> tuple[Option, ...]:
    return _OPTIONS


_ANSWERS: Final = "the router answers clients itself; a child listens on a socket of its own"
_ROUTER: Final = "it would make the child a router"
_PLACES: Final = "the router decides what fits where; use ctx_size and n_gpu_layers, which may be auto"
_FETCHES: Final = "it downloads while loading; use `llama-router pull` and hf_repo"
_PRINTS: Final = "it prints something and ends"
_LOGS: Final = "the router keeps the log and watches it while the model loads"
_REMOVED: Final = "it has been removed from llama-server"

_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("host", "port", "reuse-port", "path", "api-prefix", "api-key", "api-key-file"), _ANSWERS)
    | dict.fromkeys(("ssl-key-file", "ssl-cert-file", "cors-origins", "cors-methods"), _ANSWERS)
    | dict.fromkeys(("cors-headers", "cors-credentials"), _ANSWERS)
    | dict.fromkeys(("models-dir", "models-preset", "models-max", "models-autoload"), _ROUTER)
    | dict.fromkeys(("fit", "fit-target", "fit-ctx"), _PLACES)
    | dict.fromkeys(("model-url", "docker-repo", "mmproj-url", "embd-gemma-default"), _FETCHES)
    | dict.fromkeys(("fim-qwen-1.5b-default", "fim-qwen-3b-default", "fim-qwen-7b-default"), _FETCHES)
    | dict.fromkeys(("fim-qwen-7b-spec", "fim-qwen-14b-spec", "fim-qwen-30b-default"), _FETCHES)
    | dict.fromkeys(("gpt-oss-20b-default", "gpt-oss-120b-default"), _FETCHES)
    | dict.fromkeys(("vision-gemma-4b-default", "vision-gemma-12b-default"), _FETCHES)
    | dict.fromkeys(("usage", "version", "cache-list", "completion-bash", "list-devices"), _PRINTS)
    | dict.fromkeys(("log-disable", "log-file"), _LOGS)
    | dict.fromkeys(("spec-ngram-size-n", "spec-ngram-size-m", "spec-ngram-min-hits"), _REMOVED)
    | {"hf-token": "it would stand in the process list; set HF_TOKEN"}
)

#: Options of older llama-servers that presets still have: what they are now.
_RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "draft": "spec-draft-n-max",
        "draft-n": "spec-draft-n-max",
        "draft-max": "spec-draft-n-max",
        "draft-min": "spec-draft-n-min",
        "draft-n-min": "spec-draft-n-min",
    }
)

#: Switches of older llama-servers: what --load-mode is now when they are on, and when they are off.
_LOAD_MODES: Final[Mapping[str, tuple[str | None, str | None]]] = MappingProxyType(
    {
        "mmap": (None, "none"),
        "no-mmap": ("none", None),
        "mlock": ("mmap+mlock", None),
        "direct-io": ("dio", None),
        "dio": ("dio", None),
        "no-direct-io": (None, "dio"),
    }
)

#: Keys of INI presets that are for the router, not for llama-server (common_params_add_preset_options).
_PRESET_ONLY: Final = (
    Option(("load-on-startup",), metavar="on|off"),
    Option(("stop-timeout",), metavar="SECONDS"),
    Option(("dedup-cache-models",), metavar="on|off"),
)


def _parse(table: str) -> Iterator[Option]:
    for line in table.strip().splitlines():
        args, negations, metavar, env = (*line.split(" | "), "", "", "")[:4]
        yield Option(tuple(args.split()), tuple(negations.split()), metavar.strip(), env.strip())


def _spellings() -> Iterator[tuple[str, Spelling]]:
    for option in (*_OPTIONS, *_PRESET_ONLY):
        for arg in option.args:
            yield arg.lstrip("-"), Spelling(option)
        for arg in option.negations:
            yield arg.lstrip("-"), Spelling(option, is_negation=True)
        if option.env:
            yield option.env, Spelling(option)
        if option.env and option.negations:
            yield option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"), Spelling(option, is_negation=True)


def _renamed() -> Iterator[tuple[str, Spelling]]:
    for old, new in _RENAMED.items():
        yield old, Spelling(_BY_NAME[new])
    for old, (on, off) in _LOAD_MODES.items():
        yield old, Spelling(_BY_NAME["load-mode"], switch=(on, off))


def _args() -> Iterator[tuple[str, Spelling]]:
    for option in _OPTIONS:
        yield from ((arg, Spelling(option)) for arg in option.args)
        yield from ((arg, Spelling(option, is_negation=True)) for arg in option.negations)
    yield from ((f"--{name}", spelling) for name, spelling in _renamed())


_OPTIONS: Final = tuple(_parse(LLAMA_OPTIONS))
_BY_NAME: Final = {option.name: option for option in _OPTIONS}
_SPELLINGS: Final = dict(_spellings()) | dict(_renamed())
_ARGS: Final = dict(_args())
