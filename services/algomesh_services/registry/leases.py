"""How many runs each root run has been given, so that a recursion that does not end comes to one.

Kept in memory, for the latest roots only: a registry that starts again begins to count anew, and depth is bounded
without it.
"""

from collections import OrderedDict
from typing import Final

MOST_LEASED: Final = 9_000
_MOST_ROOTS: Final = 100_000


class Leases:
    """What has been leased to whom."""

    def __init__(self, most: int = MOST_LEASED) -> None:
        """`most` is how many runs one root may lease; its own budget comes on top."""
        self._most = most
        self._leased: OrderedDict[str, int] = OrderedDict()

    def take(self, root: str, runs: int) -> int:
        """Lease up to `runs` more to `root`; returns how many, 0 when it has had all."""
        had = self._leased.get(root, 0)
        granted = max(0, min(runs, self._most - had))
        self._leased[root] = had + granted
        self._leased.move_to_end(root)
        while len(self._leased) > _MOST_ROOTS:
            self._leased.popitem(last=False)
        return granted
