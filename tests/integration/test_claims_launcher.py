"""The launcher and claims: it makes the stream and the folder, tells where its instances are, and sweeps."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from algomesh_broker.claims import ClaimStore
from algomesh_broker.claims_hosts import LauncherHosts
from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.messages import Claim
from algomesh_broker.server import NatsServer
from algomesh_services.launcher import claims, isolation
from tests.conditions import until
from tests.integration.launcher_mesh import Mesh

pytestmark = pytest.mark.integration

# Reads a claim and writes one, as whoever instances run as, in the view of the file system that they have.
TWICE = """
import sys, msgspec
from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.messages import Claim
memory = SharedMemory()
claim = msgspec.json.decode(sys.argv[1], type=Claim)
data = bytes(memory.read(claim))
draft = memory.create(claim.host, 60.0)
draft.write(data + data)
sys.stdout.buffer.write(msgspec.json.encode(draft.finish(claim.host, claim.id)))
"""


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(claims, "SWEEP_EVERY_S", 0.1)
    async with Mesh(nats_server.url, tmp_path) as mesh:
        await mesh.begin()
        yield mesh


async def test_a_sender_learns_from_the_beats_that_memory_is_shared(mesh: Mesh) -> None:
    hosts = LauncherHosts()
    for _, beat in mesh.caller.beats:
        hosts.on_beat(beat, time.monotonic())
    store = ClaimStore(mesh.connection)

    claim = await store.put(bytes(2**20), 60.0, host=hosts.shared(time.monotonic()))

    assert SharedMemory().is_here(claim.host)
    assert bytes(await store.get(claim)) == bytes(2**20)
    assert await store.delete(claim)


async def test_what_has_expired_is_swept_and_the_rest_stays(mesh: Mesh) -> None:
    host = mesh.caller.beats[-1][1].host
    store = ClaimStore(mesh.connection)
    stays = await store.put(b"later", 60.0, host=host)

    claim = await store.put(b"soon", 0.1, host=host)

    await until(lambda: not Path(claim.path).exists(), 10)
    assert bytes(await store.get(stays)) == b"later"
    assert await store.delete(stays)


async def test_the_stream_is_there_for_who_shares_no_memory(mesh: Mesh) -> None:
    store = ClaimStore(mesh.connection)

    claim = await store.put(bytes(2**20), 60.0)

    assert claim.chunks == 2
    assert bytes(await store.get(claim)) == bytes(2**20)
    assert await store.delete(claim)


async def test_an_isolated_instance_reads_and_writes_shared_memory(tmp_path: Path, needs_root: None) -> None:
    found = await isolation.prepare(hidden=[tmp_path])
    if found.mounts is None:
        pytest.skip(found.reason)
    memory = SharedMemory()
    host = memory.make_folder()
    draft = memory.create(host, 60.0)
    draft.write(b"payload")
    claim = draft.finish(host, "k~me.0")
    command = found.mounts.wrap([sys.executable, "-c", TWICE, msgspec.json.encode(claim).decode()], uid=found.uids[0])

    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()

    twice = msgspec.json.decode(out, type=Claim)
    assert bytes(memory.read(twice)) == b"payloadpayload"
    assert Path(twice.path).stat().st_uid == found.uids[0]
    assert memory.delete(claim)
    assert memory.delete(twice)  # the folder is ours
