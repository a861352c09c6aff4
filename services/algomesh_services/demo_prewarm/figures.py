"""What the demo measures: instances from launch to death, runs from begin to end, and calls as their caller saw them.

All times are seconds since the epoch. Nothing here does I/O.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from algomesh_broker.platform import RunRow

GPU: float = 0.25
"""What each service takes of a GPU; services/catalog/prewarm_chain says the same."""

Kind = Literal["pipeline", "code"]


class Life(NamedTuple):
    """One instance: launched, ready for calls, gone."""

    algorithm: str
    launched: float
    ready: float
    ended: float


class Busy(NamedTuple):
    """One run on an instance. `cold_s` is what it waited for one to start."""

    algorithm: str
    root: str
    began: float
    ended: float
    cold_s: float


class Called(NamedTuple):
    """One call of four services, through a pipeline or through code.

    `cold_starts` of the four were waited for, `cold_s` altogether.
    """

    kind: Kind
    root: str
    at: float
    took_s: float
    cold_starts: int = 0
    cold_s: float = 0.0


class Side(Struct, frozen=True, kw_only=True):
    """Everything that happened in one mesh until `ended`: lives are cut off there, and `calls` are in order.

    `saved_s` and `starts` are what the pre-warmer says of itself: seconds nobody had to wait, starts by their kind.
    """

    name: str
    ended: float
    lives: list[Life]
    runs: list[Busy]
    calls: list[Called]
    saved_s: float | None = None
    starts: dict[str, int] = {}

    def of(self, kind: Kind) -> list[Called]:
        """The calls of one kind."""
        return [call for call in self.calls if call.kind == kind]

    def held_s(self, algorithms: Iterable[str], since: float, until: float) -> float:
        """GPU-seconds that instances of these had between two moments: loading, idle and busy."""
        names = set(algorithms)
        lives = [life for life in self.lives if life.algorithm in names]
        return GPU * sum(max(0.0, min(life.ended, until) - max(life.launched, since)) for life in lives)

    def idle_s(self, algorithms: Iterable[str], since: float, until: float) -> float:
        """The part of these in which they were up and had nothing to do."""
        names = set(algorithms)
        up = sum(
            max(0.0, min(life.ended, until) - max(life.ready, since)) for life in self.lives if life.algorithm in names
        )
        worked = sum(max(0.0, min(run.ended, until) - max(run.began, since)) for run in self.runs
                     if run.algorithm in names)  # fmt: skip
        return GPU * max(0.0, up - worked)


def with_cold_starts(calls: Sequence[Called], runs: Sequence[Busy]) -> list[Called]:
    """The calls, each with how many of its runs waited for an instance, and how long."""
    cold: dict[str, list[float]] = {}
    for run in runs:
        if run.cold_s > 0:
            cold.setdefault(run.root, []).append(run.cold_s)
    waits = [cold.get(call.root, []) for call in calls]
    return [call._replace(cold_starts=len(wait), cold_s=sum(wait)) for call, wait in zip(calls, waits, strict=True)]


def busy_of(row: RunRow) -> Busy:
    """A run as the ledger has it."""
    return Busy(row.algorithm, row.root or row.run, row.started_at, row.ended_at, row.cold_ms / 1000)


class Periodic(Struct, frozen=True, kw_only=True):
    """The calls of the pipeline after ten periods: what each cost, and what one period held."""

    calls: int
    cold_starts: int
    cold_s: float
    slowest_s: float
    held_s: float
    idle_s: float
    always_s: float

    @property
    def share(self) -> float:
        """What was held, of what instances that are always up hold."""
        return self.held_s / self.always_s

    @classmethod
    def of(cls, side: Side, algorithms: Sequence[str], *, after: int, period_s: float) -> "Periodic":
        """What happened from call number `after` of the pipeline on, until the last call began."""
        calls = side.of("pipeline")[after:]
        since, until = calls[0].at, calls[-1].at
        later = calls[1:]
        periods = max(1, len(later))
        return cls(
            calls=len(later),
            cold_starts=sum(call.cold_starts for call in later),
            cold_s=sum(call.cold_s for call in later),
            slowest_s=max(call.took_s for call in later),
            held_s=side.held_s(algorithms, since, until) / periods,
            idle_s=side.idle_s(algorithms, since, until) / periods,
            always_s=GPU * len(algorithms) * period_s,
        )
