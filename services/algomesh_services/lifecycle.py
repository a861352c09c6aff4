"""The life of a program: it waits for its servers for ever, works, and stops in order.

What may be away is said by who waits, so nothing of PostgreSQL is known here.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import structlog

from algomesh_broker.errors import Unauthenticated, Unreachable

T = TypeVar("T")
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

NATS_AWAY: Final = (Unreachable, Unauthenticated)
_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 2.0


def told_to_stop() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on; for the main thread."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


class Life:
    """One life of a program, from its first attempt to reach a server until it has stopped."""

    def __init__(self, program: str, stopping: asyncio.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """`stopping` is set when the program is to stop; `on_ready` is called once it works."""
        self.stopping = stopping
        self._program, self._on_ready = program, on_ready
        self._has_begun = False

    def begin(self) -> None:
        """It works: from here on it stops by itself, in order."""
        self._has_begun = True
        self._on_ready()

    async def live(self, work: Coroutine[Any, Any, None], *, grace_s: float) -> None:
        """Run `work`, which comes to its end by itself once `stopping` is set, if it has begun; else it is cancelled.

        So it is `grace_s` after `stopping`, or when we are cancelled. What it raises is raised.
        """
        working = asyncio.create_task(work, name=f"{self._program}-work")
        stop = asyncio.create_task(self.stopping.wait(), name=f"{self._program}-stop")
        try:
            await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._has_begun:
                await asyncio.wait({working}, timeout=grace_s)
        finally:
            working.cancel()
            stop.cancel()
            await asyncio.gather(working, stop, return_exceptions=True)
        if not working.cancelled():
            working.result()

    async def until_there(self, what: str, attempt: Callable[[], Awaitable[T]], away: Errors = NATS_AWAY) -> T:
        """`attempt`, until the server `what` is there; any error but those of `away` is raised."""
        log = structlog.get_logger(f"algomesh.{self._program}")
        return await retried(attempt, away, lambda said: log.warning("waiting_for_server", server=what, error=said))


async def retried(
    attempt: Callable[[], Awaitable[T]],
    away: Errors,
    say: Callable[[str], object],
    *,
    first_s: float = _RETRY_FIRST_S,
    last_s: float = _RETRY_LAST_S,
) -> T:
    """`attempt`, again and again while it raises one of `away`; `say` gets what is wrong, once while it is the same.

    Before the second attempt it waits `first_s`, then twice as long each time up to `last_s`, or a bit less: whoever
    waits for the same server should not all come at once.
    """
    delay_s, said = first_s, ""
    while True:
        try:
            return await attempt()
        except away as error:
            if str(error) != said:
                said = str(error)
                say(said)
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
        delay_s = min(2 * delay_s, last_s)
