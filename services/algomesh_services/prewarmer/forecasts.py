"""How long until an idle algorithm is called by a new request: several opinions, mixed by how well each has predicted.

The opinions: calls come at a steady rate, without memory; what algorithms of the same call rate did (pooled, relative
to their own mean); the algorithm's own histogram (backed off into the pool); the order statistics of its last gaps
(sharp where calls are periodic); and its callers each with their own rhythm, whichever calls first. Each gap is scored
under each of them before it is learned.
"""

import math

from algomesh_services.prewarmer.decay import KEEP, MEMORY
from algomesh_services.prewarmer.gaps import Gaps
from algomesh_services.prewarmer.hazards import EDGES, bin_of
from algomesh_services.prewarmer.laws import Binned, Callers, Law, Sampled, Steady
from algomesh_services.prewarmer.pools import Pools

_SHARED = 1.0 / MEMORY
"""Weight that is shared evenly, whatever was scored: once in a memory another opinion becomes the right one (fixed
share, Herbster & Warmuth 1998). So calls that came steadily, and then stop, are not waited for as if they went on."""


class Forecast:
    """All opinions on the present gap of one algorithm, and the weight of each."""

    def __init__(self, gaps: Gaps, pools: Pools, cold_s: float, at_s: float) -> None:
        self._gaps = gaps
        self._cold_s = cold_s
        self._sampled = Sampled(gaps.recent.values, cold_s)
        rhythms = [(Sampled(r.gaps.values, cold_s), max(0.0, at_s - r.last_s)) for r in gaps.callers.values()]
        self._corners = [(law.points, age_s) for law, age_s in rhythms]
        if gaps.binned is None:
            base = pools.hazards(gaps.mean, cold_s)
            gaps.binned = Binned(base), Binned(gaps.own.refine(base))
        steady = Steady(gaps.ended + 1.0, gaps.waited_s + cold_s)
        self.laws: list[Law] = [steady, *gaps.binned, self._sampled, Callers(rhythms)]
        best = max(gaps.scores)
        weights = [math.exp(score - best) for score in gaps.scores]
        total, rest = sum(weights), _SHARED / len(weights)
        self.weights = [(1.0 - _SHARED) * weight / total + rest for weight in weights]

    def score(self, gap_s: float, *, is_censored: bool) -> None:
        """Tell each opinion what happened: the logarithm of the probability it gave to that, and to what is alike.

        Alike is what differs by 2 % or a sixteenth of the cold start: no decision hangs on less.
        """
        low, high = max(0.0, gap_s / 1.02 - self._cold_s / 16), gap_s * 1.02 + self._cold_s / 16
        scores = self._gaps.scores
        for k, law in enumerate(self.laws):
            before, at, after = law.by((low, gap_s, high))
            scores[k] = scores[k] * KEEP + math.log(max(1.0 - at if is_censored else after - before, 1e-9))

    def curve(self, until_s: float) -> tuple[list[float], list[float]]:
        """Seconds from now, from 0 to `until_s`, and the probability to have been called by each."""
        shortest = self._cold_s / 8  # a start or end that is off by an eighth of a load costs next to nothing
        places = EDGES[bin_of(shortest) + 1 : bin_of(until_s) + 1]
        corners = list(self._sampled.points)
        for points, age_s in self._corners:
            corners += [point - age_s for point in points]
        places += corners
        places += [corner - self._cold_s for corner in corners]
        places.append(until_s)
        places.sort()
        grid = [0.0]
        for place in places:
            if place - grid[-1] > shortest / 8 and place <= until_s:
                grid.append(place)
        called_by = [0.0] * len(grid)
        for weight, law in zip(self.weights, self.laws, strict=True):
            called_by = [mixed + weight * by for mixed, by in zip(called_by, law.by(grid), strict=True)]
        return grid, called_by

    def horizon_s(self, stake_s: float) -> float:
        """Beyond this nothing is known to come: twice the longest gap seen lately, or what break-even allows."""
        longest_s: float = EDGES[self._gaps.own.longest() + 1]
        return min(EDGES[-1], max(2.0 * stake_s, 2.0 * longest_s))
