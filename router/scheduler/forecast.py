"""What is expected of a model, from what was measured: load time, how long a lease is held, how soon it is
asked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp2, log
from typing import Final

from router.scheduler.types import Model

#: Weight of the newest sample in the moving averages.
NEWEST: Final = 0.3
OLDER: Final = 1 - NEWEST
#: A lease is expected to last this long before any was measured, in seconds.
UNMEASURED_HOLD_SECONDS: Final = 2.0
#: So many gaps between requests are remembered.
GAPS_REMEMBERED: Final = 16
#: Requests older than this count half in the request rate.
RATE_HALF_LIFE_SECONDS: Final = 600.0


@dataclass(slots=True)
class Forecast:
    """All in seconds of the scheduler's clock. `load_seconds` starts as the definition's expectation, or as
    what earlier loads of it took, and then `is_measured`. `loads` are those since this router began."""

    load_seconds: float
    is_measured: bool = False
    loads: int = 0
    _hold: float | None = None
    _hold_per_size: float | None = None
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=GAPS_REMEMBERED))
    _weight: float = 0.0
    _weighed_at: float = 0.0
    _idle_since: float | None = None  # None also before it was asked for at all

    @classmethod
    def of(cls, model: Model) -> Forecast:
        forecast = cls(model.load_seconds)
        forecast.recall(model)
        return forecast

    def recall(self, model: Model) -> None:
        """Take the measured load time of this definition; without one, what is expected stays."""
        if model.measured_load_seconds is not None:
            self.load_seconds, self.is_measured = model.measured_load_seconds, True

    def loaded(self, seconds: float) -> None:
        self.load_seconds = _blend(self.load_seconds if self.is_measured else None, seconds)
        self.is_measured = True
        self.loads += 1

    def held(self, seconds: float, size: float | None) -> None:
        hold = self._hold
        self._hold = seconds if hold is None else OLDER * hold + NEWEST * seconds
        if size is not None and size > 0:
            per_size = self._hold_per_size
            new = seconds / size
            self._hold_per_size = new if per_size is None else OLDER * per_size + NEWEST * new

    def became_idle(self, now: float) -> None:
        """From then on it is learned how long it is idle before it is asked for again."""
        self._idle_since = now

    def requested(self, now: float) -> None:
        if self._idle_since is not None:
            self._gaps.append(now - self._idle_since)
            self._idle_since = None
        self._weight = self._weight * exp2((self._weighed_at - now) / RATE_HALF_LIFE_SECONDS) + 1.0
        self._weighed_at = now

    def requests_per_second(self, now: float) -> float:
        """An exponentially forgotten count over the time it stands for."""
        weight = self._weight * exp2((self._weighed_at - now) / RATE_HALF_LIFE_SECONDS)
        return weight * log(2) / RATE_HALF_LIFE_SECONDS

    @property
    def measured_hold_seconds(self) -> float | None:
        """How long a lease usually lasts; None until one was measured."""
        return self._hold

    def hold_seconds(self, size: float | None = None) -> float:
        """How long a lease lasts; a request that says how much it may produce is never expected to take
        longer than that.
        """
        usual = self._hold if self._hold is not None else UNMEASURED_HOLD_SECONDS
        if size is None or self._hold_per_size is None:
            return usual
        return min(usual, self._hold_per_size * size)

    def linger_seconds(self, share: float) -> float:
        """How long an idle model is left alone because its clients usually come back sooner than it loads: a
        `share` of its load time; waiting longer than the swap costs could not pay. Nothing when the usual gap
        is longer than a load.

        The usual gap is the median: one long pause does not make a habit forgotten, as it does in an average.
        """
        if not self._gaps or _median(self._gaps) >= self.load_seconds:
            return 0.0
        return min(share, 1.0) * self.load_seconds


def _blend(old: float | None, new: float) -> float:
    return new if old is None else OLDER * old + NEWEST * new


def _median(values: Iterable[float]) -> float:
    """Not that of `statistics`, which comes with fractions and decimals, for 0.5 MiB."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
