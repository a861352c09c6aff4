"""Which instances to launch and which to retire: a pure function of what waits, what runs, and what the machine has.

It does no I/O and keeps nothing; time is an argument, in seconds of a monotonic clock. The control loop calls it
after every change with what it has just counted, and carries out the actions in their order.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import Capacity, Place, explain_misfit, find_place

State = Literal["starting", "ready", "draining"]


@dataclass(frozen=True, kw_only=True)
class VersionView:
    """A version: `minimum` instances stay up though idle; before `blocked_until` none is launched."""

    version: VersionId
    options: Options
    minimum: int = 0
    blocked_until: float = 0.0


@dataclass(frozen=True, kw_only=True)
class InstanceView:
    """An instance: `load` runs under way, `idle_since` when the last of them ended (or it became ready)."""

    instance: str
    version: VersionId
    state: State
    load: int = 0
    idle_since: float = 0.0
    place: Place = field(default_factory=Place)

    @property
    def is_idle(self) -> bool:
        """Whether it could go without anybody noticing; one that is not ready yet never is."""
        return self.state == "ready" and self.load == 0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Start an instance at `place`."""

    version: VersionId
    place: Place
    reason: str


@dataclass(frozen=True, kw_only=True)
class Retire:
    """Let an idle instance go; `reason` is `idle`, or `evicted` for the sake of another version."""

    instance: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Nothing can be done for what waits for this version: no instance of it runs and none can be placed."""

    version: VersionId
    message: str


Action = Launch | Retire | Refuse


def reconcile(
    versions: Mapping[VersionId, VersionView],
    instances: Sequence[InstanceView],
    waiting: Mapping[VersionId, int],
    capacity: Capacity,
    now: float,
) -> list[Action]:
    """Decide. `waiting` are the parked calls just counted, by version; what is not in `versions` is ignored."""
    plan = _Plan(capacity, instances)
    minimums = {version: view.minimum for version, view in versions.items()}
    # What has nothing at all is served before what only wants more.
    wishes = [(version, count) for version, count in waiting.items() if count > 0 and version in versions]
    for version, count in sorted(wishes, key=lambda wish: (plan.active(wish[0]) > 0, wish[0])):
        _serve(versions[version], count, plan, minimums, now)
    for version in sorted(versions):
        view = versions[version]
        for _ in range(_bounded_minimum(view) - plan.active(version)):
            place = plan.place(view.options)
            if place is None or now < view.blocked_until:
                break
            plan.launch(version, place, f"kept warm: min_instances {view.minimum}")
    _retire_idle(versions, waiting, plan, now)
    return plan.actions


class _Plan:
    """The fleet as it will be once the actions decided so far are carried out."""

    def __init__(self, capacity: Capacity, instances: Iterable[InstanceView]) -> None:
        self.capacity = capacity
        self.actions: list[Action] = []
        self.stay = {view.instance: view for view in instances if view.state != "draining"}
        self._leaving = [view.place for view in instances if view.state == "draining"]
        self._new: list[Place] = []
        self._launched: Counter[VersionId] = Counter()
        self._active = Counter(view.version for view in self.stay.values())

    def active(self, version: VersionId) -> int:
        """How many instances of a version there will be, those that are starting included."""
        return self._active[version]

    def starting(self, version: VersionId) -> int:
        """How many of them are not ready yet."""
        running = sum(view.state == "starting" for view in self.stay.values() if view.version == version)
        return running + self._launched[version]

    def place(self, options: Options) -> Place | None:
        """Where an instance fits right now."""
        return find_place(options, self.capacity, [*self._staying(), *self._leaving])

    def fits_later(self, options: Options) -> bool:
        """Whether one fits once those that leave are gone."""
        return find_place(options, self.capacity, self._staying()) is not None

    def launch(self, version: VersionId, place: Place, reason: str) -> None:
        """Decide to launch."""
        self.actions.append(Launch(version=version, place=place, reason=reason))
        self._new.append(place)
        self._launched[version] += 1
        self._active[version] += 1

    def retire(self, view: InstanceView, reason: str) -> None:
        """Decide to retire; its place is free once it is gone, and not before."""
        self.actions.append(Retire(instance=view.instance, reason=reason))
        del self.stay[view.instance]
        self._leaving.append(view.place)
        self._active[view.version] -= 1

    def without(self, gone: Sequence[InstanceView], options: Options) -> bool:
        """Whether an instance would fit once `gone` and those that leave are gone."""
        names = {view.instance for view in gone}
        staying = [view.place for view in self.stay.values() if view.instance not in names]
        return find_place(options, self.capacity, [*staying, *self._new]) is not None

    def _staying(self) -> list[Place]:
        return [*(view.place for view in self.stay.values()), *self._new]


def _serve(view: VersionView, waiting: int, plan: _Plan, minimums: Mapping[VersionId, int], now: float) -> None:
    """Launch what `waiting` calls need beyond the instances that are starting already, within all bounds."""
    version, options = view.version, view.options
    needed = math.ceil(waiting / max(1, options.concurrency * max(1, options.batch_max))) - plan.starting(version)
    needed = min(needed, max(1, options.max_instances) - plan.active(version))
    if now < view.blocked_until:
        return
    for _ in range(needed):
        place = plan.place(options)
        if place is not None:
            plan.launch(version, place, f"{waiting} parked call{'s' if waiting > 1 else ''}")
            continue
        if (
            not plan.fits_later(options)
            and not _evict_for(options, version, plan, minimums)
            and not plan.active(version)
        ):
            plan.actions.append(Refuse(version=version, message=_refusal(options, plan.capacity)))
        return


def _evict_for(options: Options, version: VersionId, plan: _Plan, minimums: Mapping[VersionId, int]) -> bool:
    """Retire the idle instances that have been so longest, as few as will do; none when all of them would not do."""
    spare = {other: plan.active(other) - minimums.get(other, 0) for other in {v.version for v in plan.stay.values()}}
    chosen: list[InstanceView] = []
    for view in sorted(filter(lambda v: v.is_idle and v.version != version, plan.stay.values()), key=_longest_idle):
        if spare[view.version] <= 0:
            continue
        spare[view.version] -= 1
        chosen.append(view)
        if plan.without(chosen, options):
            break
    else:
        return False
    for view in tuple(chosen):  # what was chosen before the one that mattered may stay
        rest = [other for other in chosen if other is not view]
        if plan.without(rest, options):
            chosen = rest
    for view in chosen:
        plan.retire(view, "evicted")
    return True


def _retire_idle(
    versions: Mapping[VersionId, VersionView], waiting: Mapping[VersionId, int], plan: _Plan, now: float
) -> None:
    for view in sorted(plan.stay.values(), key=_longest_idle):
        known = versions.get(view.version)
        if known is None or not view.is_idle or waiting.get(view.version, 0) > 0:
            continue
        if now - view.idle_since >= known.options.idle_s and plan.active(view.version) > _bounded_minimum(known):
            plan.retire(view, "idle")


def _bounded_minimum(view: VersionView) -> int:
    return min(view.minimum, max(1, view.options.max_instances))


def _longest_idle(view: InstanceView) -> tuple[float, str]:
    return view.idle_since, view.instance


def _refusal(options: Options, capacity: Capacity) -> str:
    misfit = explain_misfit(options, capacity)
    if misfit:
        return f"no machine of this mesh can run it: {misfit}"
    return "every instance that could make room is busy; try again later, or give the launcher more"
