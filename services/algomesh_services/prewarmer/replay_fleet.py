"""The instances of a replay: one per algorithm or none, up while something holds it or runs in it, and what that costs.

It does to holds and releases what a launcher with room for all would do, in the time of the replay.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from algomesh_services.prewarmer.actions import Action, Hold

Later = Callable[[float, Callable[[], None]], None]


class Traits(NamedTuple):
    """What is known of an algorithm: its cold start, what a second of it costs, how long it stays with nothing to do.

    `gpu` is the weight of an instance in GPUs; `linger_s` how long one stays up that is idle and held by nobody.
    `latency_value` is its own, None for the mesh's.
    """

    cold_s: float
    gpu: float = 1.0
    linger_s: float = 0.0
    latency_value: float | None = None


class _Instance:
    __slots__ = ("holds", "idle_s", "is_used", "load", "planned", "ready_s", "running", "since_s", "state", "waiting")

    def __init__(self) -> None:
        self.state: Literal["off", "loading", "warm"] = "off"
        self.since_s = self.ready_s = self.idle_s = 0.0
        self.running = self.waiting = self.load = 0
        self.is_used = False
        self.holds: dict[str, float] = {}
        self.planned: dict[str, tuple[float, float]] = {}


class ReplayFleet:
    """Asked by a policy as its fleet; told of calls by the simulation, whose clock it shares.

    later: has something done at a time of the replay. from_s, until_s: the window in which seconds are counted.
    aborts_loads: a load that nobody wants any more ends at once; otherwise the instance gets ready, and then goes.
    """

    def __init__(
        self,
        traits: Mapping[str, Traits],
        later: Later,
        *,
        from_s: float,
        until_s: float,
        aborts_loads: bool = False,
    ) -> None:
        self._traits, self._later = traits, later
        self._from_s, self._until_s, self._aborts_loads = from_s, until_s, aborts_loads
        self._instances = {name: _Instance() for name in traits}
        self.now_s = -math.inf
        self.up_s = dict.fromkeys(traits, 0.0)
        self.starts = self.unused_starts = 0

    def cold_start_s(self, algorithm: str, /) -> float:
        """Seconds from start to ready; 0: always up."""
        return self._traits[algorithm].cold_s

    def gpu_weight(self, algorithm: str, /) -> float:
        """GPU-seconds that a second of an instance costs."""
        return self._traits[algorithm].gpu

    def state(self, algorithm: str, /) -> str:
        """`off`, `loading` or `warm`."""
        return self._instances[algorithm].state

    def ready_in_s(self, algorithm: str, /) -> float:
        """Seconds until a load in flight is ready; 0 when warm."""
        instance = self._instances[algorithm]
        return max(0.0, instance.ready_s - self.now_s) if instance.state == "loading" else 0.0

    def called(self, algorithm: str) -> float:
        """A call has come; when it begins. It is started if it is off."""
        instance = self._instances[algorithm]
        instance.waiting += 1
        if self._traits[algorithm].cold_s <= 0.0:
            return self.now_s
        if instance.state == "off":
            self._start(algorithm, instance)
        instance.is_used = True
        return self.now_s if instance.state == "warm" else instance.ready_s

    def began(self, algorithm: str) -> None:
        """A call that has come begins to run."""
        instance = self._instances[algorithm]
        instance.waiting -= 1
        instance.running += 1

    def ended(self, algorithm: str) -> bool:
        """A run has ended; whether it was the last one there. `settle` is to follow."""
        instance = self._instances[algorithm]
        instance.running -= 1
        instance.idle_s = self.now_s
        return self._traits[algorithm].cold_s > 0.0 and not instance.running and not instance.waiting

    def apply(self, action: Action) -> None:
        """Do what a policy wants. Wishes for algorithms that nobody knows are ignored."""
        name, key = action.algorithm, action.key
        instance = self._instances.get(name)
        if instance is None or self._traits[name].cold_s <= 0.0:
            return
        instance.planned.pop(key, None)
        if not isinstance(action, Hold) or action.until_s <= self.now_s:
            self._release(name, instance, key)
        elif action.start_s > self.now_s:
            self._release(name, instance, key)
            instance.planned[key] = planned = (action.start_s, action.until_s)
            self._later(action.start_s, lambda: self._begin(name, key, planned))
        else:
            self._hold(name, instance, key, action.until_s)

    def settle(self, algorithm: str) -> None:
        """Let the instance go if nothing holds it any more."""
        instance = self._instances[algorithm]
        if instance.running or instance.waiting or instance.state == "off":
            return
        if instance.state == "loading" and not self._aborts_loads:
            return
        for key in [key for key, until_s in instance.holds.items() if until_s <= self.now_s]:
            del instance.holds[key]
        if instance.holds:
            return
        if instance.state == "warm":
            goes_s = max(instance.idle_s, instance.since_s) + self._traits[algorithm].linger_s
            if goes_s > self.now_s:
                self._later(goes_s, lambda: self.settle(algorithm))
                return
        self._stop(algorithm, instance)

    def close(self) -> None:
        """The replay is over: count what is still up."""
        for name, instance in self._instances.items():
            if instance.state != "off":
                self._stop(name, instance)

    def _begin(self, name: str, key: str, planned: tuple[float, float]) -> None:
        instance = self._instances[name]
        if instance.planned.get(key) is planned:
            del instance.planned[key]
            if planned[1] > self.now_s:
                self._hold(name, instance, key, planned[1])

    def _hold(self, name: str, instance: _Instance, key: str, until_s: float) -> None:
        instance.holds[key] = until_s
        if until_s < math.inf:
            self._later(until_s, lambda: self.settle(name))
        if instance.state == "off":
            self._start(name, instance)

    def _release(self, name: str, instance: _Instance, key: str) -> None:
        if instance.holds.pop(key, None) is not None:
            self.settle(name)

    def _start(self, name: str, instance: _Instance) -> None:
        instance.state, instance.since_s, instance.is_used = "loading", self.now_s, False
        instance.ready_s = self.now_s + self._traits[name].cold_s
        instance.load += 1
        load = instance.load
        self._later(instance.ready_s, lambda: self._ready(name, load))
        if self.now_s >= self._from_s:
            self.starts += 1

    def _ready(self, name: str, load: int) -> None:
        instance = self._instances[name]
        if instance.state == "loading" and instance.load == load:
            self._count(name, instance)
            instance.state, instance.since_s = "warm", self.now_s
            self.settle(name)

    def _stop(self, name: str, instance: _Instance) -> None:
        self._count(name, instance)
        instance.state = "off"
        instance.load += 1
        if not instance.is_used and self.now_s >= self._from_s:
            self.unused_starts += 1

    def _count(self, name: str, instance: _Instance) -> None:
        self.up_s[name] += max(0.0, min(self.now_s, self._until_s) - max(instance.since_s, self._from_s))
