"""Keeps memory and directory true: hears what any registry changed, and looks again after an outage."""

import asyncio

import structlog

from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import caller_of_id
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.postgres_pool import StoreAway
from algomesh_services.registry.callout import Grants
from algomesh_services.registry.eviction import close_connections
from algomesh_services.registry.keys import KeyRing
from algomesh_services.registry.mirror import Mirror
from algomesh_services.registry.store import KeyRecord, Store

log = structlog.get_logger("algomesh.registry")

_RETRY_S = 0.5


class Upkeep:
    """The registry's standing work; `task` runs for ever once `start` was called.

    `is_fresh` is set when everything has been read for the first time, after listening began: from then
    on no change is missed.
    """

    task: asyncio.Task[None]

    def __init__(
        self,
        store: Store,
        admin: JetStreamAdmin,
        mirror: Mirror,
        keys: KeyRing,
        grants: Grants,
        system: Connection | None,
    ) -> None:
        self._store, self._admin, self._mirror = store, admin, mirror
        self._keys, self._grants = keys, grants
        self._system = system
        self._active: set[str] = set()
        self._heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue(10_000)
        self._is_stale = asyncio.Event()
        self.is_fresh = asyncio.Event()

    def start(self) -> None:
        """Begin."""
        self._admin.connection.on_reconnect.append(self._is_stale.set)
        self.task = asyncio.create_task(self._run(), name="registry-upkeep")

    async def close(self) -> None:
        """End."""
        self._admin.connection.on_reconnect.remove(self._is_stale.set)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def refresh(self) -> None:
        """Read everything anew, and repair the directory. Raises StoreAway, BrokerError."""
        await self._refresh_keys()
        await self._admin.ensure_directory()
        for record in await self._mirror.check():
            self._grants.put(record)

    async def find_key(self, id_: str) -> KeyRecord | None:
        """Look up a key that memory does not have, and keep it there. Raises StoreAway."""
        record = await self._store.key(id_)
        if record is not None:
            self._learn(record)
        return record

    async def find_version(self, version: str) -> None:
        """Look up what `owner/name/1.2.0` may call, and keep it in memory. Raises StoreAway."""
        owner, name, _ = version.split("/")
        for record in await self._store.versions(owner, name):
            self._grants.put(record)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._store.watch(self._on_change, self._on_resume), name="registry-watch")
            group.create_task(self._apply_changes(), name="registry-changes")
            group.create_task(self._refresh_when_stale(), name="registry-refresh")

    def _on_change(self, kind: str, id_: str) -> None:
        try:
            self._heard.put_nowait((kind, id_))
        except asyncio.QueueFull:
            self._is_stale.set()

    async def _on_resume(self) -> None:
        self._is_stale.set()

    async def _refresh_when_stale(self) -> None:
        while True:
            await self._is_stale.wait()
            self._is_stale.clear()
            try:
                await self.refresh()
                self.is_fresh.set()
            except (StoreAway, BrokerError) as error:
                log.warning("refresh_failed", error=str(error))
                self._is_stale.set()
                await asyncio.sleep(_RETRY_S)

    async def _apply_changes(self) -> None:
        while True:
            kind, id_ = await self._heard.get()
            try:
                if kind == "key":
                    await self._apply_key(id_)
                elif kind == "version":
                    await self.find_version(id_)
            except (StoreAway, BrokerError) as error:
                log.warning("change_not_applied", kind=kind, error=str(error))
                self._is_stale.set()

    async def _apply_key(self, id_: str) -> None:
        record = await self.find_key(id_)
        if record is not None and record.revoked_at is not None:
            await self._evict(id_)

    async def _refresh_keys(self) -> None:
        records = await self._store.keys()
        revoked = [record.id for record in records if record.revoked_at is not None and record.id in self._active]
        self._keys.replace(records)
        # What is to be evicted stays here until it is, so that a failure is tried again.
        self._active = {record.id for record in records if record.revoked_at is None}.union(revoked)
        for id_ in revoked:
            await self._evict(id_)

    def _learn(self, record: KeyRecord) -> None:
        self._keys.put(record)
        if record.revoked_at is None:
            self._active.add(record.id)

    async def _evict(self, id_: str) -> None:
        if self._system is None:
            self._active.discard(id_)
            log.warning(
                "connections_not_closed", key_id=id_, reason="there is no system.nk; they end with their session"
            )
            return
        await close_connections(self._system, caller_of_id(id_))
        self._active.discard(id_)
