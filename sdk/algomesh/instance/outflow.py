"""Parts on their way out of a run: numbered, in order, and no more of them than the reader has room for.

The writer is a generator in a thread, or an asynchronous one in the loop; the reader gives credit (`give`), and the
writer waits when it is used up. So a slow reader slows the writer, and memory stays flat.
"""

import asyncio
import threading
from collections.abc import Callable

from algomesh import errors
from algomesh.content import Content

Publish = Callable[[int, Content], None]


class Outflow:
    """The parts of one run. `publish(number, part)` is called in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, publish: Publish, upto: int) -> None:
        self.sent = 0
        self._loop = loop
        self._publish = publish
        self._upto = upto
        self._room = threading.Condition()
        self._woken = asyncio.Event()
        self._closed: errors.MeshError | None = None

    def give(self, upto: int) -> None:
        """Parts below `upto` may be sent; called in the loop."""
        with self._room:
            self._upto = max(self._upto, upto)
            self._room.notify_all()
        self._woken.set()

    def close(self, reason: errors.MeshError) -> None:
        """Nobody wants more: the writer's next part raises `reason`."""
        with self._room:
            self._closed = reason
            self._room.notify_all()
        self._woken.set()

    def put(self, part: Content) -> None:
        """Send one part from a thread; waits for room. Raises what `close` was given."""
        with self._room:
            while self._closed is None and self.sent >= self._upto:
                self._room.wait()
            if self._closed is not None:
                raise self._closed
            number = self.sent
            self.sent += 1
        self._loop.call_soon_threadsafe(self._publish, number, part)

    async def put_async(self, part: Content) -> None:
        """Send one part from the loop; waits for room. Raises what `close` was given."""
        while self._closed is None and self.sent >= self._upto:
            self._woken.clear()
            await self._woken.wait()
        if self._closed is not None:
            raise self._closed
        number = self.sent
        self.sent += 1
        self._publish(number, part)
