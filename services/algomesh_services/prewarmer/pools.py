"""What the gaps of all algorithms have in common: their shape, by how often they are called.

So that an algorithm which was hardly ever called is judged by others that are called as rarely.
"""

import math

from algomesh_services.prewarmer.decay import Mean
from algomesh_services.prewarmer.hazards import (
    BINS,
    EDGES,
    OCTAVES,
    PER_OCTAVE,
    SHORTEST_S,
    Histogram,
    bin_of,
    unknown,
)

_KEEP = 1.0 - 1.0 / (8 * BINS)  # a pool is of many algorithms: eight gaps a bin
_FRESH = 2 * OCTAVES  # gaps after which the pools are read anew: a sixteenth of what they remember
_MIDDLE = BINS // 2
_UNKNOWN_MEAN = unknown(EDGES[_MIDDLE])  # where there is a mean, that is the scale
_RATE_OCTAVES = 2  # algorithms whose mean gaps are within a factor of four pool their shapes


class Pools:
    """The shapes of gaps of all algorithms, in units of each one's own mean, by how often they are called."""

    def __init__(self, *, is_on: bool = True) -> None:
        self.is_on = is_on
        self.absolute = Histogram(_KEEP)
        """In seconds, for algorithms without a mean yet."""
        self.relative: dict[int | None, Histogram] = {None: Histogram(_KEEP)}
        self._added = 0
        self._made: dict[tuple[int, int], list[float]] = {}

    def add(self, gap_s: float, mean: Mean, *, is_censored: bool) -> None:
        """A gap of an algorithm that had this mean before."""
        self._added += 1
        self.absolute.add(bin_of(gap_s), is_censored=is_censored)
        if mean.weight:
            place = _MIDDLE + math.floor(PER_OCTAVE * (math.log2(max(gap_s, SHORTEST_S)) - mean.value))
            place = min(BINS - 1, max(0, place))
            for rate in (None, _rate(mean)):
                self.relative.setdefault(rate, Histogram(_KEEP)).add(place, is_censored=is_censored)

    def hazards(self, mean: Mean, cold_s: float) -> list[float]:
        """Cumulative hazards by bin of an algorithm with this mean.

        What nobody knows begins at the cold start: a gap shorter than that changes no decision.
        """
        if not self.is_on:
            return unknown(cold_s)
        if not mean.weight:
            return self.absolute.refine(unknown(cold_s))
        if self._added >= _FRESH:
            self._made, self._added = {}, 0
        shift = round(PER_OCTAVE * (mean.value - math.log2(SHORTEST_S))) - _MIDDLE
        made = self._made.get((_rate(mean), shift))
        if made is None:
            made = self.relative[None].refine(_UNKNOWN_MEAN)
            by_rate = self.relative.get(_rate(mean))
            if by_rate is not None:
                made = by_rate.refine(made)
            ends = [made[0]] * max(0, shift), [made[-1]] * max(0, -shift)
            made = (ends[0] + made + ends[1])[max(0, -shift) :][:BINS]
            self._made[_rate(mean), shift] = made
        return made


def _rate(mean: Mean) -> int:
    return math.floor(mean.value / _RATE_OCTAVES)
