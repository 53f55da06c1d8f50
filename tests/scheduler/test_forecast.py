"""What is expected of a model: measured values replace assumptions, and old ones fade."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduler.forecast import RATE_HALF_LIFE_SECONDS, UNMEASURED_HOLD_SECONDS, Forecast
from router.scheduler.types import Model


def test_the_first_measured_load_replaces_the_assumption_and_later_ones_blend() -> None:
    forecast = Forecast(load_seconds=60.0)
    forecast.loaded(2.0)
    assert forecast.load_seconds == 2.0
    forecast.loaded(4.0)
    assert 2.0 < forecast.load_seconds < 4.0


def test_loads_that_an_earlier_router_measured_count_like_a_first_one_of_this() -> None:
    known = Model("a", (), load_seconds=60.0, measured_load_seconds=2.0)
    forecast = Forecast.of(known)
    assert (forecast.load_seconds, forecast.is_measured, forecast.loads) == (2.0, True, 0)
    forecast.loaded(4.0)
    assert 2.0 < forecast.load_seconds < 4.0
    plain = Forecast.of(replace(known, measured_load_seconds=None))
    assert (plain.load_seconds, plain.is_measured) == (60.0, False)


def test_a_request_with_a_known_size_is_predicted_by_it_but_never_above_the_usual() -> None:
    forecast = Forecast(5.0)
    assert forecast.hold_seconds(10) == UNMEASURED_HOLD_SECONDS
    forecast.held(10.0, size=100)
    assert forecast.hold_seconds() == 10.0
    assert forecast.hold_seconds(10) == pytest.approx(1.0)
    assert forecast.hold_seconds(10_000) == 10.0


def comes_back(forecast: Forecast, gap: float) -> None:
    """The model is asked for `gap` seconds after it has become idle."""
    forecast.became_idle(100.0)
    forecast.requested(100.0 + gap)


def test_a_model_lingers_for_a_share_of_its_load_once_its_clients_are_seen_to_come_back_sooner() -> None:
    forecast = Forecast(load_seconds=1.0)
    assert forecast.linger_seconds(0.5) == 0.0, "nothing is known yet"
    comes_back(forecast, 0.0)
    assert forecast.linger_seconds(0.5) == 0.5, "clients that come back at once are the most certain of all"
    assert forecast.linger_seconds(7.0) == 1.0
    assert forecast.linger_seconds(0.0) == 0.0


def test_a_model_whose_clients_come_back_later_than_a_reload_takes_does_not_linger() -> None:
    forecast = Forecast(load_seconds=1.0)
    comes_back(forecast, 30.0)
    assert forecast.linger_seconds(0.5) == 0.0


def test_one_long_pause_does_not_make_a_habit_forgotten() -> None:
    forecast = Forecast(load_seconds=1.0)
    for gap in (0.1, 0.1, 0.1, 300.0):
        comes_back(forecast, gap)
    assert forecast.linger_seconds(0.5) == 0.5


def test_the_request_rate_halves_with_its_half_life() -> None:
    forecast = Forecast(1.0)
    for _ in range(10):
        forecast.requested(100.0)
    now = forecast.requests_per_second(100.0)
    assert now > 0
    assert forecast.requests_per_second(100.0 + RATE_HALF_LIFE_SECONDS) == pytest.approx(now / 2)
