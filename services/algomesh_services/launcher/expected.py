"""Acts in time on what the pre-warmer expects: when a hold begins, and soon after what it held has nothing to do.

The control loop runs the two turns here again and again, and `act` is its decision. Nothing is done, and no clock is
looked at, while the pre-warmer is silent.
"""

import asyncio
import contextlib
from collections.abc import Callable

from algomesh_broker import messages
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.fleet import Fleet
from algomesh_services.launcher.holds import GRACE_S, Held, HoldBook
from algomesh_services.launcher.instance import Instance

WATCH_S = 0.04
_TOGETHER_S = 0.002


class Expected:
    """The holds, and the moments at which they matter."""

    def __init__(
        self, fleet: Fleet, act: Callable[[], None], clock: Callable[[], float], *, launcher: str = ""
    ) -> None:
        self.book = HoldBook(launcher=launcher)
        self._fleet, self._act, self._clock = fleet, act, clock
        self._has_changed, self._is_watched = asyncio.Event(), asyncio.Event()
        self._acted_at = self._watched_at = clock()

    def hear(self, said: messages.Holds) -> None:
        """Take what the pre-warmer says."""
        self.book.take(said, self._clock())
        self._has_changed.set()
        self._is_watched.set()

    def on_ready(self, instance: Instance) -> None:
        """An instance takes calls: from now on it may be idle."""
        if instance.options.gpu > 0:
            self._is_watched.set()

    def manages(self, version: VersionId, options: Options, now: float) -> bool:
        """Whether the pre-warmer decides how long an idle instance stays."""
        return options.prewarm and options.latency_value != 0 and self.book.manages(version, now)

    def hold(self, version: VersionId, options: Options, now: float) -> Held | None:
        """The hold that counts now."""
        return self.book.current(version, now) if self.manages(version, options, now) else None

    def explain(self, instance: Instance) -> str:
        """Why an instance is up: what it was started for and, once it is kept for something else, that too."""
        hold = self.hold(instance.version, instance.options, self._clock())
        if hold is None or instance.state != "ready" or hold.key == instance.key:
            return instance.reason
        return f"{instance.reason}; kept: {hold.reason}"

    async def follow(self) -> None:
        """Wait for the next moment at which a hold begins, or its end is a grace ago, and act."""
        up = {each.version for each in self._fleet.instances.values() if each.state != "draining"}
        edge = self.book.next_edge(self._acted_at, up)
        if edge is None or edge > self._clock():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if edge is None else edge - self._clock()):
                    await self._has_changed.wait()
                self._has_changed.clear()
                return
        self._acted_at = self._clock()
        self._act()
        await asyncio.sleep(_TOGETHER_S)

    async def watch(self) -> None:
        """While the pre-warmer listens, see within moments that an instance with a GPU works, or is idle too long."""
        await self._is_watched.wait()
        now = self._clock()
        ready = [each for each in self._fleet.instances.values() if each.options.gpu > 0 and each.state == "ready"]
        if not ready or not self.book.is_alive(now):
            self._is_watched.clear()
            return
        self._fleet.observe(now, ready)
        if any(self._watched_at < each.idle_since + GRACE_S <= now for each in ready):
            self._act()
        self._watched_at = now
        await asyncio.sleep(WATCH_S)
