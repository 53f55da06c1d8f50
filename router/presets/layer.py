"""One section of settings, from wherever it came: fields of a preset, arguments, and what is wrong with it.

Presets are made of layers, one above the other (`merge`). What decides memory and place becomes a field
however it is written (`ctx_size`, `-c`, `LLAMA_ARG_CTX_SIZE`): who counts bytes need not read arguments.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from router.config.values import Wrong, absolute, convert, hints_of, shown
from router.presets.ini import IniSection
from router.presets.options import KNOWN_ONLY, Argument, Options, Spelling
from router.presets.preset import ModelPreset

FIELDS: Final[Mapping[str, Any]] = MappingProxyType(
    {name: hint for name, hint in hints_of(ModelPreset).items() if name not in ("name", "error", "origin")}
)
_TRUE: Final = frozenset({"on", "enabled", "true", "1"})
_FALSE: Final = frozenset({"off", "disabled", "false", "0"})
_NOT_SET: Final = object()
_EITHER: Final = (
    ("model", {"hf_repo", "hf_file"}),
    ("hf_repo", {"model", "hf_file"}),
    ("draft_model", {"draft_hf_repo"}),
    ("draft_hf_repo", {"draft_model"}),
)
_PATHS: Final = frozenset({"model", "mmproj", "draft_model", "lora"})

_NAME: Final = re.compile(r'\s*(?:"[^"]*"\s*(?=,|$)|[^,]+)')
#: A name of an option that can be passed on unseen; `LLAMA_ARG_...` cannot.
_LONG_NAME: Final = re.compile(r"(?:--)?[a-z][a-z0-9]+(?:[-_.][a-z0-9]+)*")
_IN_QUOTES: Final = re.compile(r'"[^"]*"')

Tokens: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """`args` are groups of tokens by option name, so that a layer above can replace those of one below."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Tokens] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    origin: str | None = None


def merge(layers: Iterable[Layer]) -> Layer:
    """The layers as one, later above earlier. Values replace; `env` and arguments do so entry by entry."""
    fields: dict[str, Any] = {}
    args: dict[str, Tokens] = {}
    problems: list[str] = []
    warnings: list[str] = []
    origin = None
    for layer in layers:
        for here, there in _EITHER:  # naming a model in one way takes back what names it in another
            if here in layer.fields:
                fields = {key: value for key, value in fields.items() if key not in there}
        env = {**fields.get("env", {}), **layer.fields.get("env", {})}
        fields |= {**layer.fields, "env": env}
        for key, tokens in layer.args.items():
            args.pop(key, None)
            args[key] = tokens
        problems += layer.problems
        warnings += layer.warnings
        origin = layer.origin or origin
    return Layer(fields, args, tuple(problems), tuple(warnings), origin)


class LayerReader:
    """Collects one section; what is wrong becomes a problem and is left out.

    A relative path is relative to the first of `folders` where it exists, else to the last of them. `is_ini`:
    as in llama.cpp's presets a later setting replaces an earlier one, and what is not for presets is left out
    with a warning; otherwise both are problems. `options` are those of the llama-server that is to run.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        origin: str | None = None,
        *,
        is_ini: bool = False,
        options: Options = KNOWN_ONLY,
    ) -> None:
        self.options = options
        self._folders = folders
        self._origin = origin
        self._is_ini = is_ini
        self._fields: dict[str, Any] = {}
        self._args: dict[str, Tokens] = {}
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._load_mode: str | None = None  # as the old switches have it so far

    def layer(self) -> Layer:
        problems, warnings = tuple(self._problems), tuple(self._warnings)
        return Layer(self._fields, self._args, problems, warnings, self._origin)

    def problem(self, where: str, text: str) -> None:
        self._problems.append(f"{where}: {text}")

    def warn(self, where: str, text: str) -> None:
        self._warnings.append(f"{where}: {text}")

    def set_field(self, key: str, value: Any, where: str) -> None:
        """A setting by the name of a field: `ctx_size = 8192`."""
        with self._noting(where, key, value):
            self._put(key, value)

    def set_option(self, name: str, value: Any, where: str) -> None:
        """A setting by any name of a llama-server option: `ngl = 9`, `no-jinja = true`, `LLAMA_ARG_BATCH =
        9`.
        """
        spelling = self.options.find(name)
        if spelling is None and (self.options.is_complete or not _LONG_NAME.fullmatch(name)):
            near = self.options.nearest(name)
            hint = f"; did you mean {near}?" if near else ""
            self.problem(where, f"{name}: llama-server has no such option{hint}")
            return
        with self._noting(where, name, value):
            text = _text(value)
            self._args |= self._option(spelling, text, where) if spelling else _as_it_looks(name, text)

    def set_section(
        self, section: IniSection, source: str, set_option: Callable[[str, str, str], None] | None = None
    ) -> None:
        """All of a section of an INI file, by `set_option` where not every option may be set."""
        for line, problem in section.problems.items():
            self.problem(f"{source}:{line}", problem)
        for entry in section.entries:
            if entry.key != "version":  # reserved by llama.cpp
                (set_option or self.set_option)(entry.key, entry.value, f"{source}:{entry.line}")

    def set_args(self, args: Sequence[str], where: str) -> None:
        """Arguments as on a command line, `--option=value` too. What is unknown is passed on: llama-server
        itself refuses what it does not know.
        """
        groups: dict[str, Tokens] = {}
        for argument in self.options.parse(args):
            if argument.missing:
                self.problem(where, f"args: {argument.text} needs a value")
                continue
            for name, tokens in self._argument(argument, where).items():
                groups[name] = groups.get(name, ()) + tokens  # some mean more when given more than once
        self._args |= groups

    # --- one setting ---

    def _argument(self, argument: Argument, where: str) -> Mapping[str, Tokens]:
        text, spelling, values = argument.text, argument.spelling, argument.values
        if spelling is None:
            if not text.startswith("-"):
                self.problem(where, f"args: {text!r} belongs to no option")
                return {}
            if self.options.is_complete:
                near = self.options.nearest(text)
                hint = f"; did you mean --{near}?" if near else ""
                self.warn(where, f"args: {text} is unknown and passed on as it is{hint}")
            return {text: (text, *values)}
        if len(values) == 2:
            return {spelling.option.name: (spelling.option.args[-1], *values)}
        with self._noting(where, f"args: {text}", values[0] if values else True):
            return self._option(spelling, values[0] if values else "true", where)
        return {}

    def _option(self, spelling: Spelling, text: str, where: str) -> dict[str, Tokens]:
        """Set the field that the option is; what has no field comes back as arguments."""
        option = spelling.option
        if spelling.switch is not None:
            mode = spelling.switch[not _boolean(text)]
            if mode is None:
                return {}
            if {mode, self._load_mode} == {"none", "mmap+mlock"}:  # --no-mmap --mlock
                mode = "mlock"
            self._load_mode = mode
            return {option.name: (option.args[-1], mode)}
        if option.values == 0:
            text = "true" if _boolean(text) != spelling.is_negation else "false"
        if option.name == "device" and text.strip() == "none":
            self._put("n_gpu_layers", 0)  # what it means, without a device of that name
            return {}
        if option.field:
            value = _READERS[option.kind](text)
            if value is not _NOT_SET:
                self._put(option.field, value)
            return {}
        if option.refused is not None:
            if not self._is_ini:
                raise Wrong(f"is not for presets: {option.refused}")
            self._warnings.append(f"{where}: {option.name} is left out: {option.refused}")
            return {}
        if option.values:
            return {option.name: (option.args[-1], self._absolute(text) if option.is_path else text)}
        return {option.name: option.args[-1:] if text == "true" else option.negations[-1:]}

    def _put(self, key: str, value: Any) -> None:
        if key in _PATHS and isinstance(value, str) and value:
            value = self._absolute(value)
        elif key in _PATHS and isinstance(value, list | tuple):
            value = [self._absolute(item) if isinstance(item, str) else item for item in value]
        converted = convert(FIELDS[key], value, self._folders[-1])
        if not self._is_ini and self._fields.get(key, converted) != converted:
            raise Wrong(f"is already set to {shown(self._fields[key])} in this section")
        self._fields[key] = converted

    def _absolute(self, text: str) -> str:
        candidates = [str(absolute(text, folder)) for folder in self._folders]
        return next((path for path in candidates if os.path.exists(path)), candidates[-1])  # noqa: PTH110

    @contextmanager
    def _noting(self, where: str, key: str, value: Any) -> Iterator[None]:
        try:
            yield
        except Wrong as wrong:
            self.problem(where, f"{key} = {shown(value)}: {wrong}")


def _as_it_looks(name: str, text: str) -> dict[str, Tokens]:
    """The arguments of an option of which nothing is known: a value of true or false makes it a switch."""
    option = name.lstrip("-").replace("_", "-")
    if text not in ("true", "false"):
        return {option: (f"--{option}", text)}
    plain = option.removeprefix("no-")
    is_on = (text == "true") == (plain == option)
    return {plain: (f"--{plain}" if is_on else f"--no-{plain}",)}


# --- values as text ---------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | float():
            return repr(value)
        case Mapping():
            return json.dumps(value, ensure_ascii=False, default=str)
        case list() | tuple() if all(isinstance(item, str | int | float) for item in value):
            return ",".join(_text(item) for item in value)
    raise Wrong("expected a text, a number, true or false, a list of them, or a table for JSON")


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise Wrong("expected on or off")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Wrong("expected a whole number") from None


def _slots(text: str) -> Any:
    return _NOT_SET if _number(text) == -1 else _number(text)  # -1: llama-server chooses, and so do we


def _layers(text: str) -> int | str:
    if text in ("auto", "-1"):
        return "auto"
    return "all" if text in ("all", "-2") else _number(text)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas; one in quotes may hold a comma."""
    parts = (part.strip() for part in _NAME.findall(text))
    return tuple(name for part in parts if (name := part[1:-1] if _IN_QUOTES.fullmatch(part) else part))


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[,/]+", text) if part.strip())
    except ValueError:
        raise Wrong("expected numbers, such as 3,1") from None


def _switch(text: str) -> str:
    if text in ("auto", "-1"):
        return "auto"
    return "on" if _boolean(text) else "off"


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Wrong("expected a number of seconds") from None


def options_of_field(field: str) -> tuple[str, ...]:
    """How llama-server spells a setting on its command line; empty for one that is the router's own."""
    args = (f"--{option.name}" for option in KNOWN_ONLY.options.values() if option.field == field)
    return tuple(arg for arg in args if KNOWN_ONLY.find_arg(arg) is not None)


#: How the text of an option is read, by the word in its line of `known_options`.
_READERS: Final[Mapping[str, Callable[[str], Any]]] = MappingProxyType(
    {
        "boolean": _boolean,
        "layers": _layers,
        "names": _names,
        "number": _number,
        "seconds": _seconds,
        "shares": _shares,
        "slots": _slots,
        "switch": _switch,
        "text": str,
    }
)
