"""What is remembered of the gaps of one algorithm: from when it falls idle until a new request calls it."""

import math

from algomesh_services.prewarmer.decay import KEEP, Mean
from algomesh_services.prewarmer.delays import Recent
from algomesh_services.prewarmer.hazards import SHORTEST_S, Histogram
from algomesh_services.prewarmer.laws import Binned

OPINIONS = ("steady", "pool", "own", "sample", "callers")
"""Whose forecasts are scored; `forecasts.py` says what they are."""

MOST_CALLERS = 4  # whose rhythm is followed for each algorithm; of more, the sum is without rhythm


class Rhythm:
    """When one caller calls one algorithm: seconds from call to call, of different requests."""

    __slots__ = ("gaps", "last_s")

    def __init__(self, last_s: float) -> None:
        self.last_s = last_s
        self.gaps = Recent()


class Gaps:
    """What is known of the gaps of one algorithm."""

    __slots__ = ("binned", "callers", "ended", "mean", "own", "recent", "scores", "waited_s")

    def __init__(self) -> None:
        self.binned: tuple[Binned, Binned] | None = None
        """The laws of pool and histogram, kept from when a gap begins until it has been learned."""
        self.ended = 0.0
        self.waited_s = 0.0
        """Gaps that ended, and seconds of all gaps; both decayed."""
        self.own = Histogram()
        self.recent = Recent()
        self.mean = Mean(0.0, 0.0)
        """Of the base-2 logarithm of seconds."""
        self.callers: dict[str | None, Rhythm] = {}
        self.scores = [0.0] * len(OPINIONS)

    @property
    def typical_s(self) -> float:
        """A typical gap."""
        return math.exp2(self.mean.value)

    def learn(self, gap_s: float, *, is_censored: bool) -> None:
        """A gap has ended, or was cut short."""
        self.binned = None
        self.own.learn(gap_s, is_censored=is_censored)
        self.ended = self.ended * KEEP + (not is_censored)
        self.waited_s = self.waited_s * KEEP + gap_s
        if not is_censored:
            self.recent.add(gap_s)
            self.mean.add(math.log2(max(gap_s, SHORTEST_S)))

    def called(self, caller: str | None, at_s: float) -> None:
        """A new request of this caller has called it."""
        rhythm = self.callers.pop(caller, None)
        if rhythm is None:
            rhythm = Rhythm(at_s)
        elif at_s > rhythm.last_s:
            rhythm.gaps.add(at_s - rhythm.last_s)
        rhythm.last_s = at_s
        self.callers[caller] = rhythm  # in the order of their last calls
        if len(self.callers) > MOST_CALLERS:
            del self.callers[next(iter(self.callers))]
