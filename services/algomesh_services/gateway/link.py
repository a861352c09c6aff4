"""The gateway's own link to the mesh: one connection as program `gateway`, and the directory.

It calls nothing; it knows what there is and whether NATS answers. While NATS, its secrets or the directory are
not there it tries again, for ever, and whoever asks meanwhile gets `Unreachable` at once.
"""

import asyncio
from pathlib import Path

import structlog

from algomesh import errors
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BrokerError
from algomesh_services.lifecycle import retried

log = structlog.get_logger("algomesh.gateway")

_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0


class Link:
    """What the gateway knows of the mesh. `run` keeps it up until cancelled."""

    def __init__(self, nats_url: str, secrets: Path) -> None:
        self._nats_url = nats_url
        self._secrets = secrets
        self._connection: Connection | None = None
        self._directory: Directory | None = None

    @property
    def is_up(self) -> bool:
        """Whether NATS answers and the directory has been read."""
        return self._directory is not None and self._connection is not None and self._connection.is_connected

    @property
    def directory(self) -> Directory:
        """Which algorithms there are. Raises Unreachable until it has been read."""
        if self._directory is None:
            raise errors.Unreachable("the mesh is not up yet: no NATS server or no directory; try again in a moment")
        return self._directory

    async def run(self) -> None:
        """Connect, read the directory, and stay; tries again until cancelled."""
        try:
            directory = await retried(
                self._open,
                (BrokerError, OSError),
                lambda said: log.warning("mesh_not_reached", nats=self._nats_url, error=said),
                first_s=_RETRY_FIRST_S,
                last_s=_RETRY_LAST_S,
            )
            log.info("ready", nats=self._nats_url, algorithms=len(directory))
            await asyncio.Event().wait()
        finally:
            await self._close()

    async def _open(self) -> Directory:
        identity = program_identity(self._secrets, "gateway")
        self._connection = await Connection.open(self._nats_url, identity, name="gateway")
        try:
            self._directory = await Directory.open(self._connection)
        except BaseException:
            await self._close()
            raise
        return self._directory

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        directory, self._directory = self._directory, None
        if directory is not None:
            await directory.close()
        if connection is not None:
            await connection.close()
