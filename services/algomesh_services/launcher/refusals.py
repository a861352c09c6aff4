"""Tells those who wait that no instance will come, and takes their calls out of the stream."""

import asyncio
from collections.abc import Callable

import structlog

from algomesh_broker import messages
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_services.launcher.parking import Parking

log = structlog.get_logger("algomesh.launcher")

_EVERY_S = 0.02


class Refusals:
    """One message for many calls: a storm of demands is answered at most fifty times a second and version."""

    def __init__(self, parking: Parking, say: Callable[[VersionId, messages.Fleet], None]) -> None:
        self._parking, self._say = parking, say
        self._wanted: dict[VersionId, messages.Unable] = {}
        self._telling: dict[VersionId, asyncio.Task[None]] = {}

    def tell(self, version: VersionId, unable: messages.Unable) -> None:
        """Refuse all that waits for `version` now."""
        self._wanted[version] = unable
        if version not in self._telling:
            task = asyncio.get_running_loop().create_task(self._tell(version), name=f"refuse {version}")
            self._telling[version] = task

    async def close(self) -> None:
        """Tell nothing any more."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, version: VersionId) -> None:
        """Purge, then tell: whoever's call is purged has parked it by then, and hears it."""
        try:
            while (unable := self._wanted.pop(version, None)) is not None:
                purged = 0
                try:
                    purged = await self._parking.purge(version)
                except BrokerError as error:
                    log.warning("purge_failed", version=str(version), error=str(error))
                self._say(version, unable)
                if purged:
                    log.info("calls_refused", version=str(version), code=unable.code, calls=purged)
                await asyncio.sleep(_EVERY_S)
        finally:
            self._telling.pop(version, None)
