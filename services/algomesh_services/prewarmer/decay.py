"""Counts that fade by observation: about the last fifty count, however long ago they were."""

MEMORY = 50.0
"""Observations that count: an average over the last fifty knows a share to within sqrt(0.5 · 0.5 / 50) = 7 %, well
inside what a break-even decision needs, and follows a graph that changed within about fifty requests."""

KEEP = 1.0 - 1.0 / MEMORY

_POWERS = [KEEP**k for k in range(1024)]  # below 1e-8 at the end: gone


def left(observations: int) -> float:
    """What is left of a count after that many further observations, as a share."""
    return _POWERS[observations] if observations < len(_POWERS) else 0.0


def faded(value: float, observations: int) -> float:
    """`value` after that many further observations."""
    return value * left(observations)


class Mean:
    """A mean over the last observations, which begins at `value` as if that had been seen once."""

    __slots__ = ("value", "weight")

    def __init__(self, value: float, weight: float = 1.0) -> None:
        self.value = value
        self.weight = weight

    def add(self, value: float) -> None:
        """One more observation."""
        self.weight = self.weight * KEEP + 1.0
        self.value += (value - self.value) / self.weight
