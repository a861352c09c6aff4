"""Laws of the time until the next call: steady, by histogram, by sample, or of several callers together."""

import math
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from algomesh_services.prewarmer.hazards import BINS, EDGES, bin_of


class Law(Protocol):
    """A distribution of the time until the next call."""

    def by(self, times_s: Sequence[float], /) -> list[float]:
        """The probability that it has come by each of these times, which are sorted and not negative."""
        ...


class Steady:
    """The law of a rate of which so many calls in so many seconds are known: 1 − F = (T/(T + t))^n.

    That is an exponential law, averaged over what the rate may be (Gamma). With one call in a cold start it says what
    is said of a gap of which nothing is known.
    """

    __slots__ = ("_calls", "_seconds")

    def __init__(self, calls: float, seconds: float) -> None:
        self._calls = calls
        self._seconds = seconds

    def by(self, times_s: Sequence[float], /) -> list[float]:
        """The probability that it has come by each of these times."""
        calls, seconds = -self._calls, self._seconds
        return [1.0 - (1.0 + at_s / seconds) ** calls for at_s in times_s]


class Binned:
    """The law of cumulative hazards by bin."""

    __slots__ = ("_totals",)

    def __init__(self, hazards: Sequence[float]) -> None:
        self._totals = array("d", accumulate(hazards, initial=0.0))

    def by(self, times_s: Sequence[float], /) -> list[float]:
        """The probability that it has come by each of these times."""
        totals, found = self._totals, []
        known, b = -1, bin_of(times_s[0])
        low = high = begin_s = width_s = 0.0
        for at_s in times_s:
            while b < BINS - 1 and EDGES[b + 1] <= at_s:
                b += 1
            if b != known:
                known, begin_s, width_s = b, EDGES[b], EDGES[b + 1] - EDGES[b]
                low, high = 1.0 - math.exp(-totals[b]), 1.0 - math.exp(-totals[b + 1])
            found.append(low + min(1.0, (at_s - begin_s) / width_s) * (high - low))
        return found


class Sampled:
    """The law of a sample: each part between order statistics as likely as the next, and a little of anything.

    The parts outside are as wide as the sample, or a cold start divided among its parts, so that a sample without any
    spread does not promise none. With m values, 2/(m + 2) is left to what is unknown, as if that had spoken twice.
    """

    __slots__ = ("_cold_s", "_trust", "points")

    def __init__(self, gaps: Sequence[float], cold_s: float) -> None:
        self._cold_s = cold_s
        ordered = sorted(gaps)
        self._trust = len(ordered) / (len(ordered) + 2.0)
        margin = max(ordered[-1] - ordered[0], cold_s / (len(ordered) + 1)) if ordered else 0.0
        self.points = [max(0.0, ordered[0] - margin), *ordered, ordered[-1] + margin] if ordered else []
        """Where the law has corners."""

    def by(self, times_s: Sequence[float], /) -> list[float]:
        """The probability that it has come by each of these times."""
        points, cold_s, found = self.points, self._cold_s, []
        anything = 1.0 - self._trust
        part = self._trust / max(1, len(points) - 1)
        above, last = 0, len(points)
        for at_s in times_s:
            while above < last and points[above] <= at_s:
                above += 1
            parts: float = 0
            if above == last:
                parts = max(0, last - 1)
            elif above > 0:
                parts = above - 1 + (at_s - points[above - 1]) / (points[above] - points[above - 1])
            found.append(parts * part + anything * at_s / (at_s + cold_s))
        return found


class Callers:
    """The law of several callers, each with its own sample and the time since its last call; the first one counts."""

    __slots__ = ("_each",)

    def __init__(self, each: Sequence[tuple[Sampled, float]]) -> None:
        self._each = each

    def by(self, times_s: Sequence[float], /) -> list[float]:
        """The probability that one of them has come by each of these times."""
        none = [1.0] * len(times_s)
        for law, age_s in self._each:
            now, *later = law.by([age_s, *(age_s + at_s for at_s in times_s)])
            alive = max(1e-12, 1.0 - now)
            none = [one * (1.0 - by) / alive for one, by in zip(none, later, strict=True)]
        return [1.0 - max(0.0, min(1.0, one)) for one in none]
