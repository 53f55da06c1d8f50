"""The table of options is that of a real llama-server."""

from __future__ import annotations

import subprocess

import pytest

from router.engines.llama_binary import find_binary
from router.errors import StartupError
from router.presets.llama_options import LLAMA_OPTIONS
from router.presets.options_from_help import options_from_help


@pytest.mark.e2e
def test_the_table_has_every_option_of_this_llama_server():
    try:
        binary = find_binary()
    except StartupError as error:
        pytest.skip(str(error))
    text = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    unknown = set(options_from_help(text)) - set(LLAMA_OPTIONS.splitlines())
    assert not unknown, "make llama_options.py anew, as options_from_help.py says"
