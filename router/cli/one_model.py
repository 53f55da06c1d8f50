"""`serve -- -m FILE`: llama-server's way to name one model, as a section of the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from router.errors import StartupError
from router.models.catalog.names import parse_name
from router.presets.files import ARGS_OF_ONE_MODEL
from router.presets.options import spelling_of_arg, split_arg

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
    rest, left = [], list(args)
    while left:
        arg = left.pop(0)
        name, joined = split_arg(arg)
        spelling = spelling_of_arg(name)
        option = spelling.option.name if spelling is not None else ""
        # The value of an option is its own, whatever it looks like.
        count = spelling.values if spelling is not None and joined is None else 0
        values, left = left[:count], left[count:]
        if option in _KEYS and (values or joined is not None):
            key = _KEYS[option]
            section[key] = _value(key, values[0] if joined is None else joined)
        elif option in ARGS_OF_ONE_MODEL:
            section.setdefault("args", []).extend([arg, *values])
        else:
            rest += [arg, *values]
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
