"""What the launcher does for payloads that travel by claim: the stream, the folder in shared memory, clearing it.

Pieces in the stream expire by themselves. Files in shared memory do not, so they are swept; what a launcher that was
killed has left, the next one sweeps.
"""

import asyncio

import structlog

from algomesh_broker import subjects
from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.streams import JetStreamAdmin

log = structlog.get_logger("algomesh.launcher")

SWEEP_EVERY_S = 5.0


class Claims:
    """The places where payloads lie. `host` goes into the launcher's beats: the shared memory its instances see."""

    def __init__(self, admin: JetStreamAdmin, memory: SharedMemory | None = None) -> None:
        self._admin = admin
        self._memory = memory or SharedMemory()
        try:
            self.host = self._memory.make_folder()
        except OSError as error:
            # Nothing is lost but speed: payloads go to the stream.
            log.warning("shared_memory_not_used", error=str(error))
            self.host = ""

    async def ensure(self) -> None:
        """Make the stream unless it is there. Raises StreamError, Unreachable."""
        if await self._admin.ensure_claims():
            log.info("stream_created", stream=subjects.CLAIMS_STREAM)

    async def keep_swept(self) -> None:
        """Remove what has expired from shared memory, every few seconds, until cancelled."""
        while self.host:
            try:
                removed = await asyncio.to_thread(self._memory.sweep)
            except OSError as error:
                log.warning("sweep_failed", error=str(error))
            else:
                if removed:
                    log.info("claims_swept", count=removed)
            await asyncio.sleep(SWEEP_EVERY_S)
