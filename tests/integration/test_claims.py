"""Claims over a real server and real shared memory: what goes in comes out, expires, is deleted, or is refused."""

import asyncio
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import claims_shm, claims_stream, subjects
from algomesh_broker.claims import ClaimStore
from algomesh_broker.claims_shm import SharedMemory, boot_clock_s, expires_at
from algomesh_broker.claims_stream import CHUNK_BYTES
from algomesh_broker.errors import ClaimGone, Forbidden, PayloadTooLarge, StreamError, Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.messages import Claim
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, eventually, let_in_every_instance, running_mesh

pytestmark = pytest.mark.integration

MIB = 2**20
READER, WRITER = "text/clean/1.0.0", "text/lower/1.0.0"
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * MIB + 17]


def data_of(size_bytes: int) -> bytes:
    block = os.urandom(min(size_bytes, 65_521))
    return (block * (size_bytes // max(1, len(block)) + 1))[:size_bytes]


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, "", with_registry=False) as mesh, let_in_every_instance(mesh):
        yield mesh


@pytest_asyncio.fixture
async def launcher(mesh: Mesh) -> JetStreamAdmin:
    launcher = await mesh.store("launcher")
    assert await launcher.ensure_claims()
    assert not await launcher.ensure_claims()
    return launcher


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """A folder of the test's own in this machine's shared memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="algomesh-test-") as root:
        memory = SharedMemory(Path(root))
        memory.make_folder()
        yield memory


async def store_of(mesh: Mesh, reference: str, memory: SharedMemory | None = None) -> ClaimStore:
    connection = await mesh.instance(reference, f"host-{reference.split('/')[1]}")
    return ClaimStore(connection, memory=memory)


class TestTheStream:
    @pytest_asyncio.fixture
    async def writer(self, mesh: Mesh, launcher: JetStreamAdmin) -> ClaimStore:
        return await store_of(mesh, WRITER)

    @pytest_asyncio.fixture
    async def reader(self, mesh: Mesh, launcher: JetStreamAdmin) -> ClaimStore:
        return await store_of(mesh, READER)

    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_gives_back_what_was_put(self, writer: ClaimStore, reader: ClaimStore, size_bytes: int) -> None:
        data = data_of(size_bytes)

        claim = await writer.put(data, 60.0)

        assert (claim.path, claim.host, claim.size_bytes) == ("", "", size_bytes)
        assert bytes(await reader.get(claim)) == data
        assert b"".join([bytes(piece) async for piece in reader.pieces(claim)]) == data

    async def test_takes_pieces_as_they_come(self, writer: ClaimStore, reader: ClaimStore) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(40):
                yield bytes([number]) * 70_001

        claim = await writer.put(pieces(), 60.0)
        same = await writer.put((bytes([number]) * 70_001 for number in range(40)), 60.0)

        wanted = b"".join(bytes([number]) * 70_001 for number in range(40))
        assert bytes(await reader.get(claim)) == bytes(await reader.get(same)) == wanted

    async def test_keeps_an_arrays_memory(self, writer: ClaimStore, reader: ClaimStore) -> None:
        array: Any = memoryview(bytearray(8 * 100_000)).cast("d", (1000, 100))

        assert (await writer.put(array, 60.0)).size_bytes == 800_000
        assert (await writer.put(memoryview(b"").cast("B"), 60.0)).size_bytes == 0

    async def test_forgets_what_its_writer_deletes_and_keeps_what_another_would_delete(
        self, writer: ClaimStore, reader: ClaimStore, launcher: JetStreamAdmin
    ) -> None:
        claim = await writer.put(data_of(3 * MIB), 60.0)
        assert await reader.delete(claim) is False
        assert len(await reader.get(claim)) == 3 * MIB

        assert await writer.delete(claim) is True

        async def is_gone() -> bool:
            try:
                await reader.get(claim)
            except ClaimGone:
                return await launcher.pending(subjects.CLAIMS_STREAM, ">") == {}
            return False

        await eventually(is_gone)

    async def test_forgets_what_has_expired(self, writer: ClaimStore, reader: ClaimStore) -> None:
        claim = await writer.put(data_of(MIB), 1.0)
        assert len(await reader.get(claim)) == MIB

        async def is_gone() -> bool:
            try:
                await reader.get(claim)
            except ClaimGone as gone:
                return "expired" in str(gone)
            return False

        await eventually(is_gone)

    async def test_does_not_know_what_nobody_put(self, reader: ClaimStore) -> None:
        unknown = Claim(id=f"text~lower.{'0' * 32}", size_bytes=2**30, chunks=2048)

        with pytest.raises(ClaimGone) as gone:
            await reader.get(unknown)

        assert gone.value.code == "claim_gone"

    async def test_that_is_not_as_claimed_is_refused(self, writer: ClaimStore, reader: ClaimStore) -> None:
        claim = await writer.put(data_of(MIB), 60.0)

        for size_bytes in (MIB - 1, MIB - CHUNK_BYTES, MIB + 1, 2 * MIB):
            chunks = -(-size_bytes // CHUNK_BYTES)
            wrong = Claim(id=claim.id, size_bytes=size_bytes, chunks=chunks)
            if size_bytes == MIB - CHUNK_BYTES:  # a shorter claim of the same pieces reads as what it says
                assert len(await reader.get(wrong)) == CHUNK_BYTES
                continue
            with pytest.raises(ClaimGone):
                await reader.get(wrong)

    async def test_refuses_more_than_the_limit_and_keeps_nothing_of_it(
        self, writer: ClaimStore, launcher: JetStreamAdmin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims_stream, "MAX_CLAIM_BYTES", 4 * MIB)
        piece = data_of(MIB)

        with pytest.raises(PayloadTooLarge):
            await writer.put((piece for _ in range(100)), 60.0)

        async def is_empty() -> bool:
            return await launcher.pending(subjects.CLAIMS_STREAM, ">") == {}

        await eventually(is_empty)

    async def test_that_is_full_refuses_by_name_and_can_still_be_emptied(
        self, writer: ClaimStore, reader: ClaimStore, launcher: JetStreamAdmin
    ) -> None:
        info = await launcher._ask("STREAM.INFO.claims")
        await launcher._ask("STREAM.UPDATE.claims", info["config"] | {"max_bytes": 3 * MIB})
        claim = await writer.put(data_of(2 * MIB), 60.0)

        with pytest.raises(StreamError, match="maximum bytes"):
            await writer.put(data_of(2 * MIB), 60.0)
        await writer.delete(claim)

        async def has_room() -> bool:
            try:
                return len(await reader.get(await writer.put(data_of(2 * MIB), 60.0))) == 2 * MIB
            except StreamError:
                return False

        await eventually(has_room)

    async def test_that_is_not_there_is_said_to_be_away(self, mesh: Mesh) -> None:
        store = await store_of(mesh, WRITER)

        with pytest.raises(Unreachable):
            await store.put(data_of(MIB), 60.0, deadline=asyncio.get_running_loop().time() + 1.0)

    async def test_that_one_may_not_write_says_so_at_once(self, mesh: Mesh, launcher: JetStreamAdmin) -> None:
        store = ClaimStore(await mesh.program("gateway"))

        with pytest.raises(Forbidden):
            await store.put(data_of(MIB), 60.0, deadline=asyncio.get_running_loop().time() + 1.0)

    async def test_is_given_up_at_the_deadline(self, writer: ClaimStore, reader: ClaimStore) -> None:
        async def slow() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        now = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable, match="in time"):
            await writer.put(slow(), 60.0, deadline=now + 0.1)
        claim = await writer.put(data_of(MIB), 60.0)
        with pytest.raises(Unreachable, match="in time"):
            await reader.get(claim, deadline=now)

    async def test_that_goes_away_in_the_middle_fails_at_once(self, mesh: Mesh, writer: ClaimStore) -> None:
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(MIB)
                begun.set()
                await asyncio.sleep(0)

        putting = asyncio.create_task(writer.put(endless(), 60.0))
        await begun.wait()
        await mesh.server.stop()

        with pytest.raises(Unreachable):
            await asyncio.wait_for(putting, 5.0)
        await mesh.server.start()

    async def test_is_read_and_written_with_flat_memory(self, writer: ClaimStore, reader: ClaimStore) -> None:
        piece = data_of(MIB)
        await reader.get(await writer.put((piece for _ in range(16)), 60.0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        claim = await writer.put((piece for _ in range(160)), 60.0)
        size_bytes = 0
        async for part in reader.pieces(claim):
            size_bytes += len(part)

        assert size_bytes == 160 * MIB
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64


class TestSharedMemory:
    @pytest.fixture
    def host(self, memory: SharedMemory) -> str:
        return memory.host(os.geteuid())

    @pytest_asyncio.fixture
    async def writer(self, mesh: Mesh, launcher: JetStreamAdmin, memory: SharedMemory) -> ClaimStore:
        return await store_of(mesh, WRITER, memory)

    @pytest_asyncio.fixture
    async def reader(self, mesh: Mesh, launcher: JetStreamAdmin, memory: SharedMemory) -> ClaimStore:
        return await store_of(mesh, READER, memory)

    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_gives_back_what_was_put(
        self, writer: ClaimStore, host: str, reader: ClaimStore, size_bytes: int
    ) -> None:
        data = data_of(size_bytes)

        claim = await writer.put(data, 60.0, host=host)

        assert (claim.path != "", claim.host != "", claim.chunks) == (True, True, 0)
        assert bytes(await reader.get(claim)) == data
        assert b"".join([bytes(piece) async for piece in reader.pieces(claim)]) == data
        with pytest.raises(TypeError):
            (await reader.get(claim))[0:0] = b""

    async def test_is_left_for_the_stream_when_it_has_no_room(
        self, writer: ClaimStore, host: str, reader: ClaimStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims_shm, "_KEEP_FREE_SHARE", 1.0)
        data = data_of(3 * MIB)

        claim = await writer.put(data, 60.0, host=host)

        assert not claim.path
        assert bytes(await reader.get(claim)) == data

    async def test_that_is_full_in_the_middle_is_left_for_the_stream(
        self, writer: ClaimStore, host: str, reader: ClaimStore, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = 0
        pwrite = os.pwrite

        def full(descriptor: int, view: memoryview, at: int) -> int:
            nonlocal written
            if written > 2 * MIB:
                raise OSError(28, "No space left on device")
            count = pwrite(descriptor, view[:100_000], at)
            written += count
            return count

        monkeypatch.setattr(os, "pwrite", full)
        data = data_of(5 * MIB)

        for payload in (data, (data[at : at + 333_333] for at in range(0, len(data), 333_333))):
            written = 0
            claim = await writer.put(payload, 60.0, host=host)

            assert not claim.path
            assert bytes(await reader.get(claim)) == data
        assert list(memory._folder(os.geteuid()).iterdir()) == []

    async def test_deletes_what_the_run_no_longer_needs(
        self, writer: ClaimStore, host: str, reader: ClaimStore
    ) -> None:
        claim = await writer.put(data_of(MIB), 60.0, host=host)
        mapped = await reader.get(claim)

        assert await writer.delete(claim) is True

        assert len(bytes(mapped)) == MIB  # who has it keeps it
        assert not Path(claim.path).exists()
        with pytest.raises(ClaimGone):
            await reader.get(claim)
        assert await writer.delete(claim) is False

    async def test_does_not_give_what_has_expired_and_sweeps_it(
        self, writer: ClaimStore, host: str, reader: ClaimStore, memory: SharedMemory
    ) -> None:
        claim, stays = await writer.put(b"soon", 0.5, host=host), await writer.put(b"later", 600.0, host=host)
        expires = expires_at(Path(claim.path).name)

        await until(lambda: boot_clock_s() >= expires)
        with pytest.raises(ClaimGone, match="expired"):
            await reader.get(claim)

        assert memory.sweep() == 1
        assert bytes(await reader.get(stays)) == b"later"
        assert memory.sweep(boot_clock_s() + 700) == 1

    async def test_of_another_machine_is_not_looked_for(
        self, writer: ClaimStore, host: str, reader: ClaimStore
    ) -> None:
        claim = await writer.put(b"data", 60.0, host=host)
        boot, mount, uid = claim.host.split(".")

        for host in (f"0-0.{mount}.{uid}", f"{boot}.0-0.{uid}", "", uid):
            elsewhere = Claim(id=claim.id, size_bytes=4, host=host, path=claim.path)
            with pytest.raises(ClaimGone, match="another machine"):
                await reader.get(elsewhere)

    async def test_cancelling_a_large_put_leaves_nothing(
        self, writer: ClaimStore, host: str, memory: SharedMemory
    ) -> None:
        putting = asyncio.create_task(writer.put(bytes(64 * MIB), 60.0, host=host))
        await until(lambda: any(memory._folder(os.geteuid()).iterdir()))

        putting.cancel()
        await asyncio.wait({putting})

        assert putting.cancelled()
        assert list(memory._folder(os.geteuid()).iterdir()) == []


async def test_a_key_puts_and_an_instance_gets(tmp_path: Path, postgres: str) -> None:
    async with running_mesh(tmp_path, postgres) as mesh:
        launcher = await mesh.store("launcher")
        await launcher.ensure_claims()
        caller = await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))
        other = await mesh.connect(Identity.of_key(await mesh.key("observe")))
        data = data_of(2 * MIB)

        claim = await ClaimStore(caller).put(data, 60.0)

        assert bytes(await ClaimStore(other).get(claim)) == data
