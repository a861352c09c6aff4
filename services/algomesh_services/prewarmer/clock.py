"""One time for all that the pre-warmer hears, which never goes back: what machines call it, and ours, may step.

It counts on from the epoch seconds at which this process began, so that what is kept through a restart stays in order.
"""

import time
from collections.abc import Callable

LATE_S = 1.0
"""A message says what happened some milliseconds ago. What seems older, or yet to come, has another clock than ours:
then it is as good as now."""


class Clock:
    """Our time. `wall` is seconds since the epoch, which may step; `steady` never does."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset_s = wall() - steady()

    def now(self) -> float:
        """Seconds, in our time."""
        return self._steady() + self._offset_s

    def of(self, epoch_s: float) -> float:
        """When that was which somebody's clock says was at `epoch_s`: never later than now, and not long ago."""
        now, lag_s = self.now(), self._wall() - epoch_s
        return now - lag_s if 0.0 <= lag_s <= LATE_S else now

    def wall_of(self, at_s: float) -> float:
        """A moment of our time, as our clock on the wall has it now: for records."""
        return self._wall() - (self.now() - at_s)
