"""`serve -- -m FILE`: llama-server's way to name one model, as a section of the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from router.errors import StartupError
from router.models.catalog.names import parse_name
from router.presets.files import ARGS_OF_ONE_MODEL
from router.presets.options import KNOWN_ONLY

#: llama-server's options that are about one model -> keys of its section.
_KEYS: Final = {
    "model": "model", "hf-repo": "hf_repo", "hf-file": "hf_file", "mmproj": "mmproj", "lora": "lora",
    "model-draft": "draft_model", "hf-repo-draft": "draft_hf_repo", "alias": "aliases",
}  # fmt: skip
_PATHS: Final = frozenset({"model", "mmproj", "draft_model", "lora"})
_LISTS: Final = frozenset({"lora", "aliases"})


def one_model(args: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """The model that arguments of llama-server name, as an override of the configuration, and the arguments
    that are for all models. The model is called like its file or repository. Raises StartupError for a file
    that does not exist.
    """
    section: dict[str, Any] = {}
    rest: list[str] = []
    for argument in KNOWN_ONLY.parse(args):
        if argument.name in _KEYS and argument.values:
            key = _KEYS[argument.name]
            section[key] = _value(key, argument.values[0])
        elif argument.name in ARGS_OF_ONE_MODEL:
            section.setdefault("args", []).extend(argument.tokens)
        else:
            rest += argument.tokens
    if "model" not in section and "hf_repo" not in section:
        return {}, list(args)
    if section.get("model") == "":
        raise StartupError("command line: -m names no file")
    if (path := section.get("model")) is not None and not Path(path).exists():
        raise StartupError(f"command line: -m {path}: there is no such file")
    return {f"models.{json.dumps(_name(section), ensure_ascii=False)}": section}, rest


def _name(section: dict[str, Any]) -> str:
    if "model" not in section:
        return str(section["hf_repo"])
    file = Path(section["model"]).name
    parsed = parse_name(file)
    return parsed.prefix if parsed is not None else file


def _value(key: str, text: str) -> str | list[str]:
    texts = text.split(",") if key in _LISTS else [text]
    if key in _PATHS:
        texts = [each and str(Path(each).expanduser().absolute()) for each in texts]
    return texts if key in _LISTS else texts[0]
