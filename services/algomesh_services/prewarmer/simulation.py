"""Plays recorded requests again in a fleet that somebody else's wishes keep warm: events in order of time, no I/O.

The keeper is asked as the pre-warmer's policy is asked live: at every call, when an algorithm falls idle, and when a
request has ended. It never sees the future.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from algomesh_services.prewarmer.actions import Action, Call, Fleet
from algomesh_services.prewarmer.replay_fleet import ReplayFleet, Traits
from algomesh_services.prewarmer.replay_history import RecordedRequest, Recording, Step, busy_s
from algomesh_services.prewarmer.seen import SeenCall

# A shorter wait is what a call may meet anywhere: after so long, one is parked for want of a slot.
COLD_WAIT_S: Final = 0.05
_PROGRESS_EACH: Final = 64


class Keeper(Protocol):
    """Who decides what is kept warm. `BreakEvenPolicy` is one."""

    def called(self, call: Call, /) -> Iterable[Action]:
        """A call has come."""
        ...

    def idle(self, algorithm: str, at_s: float, /) -> Iterable[Action]:
        """The last run of an algorithm has ended."""
        ...

    def finished(self, request: str, at_s: float, /) -> Iterable[Action]:
        """A request has ended."""
        ...


@dataclass(slots=True)
class Outcome:
    """What a replay came to. GPU-seconds count the weight of each algorithm, seconds those of the callers.

    `held_gpu_s` is all that instances were up, `busy_gpu_s` what they would have been busy in a warm mesh; `added_s`
    is what the requests took longer than there. `cold_calls` waited for a start, `unused_starts` served nobody.
    """

    requests: int = 0
    calls: int = 0
    cold_calls: int = 0
    starts: int = 0
    unused_starts: int = 0
    added_s: float = 0.0
    held_gpu_s: float = 0.0
    busy_gpu_s: float = 0.0

    @property
    def idle_gpu_s(self) -> float:
        """GPU-seconds held for nothing."""
        return self.held_gpu_s - self.busy_gpu_s

    @property
    def cold_share(self) -> float:
        """Which share of the calls waited for a start."""
        return self.cold_calls / self.calls if self.calls else 0.0

    def cost_gpu_s(self, latency_value: float) -> float:
        """What it cost, where a second of latency is worth so many seconds of a GPU."""
        return self.idle_gpu_s + latency_value * self.added_s


class _Playing:
    """A request under way; `left` top calls have not ended yet."""

    __slots__ = ("left", "request")

    def __init__(self, request: RecordedRequest) -> None:
        self.request = request
        self.left = sum(call.parent < 0 for call in request.calls)


class Simulation:
    """One replay. Times are those of the recording; make a new one for each.

    keeper: makes the keeper of a fleet that it may ask. from_s: when counting begins (all before that is for learning).
    until_s: when counting of what is held ends. aborts_loads: as in ReplayFleet.
    """

    def __init__(
        self,
        recording: Recording,
        traits: Mapping[str, Traits],
        keeper: Callable[[Fleet], Keeper],
        *,
        from_s: float | None = None,
        until_s: float | None = None,
        aborts_loads: bool = False,
    ) -> None:
        self._recording, self._traits = recording, traits
        self._from_s = recording.begin_s if from_s is None else from_s
        self._until_s = recording.end_s if until_s is None else until_s
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._fleet = ReplayFleet(
            traits, self._later, from_s=self._from_s, until_s=self._until_s, aborts_loads=aborts_loads
        )
        self._keeper = keeper(self._fleet)
        self._open = 0
        self.outcome = Outcome()

    def run(self, on_progress: Callable[[float], None] = lambda _: None) -> Outcome:
        """Play all of it. `on_progress` is told now and then which share of the requests has come, 0 to 1."""
        fleet, agenda, requests = self._fleet, self._agenda, self._recording.requests
        for number, request in enumerate(requests):
            self._play_until(request.at_s)
            fleet.now_s = max(fleet.now_s, request.at_s)
            self._open += 1
            playing = _Playing(request)
            self._follow(playing, request.first)
            if number % _PROGRESS_EACH == 0:
                on_progress(number / len(requests))
        while agenda and (self._open or agenda[0][0] <= self._until_s):
            self._next()
        fleet.now_s = max(fleet.now_s, self._until_s)
        fleet.close()
        outcome = self.outcome
        outcome.starts, outcome.unused_starts = fleet.starts, fleet.unused_starts
        outcome.held_gpu_s = sum(self._traits[name].gpu * up_s for name, up_s in fleet.up_s.items())
        outcome.busy_gpu_s = busy_gpu_s(self._recording, self._traits, self._from_s, self._until_s)
        return outcome

    def _later(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), what))

    def _play_until(self, until_s: float) -> None:
        while self._agenda and self._agenda[0][0] < until_s:
            self._next()

    def _next(self) -> None:
        at_s, _, what = heapq.heappop(self._agenda)
        self._fleet.now_s = at_s
        what()

    def _follow(self, playing: _Playing, steps: Iterable[Step]) -> None:
        now_s = self._fleet.now_s
        for index, is_end, after_s in steps:
            step = self._end if is_end else self._call
            self._later(now_s + after_s, partial(step, playing, index))

    def _call(self, playing: _Playing, index: int) -> None:
        request, fleet = playing.request, self._fleet
        call, now_s = request.calls[index], fleet.now_s
        begins_s = fleet.called(call.algorithm)
        if request.at_s >= self._from_s:
            self.outcome.calls += 1
            self.outcome.cold_calls += begins_s - now_s > COLD_WAIT_S
        seen = SeenCall(
            request=request.root,
            index=index,
            parent=call.parent,
            algorithm=call.algorithm,
            caller=request.caller,
            at_s=now_s,
            ready_at_s=begins_s,
            route=call.route,
            version=call.version,
            attempt=call.attempt,
        )
        self._apply(self._keeper.called(seen))
        if begins_s > now_s:
            self._later(begins_s, partial(self._begin, playing, index))
        else:
            self._begin(playing, index)

    def _begin(self, playing: _Playing, index: int) -> None:
        call = playing.request.calls[index]
        self._fleet.began(call.algorithm)
        self._follow(playing, call.after_start)

    def _end(self, playing: _Playing, index: int) -> None:
        request, fleet = playing.request, self._fleet
        call, now_s = request.calls[index], fleet.now_s
        is_idle = fleet.ended(call.algorithm)
        if call.parent < 0:
            playing.left -= 1
            if not playing.left:
                self._finish(request, now_s)
        if is_idle:
            self._apply(self._keeper.idle(call.algorithm, now_s))
            fleet.settle(call.algorithm)
        self._follow(playing, call.after_end)

    def _finish(self, request: RecordedRequest, now_s: float) -> None:
        self._open -= 1
        if request.at_s >= self._from_s:
            self.outcome.requests += 1
            self.outcome.added_s += max(0.0, now_s - request.at_s - request.warm_s)
        self._apply(self._keeper.finished(request.root, now_s))

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._fleet.apply(action)


def busy_gpu_s(recording: Recording, traits: Mapping[str, Traits], from_s: float, until_s: float) -> float:
    """GPU-seconds that any mesh must spend on these runs: of instances that are up only because something runs."""
    busy = busy_s(recording, from_s, until_s)
    return sum(traits[name].gpu * seconds for name, seconds in busy.items() if traits[name].cold_s > 0.0)
