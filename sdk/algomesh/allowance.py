"""How many runs one root run may lead to, and how that is kept without a question for every call.

Every run brings a small budget with it, of which it gives a part to each run it begins; that is enough for most. When
it is used up, more is leased from the registry (leasing.py), which counts what it has given to each root. So a
recursion that does not end comes to a typed error, and a call costs no round trip for it. What the sender of a
pipeline begins by itself, an `each` over a long list say, is not counted: that ends.
"""

from typing import Final

MOST_RUNS: Final = 10_000
OWN_BUDGET: Final = 1_000
TOO_MANY: Final = (
    f"this call has led to {MOST_RUNS:,} runs, which is the limit; does an algorithm call itself without end?"
)
# Small, so that an `each` in mid-chain does not give everything to its first items.
_SHARE: Final = 64


class Allowance:
    """What is left of one run's budget; `root` is whose limit it counts towards."""

    __slots__ = ("left", "root")

    def __init__(self, root: str, budget: int) -> None:
        self.root = root
        self.left = budget

    def spend(self, runs: int) -> int:
        """Begin so many runs; returns the budget that goes with them, or -1 when there is not enough left."""
        if self.left < runs:
            return -1
        self.left -= runs
        share = self.left // _SHARE
        self.left -= share
        return share // runs
