"""Measure the structure of the source: `python -m bench.structure [REVISION...]`.

Prints one column for each git revision and one for the working tree: lines per package, files over 400 lines,
functions over 50 lines, the shares of comments and docstrings, class names that are used twice, and private
attributes of libraries. `--list` prints their places, too. `--check` prints the last of these with their
places; the exit status is 1 where there is one.

A comment line has a comment and nothing else; a docstring's lines are those from its first to its last quote.
Both are shares of all lines, blank ones among them. A comment behind code counts as code.

A private attribute counts as a library's where a module reads `value._name`, or names it in `getattr` and its
like, and defines no `_name` itself, or imports a `_name` from outside the package: inside the package private
names are shared by one module only.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

PACKAGE: Final = "router"
LONG_FILE_LINES: Final = 400
LONG_FUNCTION_LINES: Final = 50
#: Published although they begin with an underscore: the standard library documents them.
DOCUMENTED: Final = frozenset({"_replace", "_asdict", "_fields", "_exit", "_make", "_field_defaults"})
#: They take an attribute's name as text.
_BY_NAME: Final = frozenset({"getattr", "setattr", "hasattr", "delattr"})
_WITH_DOCSTRING: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(slots=True)
class Figures:
    """What one tree of source files amounts to. Counts are lines, files, functions or names."""

    lines: Counter[str] = field(default_factory=Counter)
    files: int = 0
    comment_lines: int = 0
    docstring_lines: int = 0
    long_files: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    #: Name -> places where a class of that name is defined.
    classes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    private_uses: list[str] = field(default_factory=list)

    def twice(self) -> list[str]:
        """Return the class names that are used more than once, with their places."""
        return [f"{name}: {', '.join(at)}" for name, at in sorted(self.classes.items()) if len(at) > 1]

    def rows(self) -> dict[str, str]:
        """Return the figures as text, by the name of their row."""
        total = self.lines.total()
        rows = {f"lines, {package}": f"{count:,}" for package, count in sorted(self.lines.items())}
        return rows | {
            "lines, all": f"{total:,}",
            "files": f"{self.files:,}",
            f"files over {LONG_FILE_LINES} lines": f"{len(self.long_files)}",
            f"functions over {LONG_FUNCTION_LINES} lines": f"{len(self.long_functions)}",
            "comment lines": f"{self.comment_lines / max(total, 1):.1%}",
            "docstring lines": f"{self.docstring_lines / max(total, 1):.1%}",
            "class names used twice": f"{len(self.twice())}",
            "private attributes of libraries": f"{len(self.private_uses)}",
        }


def measure(sources: Mapping[str, str]) -> Figures:
    """Return the figures of `sources`: text by path, relative to the root of the checkout."""
    figures = Figures()
    for path, text in sources.items():
        parts = PurePosixPath(path).parts
        lines = text.count("\n")
        figures.lines[parts[1] if len(parts) > 2 else "(top level)"] += lines
        figures.files += 1
        figures.comment_lines += sum(1 for _ in _comments(text))
        if lines > LONG_FILE_LINES:
            figures.long_files.append(f"{path}: {lines}")
        tree = ast.parse(text, path)
        figures.private_uses += _private_uses(path, tree)
        for node in ast.walk(tree):
            if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                figures.docstring_lines += (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
            if isinstance(node, ast.ClassDef):
                figures.classes[node.name].append(f"{path}:{node.lineno}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONG_FUNCTION_LINES:
                    figures.long_functions.append(f"{path}:{node.lineno} {node.name}: {length}")
    return figures


def _comments(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the comments that have a line to themselves."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            yield token


def _private_uses(path: str, tree: ast.Module) -> Iterator[str]:
    own = set(_defined_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            yield f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and _is_private(str(name.value)) and name.value not in own:
                yield f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [*module.split("."), *(alias.name for alias in node.names)]
            if not node.level and module.split(".")[0] != PACKAGE and any(map(_is_private, names)):
                yield f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if any(map(_is_private, alias.name.split("."))):
                    yield f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"


def _defined_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, variables, fields, slots and attributes that
    it assigns.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from (str(slot.value) for slot in ast.walk(node.value) if isinstance(slot, ast.Constant))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in DOCUMENTED


def sources_of_tree(root: Path) -> dict[str, str]:
    """Return the package's source files in the checkout `root`."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {file.relative_to(root).as_posix(): file.read_text("utf-8") for file in files}


def sources_of_revision(root: Path, revision: str) -> dict[str, str]:
    """Return the package's source files at a git revision. Raises CalledProcessError for an unknown one."""
    command = ["git", "-C", str(root), "archive", "--format=tar", revision, PACKAGE]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".py") else None
            if file is not None:
                found[member.name] = file.read().decode("utf-8")
    return found


def main() -> int:
    """Print the table, or with --check what must not be there."""
    parser = argparse.ArgumentParser(description="Measure the structure of the source.")
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="a git revision to compare with")
    parser.add_argument("--check", action="store_true", help="only look for private attributes of libraries")
    parser.add_argument("--list", action="store_true", help="also list the places of what is counted")
    options = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    now = measure(sources_of_tree(root))
    if options.check:
        print("\n".join(now.private_uses), end="\n" if now.private_uses else "")
        return 1 if now.private_uses else 0
    columns = {revision: measure(sources_of_revision(root, revision)) for revision in options.revisions}
    columns["now"] = now
    tables = {name: figures.rows() for name, figures in columns.items()}
    names = sorted(
        {row for table in tables.values() for row in table if "lines, " in row and "all" not in row}
    )
    names += [row for row in tables["now"] if row not in names]
    width = max(map(len, names))
    print(" " * width, *(f"{name[:12]:>12}" for name in tables))
    for name in names:
        print(f"{name:<{width}}", *(f"{table.get(name, '-'):>12}" for table in tables.values()))
    if options.list:
        print("", *now.long_files, *now.long_functions, *now.twice(), *now.private_uses, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
