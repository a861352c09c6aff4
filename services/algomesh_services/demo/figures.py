"""What the demo measures."""

import statistics
from typing import NamedTuple

from msgspec import Struct

from algomesh.response import Metadata


class Hop(NamedTuple):
    """One call: all of it as the caller saw it, the service's start, and its own code. Milliseconds."""

    algorithm: str
    version: str
    total_ms: float
    cold_ms: float
    compute_ms: float

    @classmethod
    def of(cls, metadata: Metadata) -> "Hop":
        """From what the answer says of itself."""
        return cls(
            metadata.algorithm,
            metadata.version,
            metadata.duration * 1000,
            metadata.cold_start_s * 1000,
            metadata.compute_s * 1000,
        )


class Measured(NamedTuple):
    """One post's way through the services, and its score."""

    hops: list[Hop]
    score: float

    @property
    def total_ms(self) -> float:
        """All hops together."""
        return sum(hop.total_ms for hop in self.hops)


class VersionFigures(Struct, frozen=True, kw_only=True):
    """One version of text/sentiment. `cold_ms` and `warm_ms` are of the whole chain, first and second call."""

    version: str
    cold_ms: float
    warm_ms: float
    posts_per_s: float
    scores: list[float]
    correlation: float | None = None

    def as_json(self) -> dict[str, float]:
        """The figures for the last line."""
        found = {
            "cold_ms": round(self.cold_ms, 1),
            "warm_ms": round(self.warm_ms, 2),
            "posts_per_s": round(self.posts_per_s, 1),
        }
        return found if self.correlation is None else {**found, "correlation": round(self.correlation, 3)}


def correlation(scores: list[float], ratings: list[float]) -> float | None:
    """Pearson's correlation; None where one side never changes, or there are fewer than two."""
    try:
        return statistics.correlation(scores, ratings)
    except statistics.StatisticsError:
        return None
