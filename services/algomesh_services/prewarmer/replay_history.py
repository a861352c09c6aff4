"""Recorded runs as requests that can be played again: who called whom, how long after what, in a warm mesh.

The ledger has clock times, with the cold starts of that day in them. What is kept here is what led to what: a call
follows the start of its caller or the end of the call before it, whichever came last, and a run ends after the last
call that it waited for. The time between the two is the algorithms' own. So a cold start in a replay delays exactly
what it would have delayed, and one that was recorded delays nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from statistics import median
from typing import Final, NamedTuple

from algomesh_broker.platform import RunRow

DEFAULT_COLD_S: Final = 1.0
# Two machines' clocks, and the moment between an answer and its record: so much sooner may an effect seem to come.
_SLACK_S: Final = 0.005
# Of thousands of calls that a loop makes, so many of the last are looked at for the one that led to the next.
_LOOKED_AT: Final = 256


class Step(NamedTuple):
    """What follows something: a call is made, or (`is_end`) its run ends, `after_s` seconds later."""

    call: int
    is_end: bool
    after_s: float


@dataclass(slots=True)
class RecordedCall:
    """One call of a request. `parent` is the index of the call that made it, -1 for who made the request.

    `route` is what the explicit pipeline of which it is a stage goes on to. `after_start` and `after_end` follow it.
    """

    index: int
    parent: int
    algorithm: str
    version: str
    attempt: int
    route: tuple[str, ...] = ()
    after_start: list[Step] = field(default_factory=list)
    after_end: list[Step] = field(default_factory=list)
    warm_start_s: float = 0.0
    warm_end_s: float = 0.0


@dataclass(slots=True)
class RecordedRequest:
    """A root run with all that it caused. `first` are the calls that wait for none; `at_s` in seconds since the epoch.

    The warm times of its calls count from `at_s`, and `warm_s` is how long all of it takes with no cold start.
    """

    root: str
    caller: str
    at_s: float
    calls: list[RecordedCall]
    first: list[Step]
    warm_s: float = 0.0


@dataclass(slots=True)
class Recording:
    """A history. `begin_s` and `end_s`: of the first call and of the last run, in seconds since the epoch.

    `cold_s` has the cold start of every algorithm in seconds, `waited` how many runs of the history waited for one.
    """

    requests: list[RecordedRequest]
    cold_s: dict[str, float]
    versions: dict[str, str]
    calls: int
    waited: int
    begin_s: float
    end_s: float


def record(rows: Iterable[RunRow], *, slack_s: float = _SLACK_S) -> Recording:
    """What these runs were, in any order. Runs that never began, and all attempts of a run but the last, are left out.

    slack_s: how much sooner than its cause an effect may seem to come, in seconds.
    """
    latest: dict[str, RunRow] = {}
    for row in rows:
        if row.started_at > 0.0:
            known = latest.get(row.run)
            if known is None or row.attempt > known.attempt:
                latest[row.run] = row
    by_root: dict[str, list[RunRow]] = {}
    for row in latest.values():
        by_root.setdefault(row.root or row.run, []).append(row)
    requests = sorted((_request(root, runs, slack_s) for root, runs in by_root.items()), key=attrgetter("at_s"))
    versions = {row.algorithm: row.version for row in sorted(latest.values(), key=attrgetter("started_at"))}
    return Recording(
        requests,
        cold_starts_s(latest.values()),
        versions,
        len(latest),
        sum(row.cold_ms > 0.0 for row in latest.values()),
        min((request.at_s for request in requests), default=0.0),
        max((max(row.ended_at, row.started_at) for row in latest.values()), default=0.0),
    )


def cold_starts_s(rows: Iterable[RunRow]) -> dict[str, float]:
    """The cold start of every algorithm in `rows`, in seconds: the median of its instances, DEFAULT_COLD_S if unknown.

    Of an instance it is the longest wait that counts: later calls met a start that was under way.
    """
    waits: dict[str, dict[str, float]] = {}
    for row in rows:
        instances = waits.setdefault(row.algorithm, {})
        if row.cold_ms > 0.0:
            instances[row.instance] = max(row.cold_ms / 1000, instances.get(row.instance, 0.0))
    return {name: median(found.values()) if found else DEFAULT_COLD_S for name, found in waits.items()}


class _Seen(NamedTuple):
    """When a run was called, got to its instance, and ended, by the clocks of that day."""

    called_s: float
    begun_s: float
    ended_s: float


def _request(root: str, rows: list[RunRow], slack_s: float) -> RecordedRequest:
    seen = {row.run: _seen(row) for row in rows}
    rows.sort(key=lambda row: (*seen[row.run], row.run))
    parents = _parents(rows)
    times = [seen[row.run] for row in rows]
    routes = _routes(rows)
    calls = [
        RecordedCall(index, parents[index], row.algorithm, row.version, row.attempt, routes.get(row.run, ()))
        for index, row in enumerate(rows)
    ]
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents):
        children.setdefault(parent, []).append(index)
    at_s = times[children[-1][0]].called_s
    request = RecordedRequest(root, rows[0].root_caller, at_s, calls, [])
    for parent, made in children.items():
        for place, index in enumerate(made):
            cause = _last_ended(made[max(0, place - _LOOKED_AT) : place], times, times[index].called_s, slack_s)
            if cause is not None:
                gap_s = times[index].called_s - times[cause].ended_s
                calls[cause].after_end.append(Step(index, False, max(0.0, gap_s)))
            elif parent >= 0:
                gap_s = times[index].called_s - times[parent].begun_s
                calls[parent].after_start.append(Step(index, False, max(0.0, gap_s)))
            else:
                request.first.append(Step(index, False, max(0.0, times[index].called_s - at_s)))
    for call, (_, begun_s, ended_s) in zip(calls, times, strict=True):
        cause = _last_ended(children.get(call.index, []), times, ended_s, slack_s)
        if cause is not None:
            calls[cause].after_end.append(Step(call.index, True, max(0.0, ended_s - times[cause].ended_s)))
        else:
            call.after_start.append(Step(call.index, True, max(0.0, ended_s - begun_s)))
    _play_warm(request)
    return request


def _seen(row: RunRow) -> _Seen:
    begun_s = row.queued_at or row.started_at
    return _Seen(
        begun_s - row.cold_ms / 1000, begun_s, max(row.ended_at or row.started_at + row.compute_ms / 1000, begun_s)
    )


def _parents(rows: list[RunRow]) -> list[int]:
    """The index of the call that made each; -1 where there is none, or where they are said to have made each other."""
    by_run = {row.run: index for index, row in enumerate(rows)}
    parents = [by_run.get(row.parent, -1) if row.parent else -1 for row in rows]
    state = [0] * len(rows)  # 1 on the way up that is walked, 2 known to lead to a root
    for index in range(len(rows)):
        way = []
        at = index
        while at >= 0 and state[at] == 0:
            state[at] = 1
            way.append(at)
            at = parents[at]
        if at >= 0 and state[at] == 1:
            parents[at] = -1
        for passed in way:
            state[passed] = 2
    return parents


def _routes(rows: list[RunRow]) -> dict[str, tuple[str, ...]]:
    """What a stage's pipeline goes on to. The stages of one are `<run>-0`, `<run>-1` …"""
    stages: dict[str, list[tuple[int, RunRow]]] = {}
    for row in rows:
        run, dash, at = row.run.rpartition("-")
        if dash and at.isascii() and at.isdigit() and len(at) < 6:
            stages.setdefault(run, []).append((int(at), row))
    routes = {}
    for found in stages.values():
        found.sort(key=lambda stage: stage[0])
        for place, (_, row) in enumerate(found):
            coming = dict.fromkeys(later.algorithm for _, later in found[place + 1 :])
            routes[row.run] = tuple(coming)
    return routes


def _last_ended(calls: list[int], times: list[_Seen], before_s: float, slack_s: float) -> int | None:
    """The one of `calls` that ended last before then, as well as can be told.

    The slack is no more than half of how long it ran: what was called side by side is not taken for a sequence.
    """
    found, found_s = None, 0.0
    for index in calls:
        seen = times[index]
        if seen.ended_s - min(slack_s, (seen.ended_s - seen.called_s) / 2) <= before_s and (
            found is None or seen.ended_s >= found_s
        ):
            found, found_s = index, seen.ended_s
    return found


def _play_warm(request: RecordedRequest) -> None:
    """Find when everything would have been, had nothing had to start."""
    due = [(step, 0.0) for step in request.first]
    while due:
        (index, is_end, after_s), from_s = due.pop()
        call, at_s = request.calls[index], from_s + after_s
        if is_end:
            call.warm_end_s = at_s
            request.warm_s = max(request.warm_s, at_s if call.parent < 0 else 0.0)
        else:
            call.warm_start_s = at_s
        due += [(step, at_s) for step in (call.after_end if is_end else call.after_start)]


def busy_s(recording: Recording, from_s: float, until_s: float) -> Mapping[str, float]:
    """For how many seconds in that window each algorithm would have had something to do in a warm mesh."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for request in recording.requests:
        for call in request.calls:
            span = (request.at_s + call.warm_start_s, request.at_s + call.warm_end_s)
            spans.setdefault(call.algorithm, []).append(span)
    busy = {}
    for name, found in spans.items():
        total_s, reached_s = 0.0, from_s
        for begin_s, end_s in sorted(found):
            counted_s = min(end_s, until_s) - max(begin_s, reached_s)
            total_s += max(0.0, counted_s)
            reached_s = max(reached_s, min(end_s, until_s))
        busy[name] = total_s
    return busy
