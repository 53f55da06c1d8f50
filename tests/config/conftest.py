"""No test of the configuration reads or writes what belongs to whoever runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

VARIABLES = (
    "LLAMA_ROUTER_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, which is the working directory too."""
    folder = tmp_path / "home"
    folder.mkdir()
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder
