"""When a batch begins, and with how many. Pure: counts and times in, times and sizes out.

While a batch runs, arrivals gather, and leave together when it ends. A free instance waits for more only where
that pays. What a batch saves those who join it is at most one batch's fixed cost, so no wait is longer than the
shortest of the last batches took. It is for as many as were here at once lately: with one caller at a time nobody
waits. A wait in vain is followed by some batches that do not wait, twice as many each time in a row.
"""

from collections import deque
from typing import Final

_LATELY: Final = 3
_TIMES: Final = 8
_LONGEST_REST: Final = 64


class Gathering:
    """The calls that wait for a batch, and the batches that run; at most `lanes` at once, of `most` calls each."""

    def __init__(self, most: int, wait_s: float, lanes: int = 1) -> None:
        self.waiting = 0
        self.running = 0
        self._most, self._wait_s, self._lanes = most, wait_s, lanes
        self._since = 0.0
        self._here: deque[int] = deque(maxlen=_LATELY)
        self._took: deque[float] = deque(maxlen=_TIMES)
        self._rest = 0
        self._next_rest = 1

    @property
    def wanted(self) -> int:
        """How many a batch is worth waiting for."""
        return 1 if self._rest else min(self._most, max(self._here, default=1))

    @property
    def longest_wait_s(self) -> float:
        """How long a free lane waits at most."""
        return min(self._wait_s, min(self._took, default=0.0))

    def arrive(self, now: float) -> None:
        """A call wants to run."""
        if not self.waiting and self.running < self._lanes:
            self._since = now
        self.waiting += 1

    def leave(self) -> None:
        """A call that waited wants to run no longer."""
        self.waiting -= 1

    def due(self, now: float) -> float | None:
        """When the next batch begins; `now` for at once, None for not before something else happens."""
        if not self.waiting or self.running >= self._lanes:
            return None
        if self.waiting >= self.wanted:
            return now
        return max(now, self._since + self.longest_wait_s)

    def begin(self, now: float) -> int:
        """A batch begins; returns its size."""
        if self._rest:
            self._rest -= 1
        elif self.waiting < self.wanted and self.longest_wait_s > 0:
            self._rest, self._next_rest = self._next_rest, min(_LONGEST_REST, 2 * self._next_rest)
        elif self.wanted > 1:
            self._next_rest = 1
        size = min(self.waiting, self._most)
        self.waiting -= size
        self.running += 1
        self._since = now
        return size

    def end(self, now: float, size: int, took_s: float | None) -> None:
        """A batch has ended; `took_s` is None when that says nothing, as of one that raised."""
        self.running -= 1
        self._since = now
        self._here.append(size + self.waiting)
        if took_s is not None:
            self._took.append(took_s)
