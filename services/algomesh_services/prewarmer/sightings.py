"""From what instances and waiting callers tell, to what the policy is asked: calls, idle algorithms, ended requests.

What is told may be lost, doubled, or late, and clocks may step: every call counts once, whoever tells of it first; an
end that was lost is concluded from what launchers say; a request of which nothing is heard is over in the end.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from algomesh_broker.errors import BadName
from algomesh_broker.messages import Demand, Sight, Sights
from algomesh_broker.names import VersionId
from algomesh_services.prewarmer.actions import Action
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.live_fleet import LiveFleet
from algomesh_services.prewarmer.resting import Resting
from algomesh_services.prewarmer.seen import Notes, Policy, SeenCall
from algomesh_services.prewarmer.shedding import is_followed
from algomesh_services.prewarmer.spared import Began

MOST_REQUESTS = 20_000
_MOST_RUNS = 2_048  # of a request that are remembered one by one
_MOST_RUNNING = 10_000  # of an algorithm; more than all its instances can have at once
_MOST_CALLERS = 64
_LONGEST_S = 7 * 86_400.0  # no deadline is longer
_ROOT_SETTLES_S = 0.05  # what children of an ended root still tell comes later, in batches of a few milliseconds
_PIPELINE_SETTLES_S = 0.25  # nobody says that a pipeline is over; its sender may have more to send
_LOST_S = 1.0  # an end that was told would be here
_QUIET_S, _QUIET_WAITING_S, _QUIET_RUNNING_S = 10.0, 600.0, 3_600.0
_EVERY_S = 1.0


class _Run:
    __slots__ = ("algorithm", "attempt", "is_over", "is_running")

    def __init__(self, algorithm: str, attempt: int) -> None:
        self.algorithm, self.attempt = algorithm, attempt
        self.is_running = self.is_over = False


class Request:
    """What is known of a request under way. `versions` are those that its pipeline names, by algorithm."""

    __slots__ = (
        "caller", "callers", "due_s", "ended_s", "heard_s", "is_root_over", "last", "numbers", "open", "root", "runs",
        "signed", "stage_numbers", "stages_run", "unseen", "versions",
    )  # fmt: skip

    def __init__(self, root: str, caller: str) -> None:
        self.root, self.caller = root, caller
        self.callers: dict[str, None] = {caller: None}
        self.runs: OrderedDict[str, _Run] = OrderedDict()
        self.numbers: dict[str, int] = {}
        self.open: set[str] = set()
        self.unseen: set[str] = set()
        self.versions: dict[str, str] = {}
        self.signed: set[str] = set()
        """Algorithms of its pipeline, as an instance told them, which has seen the registry's signature."""
        self.stage_numbers: dict[str, int] = {}
        self.stages_run = 0
        self.is_root_over = False
        self.last = ""
        self.heard_s = self.due_s = self.ended_s = 0.0

    def number(self, run: str) -> int:
        """Which call of the request a run is."""
        return self.numbers.setdefault(run, len(self.numbers))

    @property
    def quiet_s(self) -> float:
        """How long nothing need be heard of it while it is under way."""
        if any(self.runs[run].is_running for run in self.open):
            return _QUIET_RUNNING_S
        return _QUIET_WAITING_S if self.open or self.unseen else _QUIET_S


class Sightings:
    """What is under way, and what the policy makes of it."""

    def __init__(self, policy: Policy, fleet: LiveFleet, clock: Clock, notes: Notes) -> None:
        self._policy, self._fleet, self._clock, self._notes = policy, fleet, clock, notes
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()
        self._due: dict[str, None] = {}
        self._running: dict[str, dict[str, tuple[str, float]]] = {}
        self._one_in: dict[str, int] = {}
        self._resting = Resting(policy, fleet, self._is_sampled)
        self._next_due_s = float("inf")
        self._next_look_s = 0.0

    def request(self, root: str) -> Request | None:
        """A request under way."""
        return self._requests.get(root)

    @property
    def next_s(self) -> float:
        """When `settle` has something to do next; for ever away where there is nothing."""
        return min(self._next_due_s, self._resting.next_s)

    # What is heard

    def sighted(self, version: VersionId, sights: Sights) -> list[Action]:
        """An instance of `version` tells of runs."""
        actions: list[Action] = []
        self._one_in[str(version)] = max(1, sights.one_in)
        for sight in sights.runs:
            actions += self._sight(version, sight, max(1, sights.one_in))
        return actions

    def demanded(self, version: VersionId, demander: str, demand: Demand) -> list[Action]:
        """`demander`, as the subject says, has parked a call of `version`."""
        root = demand.root or demand.run
        if not root or root in self._over or not is_followed(root, self._one_in.get(str(version), 1)):
            return []
        is_key = demander.startswith("k~")
        request = self._heard(root, demander if is_key else demand.root_caller or demander)
        if not self._is_news(request, demand.run, demand.attempt):
            return []
        now = self._clock.now()
        self._fleet.called(version.algorithm, str(version))
        return self._call(
            request, version, demand.run, demand.parent, demand.attempt, demand.stages,
            called_s=now, started_s=now + self._fleet.ready_in_s(version.algorithm), is_signed=False,
        )  # fmt: skip

    def settle(self) -> list[Action]:
        """What follows from time alone: requests that are over, algorithms that are idle, ends that were lost."""
        now = self._clock.now()
        actions: list[Action] = []
        if now >= self._next_due_s:
            self._next_due_s = float("inf")
            for root in list(self._due):
                request = self._requests.get(root)
                if request is None or request.due_s == 0.0:
                    del self._due[root]
                elif now >= request.due_s:
                    actions += self._finish(request, request.ended_s)
                else:
                    self._next_due_s = min(self._next_due_s, request.due_s)
        if now >= self._resting.next_s:
            actions += self._resting.settle(now)
        if now >= self._next_look_s:
            self._next_look_s = now + _EVERY_S
            self._resting.forget_kept(now)
            self._find_lost(now)
            actions += self._forget_quiet(now)
        return actions

    def known_before(self, algorithm: str, idle_s: float) -> None:
        """An instance that has worked was here before us: its algorithm is idle since then, unless it was called."""
        if not self._running.get(algorithm):
            self._resting.known_before(algorithm, idle_s, self._clock.now())

    def _is_sampled(self, algorithm: str) -> bool:
        """Whether it tells of some of its runs only, as it has too many."""
        return self._one_in.get(self._fleet.current(algorithm), 1) > 1

    # Runs

    def _sight(self, version: VersionId, sight: Sight, one_in: int) -> list[Action]:
        started_s, ended_s = self._times(sight)
        algorithm, name, root = version.algorithm, str(version), sight.root or sight.run
        if not root or root in self._over:
            if sight.ended_at:
                self._stop(algorithm, sight.run, ended_s)
            return []
        actions: list[Action] = []
        request = self._heard(root, sight.root_caller or sight.caller)
        waited_s = sight.waited_ms / 1000.0
        called_s = started_s - (waited_s if 0.0 <= waited_s <= _LONGEST_S else 0.0)
        self._fleet.called(algorithm, name)
        run = request.runs.get(sight.run)
        if self._is_news(request, sight.run, sight.attempt):
            actions = self._call(
                request, version, sight.run, sight.parent, sight.attempt, sight.stages,
                called_s=called_s, started_s=started_s, is_signed=True,
            )  # fmt: skip
            run = request.runs[sight.run]
        elif sight.stages:
            self._know_stages(request, sight.stages, is_signed=True)
        if run is None or run.attempt != sight.attempt:
            return actions  # an earlier attempt, told late
        if not run.is_running and not run.is_over:
            run.is_running = True
            self._policy.started(root, request.number(sight.run), max(called_s, started_s))
            is_cold = waited_s > 0.0 and self._fleet.became_ready(name, called_s)
            running = self._running.setdefault(algorithm, {})
            self._notes.began(
                Began(
                    name, sight.run, root, request.caller, called_s, started_s - called_s, one_in,
                    is_cold, bool(running), request.last,
                )
            )  # fmt: skip
            request.last = algorithm
            running[sight.run] = (root, started_s)
            if len(running) > _MOST_RUNNING:
                del running[next(iter(running))]
            self._resting.works(algorithm)
        if sight.ended_at and not run.is_over:
            self._end(request, sight.run, run, ended_s)
            self._notes.computed(request.caller, name, (ended_s - started_s) * one_in, ended_s)
            if sight.run == root:
                request.is_root_over = True
                self._settle_at(request, ended_s, _ROOT_SETTLES_S)
            elif not sight.parent and not sight.stages and not request.open:
                self._settle_at(request, ended_s, _PIPELINE_SETTLES_S)
        return actions

    def _times(self, sight: Sight) -> tuple[float, float]:
        """When a run began and ended, in our time; what was still under way has not ended."""
        if not sight.ended_at:
            return self._clock.of(sight.started_at), 0.0
        ended_s = self._clock.of(sight.ended_at)
        took_s = sight.ended_at - sight.started_at
        return ended_s - (took_s if 0.0 <= took_s <= _LONGEST_S else 0.0), ended_s

    def _heard(self, root: str, caller: str) -> Request:
        request = self._requests.get(root)
        if request is None:
            request = self._requests[root] = Request(root, caller)
        else:
            self._requests.move_to_end(root)
        request.heard_s = self._clock.now()
        return request

    @staticmethod
    def _is_news(request: Request, run: str, attempt: int) -> bool:
        known = request.runs.get(run)
        return known is None or attempt > known.attempt

    def _call(
        self,
        request: Request,
        version: VersionId,
        run: str,
        parent: str,
        attempt: int,
        stages: Iterable[str],
        *,
        called_s: float,
        started_s: float,
        is_signed: bool,
    ) -> list[Action]:
        algorithm, name = version.algorithm, str(version)
        request.runs.pop(run, None)
        request.runs[run] = _Run(algorithm, attempt)
        request.open.add(run)
        request.unseen.discard(run)
        if parent and parent not in request.runs:
            request.unseen.add(parent)
        if len(request.runs) > _MOST_RUNS:
            oldest, _ = request.runs.popitem(last=False)
            request.open.discard(oldest)
        if len(request.callers) < _MOST_CALLERS:
            request.callers[version.caller] = None
        request.versions[algorithm] = name
        if not request.is_root_over or run == request.root:
            request.due_s, request.is_root_over = 0.0, False
        request.stages_run += not parent
        return self._policy.called(
            SeenCall(
                request=request.root,
                index=request.number(run),
                parent=request.number(parent) if parent and parent != run else -1,
                algorithm=algorithm,
                caller=request.caller,
                at_s=called_s,
                ready_at_s=max(called_s, started_s),
                route=self._know_stages(request, stages, is_signed=is_signed),
                step=_step_of(run, parent),
                version=name,
                attempt=attempt,
            )
        )

    @staticmethod
    def _know_stages(request: Request, stages: Iterable[str], *, is_signed: bool) -> tuple[str, ...]:
        route: dict[str, None] = {}
        for stage in stages:
            try:
                version = _parsed(stage)
            except BadName:
                continue
            route[version.algorithm] = None
            request.versions[version.algorithm] = stage
            request.stage_numbers[version.algorithm] = request.stages_run + len(route)
            if is_signed:
                request.signed.add(version.algorithm)
        return tuple(route)

    def _end(self, request: Request, run_id: str, run: _Run, ended_s: float) -> None:
        run.is_running, run.is_over = False, True
        request.open.discard(run_id)
        self._stop(run.algorithm, run_id, ended_s)

    def _stop(self, algorithm: str, run_id: str, ended_s: float) -> None:
        running = self._running.get(algorithm)
        if running is None or running.pop(run_id, None) is None:
            return
        if not running:
            del self._running[algorithm]
            self._resting.rests(algorithm, ended_s, self._clock.now())

    # Requests

    def _settle_at(self, request: Request, ended_s: float, settle_s: float) -> None:
        request.ended_s = ended_s
        request.due_s = self._clock.now() + settle_s
        self._next_due_s = min(self._next_due_s, request.due_s)
        self._due[request.root] = None

    def _finish(self, request: Request, at_s: float) -> list[Action]:
        self._requests.pop(request.root, None)
        self._due.pop(request.root, None)
        self._over[request.root] = None
        if len(self._over) > MOST_REQUESTS:
            self._over.popitem(last=False)
        return self._policy.finished(request.root, at_s)

    def _find_lost(self, now: float) -> None:
        """Runs whose end was lost: their algorithm has had nothing to do for a while, their launcher says."""
        if not self._fleet.is_heard:
            return
        for algorithm, running in list(self._running.items()):
            idle_s = self._fleet.idle_since_s(algorithm)
            if idle_s is None or now - idle_s < _LOST_S:
                continue
            for run_id, (root, began_s) in list(running.items()):
                is_gone = idle_s == float("-inf")
                if began_s < (now - _QUIET_S if is_gone else idle_s):
                    ended_s = now if is_gone else idle_s
                    request = self._requests.get(root)
                    run = request.runs.get(run_id) if request is not None else None
                    if request is None or run is None or run.is_over:
                        self._stop(algorithm, run_id, ended_s)
                        continue
                    self._end(request, run_id, run, ended_s)
                    if run_id == root:
                        self._settle_at(request, ended_s, 0.0)

    def _forget_quiet(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in list(self._requests.values()):
            if now - request.heard_s <= _QUIET_S and len(self._requests) <= MOST_REQUESTS:
                break
            if now - request.heard_s > request.quiet_s or len(self._requests) > MOST_REQUESTS:
                actions += self._finish(request, now)
        return actions


_parsed: Final = lru_cache(4096)(VersionId.parse)


def _step_of(run: str, parent: str) -> tuple[str, int] | None:
    """Which step of a pipeline a run is, if it is one: its name is then `RUN-STEP`.

    Branches are runs of their own, so a pipeline goes by who made it.
    """
    name, _, at = run.rpartition("-")
    return (parent, int(at)) if name and at.isdecimal() else None
