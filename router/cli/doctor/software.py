"""The configuration, llama-server, and the models that are found."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from router import __version__
from router.cli.doctor.findings import Finding, fail, look_at_broken, look_at_count, ok, warn
from router.config import Config, find_config, load_config, models_dirs
from router.engines.llama_server import find_binary, list_devices, version
from router.errors import ConfigError, RouterError, StartupError
from router.installation import build_command
from router.models.catalog import Catalog


def look_at_configuration(path: Path | None) -> tuple[Config | None, list[Finding]]:
    """The configuration, None where it is wrong, and what there is to say of it."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [ok("router", f"llama-router {__version__}, Python {python}")]
    try:
        config = load_config(path)
    except ConfigError as error:
        do = "correct the line; config.toml of the project has every key with its default"
        return None, [*findings, *(fail("configuration", line, do) for line in error.message.splitlines())]
    source = config.source or find_config()
    findings.append(ok("configuration", str(source) if source else "none: every key has its default"))
    return config, findings


def look_at_binary(config: Config) -> tuple[Path | None, list[Finding]]:
    """llama-server, None where there is none that runs."""
    try:
        binary = find_binary(config.paths.llama_server)
        return binary, [ok("llama-server", f"{asyncio.run(version(binary))} at {binary}")]
    except StartupError as error:
        return None, [fail("llama-server", error.message, _remedy(error.message))]


def devices_of_binary(binary: Path) -> tuple[str, list[Finding]]:
    """What `--list-devices` prints: which devices this build can use at all."""
    try:
        return asyncio.run(list_devices(binary)), []
    except StartupError as error:
        return "", [fail("llama-server", error.message, _remedy(error.message))]


def look_at_models(config: Config) -> Iterator[Finding]:
    folders = models_dirs(config)
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    for name in missing:
        yield warn(
            "models", f"the folder {name} does not exist", f"mkdir -p {name}, or set paths.models_dirs"
        )
    try:
        catalog = Catalog.scan(config)
    except RouterError as error:
        do = "correct the line: presets/ has examples, docs/configuration.md the keys"
        yield from (fail("presets", line, do) for line in error.message.splitlines())
        return
    for warning in catalog.warnings:
        if not any(name in warning for name in missing):  # that is said above
            yield warn("models", warning, "rename, move or remove the file, or name it in a section")
    do = "fetch the file again, or correct its preset"
    broken = [(f"{entry.id}: {entry.error}", do) for entry in catalog.models if entry.error is not None]
    yield from look_at_broken(broken, "more cannot be used")
    where = f" in {', '.join(map(str, folders))} and further sources"
    yield look_at_count(len(catalog.models) - len(broken), where, f"put a .gguf file into {folders[0]}")


def _remedy(said: str) -> str:
    if re.search(r"error while loading shared libraries|GLIBC|CXXABI", said):
        return f"a library that it was built with is missing: install it, or run {build_command()} --rebuild"
    if "cannot be run" in said or "cannot run" in said:
        return (
            "set paths.llama_server or $LLAMA_SERVER to a program of this machine, with the right to run it"
        )
    return f"run {build_command()}, install llama.cpp, or set paths.llama_server"
