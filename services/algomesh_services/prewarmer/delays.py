"""Delays and load times as small samples: the last few, their order, and what lies outside of them.

A sample of m past values splits the line into m + 1 parts, and the next value falls into each with the same
probability 1/(m + 1) (exchangeability). That is all that is assumed here; no shape is fitted.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

SIZE = 16
"""Values kept. A start just in time asks for the quantile 1/(1 + ρ), so about 1 + ρ values say where it is: 6 for the
default worth of latency and a whole GPU, 21 for a quarter of one. Sixteen floats are 64 bytes."""


def _nothing() -> "array[float]":
    return array("f")


class Recent(msgspec.Struct, gc=False):
    """The last values of something, oldest overwritten first. Make one of given values with `Recent.of`."""

    values: "array[float]" = msgspec.field(default_factory=_nothing)
    at: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """These values, the last sixteen of them."""
        return cls(array("f", [*values][-SIZE:]))

    def add(self, value: float) -> None:
        """Remember one more."""
        if len(self.values) < SIZE:
            self.values.append(value)
        else:
            self.values[self.at] = value
            self.at = (self.at + 1) % SIZE

    def in_order(self) -> list[float]:
        """The values, oldest first."""
        return [*self.values[self.at :], *self.values[: self.at]]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which the next one falls with probability `share`; `ordered` is sorted and not empty.

    Inside the sample by linear interpolation between order statistics. Outside of it, the last part is taken to be
    as wide as the whole sample: wide when the values differ, nothing when they never did.
    """
    count = len(ordered)
    place = share * (count + 1) - 1.0
    if place < 0.0:
        return ordered[0] + place * (ordered[-1] - ordered[0])
    below = int(place)
    if below >= count - 1:
        return ordered[-1] + (place - (count - 1)) * (ordered[-1] - ordered[0])
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


class LoadSpread:
    """How loads differ from their mean: measured load over expected load, of all algorithms together.

    One cold start is too rare an event to learn a spread from for each algorithm by itself. Until something was
    measured, a load takes what the fleet expects.
    """

    __slots__ = ("_ratios", "factors")

    def __init__(self, ratios: Iterable[float] = ()) -> None:
        self._ratios = Recent.of(ratios)
        self.factors: tuple[float, ...] = (1.0,) * SIZE
        self._spread()

    @property
    def ratios(self) -> list[float]:
        """What was measured lately."""
        return self._ratios.in_order()

    def add(self, measured_s: float, expected_s: float) -> None:
        """A load that began with a call, so that its whole length was seen."""
        self._ratios.add(min(16.0, measured_s / expected_s))  # a hung load says nothing about the next one
        self._spread()

    def _spread(self) -> None:
        """Factors by which to scale a mean load, one to go with each delay of a sample.

        Equally spaced quantiles, in an order that does not follow the order of the sample (steps of 7 modulo 16 visit
        all sixteen), so that pairing the two is drawing from both independently.
        """
        ordered = sorted(self._ratios.values)
        if ordered:
            self.factors = tuple(max(0.0, quantile(ordered, ((7 * k) % SIZE + 0.5) / SIZE)) for k in range(SIZE))
