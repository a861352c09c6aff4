"""The life of a program that keeps records: it waits for its servers for ever, works, and stops in order."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog

from algomesh_broker.errors import Unauthenticated, Unreachable
from algomesh_services.postgres_pool import StoreAway

T = TypeVar("T")
_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 2.0
_AWAY: Final = (StoreAway, Unreachable, Unauthenticated)


async def work_until(stopping: asyncio.Event, work: Coroutine[Any, Any, None], *, program: str, grace_s: float) -> None:
    """Run `work` to its end, which it comes to by itself once `stopping` is set; after `grace_s` it is cancelled."""
    working = asyncio.create_task(work, name=f"{program}-work")
    stop = asyncio.create_task(stopping.wait(), name=f"{program}-stop")
    try:
        await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        # Once it works, it stops by itself, in order; while it still waits for its servers, it is cancelled.
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.shield(asyncio.gather(working, return_exceptions=True))
        for task in (working, stop):
            task.cancel()
        await asyncio.gather(working, stop, return_exceptions=True)


async def retried(stopping: asyncio.Event, program: str, what: str, attempt: Callable[[], Awaitable[T]]) -> T | None:
    """`attempt`, until its server is there, or None when we are to stop; what is wrong otherwise is raised."""
    log = structlog.get_logger(f"algomesh.{program}")
    delay_s, said = _RETRY_FIRST_S, ""
    while not stopping.is_set():
        try:
            return await attempt()
        except _AWAY as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting_for_server", server=what, error=said)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await stopping.wait()
        delay_s = min(2 * delay_s, _RETRY_LAST_S)
    return None
