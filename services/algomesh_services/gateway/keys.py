"""One connection to NATS per API key, so that the broker itself decides what each request may do.

A connection is opened when its key is first used, by one of the requests that need it while the others wait
for it, and closed when nobody has used it for a while. The gateway keeps no table of keys: what it looks a key up
by is a digest under a secret of this process.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from algomesh import errors
from algomesh.lane import Lane
from algomesh.nats_transport import NatsTransport, translate
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity
from algomesh_services.gateway.refusals import Refusals, unknown_key

log = structlog.get_logger("algomesh.gateway")

_OPENING_AT_ONCE: Final = 16
_OPENINGS: Final = 256
_SWEEP_S: Final = 1.0
_SETTLED_S: Final = 1.0


@dataclass(eq=False)
class _Entry:
    """A key's connection; `used_at` is the loop's time."""

    digest: bytes
    transport: NatsTransport
    used_at: float
    in_use: int = 0
    is_refused: bool = False


class KeyPool:
    """The connections of all keys that are in use. `run` sweeps until cancelled, then closes them."""

    def __init__(
        self,
        nats_url: str,
        directory: Callable[[], Directory],
        *,
        limit: int = 1_000,
        idle_s: float = 300.0,
        open_timeout_s: float = 3.0,
    ) -> None:
        self._nats_url, self._directory = nats_url, directory
        self._limit, self._idle_s, self._open_timeout_s = limit, idle_s, open_timeout_s
        self._loop = asyncio.get_running_loop()
        self._secret = secrets.token_bytes(32)
        self._entries: dict[bytes, _Entry] = {}
        self._replaced: list[_Entry] = []
        self._openings: dict[bytes, asyncio.Task[_Entry]] = {}
        self._room = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._refusals = Refusals()

    def __len__(self) -> int:
        return len(self._entries) + len(self._replaced)

    @asynccontextmanager
    async def lease(self, key: str, address: str) -> AsyncIterator[NatsTransport]:
        """The mesh as the holder of `key` sees it; `address` is where the request came from.

        Raises Unauthenticated, Unreachable when NATS is away, Overloaded.
        """
        entry = await self._find(key, address)
        entry.in_use += 1
        try:
            yield entry.transport
        except errors.Unreachable as error:
            if entry.is_refused:
                raise unknown_key() from error
            raise
        finally:
            entry.in_use -= 1
            entry.used_at = self._loop.time()

    async def run(self) -> None:
        """Close what nobody uses, until cancelled; then close everything."""
        try:
            while True:
                await asyncio.sleep(_SWEEP_S)
                await self._sweep(self._loop.time())
        finally:
            for task in self._openings.values():
                task.cancel()
            await asyncio.gather(*self._openings.values(), return_exceptions=True)
            entries = [*self._entries.values(), *self._replaced]
            self._entries.clear()
            self._replaced.clear()
            await asyncio.gather(*(entry.transport.close() for entry in entries))

    async def _find(self, key: str, address: str) -> _Entry:
        try:
            identity = Identity.of_key(key)
        except BrokerError as error:
            raise translate(error) from error
        digest = hashlib.blake2b(key.encode(), key=self._secret, digest_size=16).digest()
        entry = self._entries.get(digest)
        if entry is not None and entry.transport.connection.is_connected:
            return entry
        self._refusals.check(digest, self._loop.time())
        return await asyncio.shield(self._opening(digest, identity, address))

    def _opening(self, digest: bytes, identity: Identity, address: str) -> "asyncio.Task[_Entry]":
        task = self._openings.get(digest)
        if task is None:
            if len(self._openings) >= _OPENINGS:
                raise errors.Overloaded("too many new keys are being checked; try again in a moment")
            task = self._loop.create_task(self._open(digest, identity, address), name="open-key")
            self._openings[digest] = task

            def opened(done: "asyncio.Task[_Entry]") -> None:
                del self._openings[digest]
                if not done.cancelled():
                    done.exception()  # read: whoever waited for it may have gone

            task.add_done_callback(opened)
        return task

    async def _open(self, digest: bytes, identity: Identity, address: str) -> _Entry:
        """Open the connection of one key, in place of one that was lost."""
        directory = self._directory()
        async with self._room:
            self._refusals.begin(address, self._loop.time())
            await self._make_place()
            try:
                transport = await self._connect(identity, directory)
            except errors.Unauthenticated:
                self._refusals.refused(digest, self._loop.time())
                await self._drop(digest)
                raise unknown_key() from None
            except errors.MeshError:
                self._refusals.accepted(address)
                raise
        self._refusals.accepted(address)
        before = self._entries.pop(digest, None)
        if before is not None:
            self._replaced.append(before)
        entry = self._entries[digest] = _Entry(digest, transport, self._loop.time())
        transport.connection.on_disconnect.append(lambda: self._on_lost(entry, identity))
        return entry

    async def _connect(self, identity: Identity, directory: Directory) -> NatsTransport:
        try:
            connection = await Connection.open(
                self._nats_url, identity, name="gateway-key", timeout_s=self._open_timeout_s
            )
        except BrokerError as error:
            raise translate(error) from error
        try:
            # All keys see one directory: the gateway's own copy serves them all.
            return NatsTransport(connection, await Lane.open(connection), directory)
        except BrokerError as error:
            await connection.close()
            raise translate(error) from error
        except BaseException:
            await connection.close()
            raise

    def _on_lost(self, entry: _Entry, identity: Identity) -> None:
        """NATS is away, or the key was revoked: somebody waits, so find out now rather than at the deadline."""
        if entry.in_use and self._entries.get(entry.digest) is entry and len(self._openings) < _OPENINGS:
            self._opening(entry.digest, identity, "")

    async def _drop(self, digest: bytes) -> None:
        """The key was revoked: its calls under way end too."""
        current = self._entries.pop(digest, None)
        entries = [entry for entry in self._replaced if entry.digest == digest] + ([current] if current else [])
        self._replaced = [entry for entry in self._replaced if entry.digest != digest]
        for entry in entries:
            entry.is_refused = True
            await entry.transport.close()

    async def _make_place(self) -> None:
        if len(self._entries) < self._limit:
            return
        now = self._loop.time()
        unused = [
            (entry.used_at, digest)
            for digest, entry in self._entries.items()
            if not entry.in_use and now - entry.used_at > _SETTLED_S
        ]
        if not unused:
            raise errors.Overloaded(f"{self._limit} keys are in use at this gateway; try again later")
        await self._entries.pop(min(unused)[1]).transport.close()

    async def _sweep(self, now: float) -> None:
        """Close the connections nobody uses: in time, and at once those that were lost or replaced."""
        idle = [
            digest
            for digest, entry in self._entries.items()
            if not entry.in_use
            and now - entry.used_at > (self._idle_s if entry.transport.connection.is_connected else _SETTLED_S)
        ]
        leaving = [self._entries.pop(digest) for digest in idle]
        leaving += [entry for entry in self._replaced if not entry.in_use]
        self._replaced = [entry for entry in self._replaced if entry.in_use]
        for entry in leaving:
            await entry.transport.close()
