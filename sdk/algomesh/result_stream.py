"""What `stream` returns: the parts of a run as they come, for threads and for asyncio.

The run begins when the first part is asked for. It is cancelled by leaving early: `close`, the end of the `with`
block, or forgetting the stream.
"""

import asyncio
import concurrent.futures
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Final, Self

from algomesh import errors
from algomesh.content import Content, decode
from algomesh.response import Metadata

Tell = Callable[[Metadata], None]
_CLOSING_TRIES: Final = 400
_CLOSING_WAIT_S: Final = 0.005
Begin = Callable[[Coroutine[Any, Any, Any]], "concurrent.futures.Future[Any]"]


class AsyncStream:
    """The parts of one run: `async for part in stream`; `metadata` is there when they have ended."""

    def __init__(self, open_parts: Callable[[Tell], AsyncGenerator[Content, None]]) -> None:
        # The parts must not know the stream: who forgets it ends the run, at once.
        self._told: list[Metadata] = []
        self._parts = open_parts(self._told.append)

    @property
    def metadata(self) -> Metadata | None:
        """What happened to the run; None before its end."""
        return self._told[-1] if self._told else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next part. Raises MeshError."""
        return decode(*await anext(self._parts))

    async def aclose(self) -> None:
        """Leave; a run that still goes on is cancelled."""
        await self._parts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Stream(Iterator[Any]):
    """The parts of one run, for plain code: `for part in stream`; `metadata` is there when they have ended."""

    def __init__(self, parts: AsyncStream, begin: Begin, owner: object = None) -> None:
        """`begin` starts work on the loop that `parts` belong to; `owner` lives as long as the stream."""
        self._parts = parts
        self._begin = begin
        self._owner = owner
        self._reading: concurrent.futures.Future[Any] | None = None
        self._finalizer = weakref.finalize(self, _leave, parts, begin)

    @property
    def metadata(self) -> Metadata | None:
        """What happened to the run; None before its end."""
        return self._parts.metadata

    def __next__(self) -> Any:
        """The next part. Raises MeshError."""
        if not self._finalizer.alive:
            raise StopIteration
        try:
            reading = self._reading = self._begin(anext(self._parts))
        except RuntimeError as error:
            raise errors.Unreachable("the client of this stream was closed") from error
        try:
            return reading.result()
        except StopAsyncIteration:
            raise StopIteration from None
        except concurrent.futures.CancelledError as error:
            if not self._finalizer.alive:  # another thread has closed it
                raise StopIteration from None
            raise errors.Cancelled("the run was stopped") from error
        except BaseException:  # Ctrl-C in the thread that waits, say
            reading.cancel()
            raise

    def close(self) -> None:
        """Leave; a run that still goes on is cancelled, also when another thread waits for its next part."""
        leaving = self._finalizer()
        if self._reading is not None:
            self._reading.cancel()
        if leaving is not None:
            concurrent.futures.wait([leaving], timeout=2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leave(parts: AsyncStream, begin: Begin) -> "concurrent.futures.Future[Any] | None":
    leaving = _close(parts)
    try:
        return begin(leaving)
    except RuntimeError:  # the loop has ended, and the run with it
        leaving.close()
        return None


async def _close(parts: AsyncStream) -> None:
    for _ in range(_CLOSING_TRIES):
        try:
            await parts.aclose()
        except RuntimeError:  # somebody still waits for a part; that is cancelled, and ends in a moment
            await asyncio.sleep(_CLOSING_WAIT_S)
        else:
            return
