"""The line of the last minutes."""

from __future__ import annotations

from router.admin.recent import EVERY_SECONDS, KEPT_SECONDS, History, Point
from router.scheduler.views import DeviceView, Snapshot


def snapshot(*devices: DeviceView) -> Snapshot:
    return Snapshot(0.0, "lru", (), (), devices, (), models_max=0)


def device(name: str, used: int, free: int | None) -> DeviceView:
    return DeviceView(name, name, 100, 1, free, used, used, 0, 0, None, None)


def test_a_device_that_cannot_be_measured_leaves_a_gap():
    history = History()
    history.note(snapshot(device("a", 10, 80)), 1000.4)
    history.note(snapshot(device("a", 10, None)), 1002.4)
    assert history.lines() == {"a": (Point(1000, 10, 80), Point(1002, 10, None))}


def test_a_device_that_is_gone_is_forgotten():
    history = History()
    history.note(snapshot(device("a", 1, 1), device("b", 1, 1)), 1.0)
    history.note(snapshot(device("b", 1, 1)), 2.0)
    assert set(history.lines()) == {"b"}


def test_a_line_is_bounded():
    history = History()
    for n in range(1000):
        history.note(snapshot(device("a", n, 0)), n * EVERY_SECONDS)
    line = history.lines()["a"]
    assert len(line) == KEPT_SECONDS / EVERY_SECONDS
    assert line[-1].ours == 999
