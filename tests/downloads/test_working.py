"""Only the process that speaks to the hub imports its library, and it gets no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from router.downloads.working import worker_environ

ROOT = Path(__file__).parents[2]


def test_the_router_never_imports_the_library_of_the_hub():
    script = "import sys, router.app; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_the_worker_gets_token_and_proxies_and_nothing_that_makes_the_library_talk():
    given = {"HF_TOKEN": "t", "HTTPS_PROXY": "p", "HF_DEBUG": "1", "LLAMA_API_KEY": "k", "NOTIFY_SOCKET": "n"}
    environ = worker_environ({**given, "PYTHONPATH": "/mine"})
    assert environ["HF_TOKEN"] == "t" and environ["HTTPS_PROXY"] == "p"
    assert not {"HF_DEBUG", "LLAMA_API_KEY", "NOTIFY_SOCKET"} & environ.keys()
    assert environ["PYTHONPATH"] == f"{ROOT}:/mine"
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
