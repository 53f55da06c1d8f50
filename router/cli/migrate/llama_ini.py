"""llama.cpp's INI presets: they are read as they are, so there is only to be said where, and what is not
taken."""

from __future__ import annotations

from pathlib import Path

from router.cli.migrate.llama_swap import Imported
from router.config import Config
from router.models.catalog.scan import options_for
from router.presets.files import read_preset_file


def read_llama_ini(path: Path) -> Imported:
    """The configuration that reads the file, and a report of each setting that the router leaves out."""
    file = read_preset_file(path, options_for(Config()))
    imported = Imported(paths={"presets": [str(path.absolute())]})
    imported.report += file.problems
    for layer in file.layers:
        imported.report += [*layer.problems, *layer.warnings]
    imported.report.append(f"{path} is read as it is from now on, and may be changed there")
    return imported
