"""The record of starts: why each instance was started, whether it was used, what it cost and what it saved.

Pure: launchers' words and calls go in with the time, rows come out. Times inside are in our time (clock.py).
"""

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

from algomesh_services.prewarmer.holding import Wish
from algomesh_services.prewarmer.live_fleet import Up
from algomesh_services.prewarmer.speculation import Speculation

Kind = Literal["call", "next", "stage", "gap", "minimum"]
_MOST_CHANGED: Final = 20_000
_SAME_S: Final = 1.0  # a launcher may tell that an instance works before the instance tells of what
_LONGEST_STEP_S: Final = 5.0  # between two words about an instance; what lies between them was as the first one said


class Start(Struct, eq=False):
    """One start. `gpu` is what the instance weighs; `used_s` 0: not yet, `ended_s` 0: it is up."""

    instance: str
    launcher: str
    version: str
    kind: Kind
    reason: str
    started_s: float
    gpu: float
    caller: str = ""
    after: str = ""
    ready_s: float = 0.0
    used_s: float = 0.0
    ended_s: float = 0.0
    held_s: float = 0.0
    saved_s: float = 0.0
    in_time: bool = False
    called_s: float = 0.0
    told_s: float = 0.0
    charged: float = 0.0
    was_idle: bool = False

    @property
    def is_ahead(self) -> bool:
        """Whether it was started before a call waited for it."""
        return self.kind in ("next", "stage", "gap")


class Starts:
    """Those of the instances that are up. `wish_of(version, key)` is the hold that launched one.

    `on_used` hears of each that is used for the first time, `on_gone` of each that is up no more.
    """

    def __init__(
        self,
        wish_of: Callable[[str, str], Wish | None],
        weight: Callable[[str], float],
        speculation: Speculation,
        known: dict[str, Start] | None = None,
    ) -> None:
        self._wish_of, self._weight, self._speculation = wish_of, weight, speculation
        self._known = known or {}
        self._up: dict[str, Start] = {}
        self._of_version: dict[str, dict[str, Start]] = {}
        self._unused: dict[str, dict[str, Start]] = {}
        self._changed: dict[str, Start] = {}
        self.on_used: Callable[[Start], None] = lambda _: None
        self.on_gone: Callable[[Start], None] = lambda _: None

    def came(self, up: Up, now: float) -> Start:
        """An instance is launched; or was, before we were here."""
        start = self._known.pop(up.instance, None)
        if start is None:
            start = self._new(up)
            start.told_s = max(up.launched_s, now - _LONGEST_STEP_S)
        else:
            start.told_s = now
        self._up[up.instance] = start
        self._of_version.setdefault(up.version, {})[up.instance] = start
        if not start.used_s:
            self._unused.setdefault(up.version, {})[up.instance] = start
        self._note(start)
        return start

    def told(self, up: Up, now: float) -> None:
        """What an instance does now."""
        start = self._up.get(up.instance)
        if start is None:
            return
        start.gpu = self._weight(up.version)
        step_s = min(_LONGEST_STEP_S, max(0.0, now - start.told_s))
        if start.was_idle:
            start.held_s += step_s
        if start.is_ahead and not start.used_s:
            self._charge(start, step_s * start.gpu, now)
        start.told_s, start.was_idle = now, up.idle_s is not None
        if up.ready_s is not None and not start.ready_s:
            start.ready_s = up.ready_s
            self._note(start)
        if not start.used_s and (up.is_working or up.row.runs_total > 0):
            self._use(start, now)

    def gone(self, up: Up, now: float) -> None:
        """An instance is up no more."""
        start = self._up.pop(up.instance, None)
        if start is None:
            return
        for by_version in (self._unused, self._of_version):
            by_version.get(up.version, {}).pop(up.instance, None)
            if not by_version.get(up.version, True):
                del by_version[up.version]
        start.ended_s = now
        self._note(start)
        self.on_gone(start)

    def called(self, version: str, called_s: float, after: str) -> None:
        """A call of this version began: it is the first for those of its instances that were not used yet."""
        for start in self._unused.get(version, {}).values():
            if not start.called_s and called_s >= start.started_s - 60.0:
                start.called_s = called_s
                start.after = start.after or after

    def ahead(self, version: str, called_s: float) -> Start | None:
        """The instance that was started ahead and is used for the first time by a call that came then."""
        for start in self._of_version.get(version, {}).values():
            if start.is_ahead and (not start.used_s or start.used_s >= called_s - _SAME_S):
                return start
        return None

    def forget_known(self, now: float) -> None:
        """Those of an earlier life of ours that no launcher has told of are over."""
        for start in self._known.values():
            start.ended_s = now
            self._note(start)
        self._known = {}

    def take_changed(self) -> list[Start]:
        """What is to be written: every start that has changed."""
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def give_back(self, starts: list[Start]) -> None:
        """These could not be written."""
        self._changed = {**{start.instance: start for start in starts}, **self._changed}
        while len(self._changed) > _MOST_CHANGED:
            del self._changed[next(iter(self._changed))]

    def touch_held(self) -> None:
        """Write how long those that are up have been held, too."""
        for start in self._up.values():
            self._note(start)

    def _new(self, up: Up) -> Start:
        row = up.row
        wish = self._wish_of(up.version, row.key) if row.key else None
        kind: Kind
        if wish is not None:
            kind = "next" if wish.why == "called" else wish.why
        elif row.key:
            kind = "gap" if row.key.startswith("gap") else "stage" if row.reason.startswith("stage") else "next"
        else:
            kind = "minimum" if "min_instances" in row.reason or row.reason.startswith("minimum") else "call"
        return Start(
            instance=up.instance,
            launcher=up.launcher,
            version=up.version,
            kind=kind,
            reason=row.reason,
            started_s=up.launched_s,
            gpu=self._weight(up.version),
            caller=wish.caller if wish is not None else "",
            after=wish.after if wish is not None else "",
        )

    def _use(self, start: Start, now: float) -> None:
        start.used_s = max(start.ready_s, start.called_s or now)
        version = start.version
        self._unused.get(version, {}).pop(start.instance, None)
        if not self._unused.get(version, True):
            del self._unused[version]
        if start.is_ahead:
            took_s = max(0.0, start.ready_s - start.started_s)
            called_s = start.called_s or now
            start.saved_s = min(took_s, max(0.0, called_s - start.started_s))
            start.in_time = called_s >= start.ready_s
            self._charge(start, -start.charged, now)
        self._note(start)
        self.on_used(start)

    def _charge(self, start: Start, gpu_s: float, now: float) -> None:
        start.charged += gpu_s
        self._speculation.wasted(start.caller, gpu_s, now)

    def _note(self, start: Start) -> None:
        self._changed[start.instance] = start
