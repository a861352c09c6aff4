"""What goes into a call: one value, or items one by one for the `each` that a pipeline begins with.

An iterator is read as its items are asked for, a plain one in a thread of its own, so that one that blocks, or never
ends, holds up nobody. Where no `each` comes first it is read to its end, into a list.
"""

import asyncio
import contextvars
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from algomesh import content, errors
from algomesh.content import Content
from algomesh.pipeline import Chain, Each, Pipeline
from algomesh.response import Response
from algomesh.transport import Input

_WHOLE: Final = frozenset({str, bytes, dict, int, float, bool, type(None), Response})
MOST_COLLECTED: Final = 100_000
_SHORTEST_S: Final = 0.001
_CHUNK: Final = 1_024


class Given(NamedTuple):
    """The input of a call, and how many seconds are left for it."""

    content: Input
    left_s: float


def encode_input(value: Any) -> Content:
    """Encode what goes into a call; a Response goes on as it came. Raises BadInput."""
    if isinstance(value, Response):
        return value.content
    try:
        return content.encode(value)
    except errors.BadOutput as error:
        raise errors.BadInput(f"the input cannot travel: {error.message.replace('return ', 'send ')}") from error


def comes_in_items(pipeline: Pipeline, value: Any) -> bool:
    """Whether a value is not encoded at once: an iterator, or a list for an `each`."""
    if type(value) in _WHOLE:  # what most calls bring, and asking abstract classes takes its time
        return False
    return isinstance(value, Iterator | AsyncIterator) or (
        isinstance(value, list | tuple) and begins_with_each(pipeline)
    )


def begins_with_each(pipeline: Pipeline) -> bool:
    """Whether its first step takes the items of a list one by one."""
    first = pipeline.stages[0] if isinstance(pipeline, Chain) else pipeline
    return isinstance(first, Each)


@asynccontextmanager
async def given(pipeline: Pipeline, value: Any, timeout_s: float) -> AsyncIterator[Given]:
    """The input of one call; when the block ends nothing more is read from an iterator.

    Raises BadInput for what cannot travel and for over 100,000 items without an `each`, DeadlineExceeded.
    """
    if not comes_in_items(pipeline, value):
        yield Given(encode_input(value), timeout_s)
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    items = Items(value, deadline)
    try:
        whole = items if begins_with_each(pipeline) else await collect(items)
        yield Given(whole, max(_SHORTEST_S, deadline - loop.time()))
    finally:
        await items.aclose()


async def collect(items: Input) -> Content:
    """A list of all items. Raises BadInput over 100,000 of them."""
    if isinstance(items, Content):
        return items
    parts: list[Content] = []
    if isinstance(items, Items):
        items.read_at_once = _CHUNK
    async for item in items:
        if len(parts) == MOST_COLLECTED:
            raise errors.BadInput(
                f"the input gave over {MOST_COLLECTED:,} items, which would all be one list; begin the pipeline with "
                ".each(), which reads them as it goes, over nats://"
            )
        parts.append(item)
    return content.join(parts, [])


class Items(AsyncIterator[Content]):
    """The items of a list or an iterator, encoded one by one; `deadline` is the loop's time.

    `read_at_once` is how many are taken from a plain iterator together.
    """

    def __init__(self, source: Any, deadline: float) -> None:
        self.read_at_once = 1
        self._source = source
        self._deadline = deadline
        self._count = 0
        self._thread: _Thread | None = None
        self._here: Iterator[Any] = iter(source if isinstance(source, list | tuple) else ())
        if not isinstance(source, list | tuple | AsyncIterator):
            self._thread = _Thread(source)

    async def __anext__(self) -> Content:
        """The next one. Raises what the iterator raises, BadInput, DeadlineExceeded."""
        number = self._count
        value = await self._next()
        self._count += 1
        try:
            return encode_input(value)
        except errors.BadInput as error:
            error.branch = [f"item {number}"]
            raise

    async def aclose(self) -> None:
        """Read no more; a generator is closed."""
        if self._thread is not None:
            self._thread.close()
        elif (close := getattr(self._source, "aclose", None)) is not None:
            await close()

    async def _next(self) -> Any:
        for item in self._here:
            return item
        if isinstance(self._source, list | tuple):
            raise StopAsyncIteration
        scope = asyncio.timeout_at(self._deadline)
        try:
            async with scope:
                if self._thread is None:
                    return await anext(self._source)
                self._here = iter(await self._thread.take(self.read_at_once))
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise errors.DeadlineExceeded(f"your input gave no item {self._count} before your time was over") from error
        for item in self._here:
            return item
        raise StopAsyncIteration


class _Thread:
    """One iterator, always advanced in the same thread, a daemon: one that hangs keeps nobody from leaving."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[tuple[asyncio.Future[Any], int] | None] = queue.SimpleQueue()
        self._context = contextvars.copy_context()
        self._is_started = False

    async def take(self, most: int) -> list[Any]:
        """The next items; none at the end."""
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._serve, name="algomesh-input", daemon=True).start()
        wanted: asyncio.Future[Any] = self._loop.create_future()
        self._wanted.put((wanted, most))
        taken: list[Any] = await wanted
        return taken

    def close(self) -> None:
        """End the thread, as soon as the iterator lets it."""
        self._wanted.put(None)

    def _serve(self) -> None:
        while (order := self._wanted.get()) is not None:
            wanted, most = order
            settle: Callable[[Any], None] = wanted.set_result
            outcome: Any
            try:
                outcome = self._context.run(list, itertools.islice(self._source, most))
            except BaseException as error:  # whatever it is, it is the reader's to see
                settle, outcome = wanted.set_exception, error
            try:
                self._loop.call_soon_threadsafe(_settle, wanted, settle, outcome)
            except RuntimeError:  # the loop has been closed: nobody reads any more
                break
        if isinstance(self._source, Generator):
            self._context.run(self._source.close)


def _settle(wanted: "asyncio.Future[Any]", settle: Callable[[Any], None], outcome: Any) -> None:
    if not wanted.done():
        settle(outcome)
