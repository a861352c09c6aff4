"""Counts, a moment after somebody has parked a call, what still waits, and says which of it needs more instances.

Most of what is parked beside running instances is taken at once; what they work off soon needs no help.
"""

import asyncio
from collections.abc import Callable

from algomesh_broker.names import VersionId
from algomesh_services.launcher.fleet import Fleet
from algomesh_services.launcher.instance import Instance
from algomesh_services.launcher.parking import Parking

LOOK_AFTER_S = 0.06
# On a machine that is busy, an instance that has become ready needs longer to take the first call that waits for it.
_FIRST_WITHIN_S = 1.0
_DRAIN_SOON_S = 0.25


class Looks:
    """The versions to look at, and how fast each of them has worked since it was last looked at."""

    def __init__(self, fleet: Fleet, parking: Parking, clock: Callable[[], float]) -> None:
        self._fleet, self._parking, self._clock = fleet, parking, clock
        self._wanted: set[VersionId] = set()
        self._wake = asyncio.Event()
        self._paces: dict[VersionId, tuple[float, int]] = {}

    def soon(self, version: VersionId) -> None:
        """Look at `version` in a moment."""
        self._wanted.add(version)
        self._paces.setdefault(version, (self._clock(), self._fleet.runs_total(version)))
        self._wake.set()

    async def next(self) -> dict[VersionId, int]:
        """Wait for the next look, and return what waits and needs help, by version.

        Raises StreamError, Unreachable.
        """
        await self._wake.wait()
        await asyncio.sleep(LOOK_AFTER_S)
        self._wake.clear()
        # One that has just become ready is taking what waits: look again before another is started.
        now = self._clock()
        early = {
            version
            for version in self._wanted
            if any(_has_just_begun(instance, now) for instance in self._fleet.of_version(version))
        }
        wanted, self._wanted = self._wanted - early, early
        if early:
            self._wake.set()
        waiting = await self._parking.waiting_for(wanted)
        now = self._clock()
        soon = {version for version, count in waiting.items() if count > 0 and self._drains_soon(version, count, now)}
        for version in soon:
            self.soon(version)
        for version in wanted - soon:
            self._paces.pop(version, None)
        return {version: count for version, count in waiting.items() if count > 0 and version not in soon}

    def _drains_soon(self, version: VersionId, waiting: int, now: float) -> bool:
        """Whether its instances, as they have worked since the last look, need no help with what waits."""
        total = self._fleet.runs_total(version)
        then, total_then = self._paces.get(version, (now, total))
        self._paces[version] = (now, total)
        return waiting * (now - then) < _DRAIN_SOON_S * (total - total_then)


def _has_just_begun(instance: Instance, now: float) -> bool:
    """Whether it became ready a moment ago, or a while ago and has not come to take its first call yet."""
    if instance.state != "ready" or instance.process is None:
        return False
    has_run = instance.process.watch.runs_total > 0
    return now - instance.ready_at < (LOOK_AFTER_S if has_run else _FIRST_WITHIN_S)
