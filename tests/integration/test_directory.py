"""The directory as its readers see it: the first load, live changes, and outages."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory, UnknownAlgorithm, UnknownVersion
from algomesh_broker.errors import Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.messages import AlgorithmEntry, VersionEntry
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, running_mesh

pytestmark = pytest.mark.integration


def entry(algorithm: str, *versions: str) -> AlgorithmEntry:
    owner, name = algorithm.split("/")
    return AlgorithmEntry(owner=owner, name=name, versions=[VersionEntry(version=version) for version in versions])


def meaning(directory: Directory, reference: str) -> str:
    return str(directory.resolve(Reference.parse(reference)).version)


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """The server and its accounts; the test writes the directory itself."""
    async with running_mesh(tmp_path, "", with_registry=False) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def writer(mesh: Mesh) -> JetStreamAdmin:
    writer = await mesh.store("registry")
    await writer.ensure_directory()
    return writer


@pytest_asyncio.fixture
async def reader(mesh: Mesh) -> Connection:
    return await mesh.program("gateway")


async def test_a_reference_means_the_newest_version_that_fits(writer: JetStreamAdmin, reader: Connection) -> None:
    await writer.put_entries([entry("text/clean", "1.2.0", "1.10.0", "2.0.0", "1.2.3")])

    async with await Directory.open(reader) as directory:
        meanings = {
            reference: meaning(directory, reference)
            for reference in ("text/clean", "text/clean/latest", "text/clean/1", "text/clean/1.2", "text/clean/1.2.0")
        }

    assert meanings == {
        "text/clean": "text/clean/2.0.0",
        "text/clean/latest": "text/clean/2.0.0",
        "text/clean/1": "text/clean/1.10.0",
        "text/clean/1.2": "text/clean/1.2.3",
        "text/clean/1.2.0": "text/clean/1.2.0",
    }


async def test_what_is_unknown_is_refused_with_what_there_is(writer: JetStreamAdmin, reader: Connection) -> None:
    await writer.put_entries([entry("text/clean", "1.0.0", "1.1.0"), entry("text/lower", "1.0.0")])

    async with await Directory.open(reader) as directory:
        with pytest.raises(UnknownAlgorithm) as algorithm:
            meaning(directory, "text/claen")
        with pytest.raises(UnknownAlgorithm) as owner:
            meaning(directory, "txet/clean")
        with pytest.raises(UnknownVersion) as version:
            meaning(directory, "text/clean/1.2")

    assert algorithm.value.nearest[0] == "text/clean"
    assert owner.value.nearest[0] == "text/clean"
    assert version.value.versions == ["1.1.0", "1.0.0"]
    assert VersionId.parse("text/clean/1.1.0") in directory
    assert VersionId.parse("text/clean/1.2.0") not in directory


async def test_changes_arrive_by_themselves_and_call_the_hooks(writer: JetStreamAdmin, reader: Connection) -> None:
    changed: list[str] = []
    async with await Directory.open(reader) as directory:
        directory.on_change.append(changed.append)

        await writer.put_entries([entry("text/clean", "1.0.0")])
        await until(lambda: changed == ["text/clean"])
        assert meaning(directory, "text/clean") == "text/clean/1.0.0"
        await writer.put_entries([entry("text/clean", "1.0.0", "1.1.0")])
        await until(lambda: meaning(directory, "text/clean") == "text/clean/1.1.0")
        await writer.delete_entry("text", "clean")
        await until(lambda: len(directory) == 0)

    assert changed == ["text/clean"] * 3
    with pytest.raises(UnknownAlgorithm):
        meaning(directory, "text/clean")


async def test_thousands_of_algorithms_are_read_page_by_page(writer: JetStreamAdmin, reader: Connection) -> None:
    await writer.put_entries(entry(f"o{number % 50}/a{number}", "1.0.0") for number in range(2_500))
    await writer.delete_entry("o0", "a0")

    async with await Directory.open(reader) as directory:
        assert len(directory) == 2_499
        assert meaning(directory, "o49/a2499") == "o49/a2499/1.0.0"
        with pytest.raises(UnknownAlgorithm):
            meaning(directory, "o0/a0")


async def test_a_reader_learns_what_changed_while_it_was_away(
    mesh: Mesh, writer: JetStreamAdmin, reader: Connection
) -> None:
    await writer.put_entries([entry("text/clean", "1.0.0"), entry("text/lower", "1.0.0")])
    async with await Directory.open(reader) as directory:
        await reader.flush()
        link = reader._link
        assert link is not None
        # Cut, and changed before the reader is back: no message of it can have arrived.
        reader.is_connected = False
        link.close()
        await writer.delete_entry("text", "lower")
        await writer.put_entries([entry("text/clean", "1.0.0", "2.0.0"), entry("new/one", "1.0.0")])

        await until(lambda: {known.name for known in directory.entries()} == {"clean", "one"})

        assert meaning(directory, "text/clean") == "text/clean/2.0.0"


async def test_entries_that_are_none_are_ignored(writer: JetStreamAdmin, reader: Connection) -> None:
    async with await Directory.open(reader) as directory:
        publish = writer.connection.publish
        publish("$KV.directory.text.clean", b"nonsense")
        publish("$KV.directory.text.clean", b"")
        publish("$KV.directory.a.b.c.d", b"x")
        await writer.put_entries([entry("text/clean", "not-a-version")])
        await writer.put_entries([entry("text/lower", "1.0.0")])

        await until(lambda: len(directory) == 1)

    async with await Directory.open(reader) as again:
        assert [known.name for known in again.entries()] == ["lower"]


async def test_a_copied_entry_under_another_name_is_ignored(
    mesh: Mesh, writer: JetStreamAdmin, reader: Connection
) -> None:
    await writer.put_entries([entry("text/clean", "1.0.0"), entry("bank/secret", "1.0.0")])
    async with await Directory.open(reader) as directory:
        steering = await mesh.program("launcher")
        target = "$KV.directory.bank.secret"

        steering.publish("$JS.API.DIRECT.GET.KV_directory", b'{"last_by_subj":"$KV.directory.text.clean"}', target)
        steering.publish("$JS.API.DIRECT.GET.KV_directory", b'{"last_by_subj":"$KV.directory.no.one"}', target)
        await steering.flush()
        await writer.put_entries([entry("text/lower", "1.0.0")])
        await until(lambda: len(directory) == 3)

        assert meaning(directory, "bank/secret") == "bank/secret/1.0.0"


async def test_without_a_directory_opening_one_gives_up_in_time(mesh: Mesh, reader: Connection) -> None:
    with pytest.raises(Unreachable, match="is the registry up"):
        await Directory.open(reader, timeout_s=0.3)


async def test_a_reader_may_open_before_there_is_a_directory(mesh: Mesh, reader: Connection) -> None:
    import asyncio

    opening = asyncio.create_task(Directory.open(reader))
    writer = await mesh.store("registry")
    await writer.ensure_directory()
    await writer.put_entries([entry("text/clean", "1.0.0")])

    directory = await opening
    await until(lambda: len(directory) == 1)
    await directory.close()


async def test_a_key_reads_the_directory_too(tmp_path: Path, postgres: str) -> None:
    async with running_mesh(tmp_path, postgres) as mesh:
        writer = await mesh.store("registry")
        await writer.put_entries([entry("text/clean", "1.0.0")])
        caller = await mesh.connect(Identity.of_key(await mesh.key("observe")))

        async with await Directory.open(caller) as directory:
            assert meaning(directory, "text/clean") == "text/clean/1.0.0"
