"""Payloads too large for a message: put in one place, named by a Claim, read from it (ADR 0008).

In shared memory (`claims_shm.py`) where the sender knows that every reader is on its own machine, else in the stream
`claims` (`claims_stream.py`), which is also where a payload goes when shared memory has no room. The receiver needs to
know nothing: the claim says where it lies. A claim may be passed on without reading it, by anybody to anybody; who
knows it may read it, until it expires or its writer deletes it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, cast

from algomesh_broker.claims_shm import MAX_CLAIM_BYTES, Draft, SharedMemory, SharedMemoryFull
from algomesh_broker.claims_stream import CHUNK_BYTES, ClaimStream
from algomesh_broker.connection import Connection
from algomesh_broker.errors import PayloadTooLarge, Unreachable
from algomesh_broker.messages import Claim
from algomesh_observability.logger import get_logger

__all__ = ["CLAIM_OVER_BYTES", "MAX_CLAIM_BYTES", "ClaimStore", "Payload"]

log = get_logger("algomesh.claims")

Buffer = bytes | bytearray | memoryview
Payload = Buffer | Iterable[Buffer] | AsyncIterable[Buffer]

CLAIM_OVER_BYTES = 512 * 1024
# More than this is copied in a thread: the loop is held a millisecond at most.
_INLINE_BYTES = 2 * 2**20


class ClaimStore:
    """Puts and gets claims over one connection; one for each connection, closed before it."""

    def __init__(self, connection: Connection, *, memory: SharedMemory | None = None) -> None:
        self._stream = ClaimStream(connection)
        self._memory = memory or SharedMemory()

    async def put(self, payload: Payload, ttl_s: float, *, host: str = "", deadline: float | None = None) -> Claim:
        """Store a payload, or the pieces of one, for `ttl_s` seconds, and return what stands for it.

        `host` is where every reader lives, nothing if they do not live on one machine; `deadline` is a time of the
        running loop. Raises PayloadTooLarge above 1 GiB, StreamError when the stream is full, Unreachable when the
        mesh is away or the deadline passes, Forbidden.
        """
        whole = _whole(payload)
        if whole is not None and len(whole) > MAX_CLAIM_BYTES:
            raise PayloadTooLarge(len(whole), MAX_CLAIM_BYTES)
        claim_id = self._stream.new_id()
        pieces = _pieces(payload)
        try:
            async with asyncio.timeout_at(deadline):
                if host:
                    try:
                        draft = self._memory.create(host, ttl_s, size_bytes=len(whole or b""))
                    except OSError as error:
                        log.info("shared_memory_not_used", error=str(error))
                    else:
                        try:
                            return await self._share(draft, host, claim_id, whole, pieces, ttl_s)
                        finally:
                            draft.abandon()
                return await self._stream.put(claim_id, _recut(pieces), ttl_s)
        except TimeoutError as error:
            raise Unreachable("the payload could not be stored in time") from error

    async def get(self, claim: Claim, *, deadline: float | None = None) -> memoryview:
        """The payload, read-only; from shared memory without a copy, where its writer is root or of this process' uid.

        Raises ClaimGone when it is not there, is not as claimed, or lies in another machine's memory; Unreachable when
        the mesh is away or the deadline passes.
        """
        if claim.path:
            if claim.size_bytes <= _INLINE_BYTES:
                return self._memory.read(claim)
            return await asyncio.to_thread(self._memory.read, claim)
        buffer: bytearray | None = None
        at = 0
        async with contextlib.aclosing(self._from_stream(claim, deadline)) as pieces:
            async for piece in pieces:
                if claim.chunks == 1:
                    return piece.toreadonly()
                if buffer is None:  # not before something has come: a claim is easily said
                    buffer = bytearray(claim.size_bytes)
                buffer[at : at + len(piece)] = piece
                at += len(piece)
        return memoryview(buffer or b"").toreadonly()

    async def pieces(self, claim: Claim, *, deadline: float | None = None) -> AsyncGenerator[memoryview, None]:
        """The payload piece by piece, a few mebibytes of it in memory at a time. Raises as `get` does."""
        if not claim.path:
            async with contextlib.aclosing(self._from_stream(claim, deadline)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        loop = asyncio.get_running_loop()
        for piece in self._memory.pieces(claim):
            if deadline is not None and loop.time() > deadline:
                raise Unreachable("the payload could not be read in time")
            yield piece
            await asyncio.sleep(0)

    async def delete(self, claim: Claim) -> bool:
        """Delete a payload that this caller wrote; what is another's stays, and what cannot be deleted expires.

        False when nothing was to be deleted here. Raises ClaimGone for what cannot be a claim.
        """
        return self._memory.delete(claim) if claim.path else self._stream.delete(claim)

    def close(self) -> None:
        """Let go of the connection."""
        self._stream.close()

    async def _share(
        self,
        draft: Draft,
        host: str,
        claim_id: str,
        whole: memoryview | None,
        pieces: AsyncIterator[memoryview],
        ttl_s: float,
    ) -> Claim:
        """Write it into shared memory; where that has no room in the end, all of it goes to the stream."""
        try:
            if whole is not None and len(whole) > _INLINE_BYTES:
                await _to_its_end(draft.write, whole)
                return draft.finish(host, claim_id)
            async for piece in pieces:
                before = draft.size_bytes
                if before + len(piece) > MAX_CLAIM_BYTES:
                    raise PayloadTooLarge(before + len(piece), MAX_CLAIM_BYTES)
                try:
                    draft.write(piece)
                except SharedMemoryFull:
                    pieces = _followed(draft.read_back(), piece[draft.size_bytes - before :], pieces)
                    raise
            return draft.finish(host, claim_id)
        except SharedMemoryFull as error:
            log.info("shared_memory_full", error=str(error))
            return await self._stream.put(claim_id, _recut(pieces), ttl_s)

    async def _from_stream(self, claim: Claim, deadline: float | None) -> AsyncGenerator[memoryview, None]:
        source = self._stream.pieces(claim)
        async with contextlib.aclosing(source):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(source, None)
                except TimeoutError as error:
                    raise Unreachable("the payload could not be read in time") from error
                if piece is None:
                    return
                yield piece


def _whole(payload: Payload) -> memoryview | None:
    """The payload, when it is all in one buffer."""
    return _flat(payload) if isinstance(payload, bytes | bytearray | memoryview) else None


def _flat(payload: "bytes | bytearray | memoryview[Any]") -> memoryview:
    """The buffer as bytes, without a copy."""
    view = memoryview(payload)
    return view.cast("B") if view.nbytes else memoryview(b"")


async def _pieces(payload: Payload) -> AsyncIterator[memoryview]:
    """The payload in the pieces it comes in."""
    whole = _whole(payload)
    if whole is not None:
        for at in range(0, len(whole), CHUNK_BYTES):
            yield whole[at : at + CHUNK_BYTES]
    elif isinstance(payload, AsyncIterable):
        async for piece in payload:
            yield _flat(piece)
    else:
        for piece in cast("Iterable[Buffer]", payload):
            yield _flat(piece)
            await asyncio.sleep(0)


async def _followed(
    first: Iterable[bytes], then: memoryview, rest: AsyncIterator[memoryview]
) -> AsyncIterator[memoryview]:
    for written in first:
        yield memoryview(written)
    yield then
    async for piece in rest:
        yield piece


async def _recut(pieces: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
    """The same bytes in pieces of CHUNK_BYTES, and a last one that may be shorter."""
    kept = bytearray()
    async for piece in pieces:
        at = 0
        while at < len(piece):
            if not kept and len(piece) - at >= CHUNK_BYTES:
                yield piece[at : at + CHUNK_BYTES]
                at += CHUNK_BYTES
                continue
            taken = piece[at : at + CHUNK_BYTES - len(kept)]
            kept += taken
            at += len(taken)
            if len(kept) == CHUNK_BYTES:
                yield memoryview(kept)
                kept = bytearray()
    if kept:
        yield memoryview(kept)


async def _to_its_end(work: Callable[[memoryview], None], payload: memoryview) -> None:
    """Do it in a thread, and return when the thread has ended: a file must not be closed under it."""
    task = asyncio.create_task(asyncio.to_thread(work, payload), name="claim-write")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
    finally:
        if task.done() and not task.cancelled():
            task.exception()
