"""Runs that were started and not waited for: `algo.start(x)` gives one, to be waited for later, or cancelled.

A cancel reaches everything the run has led to: stages of its pipeline, branches, children. One that comes before the
start stops the start, and one after the end, or a second one, changes nothing.
"""

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import Any

from algomesh import errors
from algomesh.response import Response

_CANCELLED = "you cancelled it"


class Run:
    """A run under way, for plain code; safe to use from several threads."""

    def __init__(self, future: "concurrent.futures.Future[Response]") -> None:
        self._future = future

    def wait(self, timeout: float | None = None) -> Response:
        """Its response, as `pipe` gives it; waits up to `timeout` seconds, and the run goes on if it is not there.

        Raises the MeshError that the run ended in, Cancelled after `cancel`, and TimeoutError.
        """
        try:
            return self._future.result(timeout)
        except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
            raise errors.Cancelled(_CANCELLED) from error
        except concurrent.futures.TimeoutError as error:
            if self._future.done():
                raise
            raise TimeoutError(f"the run has not ended within {timeout:g} s; it goes on") from error

    def cancel(self) -> bool:
        """Stop it and all it has led to; whether there was anything to stop."""
        return not self._future.cancelled() and self._future.cancel()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._future.done()


class AsyncRun:
    """A run under way, for asyncio: `await` it for its response."""

    def __init__(self, task: "asyncio.Task[Response]") -> None:
        self._task = task
        self._is_cancelled = False
        # What it ended in is told when somebody asks; nobody has to.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def __await__(self) -> Generator[Any, None, Response]:
        return self._wait().__await__()

    def cancel(self) -> bool:
        """Stop it and all it has led to; whether there was anything to stop."""
        was_cancelled, self._is_cancelled = self._is_cancelled, True
        return not was_cancelled and self._task.cancel()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._task.done()

    async def _wait(self) -> Response:
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise errors.Cancelled(_CANCELLED)
        return self._task.result()
