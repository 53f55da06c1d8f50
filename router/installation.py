"""How this program was installed: what to type for a command that the installation may not have."""

from __future__ import annotations

from pathlib import Path


def build_command() -> str:
    """What finds or builds llama-server: the script of a checkout, else the command that pip installs."""
    script = Path(__file__).resolve().parent.parent / "bin" / "build-llama-server"
    return "bin/build-llama-server" if script.is_file() else "llama-router build"
