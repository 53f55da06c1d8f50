"""What bin/run installs is what the router imports, and what pyproject.toml names exists."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

#: Of a newer Python than the oldest that is supported: imported only where it is there.
NEWER_STDLIB = {"compression"}
ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(*folders: str) -> Iterator[tuple[Path, str, str | None]]:
    """Every import as (file, module, name)."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    yield from ((path, alias.name, None) for alias in node.names)
                case ast.ImportFrom(module=str(module), level=0):
                    yield from ((path, module, alias.name) for alias in node.names)


def normalized(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_library_that_is_imported_is_declared_and_pinned_among_the_direct_ones():
    imported = {module.partition(".")[0] for _, module, _ in imports("router")}
    foreign = imported - set(sys.stdlib_module_names) - NEWER_STDLIB - {"router"}
    distributions = {normalized(packages_distributions()[module][0]) for module in foreign}
    assert distributions == {normalized(line) for line in PYPROJECT["project"]["dependencies"]}
    direct = (ROOT / "requirements.txt").read_text().partition("\n\n# Below them.")[0]
    assert distributions == {normalized(line) for line in direct.splitlines() if not line.startswith("#")}


def test_of_huggingface_hub_only_public_names_are_used():
    public = {"huggingface_hub"} | {
        f"huggingface_hub.{one}" for one in ("constants", "errors", "hf_api", "utils")
    }
    used = [found for found in imports("router") if found[1].partition(".")[0] == "huggingface_hub"]
    assert used
    for path, module, name in used:
        assert module in public and name is not None and not name.startswith("_"), (path, module, name)
        assert hasattr(importlib.import_module(module), name)


def test_every_file_and_module_that_pyproject_names_exists():
    for pattern in PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert any(ROOT.glob(pattern)), pattern
    used = {module.partition(".")[0] for _, module, _ in imports("router", "tests", "bench")}
    for override in PYPROJECT["tool"]["mypy"]["overrides"]:
        assert {module.partition(".")[0] for module in override["module"]} <= used | {"tests"}, override
    layers, *_ = PYPROJECT["tool"]["importlinter"]["contracts"]
    for layer in layers["layers"]:
        for package in re.findall(r"\w+", layer):
            assert any((ROOT / "router" / name).exists() for name in (package, f"{package}.py")), package
