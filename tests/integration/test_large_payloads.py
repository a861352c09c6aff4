"""Payloads too large for a message, on their way through real instances."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from algomesh import errors
from algomesh_broker import codec, subjects
from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.messages import HostBeat
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration.bare import BareMesh
from tests.integration.bare_algorithms import echo, size, words
from tests.integration.counting_proxy import CountingProxy

pytestmark = pytest.mark.integration

MIB = 2**20


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


async def nothing_kept(mesh: BareMesh) -> bool:
    return await mesh.claims_kept() < MIB // 2


async def test_a_call_takes_and_gives_more_than_a_message_holds(mesh: BareMesh) -> None:
    await mesh.serve_all("echo")
    payload = secrets.token_bytes(9 * MIB)

    result, _ = await mesh.call("echo", payload)

    assert result == payload


async def test_arrays_keep_dtype_and_shape(mesh: BareMesh) -> None:
    await mesh.serve_all("echo")

    for array in (np.arange(3 * MIB, dtype=np.float32).reshape(3, -1), np.zeros((0, 7), np.int16)):
        result, _ = await mesh.call("echo", array)
        assert result.dtype == array.dtype
        assert np.array_equal(result, array)


async def test_a_chain_hands_large_outputs_on_and_keeps_nothing(mesh: BareMesh) -> None:
    await mesh.serve_all("echo", "size")
    payload = secrets.token_bytes(2 * MIB)

    assert (await mesh.travel(echo | echo | echo | size, payload))[0] == len(payload)
    assert (await mesh.travel(echo | echo, payload))[0] == payload

    await until_async(lambda: nothing_kept(mesh))


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    give_up = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


async def test_branches_share_one_claim_and_are_joined_without_being_fetched(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with CountingProxy(nats_server.url) as proxy:
        bare = BareMesh(nats_server, tmp_path)
        bare.url = proxy.url
        async with bare as mesh:
            await mesh.serve_all("echo", "size")
            payload = secrets.token_bytes(2 * MIB)
            await mesh.travel(echo | (echo & size), b"warm")
            proxy.published.clear()

            result, _ = await mesh.travel(echo | (echo & echo & size), payload)

            assert result == [payload, payload, len(payload)]
            written = [s for s in proxy.published if s.startswith("claim.")]
            # Five chunks each: the input, the first echo's output for all branches, and two branches' outputs.
            assert len([s for s in written if ".chunk" in s]) <= 5 * 4 + 5 * 4  # deleting writes each once more


async def test_each_takes_items_that_are_claims(mesh: BareMesh) -> None:
    await mesh.serve_all("echo", "size")
    items = [secrets.token_bytes(MIB), secrets.token_bytes(100), secrets.token_bytes(MIB)]

    assert (await mesh.travel(echo.pipeline.each() | echo | size.pipeline.each(), items))[0] == [MIB, 100, MIB]


async def test_large_json_is_split_for_each(mesh: BareMesh) -> None:
    await mesh.serve_all("words", "size")
    text = " ".join(["word"] * 200_000)

    assert (await mesh.travel(words | size, text))[0] == 200_000


async def test_on_one_host_it_goes_through_shared_memory(mesh: BareMesh) -> None:
    memory = SharedMemory()
    host = memory.make_folder()
    await mesh.serve_all("echo", "size")
    beat = HostBeat(launcher="bare", host=host)
    mesh.admin.publish(subjects.host_beat("bare"), codec.encode(beat))
    await until(lambda: mesh.lane.host)

    assert (await mesh.travel(echo | size, secrets.token_bytes(4 * MIB)))[0] == 4 * MIB

    assert await mesh.claims_kept() < 9 * MIB


async def test_over_a_gibibyte_is_refused_before_it_is_sent(mesh: BareMesh) -> None:
    with pytest.raises(errors.PayloadTooLarge, match="1"):
        await mesh.call("clean", bytes(2**30 + 1))
