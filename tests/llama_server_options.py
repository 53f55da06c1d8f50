"""What a llama-server says of its options, for tests without one: the --help of b11434, no descriptions."""

from __future__ import annotations

from pathlib import Path

from router.presets.options import Options, options_from_help

HELP_FILE = Path(__file__).with_name("llama_server_help.txt")
OPTIONS = Options(options_from_help(HELP_FILE.read_text(encoding="utf-8")))
