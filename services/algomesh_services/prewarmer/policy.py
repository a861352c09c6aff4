"""Which algorithms to have up, and when: decided from what a second of latency and a second of a held GPU are worth.

Pure: it sees calls as they happen, with the time as an argument, and answers with holds and releases. The prewarmer
service asks it live; the judge of the pre-warmer asks the same object while it replays a trace.

Three rules, all break-even between renting (holding) and paying (a cold start):
  - a call that may come later in a request is started ahead just in time, if its probability is worth it, and the plan
    is made anew at every hop (`planning.py`);
  - an idle algorithm is kept, and started again before its next period, as far as its gaps make that pay (`gaps.py`);
  - both know of each other: what the first would hide anyway, the second need not keep (`exposure.py`).

Where it comes from: Xanadu (Daw et al., Middleware 2020) starts the most likely path just in time; the hybrid
histogram (Shahrad et al., "Serverless in the Wild", ATC 2020) keeps and pre-warms by idle times; Orion (Mahgoub et
al., OSDI 2022) times pre-warming in a known graph; Cost-Aware Speculative Execution (2026) starts when p > 1/(1 + ρ);
prediction by partial matching is Cleary & Witten's (1984).
"""

import statistics
import sys
from collections import deque
from collections.abc import Generator

from algomesh_services.prewarmer.actions import Action, Call, Edge, Fleet, Hold, LatencyValue, Release
from algomesh_services.prewarmer.algorithms import MOST_ALGORITHMS, Algorithm, Algorithms
from algomesh_services.prewarmer.counts import MOST_CALLEES_IN_ALL, Counts
from algomesh_services.prewarmer.delays import LoadSpread
from algomesh_services.prewarmer.exposure import Load, shares
from algomesh_services.prewarmer.forecasts import Forecast
from algomesh_services.prewarmer.planning import Planner, key_of
from algomesh_services.prewarmer.pools import Pools
from algomesh_services.prewarmer.requests import MOST_OPEN, Plan, Record, Request, Requests
from algomesh_services.prewarmer.snapshots import Packed, Snapshot, fill, pack, read, take
from algomesh_services.prewarmer.windows import gap_windows
from algomesh_services.prewarmer.worth import Worth

_LESSONS_AT_ONCE = 1_500
_LESSONS = 300
"""Callees counted, about a microsecond each, in the decision that ends a request, and in each one after it while there
is more to learn: what has hundreds of calls is not learned from at a single go. Bounded, the oldest first."""

_MOST_UNLEARNED = 256  # requests
_AFTER_S = 0.01  # a hold whose call has come ends just after it starts: from then on the call itself keeps it up


class _Lessons:
    """What is left to learn from a request that is over: when it ended (None: not known), and what it had waited."""

    __slots__ = ("each", "end_s", "waited_s")

    def __init__(self, request: Request, end_s: float | None, waited_s: float) -> None:
        self.each = request.lessons()
        self.end_s = end_s
        self.waited_s = waited_s


class BreakEvenPolicy:
    """Decides what to hold.

    `latency_value`: GPU-seconds that a second of a caller's latency is worth; 0 holds nothing.

    For ablations: `path=False` starts nothing ahead within a request, `gaps=False` keeps nothing between requests,
    `order` is how many of the last calls a context may hold (1 to 3), `pooling=False` lets algorithms learn their
    gaps each alone. `most_callees` (over all contexts), `most_requests` (under way) and `most_algorithms` bound the
    memory: what was heard of longest ago is forgotten.
    """

    def __init__(
        self,
        fleet: Fleet,
        latency_value: LatencyValue = 5.0,
        *,
        path: bool = True,
        gaps: bool = True,
        order: int = 3,
        pooling: bool = True,
        most_callees: int = MOST_CALLEES_IN_ALL,
        most_requests: int = MOST_OPEN,
        most_algorithms: int = MOST_ALGORITHMS,
    ) -> None:
        self._fleet = fleet
        self._worth = Worth(fleet, latency_value)
        self._path, self._gaps = path, gaps
        self._counts = Counts(order=order, most=most_callees)
        self._requests = Requests(most_requests)
        self._algorithms = Algorithms(most_algorithms)
        self._pools = Pools(is_on=pooling)
        self._loads = LoadSpread()
        self._is_told_of_loads = False
        self._lessons: deque[_Lessons] = deque()

    def called(self, call: Call) -> list[Action]:
        """A call begins. What it makes likely is held, what it makes unlikely is released.

        A call that was seen already (the same request and index) counts once; as a later `attempt` it plans again.
        """
        name = call.algorithm
        self._study(_LESSONS)
        actions = self._forget(call.at_s)
        if self._requests.has_ended(call.request):
            return actions
        request = self._requests.get(call.request)
        if request is None:
            root = name if call.parent < 0 else ""
            request = self._requests.open(call.request, root, call.caller, call.at_s)
        attempt = getattr(call, "attempt", 1)
        known = request.attempts.get(call.index)
        if known is not None:
            return actions + self._again(call, request, attempt, known)
        request.saw(call.index, attempt)

        cold_s = self._fleet.cold_start_s(name)
        plan = request.plans.pop(name, None)
        is_first = name not in request.by_algorithm
        above = request.records.get(call.parent)
        algorithm = self._algorithms.get(name)
        algorithm.version = getattr(call, "version", None) or algorithm.version
        algorithm.caller = request.caller
        if cold_s > 0.0:
            self._learn_use(algorithm, request, call, cold_s)
            actions += _drop_windows(name, algorithm, after_s=call.at_s)
        route = tuple(getattr(call, "route", None) or ())
        record = request.add(
            call.index,
            call.parent,
            name,
            call.at_s,
            max(call.at_s, call.ready_at_s),
            getattr(call, "step", None),
            route,
        )
        record.contexts = self._counts.contexts(request.root, request.caller, list(request.path))
        record.standby = self._worth.standby(record)
        if cold_s > 0.0 and is_first:
            record.load = _load_of(record, plan, call, cold_s)
            algorithm.gaps.called(request.caller, call.at_s)
            algorithm.standby.add(above.standby if above is not None else 0.0)
        if above is not None and record.is_beside is not None:
            self._algorithms.get(above.algorithm).beside.add(record.is_beside)
        request.route = route
        actions += self._plan(call.request, request, record, call.at_s)
        if plan is not None and name not in request.plans:
            until_s = max(call.at_s, call.ready_at_s) + _AFTER_S
            actions.append(
                Hold(
                    algorithm=name,
                    key=key_of(call.request),
                    start_s=call.at_s,
                    until_s=until_s,
                    why="called",
                    version=algorithm.version,
                )
            )
        self._learn_oldest(request)
        return actions

    def loaded(self, measured_s: float, expected_s: float) -> None:
        """A load has ended well. Where nobody says so, loads are measured by the calls that waited for them."""
        self._is_told_of_loads = True
        if expected_s > 0.0:
            self._loads.add(measured_s, expected_s)

    def started(self, request: str, index: int, at_s: float) -> None:
        """A call that had to wait has started. Without this word it is taken to start when it was expected to."""
        known = self._requests.get(request)
        if known is not None:
            known.started(index, at_s)

    def rests(self, algorithm: str, at_s: float) -> None:
        """The last running call of the algorithm has ended, and nothing is to be decided about that yet."""
        self._algorithms.get(algorithm).idle_s = at_s

    def idle(self, algorithm: str, at_s: float) -> list[Action]:
        """The last running call of the algorithm has ended: keep it for now, have it again later, or let it go."""
        self._study(_LESSONS)
        known = self._algorithms.get(algorithm)
        known.idle_s = at_s
        cold_s = self._fleet.cold_start_s(algorithm)
        rho = self._worth.rho(algorithm, known.caller, known.standby.value)
        if cold_s <= 0.0 or rho <= 0.0 or not self._gaps:
            return _drop_windows(algorithm, known)
        if self._path:
            rho *= known.exposed.value
        forecast = Forecast(known.gaps, self._pools, cold_s, at_s)
        grid, called_by = forecast.curve(forecast.horizon_s((rho + 1.0) * cold_s))
        windows = gap_windows(grid, called_by, cold_s=cold_s, rho=rho, factors=self._loads.factors)
        actions: list[Action] = [
            Hold(
                algorithm=algorithm,
                key=_gap_key(number),
                start_s=at_s + window.start_s,
                until_s=at_s + window.end_s,
                why="gap",
                gain_per_gpu_s=window.gain,
                in_s=known.gaps.typical_s,
                version=known.version,
            )
            for number, window in enumerate(windows)
        ]
        # Holds first: a release that came before them would let go of what is to be kept.
        actions += [
            Release(algorithm=algorithm, key=_gap_key(number)) for number in known.planned if number >= len(windows)
        ]
        known.planned = {number: at_s + window.start_s for number, window in enumerate(windows)}
        return actions

    def finished(self, request: str, at_s: float) -> list[Action]:
        """The root call of the request has ended: learn from it, and release what it did not use."""
        ended = self._requests.end(request)
        actions = self._forget(at_s)
        if ended is not None:
            actions += _releases(request, ended)
            self._learn(ended, at_s)
        return actions

    def graph(self) -> list[Edge]:
        """The call graph as learned: who calls whom itself, with the probability and the median delay."""
        self._study(sys.maxsize)
        return [
            Edge(
                caller=caller,
                callee=callee,
                probability=min(1.0, probability),
                delay_s=statistics.median(delays_s),
                count=count,
            )
            for caller, callee, probability, count, delays_s in self._counts.edges()
        ]

    def snapshot(self) -> Snapshot:
        """What was learned, for msgspec to encode."""
        self._study(sys.maxsize)
        return take(self._counts, self._algorithms, self._pools, self._loads)

    def pack(self) -> Generator[None, None, Packed]:
        """What was learned, piece by piece, for whoever has other things to do meanwhile: see snapshots.pack."""
        return pack(self._counts, self._algorithms, self._pools, self._loads)

    def restore(self, snapshot: Snapshot | bytes) -> None:
        """Know what a snapshot knows, instead of what was learned so far.

        Raises ValueError on one that is damaged or of another schema, and then changes nothing.
        """
        counts = Counts(order=self._counts.order, most=self._counts.most)
        algorithms, pools = Algorithms(self._algorithms.most), Pools(is_on=self._pools.is_on)
        self._loads = fill(read(snapshot), counts, algorithms, pools)
        self._counts, self._algorithms, self._pools = counts, algorithms, pools

    def _again(self, call: Call, request: Request, attempt: int, known: int) -> list[Action]:
        """A call that was seen already: sent again after a death if `attempt` is higher, else told twice."""
        record = request.records.get(call.index)
        if attempt <= known or record is None:
            return []
        request.saw(call.index, attempt)
        return self._plan(call.request, request, record, call.at_s)

    def _plan(self, key: str, request: Request, record: Record, at_s: float) -> list[Action]:
        if not self._path:
            return []
        return Planner(self._fleet, self._worth, self._counts, self._algorithms, self._loads).plan(
            key, request, record, at_s
        )

    # ---- learning

    def _learn_use(self, algorithm: Algorithm, request: Request, call: Call, cold_s: float) -> None:
        """A call of an algorithm that takes a cold start: how long a load that began with it takes, and its gap."""
        at_s, name = call.at_s, call.algorithm
        begins = self._fleet.state(name) == "loading" and self._fleet.ready_in_s(name) >= cold_s * (1.0 - 1e-9)
        if begins and not self._is_told_of_loads:
            self._loads.add(call.ready_at_s - at_s, cold_s)
        idle_s, algorithm.idle_s = algorithm.idle_s, None
        if idle_s is None or at_s < idle_s:
            return
        # Called by a request that was under way already: that is the path's to know, and cuts this gap short.
        is_censored = self._path and request.began_s <= idle_s
        gap_s, gaps = at_s - idle_s, algorithm.gaps
        Forecast(gaps, self._pools, cold_s, idle_s).score(gap_s, is_censored=is_censored)
        self._pools.add(gap_s, gaps.mean, is_censored=is_censored)
        gaps.learn(gap_s, is_censored=is_censored)

    def _learn(self, request: Request, end_s: float | None) -> None:
        """A request is over, or will not be heard of any more (`end_s` None)."""
        records = request.records.values()
        loads = [record for record in records if record.load is not None]
        for record, share in zip(loads, shares([(record.index, record.load) for record in records]), strict=True):
            self._algorithms.get(record.algorithm).exposed.add(share)
        waited_s = max((record.expected_delay_s() for record in records), default=0.0)
        self._lessons.append(_Lessons(request, end_s, waited_s))
        self._study(_LESSONS_AT_ONCE)

    def _study(self, most: int) -> None:
        """Go on learning from the requests that are over, until about so many callees have been counted."""
        lessons = self._lessons
        if not lessons:
            return
        while lessons and (most > 0 or len(lessons) > _MOST_UNLEARNED):
            try:
                record, later = next(lessons[0].each)
            except StopIteration:
                lessons.popleft()
                continue
            end_s = lessons[0].end_s
            left_s = None if end_s is None else max(0.0, end_s - lessons[0].waited_s - record.warm_s)
            most -= 1 + self._counts.learn(record.contexts, later, left_s) * len(later)

    def _learn_oldest(self, request: Request) -> None:
        """Learn from the oldest call of a request that has become too long to remember all of it."""
        oldest = request.full()
        if oldest is not None:
            self._counts.learn(oldest.contexts, request.after(oldest), None)
            request.drop(oldest)

    def _forget(self, at_s: float) -> list[Action]:
        actions: list[Action] = []
        for key, request in self._requests.forgotten(at_s):
            actions += _releases(key, request)
            self._learn(request, None)
        return actions


def _load_of(record: Record, plan: Plan | None, call: Call, cold_s: float) -> Load:
    """What its cold start did to this call, or would have done, had it been off."""
    if plan is None or plan.from_off_s >= call.at_s:
        return Load(cold_s, record.index, cold_s, call.ready_at_s > call.at_s)
    if plan.hop is None:
        return Load(cold_s, record.index, plan.from_off_s + cold_s - call.at_s, plan.was_off)
    return Load(cold_s, plan.hop.index, cold_s - (record.warm_s - plan.hop.warm_s), plan.was_off)


def _drop_windows(name: str, algorithm: Algorithm, after_s: float = float("-inf")) -> list[Action]:
    """Release the windows of the gap that begin after a time: those under way serve the call that has come."""
    dropped = [number for number, start_s in algorithm.planned.items() if start_s > after_s]
    for number in dropped:
        del algorithm.planned[number]
    return [Release(algorithm=name, key=_gap_key(number)) for number in dropped]


def _releases(key: str, request: Request) -> list[Action]:
    return [Release(algorithm=name, key=key_of(key)) for name in request.plans]


def _gap_key(number: int) -> str:
    return f"gap:{number}"
