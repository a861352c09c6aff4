"""What a launcher does for a pre-warmer, and what it tells it: a real launcher and server, the pre-warmer is played."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker import messages, platform
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from algomesh_services.launcher import service
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.holds import GRACE_S
from algomesh_services.launcher.settings import Settings
from tests.conditions import until
from tests.integration.launcher_mesh import GIB, Mesh, pack_archive
from tests.integration.played_prewarmer import PlayedPrewarmer, playing
from tests.integration.registry_fixtures import publish, running_mesh
from tests.serving import running

pytestmark = pytest.mark.integration

ECHO = """
@algorithm("demo/{0}", version="1.0.0")
def main(x):
    return x
"""
SLEEP = """
import time
@algorithm("demo/sleep", version="1.0.0")
def main(x):
    time.sleep(x)
"""
BROKEN = """
@algorithm("demo/broken", version="1.0.0")
class main:
    def load(self):
        raise RuntimeError("no weights here")
    def apply(self, x):
        return x
"""
EVERY_12_S = "called about every 12 s"
NEXT = "next after demo/first in 0.6 s, p = 0.93"


@asynccontextmanager
async def prewarmer_of(mesh: Mesh) -> AsyncIterator[PlayedPrewarmer]:
    connection = await Connection.open(
        mesh.settings.nats_url, program_identity(mesh.settings.secrets, "prewarmer"), name="prewarmer"
    )
    try:
        async with playing(connection) as played:
            yield played
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(nats_server.url, tmp_path) as mesh:
        await mesh.begin()
        yield mesh


@pytest_asyncio.fixture
async def prewarmer(mesh: Mesh) -> AsyncIterator[PlayedPrewarmer]:
    async with prewarmer_of(mesh) as played:
        await until(lambda: played.heard)
        yield played


def died(mesh: Mesh) -> list[tuple[float, messages.Death]]:
    return [(at, said) for at, _, said in mesh.caller.fleet if isinstance(said, messages.Death)]


async def test_a_held_version_is_up_before_its_first_call(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))

    prewarmer.hold(echo, EVERY_12_S, key="gap:1")
    told = await until(lambda: prewarmer.ready(echo), 10)

    (row,) = await mesh.ps()
    assert row.reason == EVERY_12_S
    assert told is not None
    assert (told.instance, told.reason, told.key) == (row.instance, EVERY_12_S, "gap:1")
    assert 0 < told.start_ms <= row.start_ms
    assert isinstance(await mesh.caller(echo, 1), messages.Result)
    assert not mesh.caller.of(messages.Starting)  # nobody had to wait
    await until(lambda: (each := prewarmer.ready(echo)) is not None and each.runs_total == 1)


async def test_an_instance_is_started_at_the_moment_its_hold_begins(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))

    start_at = prewarmer.hold(echo, NEXT, in_s=0.6)
    first = await until(lambda: prewarmer.first(echo), 10)

    assert first is not None
    at, told = first
    assert told.state == "starting"
    assert (told.start_ms, told.idle_ms) == (0, -1)
    assert -0.01 < at - told.age_ms / 1e3 - start_at < 0.1


async def test_two_holds_and_a_call_need_one_instance(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))

    prewarmer.hold(echo, EVERY_12_S)
    prewarmer.hold(echo, NEXT, key="path:r1")
    await until(lambda: prewarmer.ready(echo), 10)
    await mesh.caller(echo, 1)

    assert len(await mesh.ps()) == 1


async def test_what_is_released_goes_soon_where_it_has_a_gpu(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    dear = await mesh.shelf.publish("demo/dear/1.0.0", ECHO.format("dear"), gpu=0.25)
    cheap = await mesh.shelf.publish("demo/cheap/1.0.0", ECHO.format("cheap"))
    for version in (dear, cheap):
        prewarmer.hold(version, EVERY_12_S)
    await until(lambda: prewarmer.ready(dear) and prewarmer.ready(cheap), 10)

    prewarmer.release(cheap)
    released_at = prewarmer.release(dear)
    ((at, death),) = await until(lambda: died(mesh), 10)

    assert (death.reason, death.detail) == ("retired", "idle, and not expected to be called soon")
    assert 0.9 * GRACE_S < at - released_at < GRACE_S + 1.0
    assert [row.algorithm for row in await mesh.ps()] == ["demo/cheap"]
    await until(lambda: not prewarmer.ready(dear))


async def test_what_a_call_started_is_kept_by_a_hold_and_says_so(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"), gpu=0.25)
    await mesh.caller(echo, 1)

    prewarmer.hold(echo, EVERY_12_S)
    await until(lambda: (each := prewarmer.ready(echo)) is not None and each.idle_ms > 1_500, 10)

    (row,) = await mesh.ps()
    assert row.reason == f"1 parked call; kept: {EVERY_12_S}"
    assert row.note == "gpu 0.25 asked for, none here: runs on the CPU"
    told = prewarmer.ready(echo)
    assert told is not None
    assert (told.reason, told.key) == ("1 parked call", "")


async def test_what_the_prewarmer_leaves_alone_keeps_its_fixed_idle_time(
    mesh: Mesh, prewarmer: PlayedPrewarmer
) -> None:
    alone = await mesh.shelf.publish("demo/alone/1.0.0", ECHO.format("alone"), gpu=0.25)
    other = await mesh.shelf.publish("demo/other/1.0.0", ECHO.format("other"), gpu=0.25)
    prewarmer.off = [str(alone)]
    prewarmer.say()
    await asyncio.gather(mesh.caller(alone, 1), mesh.caller(other, 1))

    await until(lambda: died(mesh), 10)

    assert [row.algorithm for row in await mesh.ps()] == ["demo/alone"]


async def test_when_the_prewarmer_falls_silent_idle_times_are_fixed_again(
    mesh: Mesh, prewarmer: PlayedPrewarmer
) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"), idle_s=0.2)
    prewarmer.hold(echo, EVERY_12_S)
    prewarmer.say()
    silent_at = time.monotonic()
    prewarmer.is_speaking = False
    await until(lambda: prewarmer.ready(echo), 10)

    ((at, death),) = await until(lambda: died(mesh), 10)

    assert death.detail == "idle"
    assert at - silent_at > 5.0
    assert await mesh.ps() == []


async def test_without_room_for_all_the_highest_gain_is_up_and_calls_come_first(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    capacity = Capacity(max_instances=1, memory_bytes=64 * GIB)
    async with Mesh(nats_server.url, tmp_path, capacity=capacity) as mesh, prewarmer_of(mesh) as prewarmer:
        await mesh.begin()
        low = await mesh.shelf.publish("demo/low/1.0.0", ECHO.format("low"))
        high = await mesh.shelf.publish("demo/high/1.0.0", ECHO.format("high"))
        prewarmer.hold(low, EVERY_12_S, gain=1)
        await until(lambda: prewarmer.ready(low), 10)

        prewarmer.hold(high, NEXT, gain=2)
        await until(lambda: prewarmer.ready(high), 10)
        assert [death.detail for _, death in died(mesh)] == ["evicted"]
        assert isinstance(await mesh.caller(low, 1), messages.Result)
        await until(lambda: prewarmer.ready(high), 10)

        assert [row.reason for row in await mesh.ps()] == [NEXT]


async def test_a_version_that_is_deleted_while_it_is_held_goes_and_stays_away(
    mesh: Mesh, prewarmer: PlayedPrewarmer
) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))
    prewarmer.hold(echo, EVERY_12_S)
    await until(lambda: prewarmer.ready(echo), 10)

    await mesh.admin.put_entries([messages.AlgorithmEntry(owner="demo", name="echo", versions=[])])
    await until(lambda: died(mesh), 10)
    asked, told = mesh.shelf.asked["manifest"], len(prewarmer.heard)
    await until(lambda: len(prewarmer.heard) > told + 3)  # it has been told all the while to hold it

    assert [death.detail for _, death in died(mesh)] == ["deleted"]
    assert prewarmer.instances == []
    assert mesh.shelf.asked["manifest"] == asked


async def test_a_version_that_was_stopped_stays_away_though_it_is_held(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))
    prewarmer.hold(echo, EVERY_12_S)
    await until(lambda: prewarmer.ready(echo), 10)

    await mesh.ask("stop", platform.Stop(), platform.Done, "demo/echo")
    told = len(prewarmer.heard)
    await until(lambda: len(prewarmer.heard) > told + 2)

    assert await mesh.ps() == []
    assert isinstance(await mesh.caller(echo, 1), messages.Result)


async def test_a_held_instance_that_dies_is_replaced(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))
    prewarmer.hold(echo, EVERY_12_S)
    await until(lambda: prewarmer.ready(echo), 10)
    (row,) = await mesh.ps()

    os.kill(row.pid, signal.SIGKILL)
    await until(lambda: (each := prewarmer.ready(echo)) is not None and each.instance != row.instance, 10)

    assert [row.reason for row in await mesh.ps()] == [EVERY_12_S]


async def test_a_held_version_that_cannot_load_is_tried_as_seldom_as_a_called_one(
    mesh: Mesh, prewarmer: PlayedPrewarmer
) -> None:
    broken = await mesh.shelf.publish("demo/broken/1.0.0", BROKEN)

    prewarmer.hold(broken, EVERY_12_S)
    deaths = await until(lambda: found if len(found := died(mesh)) >= 3 else [], 15)

    assert {death.reason for _, death in deaths} == {"load_failed"}
    assert deaths[1][0] - deaths[0][0] > 0.5
    assert deaths[2][0] - deaths[1][0] > 1.0


async def test_a_version_nobody_published_is_not_asked_for(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    pipeline = mesh.shelf.publish_pipeline("demo/judge/1.0.0", b"{}")  # the directory does not have it

    prewarmer.hold(pipeline, EVERY_12_S)
    told = len(prewarmer.heard)
    await until(lambda: len(prewarmer.heard) > told + 2)

    assert prewarmer.instances == []
    assert mesh.shelf.asked["manifest"] == 0


async def test_what_cannot_be_read_is_ignored(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))

    prewarmer.garble()
    prewarmer.hold(echo, EVERY_12_S)

    await until(lambda: prewarmer.ready(echo), 10)


async def test_the_prewarmer_is_told_when_an_instance_works_and_how_long_it_has_been_idle(
    mesh: Mesh, prewarmer: PlayedPrewarmer
) -> None:
    sleep = await mesh.shelf.publish("demo/sleep/1.0.0", SLEEP, gpu=0.25)
    prewarmer.hold(sleep, EVERY_12_S)
    await until(lambda: (each := prewarmer.ready(sleep)) is not None and each.idle_ms > 100, 10)

    await mesh.caller(sleep, 0.4)
    ended_at = time.monotonic()
    worked = [each.idle_ms for _, machine in prewarmer.heard for each in machine.instances if each.runs_total == 1]
    await until(lambda: prewarmer.instances[0].idle_ms >= 0)
    at, machine = prewarmer.heard[-1]

    assert -1 in worked
    assert abs(at - machine.instances[0].idle_ms / 1e3 - ended_at) < 0.1


async def test_a_launcher_that_stops_tells_that_nothing_is_left(mesh: Mesh, prewarmer: PlayedPrewarmer) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO.format("echo"))
    prewarmer.hold(echo, EVERY_12_S)
    await until(lambda: prewarmer.ready(echo), 10)

    await mesh.end()

    await until(lambda: not prewarmer.instances)


async def test_the_permissions_of_both_let_holds_and_machines_pass(tmp_path: Path, postgres: str) -> None:
    async with running_mesh(tmp_path, postgres) as mesh:
        capacity = Capacity(max_instances=20, memory_bytes=64 * GIB)
        settings = Settings(nats_url=mesh.url, state=mesh.settings.state, capacity=capacity)
        async with running(lambda stopping, ready: service.serve(settings, stopping, on_ready=ready), 30):
            archive = pack_archive({"algo_echo.py": "from algomesh import algorithm\n" + ECHO.format("echo")})
            await publish(await mesh.admin(), "demo/echo/1.0.0", data=archive, entry="algo_echo:main")
            async with playing(await mesh.program("prewarmer")) as prewarmer:
                prewarmer.hold(echo := VersionId.parse("demo/echo/1.0.0"), EVERY_12_S)
                await until(lambda: prewarmer.ready(echo), 20)
