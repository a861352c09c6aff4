"""Histograms of gaps on a logarithmic grid, as hazards: how likely a gap that has lasted so long ends in the next bin.

As hazards, so that gaps which were cut short (censored: a request that was under way already called the algorithm)
count for what they are: they were there until then (Kaplan & Meier 1958). Each histogram is backed off into a more
general one, bin by bin, as contexts are: h = (events + κ·h') / (at risk + κ). The hybrid histogram (Shahrad et al.,
"Serverless in the Wild", ATC 2020) has linear bins of a minute, one resolution, and falls back to a fixed time.
"""

import math
from array import array
from collections.abc import Sequence

from algomesh_services.prewarmer.counts import BACKING
from algomesh_services.prewarmer.decay import KEEP

PER_OCTAVE = 4
SHORTEST_S = 2.0**-6
OCTAVES = 26
BINS = PER_OCTAVE * OCTAVES
"""Quarter octaves from 16 ms, below which nothing loads, to twelve days. Finer structure is the sample's to show."""

MOST_UNIT = 1e9  # then weights are scaled down: single precision reaches to 1e38, and what is 1e9 lighter is gone

EDGES: list[float] = [0.0] + [SHORTEST_S * 2.0 ** ((b + 1) / PER_OCTAVE) for b in range(BINS)]


def bin_of(gap_s: float) -> int:
    """The bin of a gap."""
    if gap_s <= SHORTEST_S:
        return 0
    return min(BINS - 1, int(PER_OCTAVE * math.log2(gap_s / SHORTEST_S)))


class Histogram:
    """Decayed counts of gaps that ended, and of gaps that were cut short, by bin."""

    __slots__ = ("censored", "ended", "keep", "unit")

    def __init__(self, keep: float = KEEP) -> None:
        self.keep = keep
        self.ended = array("f", bytes(4 * BINS))
        self.censored = array("f", bytes(4 * BINS))
        self.unit = 1.0
        """The weight of the latest observation: it grows where all others would have to shrink."""

    def learn(self, gap_s: float, *, is_censored: bool = False) -> None:
        """One more gap, in seconds."""
        self.add(bin_of(gap_s), is_censored=is_censored)

    def add(self, place: int, *, is_censored: bool = False) -> None:
        """One more gap, which ended (or was last seen) in this bin."""
        self.unit /= self.keep
        if self.unit > MOST_UNIT:
            for counts in (self.ended, self.censored):
                for b in range(BINS):
                    counts[b] /= self.unit
            self.unit = 1.0
        (self.censored if is_censored else self.ended)[place] += self.unit

    def longest(self) -> int:
        """The highest bin in which a gap has ended lately, -1 without any."""
        return next((b for b in range(BINS - 1, -1, -1) if self.ended[b] > 0.02 * self.unit), -1)

    def refine(self, base: Sequence[float]) -> list[float]:
        """Cumulative hazard by bin: this histogram, backed off into `base`, first by octave, then by quarter octave."""
        backing = BACKING * self.unit
        refined = list(base)
        at_risk = 0.0
        all_ended, all_censored = self.ended.tolist(), self.censored.tolist()
        for low in range(BINS - PER_OCTAVE, -1, -PER_OCTAVE):
            high = low + PER_OCTAVE
            ended = all_ended[low:high]
            events = sum(ended)
            if events > 0.0:
                octave = sum(refined[low:high])
                scale = _hazard(events, at_risk + events, backing, octave) / octave
                inside = at_risk
                for b in range(high - 1, low - 1, -1):
                    inside += ended[b - low]
                    refined[b] = _hazard(ended[b - low], inside, backing, refined[b] * scale)
            elif at_risk > 0.0:
                share = backing / (at_risk + backing)
                refined[low:high] = [hazard * share for hazard in refined[low:high]]
            at_risk += events + sum(all_censored[low:high])
        return refined


def _hazard(events: float, at_risk: float, backing: float, base: float) -> float:
    """(events + κ·h') / (at risk + κ), as cumulative hazard."""
    share = (events + backing * (1.0 - math.exp(-base))) / (at_risk + backing)
    return -math.log1p(-min(share, 1.0 - 1e-9))


def unknown(scale_s: float) -> list[float]:
    """Cumulative hazard by bin where only a scale is known: 1/(t + scale), so that 1 − F = scale/(t + scale).

    Beyond its scale, a gap that has lasted long is expected to last as long again, whatever the unit of time.
    """
    return [math.log((EDGES[b + 1] + scale_s) / (EDGES[b] + scale_s)) for b in range(BINS)]
