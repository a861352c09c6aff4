"""What need not go at once goes with what does: a write of its own wakes this process and the server once more.

A rider is armed when there is something to send. The next flush of its connection takes it along once it has waited
`ready_s` seconds; where there is none, it goes alone after `latest_s`.
"""

import asyncio
from collections.abc import Callable


class Rider:
    """One thing that is sent now and then; `Connection.rider` makes it. `send` publishes, and may arm it again."""

    def __init__(self, send: Callable[[], None], ready_s: float, latest_s: float) -> None:
        self._send = send
        self._ready_s, self._latest_s = ready_s, latest_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.ready_at = float("inf")

    @property
    def is_armed(self) -> bool:
        """Whether there is something to send."""
        return self._timer is not None

    def arm(self) -> None:
        """There is something to send from now on."""
        if self._timer is None:
            self.ready_at = self._loop.time() + self._ready_s
            self._timer = self._loop.call_later(self._latest_s, self.go)

    def disarm(self) -> None:
        """There is nothing to send any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self.ready_at = None, float("inf")

    def go(self) -> None:
        """Send it now."""
        self.disarm()
        self._send()
