"""One preset file, TOML or INI, as layers; [models] of config.toml is read as such a file too.

In TOML, [defaults] holds for all models, [models."NAME"] for one, [families.NAME] for those that `match`.
The keys are the fields of `ModelPreset`; any other option of llama-server is set in the table `flags`, by
its name, or in the list `args`, as on a command line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from router.config import Config, toml_lines
from router.config.nearest import KeyPath, dotted, nearest_of
from router.presets.ini import DEFAULTS, parse_ini
from router.presets.layer import FIELDS, Layer, LayerReader, options_of_field
from router.presets.options import KNOWN_ONLY, Options
from router.text_file import NotText, read_text_file

_WHICH: Final = "it names one model"
_COMPANION: Final = "it fits the models that it was made for, and no others"
#: What makes no sense for every model, and why. A family may share its companions.
_NOT_FOR_ALL: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("model", "hf_repo", "hf_file"), _WHICH)
    | {"aliases": "a name belongs to one model", "description": "it tells of one model"}
    | {"mmproj": _COMPANION}
)
_NOT_FOR_EVERY: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("draft_model", "draft_hf_repo", "lora"), _COMPANION)
)
#: Options without a field of their own that fit one model alone.
ARGS_OF_ONE_MODEL: Final = ("lora-scaled", "control-vector", "control-vector-scaled")
_TABLES: Final = ("defaults", "families", "models")
_MATCHING: Final = ("match", "architectures")


@dataclass(frozen=True, slots=True)
class Family:
    """Settings for all models that look alike. `match` are glob patterns for any name of a model, upper and
    lower case alike; `architectures` are those of GGUF files ("qwen3"). One of either is enough.
    """

    name: str
    match: tuple[str, ...]
    architectures: tuple[str, ...]
    layer: Layer

    def has(self, names: Sequence[str], architecture: str | None) -> bool:
        if architecture is not None and architecture in self.architectures:
            return True
        return any(fnmatchcase(name.casefold(), glob.casefold()) for glob in self.match for name in names)


@dataclass(slots=True)
class PresetFile:
    """`problems` are those that concern more than one model; those of one model are in its layer."""

    defaults: list[Layer] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    models: dict[str, Layer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (*self.defaults, *(family.layer for family in self.families), *self.models.values())


def read_preset_file(path: Path, options: Options = KNOWN_ONLY) -> PresetFile:
    """Never fails: what is wrong becomes a problem. `options` are those of the llama-server to run."""
    try:
        text = read_text_file(path)
    except OSError as error:
        return PresetFile(problems=[f"{path}: {error.strerror or error}"])
    except NotText as error:
        return PresetFile(problems=[f"{path}: {error}"])
    if path.suffix.lower() == ".ini":
        return _read_ini(path, text, options)
    if path.suffix.lower() == ".toml":
        return _read_toml(path, text, options)
    return PresetFile(problems=[f"{path}: a preset file is named .toml or .ini"])


def _read_ini(path: Path, text: str, options: Options) -> PresetFile:
    ini = parse_ini(text)
    file = PresetFile(problems=[f"{path}:{line}: {problem}" for line, problem in ini.problems.items()])
    for name, section in ini.sections.items():
        # llama.cpp takes relative paths from the working directory, rarely what the author of the file meant.
        folders, where = (Path.cwd(), path.parent), f"{path}:{section.line}"
        reader = LayerReader(folders, where, is_ini=True, options=options)
        reader.set_section(section, str(path))
        layer = reader.layer()
        if name == DEFAULTS:
            file.problems += [*layer.problems, *not_for_all(layer, f"{where}: [*]")]
            file.defaults.append(layer)
        else:
            file.models[name] = layer
    return file


def _read_toml(path: Path, text: str, options: Options) -> PresetFile:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return PresetFile(problems=[f"{path}: {error}"])
    file = PresetFile()
    tables = _Tables(path, str(path), toml_lines(text), options)
    for key, value in document.items():
        if key not in _TABLES or not isinstance(value, dict):
            hint = f"; did you mean [models.{dotted((key,))}]?" if isinstance(value, dict) else ""
            file.problems.append(
                f"{tables.at((key,))}: {dotted((key,))}: a preset file has the tables "
                f"[defaults], [families.NAME] and [models.NAME]{hint}"
            )
        elif key == "defaults":
            layer = tables.layer((key,), value)
            file.problems += [*layer.problems, *not_for_all(layer, f"{tables.at((key,))}: [defaults]")]
            file.defaults.append(layer)
        elif key == "families":
            for name, table in value.items():
                file.families.append(tables.family((key, name), table, file.problems))
        else:
            file.models |= {name: tables.layer((key, name), table) for name, table in value.items()}
    return file


def inline_presets(config: Config, options: Options) -> PresetFile:
    source = config.source or Path.cwd() / "config.toml"
    tables = _Tables(source, str(config.source or "config.toml"), config.lines, options)
    return PresetFile(
        models={name: tables.layer(("models", name), table) for name, table in config.models.items()}
    )


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables of one TOML file."""

    path: Path
    source: str
    lines: Mapping[KeyPath, int]
    options: Options

    def at(self, path: KeyPath) -> str:
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.source}:{line}" if line is not None else self.source

    def layer(self, path: KeyPath, table: Any) -> Layer:
        reader = LayerReader((self.path.parent,), self.at(path), options=self.options)
        if not isinstance(table, Mapping):
            reader.problem(self.at(path), f"{dotted(path)}: expected a table, [{dotted(path)}]")
            return reader.layer()
        for key, value in table.items():
            where = self.at((*path, key))
            if key == "flags":
                self._flags(reader, path, value)
            elif key == "args":
                if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
                    reader.set_args(value, where)
                else:
                    reader.problem(where, "args: expected a list of strings")
            elif key in FIELDS:
                reader.set_field(key, value, where)
            else:
                near = nearest_of(key, (*FIELDS, "flags"))
                hint = f"; did you mean {near}?" if near else "; options of llama-server belong into flags"
                reader.problem(where, f"{dotted((*path, key))}: there is no such setting{hint}")
        return reader.layer()

    def family(self, path: KeyPath, table: Any, problems: list[str]) -> Family:
        settings = dict(table) if isinstance(table, Mapping) else {}
        patterns: dict[str, tuple[str, ...]] = {}
        for key in _MATCHING:
            value = settings.pop(key, [])
            if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
                problems.append(
                    f"{self.at((*path, key))}: {dotted((*path, key))}: expected a list of strings"
                )
                value = []
            patterns[key] = tuple(value)
        layer = self.layer(path, settings if isinstance(table, Mapping) else table)
        problems += [*layer.problems, *not_for_family(layer, f"{self.at(path)}: [{dotted(path)}]")]
        if not any(patterns.values()):
            problems.append(
                f"{self.at(path)}: [{dotted(path)}] matches nothing: it needs match or architectures"
            )
        return Family(path[-1], patterns["match"], patterns["architectures"], layer)

    def _flags(self, reader: LayerReader, path: KeyPath, flags: Any) -> None:
        where = self.at((*path, "flags"))
        if not isinstance(flags, Mapping):
            reader.problem(where, "flags: expected a table, such as { temp = 0.7 }")
            return
        for name, value in flags.items():
            reader.set_option(name, value, self.at((*path, "flags", name)))


def not_for_family(layer: Layer, where: str) -> Iterator[str]:
    """What is wrong with settings for models that look alike."""
    for key in sorted(_NOT_FOR_ALL.keys() & layer.fields.keys()):
        yield _for_one(where, key, _NOT_FOR_ALL[key])


def not_for_all(layer: Layer, where: str) -> Iterator[str]:
    """What is wrong with settings for every model."""
    yield from not_for_family(layer, where)
    for key in sorted(_NOT_FOR_EVERY.keys() & layer.fields.keys()):
        yield _for_one(where, key, _NOT_FOR_EVERY[key])
    for name in ARGS_OF_ONE_MODEL:
        if name in layer.args:
            yield _for_one(where, name, _COMPANION)


def _for_one(where: str, key: str, why: str) -> str:
    option = "".join(f" ({option})" for option in options_of_field(key)[:1])
    return f"{where}: {key} can only be set for a single model{option}: {why}"
