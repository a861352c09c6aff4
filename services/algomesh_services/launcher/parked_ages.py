"""How many calls of each version are parked, and since when the oldest of them, for the launcher's metrics.

The count is the one that the control loop's net makes once a second anyway (parking.py). The oldest is asked for only
while calls wait, and of a few versions at a time.
"""

import asyncio
from typing import Final

import structlog

from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from algomesh_observability.metrics import Readings
from algomesh_services.launcher.parking import Parking

log = structlog.get_logger("algomesh.launcher")

EVERY_S: Final = 1.0
_MOST: Final = 32


class ParkedAges:
    """Follows what `parking` counts while `run` runs."""

    def __init__(self, admin: JetStreamAdmin, parking: Parking) -> None:
        self._admin, self._parking = admin, parking
        self._oldest_at: dict[VersionId, float] = {}

    def counts(self) -> Readings:
        """Parked calls by version."""
        return {(str(version),): float(count) for version, count in self._parking.counted.items()}

    def ages(self, now: float) -> Readings:
        """Seconds that the oldest call of each version has waited; `now` is seconds since the epoch."""
        return {(str(version),): max(0.0, now - at) for version, at in self._oldest_at.items()}

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        said = ""
        while True:
            try:
                await self.look()
                said = ""
            except BrokerError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("parked_age_unknown", error=said)
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Find the oldest call of each version that waits, those with most of them first. Raises BrokerError."""
        waiting = [version for version, _ in self._parking.counted.most_common(_MOST)]
        found: dict[VersionId, float] = {}
        for version in waiting:
            at = await self._admin.oldest_parked(version)
            if at is not None:
                found[version] = at
        self._oldest_at = found
