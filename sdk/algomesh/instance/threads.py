"""Threads for user code: as many as there are runs, made on demand, given back the result on the loop.

Lighter than an executor: one queue in, one `call_soon_threadsafe` out.
"""

import asyncio
import queue
import threading
from collections.abc import Callable

from algomesh.instance import run_spans


class Threads:
    """Runs functions in daemon threads; one that hangs keeps nobody from leaving."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop, self._name = loop, name
        self._queue: queue.SimpleQueue[Callable[[], Callable[[], None]]] = queue.SimpleQueue()
        self._count = 0
        self._busy = 0

    def submit(self, work: Callable[[], Callable[[], None]]) -> None:
        """Run `work` in a thread, and what it returns on the loop."""
        self._busy += 1
        if self._busy > self._count:
            self._count += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True).start()
        self._queue.put(work)

    def _serve(self) -> None:
        run_spans.attach()
        while True:
            done = self._queue.get()()
            self._loop.call_soon_threadsafe(self._done, done)

    def _done(self, done: Callable[[], None]) -> None:
        self._busy -= 1
        done()
