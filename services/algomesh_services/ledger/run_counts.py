"""Counts runs: here their events come together, off the path of the calls.

Each attempt of a run counts once, at its first end that is in the table. That costs a lookup, two bisections and some
additions, about a microsecond. GPU-seconds are made when they are asked for: what a version asks for never
changes, so that it is enough to add up how long its runs computed.
"""

import os
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from algomesh_broker.messages import RunEvent
from algomesh_observability import otel_environment
from algomesh_observability.metrics import LATENCY_S, OTHER, Count, Family, Registry, Spread
from algomesh_observability.sampling import Sampler

OK: Final = "ok"
_CODE: Final = re.compile(r"[a-z][a-z_]{1,39}", re.ASCII)
_MOST_CODES: Final = 50
_MOST_KNOWN: Final = 5_000
_KNOWN_FOR_S: Final = 60.0  # well within what a limit calls idle
_LEAST_S: Final = LATENCY_S[0]
_BELOW_ALL, _BELOW_NONE = "g", ""  # of any 16 hexadecimal digits


class _Cell:
    """Where the runs of one version, caller and end are counted."""

    __slots__ = ("calls", "cold", "computed", "is_failure", "queued", "took")

    def __init__(
        self, calls: Count, cold: Count, computed: Count, took: Spread, queued: Spread, is_failure: bool
    ) -> None:
        self.calls, self.cold, self.computed = calls, cold, computed
        self.took, self.queued, self.is_failure = took, queued, is_failure


class RunCounts:
    """Counts in `registry`. `share_of` says how many GPUs a version (`owner/name/1.2.0`) asks for, None: not known."""

    def __init__(
        self,
        registry: Registry,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        by = ("version", "caller")
        self._calls = registry.counter(
            "algomesh_calls_total",
            "Calls that have ended, each attempt by itself, by how: ok or the code of an error.",
            (*by, "code"),
        )
        self._cold = registry.counter("algomesh_cold_calls_total", "Calls that waited for a cold start.", by)
        self._computed = registry.counter("algomesh_compute_seconds_total", "Time of user code in runs.", by)
        self._took = registry.histogram(
            "algomesh_call_seconds",
            "From a call until its end: its wait for a start or a slot, and its run.",
            ("version",),
        )
        self._queued = registry.histogram(
            "algomesh_queue_seconds", "From a call until its run began: its wait for a start or a slot.", ("version",)
        )
        self._clock, self._known_since = clock, clock()
        self._known: dict[tuple[str, str, str, str, str], _Cell] = {}
        self._codes: set[str] = set()
        self._nobody = _Cell(Count(), Count(), Count(), Spread(LATENCY_S), Spread(LATENCY_S), is_failure=False)
        self._traced_below = _traced_below(environment)
        self.share_of: Callable[[str], float | None] = lambda _: None
        registry.add_source(self._gpu_seconds)

    def count(self, events: Sequence[RunEvent]) -> None:
        """Count these ends of runs."""
        if self._clock() - self._known_since > _KNOWN_FOR_S:
            self._forget()
        algorithm = version = caller = state = error = None
        cell, begin = self._nobody, 0
        for place, event in enumerate(events):
            # Rows of one instance follow one another: to compare is cheaper than to look up.
            if (
                event.caller != caller
                or event.algorithm != algorithm
                or event.version != version
                or event.state != state
                or event.error != error
            ):
                self._add(cell, events[begin:place])
                algorithm, version, caller, state, error = key = (
                    event.algorithm, event.version, event.caller, event.state, event.error,
                )  # fmt: skip
                cell, begin = self._known.get(key) or self._cell(key), place
        self._add(cell, events[begin:])

    def _add(self, cell: _Cell, events: Sequence[RunEvent]) -> None:
        """Count these, which are all of one kind."""
        traced_below = self._traced_below
        is_every = traced_below == _BELOW_ALL or cell.is_failure
        took_counts, exemplars, queued_counts = cell.took.counts, cell.took.exemplars, cell.queued.counts
        took_s = queued_s = compute_ms = 0.0
        cold_count = 0
        for event in events:
            started = event.started_at
            if not started:
                continue  # it never ran: how long that took, nobody told
            queued_at, ended = event.queued_at, event.ended_at
            queued = cold = event.cold_ms * 0.001
            if 0.0 < queued_at < started:
                queued += started - queued_at
            took = queued + ended - started if ended > started else queued
            compute_ms += event.compute_ms
            queued_counts[0 if queued <= _LEAST_S else bisect_left(LATENCY_S, queued)] += 1
            queued_s += queued
            place = 0 if took <= _LEAST_S else bisect_left(LATENCY_S, took)
            took_counts[place] += 1
            took_s += took
            if cold:
                cold_count += 1
            # Only what has a trace: those that are sampled, and all that failed or were cold.
            if is_every or cold or event.root[16:] < traced_below:
                exemplars[place] = (event.root, took, ended)
        cell.calls.value += len(events)
        cell.cold.value += cold_count
        cell.computed.value += compute_ms * 0.001
        cell.took.total += took_s
        cell.queued.total += queued_s

    def _cell(self, key: tuple[str, str, str, str, str]) -> _Cell:
        algorithm, number, caller, state, error = key
        version = f"{algorithm}/{number}"
        code = OK if state == "succeeded" else self._code(error or state)
        self.share_of(version)  # asks, where it is not known yet
        cell = _Cell(
            self._calls.cell(version, caller, code),
            self._cold.cell(version, caller),
            self._computed.cell(version, caller),
            self._took.cell(version),
            self._queued.cell(version),
            is_failure=state != "succeeded",
        )
        if len(self._known) >= _MOST_KNOWN:
            self._forget()
        self._known[key] = cell
        return cell

    def _code(self, error: str) -> str:
        """An error's code as a label: of the few that there are, in whatever a sender claims."""
        if error not in self._codes:
            if len(self._codes) >= _MOST_CODES or not _CODE.fullmatch(error):
                return OTHER
            self._codes.add(error)
        return error

    def _forget(self) -> None:
        """Look every cell up anew, so that the limits hear of what is in use."""
        self._known.clear()
        self._known_since = self._clock()

    def _gpu_seconds(self) -> list[Family]:
        samples = []
        for values, computed_s in self._computed.collect().samples:
            share = self.share_of(f"{values[0]}/{values[1]}")
            if share:
                samples.append((values, computed_s * share))
        help_ = "Time of user code in runs, times the GPUs that its version asks for."
        return [Family("algomesh_gpu_seconds_total", "counter", help_, ("algorithm", "version", "caller"), samples, [])]


def _traced_below(environment: Mapping[str, str]) -> str:
    """A trace is kept when the second half of its id is below this; without traces any id is as good."""
    if not otel_environment.is_wanted(environment):
        return _BELOW_ALL
    rate = Sampler.from_environment(environment).rate
    if rate >= 1.0:
        return _BELOW_ALL
    return f"{round(rate * 2**64):016x}" if rate > 0.0 else _BELOW_NONE
