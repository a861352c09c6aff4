"""What-if: the mesh's own recorded runs, played again under another latency value or a fixed keep-alive. Pure.

It says what each would have cost, for traffic that was really there. Instances are one per algorithm or none, and
take as long to start as they did then at the median; a policy begins without having learned anything.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, TypeAlias

import msgspec

from algomesh_services.prewarmer.actions import Action, Call, Fleet, Hold, LatencyValue
from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.replay_fleet import Traits
from algomesh_services.prewarmer.replay_history import Recording
from algomesh_services.prewarmer.simulation import Keeper, Outcome, Simulation, busy_gpu_s

Progress: TypeAlias = Callable[[float], None]


class Predicted(msgspec.Struct, frozen=True):
    """The pre-warmer, with this as the mesh's latency value. Algorithms that have one of their own keep it."""

    value: float
    kind: ClassVar[str] = "latency value"

    def __str__(self) -> str:
        return f"latency value {self.value:g}"


class KeepAlive(msgspec.Struct, frozen=True):
    """No pre-warmer: everything stays up for so many seconds after its last run."""

    value: float
    kind: ClassVar[str] = "keep-alive"

    def __str__(self) -> str:
        return f"keep-alive {self.value:g} s"


class AlwaysWarm(msgspec.Struct, frozen=True):
    """Everything is up all the time."""

    value: None = None
    kind: ClassVar[str] = "always warm"

    def __str__(self) -> str:
        return "always warm"


WhatIf: TypeAlias = Predicted | KeepAlive | AlwaysWarm


def replay(
    recording: Recording,
    what_if: WhatIf,
    traits: Mapping[str, Traits],
    *,
    until_s: float | None = None,
    from_s: float | None = None,
    aborts_loads: bool = False,
    on_progress: Progress = lambda _: None,
) -> Outcome:
    """Play a recording under one what-if.

    traits: of every algorithm in the recording. from_s, until_s: the window that is counted, else the whole recording;
    what ran before it is learned from. aborts_loads: a load that is no longer wanted ends at once.
    on_progress: told now and then how far it is, 0 to 1.
    """
    if isinstance(what_if, AlwaysWarm):
        begin_s = recording.begin_s if from_s is None else from_s
        return _always_warm(recording, traits, begin_s, recording.end_s if until_s is None else until_s)
    keeper: Callable[[Fleet], Keeper]
    if isinstance(what_if, KeepAlive):
        keeper = partial(_Keeping, what_if.value)
        # It rules alone: what the pre-warmer leaves up for a moment longer is no part of it.
        traits = {name: known._replace(linger_s=0.0) for name, known in traits.items()}
    else:
        keeper = partial(BreakEvenPolicy, latency_value=_worth(what_if.value, traits))
    simulation = Simulation(recording, traits, keeper, from_s=from_s, until_s=until_s, aborts_loads=aborts_loads)
    return simulation.run(on_progress)


class _Keeping:
    """A fixed keep-alive as a keeper."""

    def __init__(self, seconds: float, _: Fleet) -> None:
        self._seconds = seconds

    def called(self, call: Call, /) -> Iterable[Action]:
        return ()

    def idle(self, algorithm: str, at_s: float, /) -> Iterable[Action]:
        return (Hold(algorithm=algorithm, key="idle", start_s=at_s, until_s=at_s + self._seconds, why="gap"),)

    def finished(self, request: str, at_s: float, /) -> Iterable[Action]:
        return ()


def _worth(latency_value: float, traits: Mapping[str, Traits]) -> LatencyValue:
    own = {name: known.latency_value for name, known in traits.items() if known.latency_value is not None}
    if not own:
        return latency_value
    return lambda algorithm, _: own.get(algorithm, latency_value)


def _always_warm(recording: Recording, traits: Mapping[str, Traits], from_s: float, until_s: float) -> Outcome:
    counted = [request for request in recording.requests if request.at_s >= from_s]
    kept = [known for known in traits.values() if known.cold_s > 0.0]
    return Outcome(
        requests=len(counted),
        calls=sum(len(request.calls) for request in counted),
        starts=len(kept),
        held_gpu_s=sum(known.gpu for known in kept) * max(0.0, until_s - from_s),
        busy_gpu_s=busy_gpu_s(recording, traits, from_s, until_s),
    )
