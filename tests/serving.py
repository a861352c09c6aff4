"""A program of the mesh as a task of the test's own: begun, waited for until it is ready, and stopped as by SIGTERM."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

Serve = Callable[[asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]


@asynccontextmanager
async def running(serve: Serve, within_s: float = 20.0) -> AsyncIterator["asyncio.Task[None]"]:
    """Run `serve`, which takes an event that stops it and what to call when it is ready, until the block ends.

    Raises what it ends with, TimeoutError when it is not ready `within_s` or does not stop.
    """
    stopping, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(stopping, ready.set))
    waiting = asyncio.create_task(ready.wait())
    try:
        async with asyncio.timeout(within_s):
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield task
    finally:
        waiting.cancel()
        stopping.set()
        async with asyncio.timeout(20):
            await task
