"""Write the pages that are made of the code, each to its file."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generator.pages import PAGES

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    for name, make in PAGES.items():
        (folder / f"{name}.md").write_text(make(), encoding="utf-8")
