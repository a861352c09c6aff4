"""What the launcher does for results that are kept: the stream in which they lie, and expire by themselves."""

import structlog

from algomesh_broker import subjects
from algomesh_broker.errors import StreamError
from algomesh_broker.streams import JetStreamAdmin

log = structlog.get_logger("algomesh.launcher")


class Results:
    """The stream of kept results; without it nothing is kept, and everything runs."""

    def __init__(self, admin: JetStreamAdmin) -> None:
        self._admin = admin

    async def ensure(self) -> None:
        """Make the stream unless it is there, or there is no room for one. Raises Unreachable."""
        try:
            if await self._admin.ensure_cache():
                log.info("stream_created", stream=subjects.CACHE_STREAM)
        except StreamError as error:
            log.warning("results_not_kept", error=str(error))
