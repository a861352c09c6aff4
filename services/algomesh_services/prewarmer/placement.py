"""Which launcher is to have a held version up, where there are several: pure, time is an argument.

One instance serves every hold, so one launcher is named: who has one already, else one by a fixed order that differs
from version to version. Where it has not begun to start one in a while (it has no room), the next one is named.
"""

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

PATIENCE_S: Final = 3.0
"""A launcher that can, starts an instance within milliseconds of a hold's beginning."""

_MOST_VERSIONS: Final = 20_000


class Having(NamedTuple):
    """A launcher that has an instance of the version."""

    launcher: str
    is_ready: bool


class _Named(NamedTuple):
    launcher: str
    since_s: float


class Placement:
    """Remembers who was named for which version; the longest unasked is forgotten."""

    def __init__(self) -> None:
        self._named: OrderedDict[str, _Named] = OrderedDict()

    def choose(
        self, version: str, launchers: Iterable[str], having: Iterable[Having], start_s: float, now: float
    ) -> str:
        """The launcher for a hold that begins at `start_s`; empty where it need not be said."""
        known = self._named.pop(version, None)
        ordered = sorted(launchers, key=lambda launcher: sha256(f"{version} {launcher}".encode()).digest())
        if len(ordered) < 2:
            return ""
        ready = {each.launcher: each.is_ready for each in having}
        there = [launcher for launcher in ordered if ready.get(launcher)] or [each for each in ordered if each in ready]
        if there:
            named = _Named(known.launcher if known is not None and known.launcher in there else there[0], now)
        elif known is None or known.launcher not in ordered:
            named = _Named(ordered[0], now)
        elif now - max(known.since_s, start_s) > PATIENCE_S:
            named = _Named(ordered[(ordered.index(known.launcher) + 1) % len(ordered)], now)
        else:
            named = known
        self._named[version] = named
        if len(self._named) > _MOST_VERSIONS:
            self._named.popitem(last=False)
        return named.launcher
