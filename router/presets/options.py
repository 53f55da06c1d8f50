"""llama-server's options: by any of their names, what values they take, and which are not for presets.

Those that decide memory, place and routing are known here. For all others llama-server is asked once for its
--help. Without a llama-server such an option is taken as it looks, and nothing is said of it.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from router.presets.known_options import KNOWN_OPTIONS, REFUSALS

log = logging.getLogger("router.presets")

#: Seconds that --help may take; it takes 6 ms.
_ASK_SECONDS: Final = 10.0
_HEAD: Final = re.compile(r"(?P<args>-[^\s,]+(?:, +-[^\s,]+)*)(?: (?P<metavar>\S.*?))?(?:   .*)?")
_ENV: Final = re.compile(r"\(env: (?P<env>\w+)\)")


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `metavar` is what its value is, "" where it takes none; `refused` why a preset may not set
    it; `field` that of `ModelPreset` which it becomes, and `kind` how its text is read for that."""

    args: tuple[str, ...]
    negations: tuple[str, ...] = ()
    metavar: str = ""
    env: str = ""
    refused: str | None = None
    field: str = ""
    kind: str = ""

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


class Argument(NamedTuple):
    """One option of a command line. `text` is as it was written, without a value that was joined to it by a
    "="; `missing` is how many values are not there."""

    text: str
    spelling: Spelling | None
    values: list[str]
    is_joined: bool
    missing: int

    @property
    def name(self) -> str:
        """Of its option, without dashes; of an unknown one as it was written."""
        return self.spelling.option.name if self.spelling is not None else self.text.lstrip("-")

    @property
    def tokens(self) -> list[str]:
        """As they were on the command line."""
        return [f"{self.text}={self.values[0]}"] if self.is_joined else [self.text, *self.values]


class Options:
    """The options of one llama-server: the known ones, and `further` ones that its --help has."""

    def __init__(self, further: Iterable[Option] = ()) -> None:
        self.options = options = {option.name: option for option in further} | _KNOWN
        self.is_complete = len(options) > len(_KNOWN)
        self._spellings = dict(_spellings(options.values())) | _OLD
        self._args: dict[str, Spelling] = {
            arg: Spelling(option, is_negation=arg in option.negations)
            for option in options.values()
            for arg in (*option.args, *option.negations)
            if option.name not in _PRESET_ONLY
        } | {f"--{name}": spelling for name, spelling in _OLD.items()}

    def find(self, name: str) -> Spelling | None:
        """The option called `name` in a preset: a long or short name without dashes, or an environment name.

        As on a command line, `_` is as good as `-` in a long name. None: no such option is known.
        """
        name = name.lstrip("-")
        return self._spellings.get(name) or self._spellings.get(name.replace("_", "-"))

    def find_arg(self, arg: str) -> Spelling | None:
        """The option that the command line argument `arg` ("--ctx-size", "-c", "--ctx_size") stands for."""
        return self._args.get(arg.replace("_", "-") if arg.startswith("--") else arg)

    def split(self, arg: str) -> tuple[str, str | None]:
        """`--ctx-size=4096` as the option and its value, as other programs spell it; llama-server does not.
        An argument that is no known option with a value is returned whole."""
        option, equals, value = arg.partition("=")
        if equals and option.startswith("-") and self.find_arg(option) is not None:
            return option, value
        return arg, None

    def parse(self, args: Iterable[str]) -> Iterator[Argument]:
        """A command line, option by option. A value is its option's, whatever it looks like; of an unknown
        option all that stands before the next option."""
        rest = list(args)
        while rest:
            text, joined = self.split(rest.pop(0))
            spelling = self.find_arg(text)
            count = spelling.values if spelling is not None else _values_of_unknown(text, rest)
            if joined is None:
                values, rest = rest[:count], rest[count:]
            else:
                values = [joined]
            yield Argument(text, spelling, values, joined is not None, max(0, count - len(values)))

    def nearest(self, name: str) -> str | None:
        """The option name nearest to a misspelt one."""
        wanted = name.lstrip("-").replace("_", "-")
        return next(iter(difflib.get_close_matches(wanted, self._spellings, n=1)), None)


def options_of(binary: Path) -> Options:
    """The options of this llama-server, which is asked once, and again when it was replaced. Of one that
    cannot be asked only those that are known anyway."""
    try:
        status = binary.stat()
    except OSError:
        return KNOWN_ONLY
    try:
        return _ask(binary, status.st_size, status.st_mtime_ns)
    except OSError as error:  # no process could be started for it: the next call asks again
        log.warning("%s --help: %s; options that only it knows are not checked", binary, error)
        return KNOWN_ONLY


@lru_cache(maxsize=4)
def _ask(binary: Path, _size: int, _changed_ns: int) -> Options:
    """Raises OSError."""
    # A variable may be wrong, and then it prints that instead; without a GPU to look at it is faster.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        asked = subprocess.run(
            [binary, "--help"],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        log.warning("%s; options that only it knows are not checked", error)
        return KNOWN_ONLY
    return Options(options_from_help(asked.stdout.decode(errors="replace")))


def options_from_help(text: str) -> Iterator[Option]:
    """The options that a --help describes."""
    head, env = "", ""
    for line in [*text.splitlines(), "-"]:
        if line.startswith("-"):  # an option, or the title of a group: "----- common params -----"
            if not head.startswith("-----") and (match := _HEAD.fullmatch(head)):
                args, negations = _split_negations(match["args"].replace(",", " ").split())
                yield Option(tuple(args), tuple(negations), match["metavar"] or "", env)
            head, env = line, ""
        elif found := _ENV.search(line):
            env = found["env"]


def _split_negations(args: list[str]) -> tuple[list[str], list[str]]:
    """All positive arguments are printed before the negations: `--kv-offload, -nkvo, --no-kv-offload`."""
    if len(args) > 1 and any(arg.startswith("--no-") for arg in args):
        first = next(number for number, arg in enumerate(args) if arg.startswith(("-n", "--no-")))
        return args[:first], args[first:]
    return args, []


def _values_of_unknown(arg: str, rest: Sequence[str]) -> int:
    """How many tokens follow an option of which we do not know how many it wants: up to the next option."""
    if not arg.startswith("-"):
        return 0
    is_option = (token.startswith("-") and not re.match(r"-[\d.]", token) for token in rest)
    return next((number for number, found in enumerate(is_option) if found), len(rest))


def _known() -> Iterator[Option]:
    for line in KNOWN_OPTIONS.strip().splitlines():
        args, negations, metavar, env, here = (part.strip() for part in f"{line} | | | |".split("|")[:5])
        field, _, kind = here.partition(" ") if here not in REFUSALS else ("", "", "")
        yield Option(
            tuple(args.split()), tuple(negations.split()), metavar, env, REFUSALS.get(here), field, kind
        )


def _spellings(options: Iterable[Option]) -> Iterator[tuple[str, Spelling]]:
    for option in options:
        yield from ((arg.lstrip("-"), Spelling(option)) for arg in option.args)
        yield from ((arg.lstrip("-"), Spelling(option, is_negation=True)) for arg in option.negations)
        if option.env:
            yield option.env, Spelling(option)
        if option.env and option.negations:
            yield option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"), Spelling(option, is_negation=True)


_KNOWN: Final = {option.name: option for option in _known()}
#: Keys of INI presets that are for the router, not for llama-server (common_params_add_preset_options).
_PRESET_ONLY: Final = ("load-on-startup", "stop-timeout", "dedup-cache-models")
#: Options of older llama-servers that presets still have: what they are now.
_RENAMED: Final = {
    "draft": "spec-draft-n-max",
    "draft-n": "spec-draft-n-max",
    "draft-max": "spec-draft-n-max",
    "draft-min": "spec-draft-n-min",
    "draft-n-min": "spec-draft-n-min",
}
#: Switches of older llama-servers: what --load-mode is now when they are on, and when they are off.
_LOAD_MODES: Final[Mapping[str, tuple[str | None, str | None]]] = {
    "mmap": (None, "none"),
    "no-mmap": ("none", None),
    "mlock": ("mmap+mlock", None),
    "direct-io": ("dio", None),
    "dio": ("dio", None),
    "no-direct-io": (None, "dio"),
}
_OLD: Final = {old: Spelling(_KNOWN[new]) for old, new in _RENAMED.items()} | {
    old: Spelling(_KNOWN["load-mode"], switch=switch) for old, switch in _LOAD_MODES.items()
}
#: What holds for every llama-server.
KNOWN_ONLY: Final = Options()
spelling_of_arg: Final = KNOWN_ONLY.find_arg
