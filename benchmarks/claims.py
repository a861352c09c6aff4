"""Payloads by claim: put and get through shared memory and through the stream, beside a memcpy of the same size.

A mesh as `algomesh up` runs it, with its accounts and permissions; writer and reader are two connections of one
process, which is the stream's worst case, since one loop does both ends. Interleaved rounds, medians. Mapping alone
costs nothing, so what was mapped is looked at, a byte of each page; memcpy goes into memory that has its pages already.
"""

import asyncio
import time
from typing import Any

import uvloop

from algomesh_broker import codec, subjects
from algomesh_broker.claims import ClaimStore
from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from benchmarks import figures
from benchmarks.mesh import Mesh

MIB = 2**20
SIZES, ROUNDS = {"1 MiB": (MIB, 60), "64 MiB": (64 * MIB, 9)}, 3
_WAYS = ("shared memory, mapped", "shared memory, copied", "stream")
_TTL_S, _PAGE_BYTES = 60.0, 4096


async def measure(mesh: Mesh) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds by size and way: put, get, and both."""
    environment = mesh.environment
    identity = Identity.of_key(environment["ALGOMESH_API_KEY"])
    async with (
        await Connection.open(environment["ALGOMESH_URL"], identity) as writing,
        await Connection.open(environment["ALGOMESH_URL"], identity) as reading,
    ):
        host = await _host(reading)
        writer, reader = ClaimStore(writing), ClaimStore(reading)
        return {name: await _of_size(size, times, writer, reader, host) for name, (size, times) in SIZES.items()}


async def _of_size(
    size_bytes: int, times: int, writer: ClaimStore, reader: ClaimStore, host: str
) -> dict[str, dict[str, float]]:
    data = bytearray(range(256)) * (size_bytes // 256)
    took: dict[str, dict[str, list[float]]] = {way: {"put": [], "get": [], "both": []} for way in _WAYS}
    took["memcpy"] = {"both": []}
    memory, target = SharedMemory(), memoryview(bytearray(size_bytes))
    for number in range(ROUNDS * times):
        began = time.perf_counter()
        target[:] = data
        if number:
            took["memcpy"]["both"].append(time.perf_counter() - began)
        for way, place in zip(_WAYS, (host, host, ""), strict=True):
            began = time.perf_counter()
            claim = await writer.put(data, _TTL_S, host=place)
            put_at = time.perf_counter()
            got = memory.read(claim, copy=True) if way.endswith("copied") else await reader.get(claim)
            got[::_PAGE_BYTES].tobytes()
            got_at = time.perf_counter()
            assert len(got) == size_bytes
            del got
            await writer.delete(claim)
            if number:  # the first round warms
                for step, seconds in (("put", put_at - began), ("get", got_at - put_at), ("both", got_at - began)):
                    took[way][step].append(seconds)
    return {way: {step: figures.median(all_) * 1000 for step, all_ in steps.items()} for way, steps in took.items()}


async def _host(connection: Connection) -> str:
    """The launcher's shared memory, from its beat."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_beat(message: Any) -> None:
        if not heard.done():
            heard.set_result(codec.decode_host_beat(message.data).host)

    subscription = await connection.subscribe(subjects.HOST_BEATS, on_beat)
    try:
        async with asyncio.timeout(20):
            return await heard
    finally:
        await subscription.leave()


def run() -> dict[str, Any]:
    """Print a table and return its figures, in milliseconds."""
    with Mesh() as mesh:
        found: dict[str, dict[str, dict[str, float]]] = uvloop.run(measure(mesh))
    rows = [
        [size, way, *(f"{steps[step]:.2f}" if step in steps else "" for step in ("put", "get", "both"))]
        for size, ways in found.items()
        for way, steps in ways.items()
    ]
    figures.table("Payloads by claim, ms", ["size", "way", "put", "get", "both"], rows)
    return found
