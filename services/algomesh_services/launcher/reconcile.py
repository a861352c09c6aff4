"""Which instances to launch and which to retire: a pure function of what waits, what runs, and what the machine has.

It does no I/O and keeps nothing; time is an argument, in seconds of a monotonic clock. The control loop calls it
after every change with what it has just counted, and carries out the actions in their order.

Calls that wait come first, then minimums, then what the pre-warmer holds, highest gain first: what is only expected
takes no place that a call waits for, and none of what works, starts, or is held for more.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import Capacity, Place, explain_misfit, find_place
from algomesh_services.launcher.holds import GRACE_S, Held

State = Literal["starting", "ready", "draining"]

# One that is idle for a moment may be about to take the call it was started for, or to be held.
_SETTLED_S = 0.1
# Exchanging what is held costs a start: a gain that is a little higher does not pay for one.
_WORTH_EXCHANGING = 1.25


@dataclass(frozen=True, kw_only=True)
class VersionView:
    """A version: `minimum` instances stay up though idle; before `blocked_until` none is launched.

    `hold` is the pre-warmer's wish that one be up now. `is_managed`: idle instances go soon after nothing has held them
    (`unheld_since`) when they have a GPU; otherwise all idle times are fixed.
    """

    version: VersionId
    options: Options
    minimum: int = 0
    blocked_until: float = 0.0
    hold: Held | None = None
    is_managed: bool = False
    unheld_since: float = 0.0


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
    """Start an instance at `place`; `key` names the hold it is for, if it is for one."""

    version: VersionId
    place: Place
    reason: str
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Retire:
    """Let an idle instance go; `reason` is `idle`, `evicted` for the sake of another version, or says why so soon."""

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
    # What has nothing at all is served before what only wants more.
    wishes = [(version, count) for version, count in waiting.items() if count > 0 and version in versions]
    for version, count in sorted(wishes, key=lambda wish: (plan.active(wish[0]) > 0, wish[0])):
        _serve(versions[version], count, plan, versions, now)
    for version in sorted(versions):
        view = versions[version]
        for _ in range(_bounded_minimum(view) - plan.active(version)):
            place = plan.place(view.options)
            if place is None or now < view.blocked_until:
                break
            plan.launch(version, place, f"kept warm: min_instances {view.minimum}")
    held = [(view.hold.gain, view, view.hold) for view in versions.values() if view.hold is not None]
    for _, view, hold in sorted(held, key=lambda each: (-each[0], each[1].version)):
        if not plan.active(view.version) and now >= view.blocked_until:
            _expect(view, hold, plan, versions, waiting, now)
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
        self._promised: list[Place] = []
        self._launched: Counter[VersionId] = Counter()
        self._active = Counter(view.version for view in self.stay.values())

    def active(self, version: VersionId) -> int:
        """How many instances of a version there will be, those that are starting included."""
        return self._active[version]

    def starting(self, version: VersionId) -> int:
        """How many of them are not ready yet."""
        running = sum(view.state == "starting" for view in self.stay.values() if view.version == version)
        return running + self._launched[version]

    def ready(self, version: VersionId) -> int:
        """How many of them could work."""
        return sum(view.state == "ready" for view in self.stay.values() if view.version == version)

    def idle_others(self, version: VersionId) -> list[InstanceView]:
        """The idle instances of all other versions."""
        return [view for view in self.stay.values() if view.is_idle and view.version != version]

    def place(self, options: Options) -> Place | None:
        """Where an instance fits right now."""
        return find_place(options, self.capacity, [*self._staying(), *self._leaving])

    def fits_later(self, options: Options) -> bool:
        """Whether one fits once those that leave are gone."""
        return find_place(options, self.capacity, self._staying()) is not None

    def place_beside_promised(self, options: Options) -> Place | None:
        """Where an instance fits right now without taking what is promised to others."""
        return find_place(options, self.capacity, [*self._staying(), *self._leaving, *self._promised])

    def promise(self, options: Options) -> None:
        """Keep what an instance with these options will take, once those that leave are gone, from who comes later."""
        place = find_place(options, self.capacity, [*self._staying(), *self._promised])
        if place is not None:
            self._promised.append(place)

    def fits_later_beside_promised(self, options: Options) -> bool:
        """The same once those that leave are gone."""
        return find_place(options, self.capacity, [*self._staying(), *self._promised]) is not None

    def launch(self, version: VersionId, place: Place, reason: str, key: str = "") -> None:
        """Decide to launch."""
        self.actions.append(Launch(version=version, place=place, reason=reason, key=key))
        self._new.append(place)
        self._launched[version] += 1
        self._active[version] += 1

    def retire(self, view: InstanceView, reason: str) -> None:
        """Decide to retire; its place is free once it is gone, and not before."""
        self.actions.append(Retire(instance=view.instance, reason=reason))
        del self.stay[view.instance]
        self._leaving.append(view.place)
        self._active[view.version] -= 1

    def without(self, gone: Sequence[InstanceView], options: Options, *, is_expected: bool) -> bool:
        """Whether an instance would fit once `gone` and those that leave are gone; only expected, beside promises."""
        names = {view.instance for view in gone}
        staying = [view.place for view in self.stay.values() if view.instance not in names]
        promised = self._promised if is_expected else ()
        return find_place(options, self.capacity, [*staying, *self._new, *promised]) is not None

    def _staying(self) -> list[Place]:
        return [*(view.place for view in self.stay.values()), *self._new]


def _serve(view: VersionView, waiting: int, plan: _Plan, versions: Mapping[VersionId, VersionView], now: float) -> None:
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
        if plan.fits_later(options) or _evict_for(options, plan.idle_others(version), plan, versions):
            plan.promise(options)
        elif not plan.active(version):
            plan.actions.append(Refuse(version=version, message=_refusal(options, plan.capacity)))
        return


def _expect(
    view: VersionView,
    hold: Held,
    plan: _Plan,
    versions: Mapping[VersionId, VersionView],
    waiting: Mapping[VersionId, int],
    now: float,
) -> None:
    """Launch the one instance that a hold wants, if there is room, or make room where that harms nobody."""
    options = view.options
    place = plan.place_beside_promised(options)
    if place is not None:
        plan.launch(view.version, place, hold.reason, hold.key)
        return

    def may_go(other: InstanceView) -> bool:
        known = versions.get(other.version)
        if waiting.get(other.version, 0) > 0 or now - other.idle_since < _SETTLED_S:
            return False
        return known is None or known.hold is None or known.hold.gain * _WORTH_EXCHANGING < hold.gain

    others = [other for other in plan.idle_others(view.version) if may_go(other)]
    if plan.fits_later_beside_promised(options) or _evict_for(options, others, plan, versions, is_expected=True):
        plan.promise(options)


def _evict_for(
    options: Options,
    others: Iterable[InstanceView],
    plan: _Plan,
    versions: Mapping[VersionId, VersionView],
    *,
    is_expected: bool = False,
) -> bool:
    """Retire as few of `others` as will do, none when all of them would not do.

    First those that nothing holds, and of them those that have been idle longest; then those that are held for least.
    """
    minimums = {version: view.minimum for version, view in versions.items()}
    spare = {other: plan.active(other) - minimums.get(other, 0) for other in {v.version for v in plan.stay.values()}}
    chosen: list[InstanceView] = []
    for view in sorted(others, key=lambda other: (_gain(versions.get(other.version)), *_longest_idle(other))):
        if spare[view.version] <= 0:
            continue
        spare[view.version] -= 1
        chosen.append(view)
        if plan.without(chosen, options, is_expected=is_expected):
            break
    else:
        return False
    for view in tuple(chosen):  # what was chosen before the one that mattered may stay
        rest = [other for other in chosen if other is not view]
        if plan.without(rest, options, is_expected=is_expected):
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
        if plan.active(view.version) <= _bounded_minimum(known):
            continue
        if known.hold is not None and plan.ready(view.version) <= 1:
            continue
        if reason := _why_too_idle(view, known, now):
            plan.retire(view, reason)


def _why_too_idle(view: InstanceView, known: VersionView, now: float) -> str:
    """Why an idle instance has been so for long enough; empty while it has not."""
    idle_s = now - view.idle_since
    if not known.is_managed:
        return "idle" if idle_s >= known.options.idle_s else ""
    # A hold is often let go only to be replaced.
    unheld_since = known.unheld_since if known.hold is None else view.idle_since
    is_settled = now - max(view.idle_since, unheld_since) >= GRACE_S
    if known.options.gpu > 0:
        return "idle, and not expected to be called soon" if is_settled else ""
    return "idle" if is_settled and idle_s >= known.options.idle_s else ""


def _gain(view: VersionView | None) -> float:
    """What an instance of a version is held for; less than any hold when it is not."""
    return -math.inf if view is None or view.hold is None else view.hold.gain


def _bounded_minimum(view: VersionView) -> int:
    return min(view.minimum, max(1, view.options.max_instances))


def _longest_idle(view: InstanceView) -> tuple[float, str]:
    return view.idle_since, view.instance


def _refusal(options: Options, capacity: Capacity) -> str:
    misfit = explain_misfit(options, capacity)
    if misfit:
        return f"no machine of this mesh can run it: {misfit}"
    return "every instance that could make room is busy; try again later, or give the launcher more"
