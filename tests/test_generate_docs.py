"""The pages of docs/ that are made of the code say what the code does; the others, what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generator.configuration import ABOUT
from docs.generator.pages import PAGES
from router.cli import COMMANDS
from router.presets.layer import FIELDS, options_of_field

REPOSITORY = Path(__file__).parent.parent
WRITTEN = [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*.md"), *REPOSITORY.glob("deploy/**/*.md")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In a process of its own, as bin/generate-docs does: click keeps what a command's help was in an earlier
    # test, and one that was called by itself has no -h.
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, "-m", "docs.generator", str(folder)], cwd=REPOSITORY, check=True)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_made_is_as_the_code_makes_it(page: str, made: Path):
    kept = (REPOSITORY / "docs" / f"{page}.md").read_text()
    assert kept == (made / f"{page}.md").read_text(), "run bin/generate-docs"


def test_every_setting_of_a_model_is_explained_by_us_or_by_llama_server():
    assert not [name for name in FIELDS if name not in ABOUT and not options_of_field(name)]
    assert ABOUT.keys() <= FIELDS.keys()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith(("http://", "https://")) or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_that_are_told_of_are_there(path: Path):
    for name in re.findall(r"(?:^    \$? ?|`)llama-router ([a-z]+)\b", path.read_text(), re.MULTILINE):
        assert name in COMMANDS, name
