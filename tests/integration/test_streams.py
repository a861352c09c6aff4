"""JetStream, administered: what the streams promise, and what a restart of the server leaves of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from algomesh_broker import subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import Forbidden, StreamError
from algomesh_broker.names import VersionId
from algomesh_broker.streams import PARKED_PER_CALLER, JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, eventually, let_in_every_instance, running_mesh

pytestmark = pytest.mark.integration

CLEAN, LOWER = VersionId.parse("text/clean/1.0.0"), VersionId.parse("text/lower/1.0.0")
CALLER = "k~caller0000"


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, "", with_registry=False) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def launcher(mesh: Mesh) -> JetStreamAdmin:
    launcher = await mesh.store("launcher")
    await launcher.ensure_parked()
    return launcher


@pytest_asyncio.fixture
async def sender(mesh: Mesh) -> AsyncIterator[Connection]:
    """An instance of text/clean, let in without a registry: it may park calls of its own version."""
    async with let_in_every_instance(mesh):
        yield await mesh.instance(str(CLEAN))


async def park(sender: Connection, version: VersionId, caller: str = CALLER, ttl_s: int = 60) -> dict[str, object]:
    """Park a call and return what JetStream answers."""
    inbox = f"{sender.identity.inbox}.parked"
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    subscription = await sender.subscribe(inbox, lambda message: answered.set_result(bytes(message.data)))
    subject = subjects.park(subjects.call(version, caller))
    sender.publish(subject, b"call", inbox, {"Nats-TTL": f"{ttl_s}s"})
    async with asyncio.timeout(5):
        answer: dict[str, object] = msgspec.json.decode(await answered)
    await subscription.leave()
    return answer


async def test_ensuring_twice_changes_nothing(launcher: JetStreamAdmin) -> None:
    assert await launcher.ensure_parked() is False
    await launcher.ensure_version(CLEAN)
    await launcher.ensure_version(CLEAN)

    assert await launcher.delete_version(CLEAN) is True
    assert await launcher.delete_version(CLEAN) is False


async def test_a_stream_that_differs_is_brought_up_to_date(mesh: Mesh, launcher: JetStreamAdmin) -> None:
    info = await launcher._ask("STREAM.INFO.parked")
    await launcher._ask("STREAM.UPDATE.parked", info["config"] | {"max_bytes": 1_000_000})

    await launcher.ensure_parked()

    assert (await launcher._ask("STREAM.INFO.parked"))["config"]["max_bytes"] == 2**30


async def test_parked_calls_are_counted_by_subject_and_purged_by_version(
    launcher: JetStreamAdmin, sender: Connection
) -> None:
    for version, caller in ((CLEAN, "k~one"), (CLEAN, "k~two"), (CLEAN, "k~two")):
        await park(sender, version, caller)

    counted = await launcher.pending_parked()
    of_lower = await launcher.pending_parked(LOWER)
    purged_of_lower, purged = await launcher.purge_parked(LOWER), await launcher.purge_parked(CLEAN)

    assert counted == {"park.call.text.clean.1-0-0.k~one": 1, "park.call.text.clean.1-0-0.k~two": 2}
    assert (of_lower, purged_of_lower, purged) == ({}, 0, 3)


async def test_a_caller_that_parks_too_much_of_a_version_is_told_at_once(
    launcher: JetStreamAdmin, sender: Connection
) -> None:
    subject = subjects.park(subjects.call(CLEAN, CALLER))
    for _ in range(PARKED_PER_CALLER):
        sender.publish(subject, b"call")
    await sender.flush()

    refused = await park(sender, CLEAN)
    other = await park(sender, CLEAN, "k~other")

    assert isinstance(refused["error"], dict)
    assert refused["error"]["err_code"] == 10077
    assert "error" not in other


async def test_a_parked_call_ends_with_its_deadline(launcher: JetStreamAdmin, sender: Connection) -> None:
    await park(sender, CLEAN, ttl_s=1)

    async def is_gone() -> bool:
        return await launcher.pending_parked() == {}

    await eventually(is_gone, 4.0)


async def test_thousands_of_versions_have_a_consumer_each(launcher: JetStreamAdmin) -> None:
    versions = [VersionId.parse(f"text/a{number}/1.0.0") for number in range(1_100)]

    for start in range(0, len(versions), 100):
        await asyncio.gather(*(launcher.ensure_version(version) for version in versions[start : start + 100]))

    info = await launcher._ask("STREAM.INFO.parked")
    assert info["state"]["consumer_count"] == 1_100


async def test_more_subjects_than_a_page_are_all_counted(launcher: JetStreamAdmin, sender: Connection) -> None:
    for number in range(3_000):
        sender.publish(subjects.park(subjects.call(CLEAN, f"k~c{number}")), b"call")
    await sender.flush()

    async def are_counted() -> bool:
        return len(await launcher.pending_parked()) == 3_000

    await eventually(are_counted)


async def test_a_program_touches_only_its_own_stream(mesh: Mesh, launcher: JetStreamAdmin) -> None:
    ledger = await mesh.store("ledger")
    await ledger.ensure_events()
    await ledger.ensure_ledger()

    for forbidden in (launcher.ensure_directory(), launcher.ensure_events(), ledger.ensure_parked()):
        with pytest.raises(Forbidden):
            await forbidden


async def test_events_reach_the_ledger_across_the_accounts(mesh: Mesh, sender: Connection) -> None:
    ledger = await mesh.store("ledger")
    await ledger.ensure_events()
    await ledger.ensure_ledger()

    sender.publish(subjects.run_events(CLEAN), b"events", "$JS.API.STREAM.DELETE.events")
    await sender.flush()
    taken: list[Message] = []
    inbox = f"{ledger.connection.identity.inbox}.pull"
    await ledger.connection.subscribe(inbox, taken.append)
    ledger.connection.publish("$JS.API.CONSUMER.MSG.NEXT.events.ledger", b'{"batch":1,"expires":5000000000}', inbox)
    await until(lambda: taken)

    assert (taken[0].subject, bytes(taken[0].data)) == (subjects.run_events(CLEAN), b"events")


async def test_what_jetstream_refuses_carries_its_number(launcher: JetStreamAdmin) -> None:
    with pytest.raises(StreamError) as refused:
        await launcher._ask("CONSUMER.CREATE.parked.x", {"stream_name": "parked", "config": {"durable_name": "y"}})

    assert refused.value.err_code > 0


async def test_after_a_restart_of_the_server_the_launcher_finds_what_it_needs(
    mesh: Mesh, launcher: JetStreamAdmin, sender: Connection
) -> None:
    await launcher.ensure_version(CLEAN)
    await park(sender, CLEAN)
    directory = await mesh.store("registry")
    await directory.ensure_directory()

    await mesh.server.stop()
    await mesh.server.start()
    await until(lambda: launcher.connection.is_connected and directory.connection.is_connected)
    was_new = await launcher.ensure_parked()
    counted = await launcher.pending_parked()
    had_consumer = await launcher.delete_version(CLEAN)

    # A stream in memory is gone with all that belongs to it; one on disk stays.
    assert (was_new, counted, had_consumer) == (True, {}, False)
    assert await directory.ensure_directory() is False
