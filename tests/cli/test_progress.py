"""A line that changes while something is waited for."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import pytest

from router.cli.load import _progress as load_progress
from router.cli.progress import share_bar, while_waiting
from router.cli.unload import _progress as unload_progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Answers:
    """A client that answers what a test says."""

    def __init__(self, model: dict) -> None:
        self.model = model

    def get(self, path: str) -> dict:
        return self.model


def test_on_a_terminal_a_line_is_shown_until_the_work_is_done(monkeypatch: pytest.MonkeyPatch):
    screen, seen = Screen(), threading.Event()
    monkeypatch.setattr("sys.stderr", screen)

    def words(seconds: float) -> str:
        seen.set()
        return "half way"

    assert while_waiting(lambda: seen.wait(30), words) is True
    assert "half way" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K"), "and is gone afterwards"


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    assert while_waiting(lambda: 7, lambda _: pytest.fail("nobody sees it")) == 7
    assert capsys.readouterr().err == ""


def test_what_the_work_raises_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", Screen())

    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        while_waiting(work, lambda _: "")


def test_ctrl_c_does_not_wait_for_the_work():
    code = """
import sys, threading
from router.cli.progress import while_waiting
sys.stderr.isatty = lambda: True
def words(seconds): raise KeyboardInterrupt
while_waiting(threading.Event().wait, words)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert b"KeyboardInterrupt" in done.stderr


def test_a_bar_never_says_that_it_is_done():
    assert "█" in share_bar(0.5) and "·" in share_bar(0.5)
    assert "·" in share_bar(7.0)
    assert "█" not in share_bar(-1.0)


def test_a_load_tells_what_it_waits_for_and_then_how_far_it_is():
    waiting = Answers({"status": {"value": "unloaded", "reason": "room, until b left"}})
    assert load_progress(waiting, "a", 4.0) == "waits for room, until b left (4 s)"  # type: ignore[arg-type]
    loading = Answers({"status": {"value": "loading", "progress": {"value": 0.5}}})
    assert load_progress(loading, "a", 4.0).endswith("████████████············ 4 s")  # type: ignore[arg-type]


def test_an_unload_tells_how_many_requests_it_waits_for():
    busy = Answers({"instances": [{"leases": 1}, {"leases": 1}]})
    assert unload_progress(busy, "a") == "waits for 2 requests to end"  # type: ignore[arg-type]
