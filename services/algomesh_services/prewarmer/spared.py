"""Which calls were spared a wait, and how long: pure, time is an argument.

A call that uses an instance started ahead would have begun its load; one that meets an instance held for longer than
its fixed idle time would have, too, had idle times decided. All that come before such a load would be done would have
waited for it. What a call has waited less than that, it was spared.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from algomesh_broker.platform import Options

_MOST_VERSIONS: Final = 20_000
_MOST_ROWS: Final = 1_000  # between two writes; what is more is only counted
_LEAST: Final = 0.02  # of a cold start: less is the difference between one and another


class Began(NamedTuple):
    """A call of `version` has begun, after it had waited; it stands for `calls` calls, of which one was seen.

    `is_cold`: it waited for an instance to start. `was_running`: others of its algorithm ran already. `after` is the
    algorithm called before it in its request. Times are in our time.
    """

    version: str
    run: str
    root: str
    caller: str
    called_s: float
    waited_s: float
    calls: int
    is_cold: bool
    was_running: bool
    after: str


class SparedCall(NamedTuple):
    """A call that did not have to wait so long; `why`: next, stage, gap, or kept."""

    run: str
    root: str
    version: str
    caller: str
    called_s: float
    seconds: float
    why: str
    calls: int


class Help(NamedTuple):
    """What the pre-warmer has done for a version that is called: why, how long its load takes, and the `instance`

    that was started ahead and is used now; empty where one was held.
    """

    why: str
    cold_s: float
    instance: str = ""


class _Unaided:
    """A version without a pre-warmer: when it was last used, when its load would be done, and what helped instead."""

    __slots__ = ("instance", "last_s", "ready_s", "why")

    def __init__(self) -> None:
        self.last_s = self.ready_s = float("-inf")
        self.why = self.instance = ""


class Spared:
    """The calls that were spared a wait.

    `options(version)` None: not known yet, nothing is counted. `help_of(call)` None: nothing helped. `minute_of(at_s)`
    is the minute of a moment, as totals are kept by. `on_spared` hears of each, with the seconds and why.
    """

    def __init__(
        self,
        options: Callable[[str], Options | None],
        help_of: Callable[[Began], Help | None],
        minute_of: Callable[[float], int],
    ) -> None:
        self._options, self._help_of, self._minute_of = options, help_of, minute_of
        self._versions: OrderedDict[str, _Unaided] = OrderedDict()
        self._rows: list[SparedCall] = []
        self._totals: dict[tuple[int, str], tuple[int, float]] = {}
        self.on_spared: Callable[[Began, float, str], None] = lambda *_: None

    def used(self, version: str, at_s: float) -> None:
        """It was in use until then."""
        unaided = self._of(version)
        unaided.last_s = max(unaided.last_s, at_s)

    def began(self, call: Began) -> None:
        """A call has begun."""
        unaided = self._of(call.version)
        options = self._options(call.version)
        if options is None or options.min_instances > 0 or not options.prewarm:
            self.used(call.version, call.called_s)
            return
        is_idle = not call.was_running and call.called_s - unaided.last_s > options.idle_s
        if call.called_s >= unaided.ready_s:
            found = self._help_of(call)
            if found is not None and (found.instance != unaided.instance if found.instance else is_idle):
                unaided.why, unaided.ready_s = found.why, call.called_s + found.cold_s
                unaided.instance = found.instance or unaided.instance
        self.used(call.version, call.called_s)
        spared_s = unaided.ready_s - call.called_s - call.waited_s
        if spared_s > _LEAST * (unaided.ready_s - call.called_s):
            self._add(call, spared_s, unaided.why)

    def take(self) -> tuple[list[SparedCall], dict[tuple[int, str], tuple[int, float]]]:
        """What is not written yet: calls, and (calls, seconds) by minute and why, which have all of them."""
        taken = self._rows, self._totals
        self._rows, self._totals = [], {}
        return taken

    def give_back(self, rows: list[SparedCall], totals: dict[tuple[int, str], tuple[int, float]]) -> None:
        """These could not be written."""
        self._rows = [*rows, *self._rows][-_MOST_ROWS:]
        for key, (calls, seconds) in totals.items():
            self._count(key, calls, seconds)

    def _add(self, call: Began, seconds: float, why: str) -> None:
        self.on_spared(call, seconds, why)
        self._count((self._minute_of(call.called_s), why), call.calls, seconds * call.calls)
        if len(self._rows) < _MOST_ROWS:
            self._rows.append(
                SparedCall(
                    call.run, call.root, call.version, call.caller, call.called_s, seconds, why, call.calls
                )
            )  # fmt: skip

    def _count(self, key: tuple[int, str], calls: int, seconds: float) -> None:
        before = self._totals.get(key, (0, 0.0))
        self._totals[key] = (before[0] + calls, before[1] + seconds)

    def _of(self, version: str) -> _Unaided:
        unaided = self._versions.get(version)
        if unaided is None:
            unaided = self._versions[version] = _Unaided()
            if len(self._versions) > _MOST_VERSIONS:
                self._versions.popitem(last=False)
        else:
            self._versions.move_to_end(version)
        return unaided
