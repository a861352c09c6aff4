"""When to have an algorithm up: the windows of least expected cost, by its cold start and when it is called.

All costs are in seconds of one held instance. With a cold start of c seconds and a second of latency worth ρ, an
instance that is started at s and held until e costs, when it is called after d seconds,

    d < s: (ρ + 1)c      s ≤ d ≤ e: max(d, s + c) − s + ρ·(s + c − d)⁺      d > e: e − s + (ρ + 1)c      never: e − s

so that it pays to start ahead when p > 1/(1 + ρ), and to keep while the hazard of a call exceeds 1/((ρ + 1)c). The
first is the break-even rule of "Cost-Aware Speculative Execution" (2026), the second that of renting or buying skis.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from algomesh_services.prewarmer.delays import quantile


class Window(NamedTuple):
    """Up from `start_s` until `end_s`, seconds from now; what it saves in expectation, and what it takes."""

    start_s: float
    end_s: float
    saved_s: float
    taken_s: float

    @property
    def gain(self) -> float:
        """Saved per second taken."""
        return self.saved_s / self.taken_s if self.taken_s > 0.0 else self.saved_s


class Ahead:
    """A call that may come in this request: probability, delays (seconds from now), load times, and what they cost.

    `factors` scale the cold start, one for each delay; `over_s` is when the request ends, and with it the hold, if the
    call never comes (None: not known).
    """

    __slots__ = ("_atoms", "_from_off_s", "_mass", "_starts", "cold_s", "over_s", "probability", "rho")

    def __init__(
        self,
        probability: float,
        delays_s: Sequence[float],
        factors: Sequence[float],
        *,
        cold_s: float,
        rho: float,
        over_s: float | None,
    ) -> None:
        self.probability = probability
        self.cold_s = cold_s
        self.rho = rho
        self.over_s = over_s if over_s is not None else float("inf")
        atoms = list(zip(delays_s, factors, strict=False))
        self._starts = sorted([delay_s - cold_s * factor for delay_s, factor in atoms])
        # One more than all that were seen: with probability 1/(m + 1) it takes longer than ever. By how much is not
        # known; the spread of the sample, or a cold start, which is what waiting for it may cost.
        atoms.sort()
        low, high = atoms[0][0], atoms[-1][0]
        atoms.append((high + max(high - low, cold_s), 1.0))
        self._atoms = atoms
        self._mass = probability / len(atoms)
        share = 1.0 / ((1.0 + rho) * probability)
        self._from_off_s = max(0.0, quantile(self._starts, share)) if share < 1.0 else None

    def from_off_s(self) -> float | None:
        """When to start it, being off: the earliest moment that another second earlier would cost more than it saves.

        A second more in front costs 1, unless the call comes before the load is done: then it saves ρ. So the start
        is the quantile 1/((1 + ρ)p) of (delay − load). None: p is too small for any start to pay.
        """
        return self._from_off_s

    def best(self, left_s: float | None) -> Window | None:
        """The best window, or None where none pays.

        `left_s`: what is left of a load in flight (0: it is warm), None when it is off. What is up is either kept from
        now on, or let go and perhaps started again later. A load in flight goes on if that pays at all: to let go of it
        and load again a little later may seem cheaper by a second or two, and throws away what is known to succeed.
        """
        best = self._window(0.0, left_s) if left_s is not None else None
        if best is not None and left_s and best.saved_s > 0.0:
            return best
        start_s = self.from_off_s()
        if start_s is not None and (left_s is None or start_s > 0.0):
            for again_s in (start_s, *self._later_starts(start_s)):
                again = self._window(again_s, None)
                if best is None or again.saved_s > best.saved_s:
                    best = again
        return best if best is not None and best.saved_s > 0.0 else None

    def _later_starts(self, start_s: float) -> list[float]:
        """Other starts worth a try: where waiting from the first call to the last costs more than a cold start.

        Then it may pay to give up the early ones and be there for the others. Three quartiles of the sample do.
        """
        starts = self._starts
        if starts[-1] - starts[0] <= (self.rho + 1.0) * self.cold_s:
            return []
        return [start for k in (1, 2, 3) if (start := starts[k * len(starts) // 4]) > start_s]

    def _window(self, start_s: float, left_s: float | None) -> Window:
        """The best end for a start, and what the window then saves against doing nothing.

        Each further part of the sample must be worth its wait: the end is where the sum of what was gained is highest.
        """
        rho, cold_s, over_s, mass = self.rho, self.cold_s, self.over_s, self._mass
        stake, never = (rho + 1.0) * cold_s, 1.0 - self.probability
        alive, before_s = self.probability, start_s  # the probability that it comes after `before_s`
        saved = most = taken = 0.0
        end_s, all_taken = start_s, 0.0
        for delay_s, factor in self._atoms:
            alive -= mass
            if delay_s < start_s:
                continue
            if delay_s > before_s:
                wait = (alive + mass) * (delay_s - before_s)
                if over_s > before_s:
                    wait += never * ((delay_s if delay_s < over_s else over_s) - before_s)
                saved -= wait
                taken += wait
                before_s = delay_s
            saved += mass * stake
            late_s = start_s + (cold_s * factor if left_s is None else left_s) - delay_s
            if late_s > 0.0:
                saved -= mass * (1.0 + rho) * late_s
                taken += mass * late_s
            if saved > most:
                most, end_s, all_taken = saved, delay_s, taken
        return Window(start_s, end_s, most, all_taken)


MOST_WINDOWS = 3  # after one gap: keep, up again just before the period, and once more after a missed one


def gap_windows(
    grid: Sequence[float], called_by: Sequence[float], *, cold_s: float, rho: float, factors: Sequence[float]
) -> list[Window]:
    """The windows in which to have an idle, warm algorithm up until its next call, the first of which may begin now.

    `called_by[i]` is the probability that it was called by `grid[i]` seconds from now (`grid[0]` is 0). The first
    window, up to K, maximises (ρ + 1)c·F(K) − E[min(gap, K)]; the others are starts from off, which load first. Found
    by going back from the end of the grid with the values of being on and of being off.
    """
    stake, last = (rho + 1.0) * cold_s, len(grid) - 1
    loads = [cold_s * factor for factor in sorted(factors)[len(factors) // 8 :: max(1, len(factors) // 4)]]
    area = [0.0]  # ∫ F
    for i in range(last):
        area.append(area[i] + (grid[i + 1] - grid[i]) * (called_by[i] + called_by[i + 1]) / 2.0)

    on, off = [0.0] * (last + 1), [0.0] * (last + 1)
    stays, starts = [False] * (last + 1), [False] * (last + 1)
    for i in range(last - 1, -1, -1):
        width = grid[i + 1] - grid[i]
        staying = on[i + 1] + stake * (called_by[i + 1] - called_by[i]) - (width - (area[i + 1] - area[i]))
        off[i] = off[i + 1]
        if staying > off[i]:
            late = sum(_late(grid, called_by, area, i, load) for load in loads) / len(loads)
            starting = staying - (1.0 + rho) * late
            if starting > off[i]:
                off[i], starts[i] = starting, True
        on[i], stays[i] = max((staying, True), (off[i], False))

    windows: list[Window] = []
    i, is_on = 0, True
    while i < last and len(windows) < MOST_WINDOWS:
        if not (is_on and stays[i]) and not (not is_on and starts[i]):
            i, is_on = i + 1, False
            continue
        begin, value = i, on[i] if is_on else off[i]
        i += 1
        while i < last and stays[i]:
            i += 1
        is_on = False
        taken = (grid[i] - grid[begin]) - (area[i] - area[begin])
        windows.append(Window(grid[begin], grid[i], value - off[i], taken))
        # off[i] was the choice at i: go on from there
    return windows


def _late(grid: Sequence[float], called_by: Sequence[float], area: Sequence[float], i: int, load_s: float) -> float:
    """∫ (F(t) − F(start)) over the load: the expected seconds by which calls come before it is done."""
    until = grid[i] + load_s
    j = min(bisect_right(grid, until) - 1, len(grid) - 1)
    whole = area[j] - area[i]
    rest = until - grid[j]
    if rest > 0.0:
        at = called_by[j]
        if j + 1 < len(grid):
            slope = (called_by[j + 1] - at) / (grid[j + 1] - grid[j])
            whole += rest * (at + slope * rest / 2.0)
        else:
            whole += rest * at
    return whole - called_by[i] * load_s
