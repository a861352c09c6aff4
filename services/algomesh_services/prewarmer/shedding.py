"""How much of what is heard is looked at, when there is more than one processor should think about: pure.

As instances do of busy versions, the pre-warmer then follows the requests of one root in two, four, and so on, whole.
What it learns stays the same; the others are kept warm by what is held for these, and by gaps.
"""

from typing import Final

MOST_BUSY: Final = 0.5
"""The share of time that may go into deciding; the rest is for reading, publishing and answering."""

_LITTLE_BUSY: Final = 0.15
_WINDOW_S: Final = 1.0
_SMALLEST_SHARE: Final = 256


class Shedding:
    """`one_in` roots are followed at present."""

    def __init__(self, now: float) -> None:
        self.one_in = 1
        self._since, self._spent_s = now, 0.0

    def spent(self, seconds: float, now: float) -> bool:
        """So much time went into deciding; whether `one_in` has changed."""
        self._spent_s += seconds
        passed_s = now - self._since
        if passed_s < _WINDOW_S and self._spent_s < _WINDOW_S:
            return False
        share = self._spent_s / max(passed_s, self._spent_s)
        self._since, self._spent_s = now, 0.0
        before = self.one_in
        if share > MOST_BUSY:
            self.one_in = min(_SMALLEST_SHARE, 2 * before)
        elif share < _LITTLE_BUSY:
            self.one_in = max(1, before // 2)
        return self.one_in != before


def is_followed(root: str, one_in: int) -> bool:
    """Whether a root is among the one in `one_in` that are followed; instances choose alike, by its last two digits."""
    if one_in <= 1:
        return True
    try:
        return int(root[-2:], 16) < _SMALLEST_SHARE // one_in
    except ValueError:
        return False
