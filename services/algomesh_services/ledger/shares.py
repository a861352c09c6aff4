"""How many GPUs versions ask for, asked of the registry once for each: a version never changes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from algomesh_broker.errors import BadName, BrokerError
from algomesh_broker.names import VersionId

log = structlog.get_logger("algomesh.ledger")

_MOST: Final = 5_000
_MOST_ASKED: Final = 100
_AT_ONCE: Final = 8
_AGAIN_S: Final = 30.0  # a version that the registry does not know, or did not answer about


class Shares:
    """GPUs by version (`owner/name/1.2.0`). `fetch` asks the registry, and raises BrokerError."""

    def __init__(self, fetch: Callable[[VersionId], Awaitable[float]]) -> None:
        self._fetch = fetch
        self._known: OrderedDict[str, float] = OrderedDict()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._not_before: OrderedDict[str, float] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._loop = asyncio.get_running_loop()

    def of(self, version: str) -> float | None:
        """What a version asks for; None while that is not known, and then it is asked for."""
        share = self._known.get(version)
        if share is None:
            self._ask(version)
        return share

    async def close(self) -> None:
        """Give up what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _ask(self, version: str) -> None:
        if version in self._asking or len(self._asking) >= _MOST_ASKED:
            return
        if self._loop.time() < self._not_before.get(version, 0.0):
            return
        try:
            id_ = VersionId.parse(version)
        except BadName:  # `other` is none
            return
        task = self._loop.create_task(self._learn(version, id_), name=f"share of {version}")
        self._asking[version] = task
        task.add_done_callback(lambda _: self._asking.pop(version, None))

    async def _learn(self, version: str, id_: VersionId) -> None:
        try:
            async with self._slots:
                self._known[version] = await self._fetch(id_)
            self._not_before.pop(version, None)
        except BrokerError as error:
            log.debug("share_not_known", version=version, error=str(error))
            self._not_before[version] = self._loop.time() + _AGAIN_S
        for bounded in (self._known, self._not_before):
            while len(bounded) > _MOST:
                bounded.popitem(last=False)
