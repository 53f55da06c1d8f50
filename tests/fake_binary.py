"""The fake llama-server as a program of its own, run by the interpreter that runs the tests."""

from __future__ import annotations

import sys
from pathlib import Path

FAKE = Path(__file__).with_name("fake_llama_server.py")
#: Not that of the virtual environment: a first line takes no path with a blank, as the checkout may have.
INTERPRETER = Path(sys.executable).resolve()


def make_fake_binary(folder: Path) -> Path:
    """An executable `llama-server` in `folder`. The script's own first line would take whatever python3 is on
    PATH, and that may be a slow wrapper.
    """
    binary = folder / "llama-server"
    names = {"__name__": "__main__", "__file__": str(FAKE)}
    run = f"exec(compile(open({str(FAKE)!r}).read(), {str(FAKE)!r}, 'exec'), {names!r})"
    binary.write_text(f"#!{INTERPRETER} -SE\n{run}\n")
    binary.chmod(0o755)
    return binary
