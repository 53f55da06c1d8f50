"""config.toml at the root of the project and the built-in defaults are the same thing."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from router.config import Config, DeviceConfig, load_config
from router.config.values import hints_of

CONFIG_TOML = Path(__file__).parents[2] / "config.toml"


def keys_of(value: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not is_dataclass(value):
        return {path}
    names = {each.name for each in fields(value)} - ({"source", "lines"} if not path else set())
    return {key for name in names for key in keys_of(getattr(value, name), (*path, name))}


def keys_of_table(table: dict[str, Any]) -> set[tuple[str, ...]]:
    return {(section, key) for section, keys in table.items() for key in keys} | {
        (section,) for section, keys in table.items() if not keys
    }


def test_the_file_of_the_project_has_every_key_and_no_other():
    written = tomllib.loads(CONFIG_TOML.read_text(encoding="utf-8"))
    assert keys_of_table(written) == keys_of(Config())


def test_the_file_of_the_project_says_the_defaults():
    loaded = load_config(CONFIG_TOML)
    assert loaded == Config()
    assert loaded.source == CONFIG_TOML


def test_what_the_file_of_the_project_shows_in_comments_can_be_used(tmp_path):
    text = CONFIG_TOML.read_text(encoding="utf-8")
    shown = re.findall(r"^ {30,}# (\[.+\]|\w+ = .+)$", text, re.MULTILINE)
    assert len(shown) >= 6
    file = tmp_path / "config.toml"
    file.write_text(re.sub(r"^ {30,}# (?=\[.+\]$|\w+ = .+$)", "", text, flags=re.MULTILINE), encoding="utf-8")
    loaded = load_config(file)
    assert loaded.memory.devices == {
        "cuda:0": DeviceConfig(margin_mib=2048),
        "cuda:1": DeviceConfig(enabled=False),
    }
    assert loaded.models["qwen3-8b"]["pinned"] is True


@pytest.mark.parametrize("section", ["server", "paths", "memory", "scheduler", "child", "downloads"])
def test_every_default_is_within_the_bounds_of_its_key(section, tmp_path):
    defaults = getattr(Config(), section)
    file = tmp_path / "config.toml"
    lines = [f"[{section}]"]
    for name in hints_of(type(defaults)):
        value = getattr(defaults, name)
        if isinstance(value, str | bool | int | float):
            lines.append(f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    file.write_text("\n".join(lines), encoding="utf-8")
    assert getattr(load_config(file), section) == defaults


def test_a_configuration_that_is_shown_does_not_show_its_keys(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[server]\napi_keys = ["sk-secret"]\nadmin_keys = ["sk-admin"]\n', encoding="utf-8")
    loaded = load_config(file)
    assert loaded.server.api_keys == ("sk-secret",)
    assert "sk-" not in repr(loaded)
