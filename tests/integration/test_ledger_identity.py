"""The ledger behind the real broker: who may tell it what, and who may ask it."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, subjects
from algomesh_broker.errors import Forbidden
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.platform import RunRows, Runs
from algomesh_services.ledger.service import serve
from algomesh_services.ledger.settings import Settings
from tests.integration.ledger_fixtures import VERSION, run_event
from tests.integration.registry_fixtures import Mesh, Refusals, ask, running_mesh
from tests.serving import running

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, postgres) as there:
        settings = Settings(nats=there.url, postgres=postgres, state=there.settings.state)
        async with running(partial(serve, settings)):
            await there.publish(await there.admin(), str(VERSION))
            yield there


async def states(mesh: Mesh) -> dict[str, str]:
    answer = await ask(await mesh.admin(), "runs", Runs(), RunRows, program="ledger")
    return {row.run: row.state for row in answer.runs}


async def eventually(mesh: Mesh, run: str, state: str) -> None:
    async with asyncio.timeout(10):
        while (await states(mesh)).get(run) != state:
            await asyncio.sleep(0.05)


async def test_instances_and_callers_tell_of_their_own_runs(mesh: Mesh) -> None:
    instance = await mesh.instance(str(VERSION), "host-1")
    key = await mesh.key("call:text/*")
    caller = await mesh.connect(Identity.of_key(key))
    own = caller.identity.caller

    instance.publish(subjects.run_events(VERSION), codec.encode(messages.Events(runs=[run_event("done")])))
    expired = run_event("waited", caller=own, state="expired", instance="")
    caller.publish(subjects.caller_events(own), codec.encode(messages.Events(runs=[expired])))

    await eventually(mesh, "done", "succeeded")
    await eventually(mesh, "waited", "expired")


async def test_nobody_tells_of_another_versions_runs(mesh: Mesh) -> None:
    other = VersionId.parse("bank/secret/1.0.0")
    instance = await mesh.instance(str(VERSION), "host-1")
    caller = await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))

    for connection, subject in ((instance, subjects.run_events(other)), (caller, subjects.run_events(VERSION))):
        assert await Refusals(connection).of_publish(subject, b"") >= 0


async def test_only_observers_may_ask(mesh: Mesh) -> None:
    observer = await mesh.connect(Identity.of_key(await mesh.key("observe")))
    caller = await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))

    assert (await ask(observer, "runs", Runs(), RunRows, program="ledger")).runs == []
    with pytest.raises(Forbidden):
        await ask(caller, "runs", Runs(), RunRows, program="ledger")


async def test_runs_in_an_instance_whose_death_is_announced_are_lost(mesh: Mesh) -> None:
    instance = await mesh.instance(str(VERSION), "host-1")
    launcher = await mesh.program("launcher")
    running = run_event("dead", state="running")
    instance.publish(subjects.run_events(VERSION), codec.encode(messages.Events(runs=[running])))
    await eventually(mesh, "dead", "running")

    death = messages.Death(instance="host-1", reason="crash")
    launcher.publish(subjects.fleet(VERSION), codec.encode(death))

    await eventually(mesh, "dead", "lost")
