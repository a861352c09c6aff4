"""How much an instance takes at once: slots, and a backlog as long as it finishes in about 5 ms. Pure.

A backlog keeps a fast algorithm busy between two messages; for a slow one it would only hide calls from
instances that are free, so there it is zero.
"""

from collections import deque

BACKLOG_S = 0.005
LONGEST_BACKLOG = 256
_SAMPLES, _EVERY = 31, 8


class Capacity:
    """Counts what runs, and learns how long a run takes.

    `at_once` is how many of the slots make progress at a time, where that is not all of them: with batches a run's
    time is its share of one, and most slots hold what gathers for the next. `median_s` is 0 until runs were observed.
    """

    def __init__(self, slots: int, at_once: int | None = None) -> None:
        self.slots = slots
        self._at_once = slots if at_once is None else at_once
        self.taken = 0
        self.backlog_limit = 0
        self.median_s = 0.0
        self._took: deque[float] = deque(maxlen=_SAMPLES)
        self._since = 0

    @property
    def free(self) -> int:
        """Slots that nothing runs in."""
        return self.slots - self.taken

    def take(self) -> None:
        """A run begins."""
        self.taken += 1

    def give(self) -> None:
        """A run ends, or waits for a child."""
        self.taken -= 1

    def observe(self, took_s: float) -> None:
        """Learn from a run that held its slot for `took_s` seconds."""
        self._took.append(took_s)
        self._since += 1
        if self._since >= _EVERY:
            self._since = 0
            self.median_s = sorted(self._took)[len(self._took) // 2]
            fits = int(self._at_once * BACKLOG_S / max(self.median_s, 1e-6))
            self.backlog_limit = min(LONGEST_BACKLOG, fits) if self.median_s < BACKLOG_S else 0

    def is_full(self, backlog: int) -> bool:
        """Whether the next call would have to be parked."""
        return self.taken >= self.slots and backlog >= self.backlog_limit

    def has_eased(self, backlog: int) -> bool:
        """Whether an instance that was full may take calls again: half empty, and a slot free or soon free."""
        return 2 * (self.taken + backlog) <= self.slots + self.backlog_limit or (
            self.taken < self.slots and backlog == 0
        )
