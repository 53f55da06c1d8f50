"""What of a changed configuration takes effect without a new start."""

from __future__ import annotations

from pathlib import Path

from router.app.models import _applicable
from router.config import ChildConfig, Config, PathsConfig, SchedulerConfig, ServerConfig


def test_models_children_and_folders_change_at_once():
    new = Config(
        paths=PathsConfig(models_dirs=(Path("/new"),)),
        child=ChildConfig(ctx_size=1024),
        models={"tiny": {"pinned": True}},
    )
    assert _applicable(Config(), new) == new


def test_what_the_router_was_built_from_stays_and_says_so(caplog):
    old = Config(paths=PathsConfig(state_dir=Path("/old")))
    new = Config(
        server=ServerConfig(port=1),
        scheduler=SchedulerConfig(models_max=1),
        paths=PathsConfig(state_dir=Path("/new"), llama_server=Path("/new/llama-server")),
    )
    assert _applicable(old, new) == old
    said = caplog.text
    assert "[server] has changed" in said
    assert "[scheduler] has changed" in said
    assert "[memory]" not in said
