"""Counters, gauges and histograms of a program, kept as plain numbers until somebody asks for them.

Each program makes its own in its `metrics.py`, by `counter`, `gauge` and `histogram` below; they are in `REGISTRY`, and
`metrics_server.py` shows that. To count is a lookup in a dict and an addition, on the program's one loop: no lock, and
no import of a client of Prometheus. A label called `version` takes `owner/name/1.2.0` and is shown as two labels,
`algorithm` and `version`. How many versions and callers are told apart is bounded; the rest counts as `other`.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from algomesh_observability.logger import get_logger

log = get_logger("algomesh.metrics")

Kind = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[str, ...]
Readings: TypeAlias = Mapping[Labels, float]
Exemplar: TypeAlias = tuple[str, float, float]
"""One of the values that a histogram counted: the id of its trace, the value, and when, in seconds since the epoch."""

CellT = TypeVar("CellT")
InstrumentT = TypeVar("InstrumentT", bound="Counter | Gauge | Histogram")

OTHER: Final = "other"
MOST_VERSIONS: Final = 500
MOST_CALLERS: Final = 100
MOST_SERIES: Final = 10_000
"""Of one instrument; beyond it everything counts as `other`."""
IDLE_S: Final = 3_600.0
LATENCY_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Upper bounds of times in the mesh: a warm call takes less than a millisecond, a cold one some seconds."""


class Count:
    """One number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Spread:
    """How often values fell between bounds. `counts` has one more than there are bounds: for what is above them."""

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.total = 0.0


class Spreading(NamedTuple):
    """A `Spread` as it stood when it was asked for."""

    counts: list[int]
    exemplars: list[Exemplar | None]
    total: float


class Family(NamedTuple):
    """All that is known of one metric at one moment; `bounds` are those of a histogram."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    samples: list[tuple[Labels, float]]
    spreads: list[tuple[Labels, Spreading]]
    bounds: tuple[float, ...] = ()


class Limit:
    """At most `most` values of a label, for all that have it. One not used for `IDLE_S` makes room for another.

    `on_forgotten` are called with each value that made room.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._used_at: dict[str, float] = {}
        self._looked_at = float("-inf")
        self.on_forgotten: list[Callable[[str], None]] = []

    def admit(self, value: str) -> str:
        """The value itself, or `other` where there are too many."""
        used_at, now = self._used_at, self._clock()
        if value not in used_at:
            if len(used_at) >= self._most:
                self._make_room(now)
            if len(used_at) >= self._most or value == OTHER:
                return OTHER
        used_at[value] = now
        return value

    def _make_room(self, now: float) -> None:
        if now - self._looked_at < 60.0:
            return
        self._looked_at = now
        for value in [each for each, at in self._used_at.items() if now - at > IDLE_S]:
            del self._used_at[value]
            for forget in self.on_forgotten:
                forget(value)


class _Instrument:
    """What all of them have: a name, and labels in the order in which values are given."""

    kind: Kind

    def __init__(self, name: str, help_: str, labels: Labels, limits: Mapping[str, Limit]) -> None:
        self.name, self.help = name, help_
        self.labels = _shown_names(labels)
        self._places = [(place, limits[label]) for place, label in enumerate(labels) if label in limits]
        self._version = labels.index("version") if "version" in labels else -1
        self._other = (OTHER,) * len(labels)
        self._shown_as: dict[Labels, Labels] = {}

    def _admit(self, values: Labels) -> Labels:
        """The values under which this is kept."""
        if len(values) != len(self._other):
            raise ValueError(f"{self.name} has {len(self._other)} labels, not {len(values)}")
        if not self._places:
            return values
        admitted = list(values)
        for place, limit in self._places:
            admitted[place] = limit.admit(values[place])
        return tuple(admitted)

    def _shown(self, values: Labels) -> Labels:
        """The values as they are shown."""
        if self._version < 0:
            return values
        shown = self._shown_as.get(values)
        if shown is None:
            algorithm, _, version = values[self._version].rpartition("/")
            shown = (*values[: self._version], algorithm or version, version, *values[self._version + 1 :])
            if len(self._shown_as) > MOST_SERIES:
                self._shown_as.clear()
            self._shown_as[values] = shown
        return shown

    def _forget_in(self, cells: dict[Labels, Any]) -> None:
        """Drop from `cells` what a limit forgets."""

        def forgetting(place: int) -> Callable[[str], None]:
            def forget(value: str) -> None:
                for values in [each for each in cells if each[place] == value]:
                    del cells[values]

            return forget

        for place, limit in self._places:
            limit.on_forgotten.append(forgetting(place))


class Counter(_Instrument):
    """A number for each combination of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, help_: str, labels: Labels, limits: Mapping[str, Limit]) -> None:
        super().__init__(name, help_, labels, limits)
        self._cells: dict[Labels, Count] = {} if labels else {(): Count()}
        self._forget_in(self._cells)

    def add(self, amount: float, *values: str) -> None:
        """Add so much, which is not below 0, under these labels."""
        self.cell(*values).value += amount

    def cell(self, *values: str) -> Count:
        """The number under these labels, for who adds to it often; it may be forgotten after `IDLE_S`."""
        return _found(self._cells, self._admit(values), self._other, Count)

    def collect(self) -> Family:
        """As it stands now."""
        samples = [(self._shown(values), cell.value) for values, cell in self._cells.items()]
        return Family(self.name, self.kind, self.help, self.labels, samples, [])


class Gauge(_Instrument):
    """A number for each combination of labels, read from those who know it when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, help_: str, labels: Labels, limits: Mapping[str, Limit]) -> None:
        super().__init__(name, help_, labels, limits)
        self._readers: list[Callable[[], Readings]] = []

    def follow(self, read: Callable[[], Readings]) -> Callable[[], None]:
        """Read it from here, too, until what is returned is called; where two know one number, it is their sum."""
        self._readers.append(read)
        return lambda: self._readers.remove(read)

    def collect(self) -> Family:
        """As it stands now."""
        values: dict[Labels, float] = {}
        for read in self._readers:
            for labels, value in read().items():
                shown = self._shown(self._admit(labels))
                values[shown] = values.get(shown, 0.0) + value
        return Family(self.name, self.kind, self.help, self.labels, list(values.items()), [])


class Histogram(_Instrument):
    """How values are spread, for each combination of labels. `bounds` are inclusive upper ones, in order."""

    kind = "histogram"

    def __init__(
        self, name: str, help_: str, labels: Labels, limits: Mapping[str, Limit], bounds: tuple[float, ...]
    ) -> None:
        super().__init__(name, help_, labels, limits)
        self.bounds = bounds
        self._cells: dict[Labels, Spread] = {} if labels else {(): Spread(bounds)}
        self._forget_in(self._cells)

    def observe(self, value: float, *values: str, trace_id: str = "") -> None:
        """Count a value under these labels; `trace_id` says where it is seen in whole."""
        cell = self.cell(*values)
        place = bisect_left(self.bounds, value)
        cell.counts[place] += 1
        cell.total += value
        if trace_id:
            cell.exemplars[place] = (trace_id, value, time.time())

    def cell(self, *values: str) -> Spread:
        """What is kept under these labels, for who counts often; it may be forgotten after `IDLE_S`."""
        return _found(self._cells, self._admit(values), self._other, lambda: Spread(self.bounds))

    def collect(self) -> Family:
        """As it stands now."""
        spreads = [
            (self._shown(values), Spreading(cell.counts.copy(), cell.exemplars.copy(), cell.total))
            for values, cell in self._cells.items()
        ]
        return Family(self.name, self.kind, self.help, self.labels, [], spreads, self.bounds)


class Registry:
    """The instruments of one program; `limits` bound the labels of these names in all of them."""

    def __init__(self, limits: Mapping[str, Limit] | None = None) -> None:
        self.limits = limits or {"version": Limit(MOST_VERSIONS), "caller": Limit(MOST_CALLERS)}
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._sources: list[Callable[[], Iterable[Family]]] = []
        self._failing: set[str] = set()

    def counter(self, name: str, help_: str, labels: Labels = ()) -> Counter:
        """A new counter; its name ends in `_total`."""
        return self._add(Counter(name, help_, labels, self.limits))

    def gauge(self, name: str, help_: str, labels: Labels = ()) -> Gauge:
        """A new gauge."""
        return self._add(Gauge(name, help_, labels, self.limits))

    def histogram(self, name: str, help_: str, labels: Labels = (), bounds: tuple[float, ...] = LATENCY_S) -> Histogram:
        """A new histogram."""
        return self._add(Histogram(name, help_, labels, self.limits, bounds))

    def add_source(self, collect: Callable[[], Iterable[Family]]) -> Callable[[], None]:
        """Show what `collect` gives, too, until what is returned is called."""
        self._sources.append(collect)
        return lambda: self._sources.remove(collect)

    def collect(self) -> list[Family]:
        """Everything as it stands now, in milliseconds at most. What fails is left out, and the log says so once."""
        found: list[Family] = []
        for instrument in self._instruments.values():
            found += self._safely(instrument.name, _alone(instrument))
        for source in self._sources:
            found += self._safely(getattr(source, "__qualname__", "source"), source)
        return found

    def _add(self, instrument: InstrumentT) -> InstrumentT:
        if instrument.name in self._instruments:
            raise ValueError(f"there is a metric {instrument.name} already")
        self._instruments[instrument.name] = instrument
        return instrument

    def _safely(self, what: str, collect: Callable[[], Iterable[Family]]) -> list[Family]:
        try:
            found = list(collect())
        except Exception:
            if what not in self._failing:
                self._failing.add(what)
                log.exception("metric_not_collected", metric=what)
            return []
        self._failing.discard(what)
        return found


def _found(cells: dict[Labels, CellT], values: Labels, other: Labels, make: Callable[[], CellT]) -> CellT:
    cell = cells.get(values)
    if cell is None:
        if len(cells) >= MOST_SERIES:
            values = other
        cell = cells.get(values)
        if cell is None:
            cell = cells[values] = make()
    return cell


def _alone(instrument: Counter | Gauge | Histogram) -> Callable[[], list[Family]]:
    return lambda: [instrument.collect()]


def _shown_names(labels: Labels) -> Labels:
    if "version" not in labels:
        return labels
    place = labels.index("version")
    return (*labels[:place], "algorithm", *labels[place:])


REGISTRY: Final = Registry()
"""That of this process."""

counter, gauge, histogram = REGISTRY.counter, REGISTRY.gauge, REGISTRY.histogram
