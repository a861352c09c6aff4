"""What every driver must do, seen from a launcher: the same tests for processes and for containers on a real engine."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import messages
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from algomesh_services.launcher.docker_driver import DockerDriver
from algomesh_services.launcher.docker_orphans import read_mesh
from algomesh_services.launcher.driver import Driver
from algomesh_services.launcher.process_driver import ProcessDriver
from algomesh_services.launcher.settings import DockerSettings, Settings
from tests.conditions import is_alive, until
from tests.integration.docker_fixtures import BARE_IMAGE, docker, instance_image, labelled
from tests.integration.launcher_mesh import Mesh, pack_archive, until_so
from tests.integration.played_prewarmer import playing
from tests.integration.test_launcher import error, gone, value

pytestmark = pytest.mark.integration

MIB = 2**20
PROGRAM = (Path(__file__).parent / "foreign_program.py").read_text()
WHERE = """
import os, socket
@algorithm("demo/where", version="1.0.0")
def main(x):
    print("ran", x)
    return [os.getpid(), os.getuid(), socket.gethostname(), os.getcwd()]
"""
SLEEP = """
import time
@algorithm("demo/sleep", version="1.0.0", concurrency=1)
def main(x):
    time.sleep(x)
    return "slept"
"""
CRASH = """
import os, signal
@algorithm("demo/crash", version="1.0.0")
def main(x):
    if x:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "alive"
"""
EATS = """
import time
@algorithm("demo/eats", version="1.0.0")
def main(x):
    block = bytearray(os.urandom(1)) * (x * 2**20)
    time.sleep(5)
    return len(block)
import os
"""
HANGS = """
import re
@algorithm("demo/hangs", version="1.0.0")
def main(x):
    re.match("(a+)+$", "a" * 60 * x + "b")  # for years, and never lets go of the GIL
    return "done"
"""
BROKEN = """
@algorithm("demo/broken", version="1.0.0")
class main:
    def load(self):
        raise RuntimeError("no weights here")
    def apply(self, x):
        return x
"""


class Kind:
    """One driver under test."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name = name
        self.is_docker = name == "docker"
        image = instance_image() if self.is_docker else ""
        self.docker = DockerSettings(image=image, network="host", nats_url=url)
        self.url, self.folder = url, folder

    def make(self, settings: Settings) -> Driver:
        if self.is_docker:
            return DockerDriver(self.docker, state=settings.state, launcher=settings.launcher, watch_interval_s=0.05)
        return ProcessDriver(watch_interval_s=0.05)

    def mesh(self, **options: Any) -> Mesh:
        return Mesh(self.url, self.folder, make_driver=self.make, driver=self.name, docker=self.docker, **options)

    def volumes(self) -> list[str]:
        return docker("volume", "ls", "-q", "--filter", f"label={self.label}").split()

    def containers(self) -> list[str]:
        return labelled(self.label)

    @property
    def label(self) -> str:
        return f"org.algomesh.mesh={read_mesh(self.folder / 'state')}"


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.engine)])
def kind(request: pytest.FixtureRequest, nats_server: NatsServer, tmp_path: Path) -> Kind:
    return Kind(request.param, nats_server.url, tmp_path)


@pytest_asyncio.fixture
async def mesh(kind: Kind) -> AsyncIterator[Mesh]:
    async with kind.mesh() as mesh:
        await mesh.begin()
        yield mesh
    if kind.is_docker:
        assert kind.containers() == []
        assert kind.volumes() == []


def died(mesh: Mesh) -> list[messages.Death]:
    return mesh.caller.of(messages.Death)


def logged(mesh: Mesh, name: str) -> str:
    return "".join(path.read_text() for path in mesh.settings.logs.glob(f"demo~{name}/1.0.0/*.log"))


async def test_a_call_starts_an_instance_and_the_next_one_finds_it_warm(mesh: Mesh, kind: Kind) -> None:
    where = await mesh.shelf.publish("demo/where/1.0.0", WHERE)

    first = value(await mesh.caller(where, 1, 60))
    second = value(await mesh.caller(where, 2))
    await until(lambda: mesh.caller.of(messages.Ready))  # its leases go another way than its answers

    (row,) = await mesh.ps()
    assert first == second
    assert (row.state, row.reason, row.algorithm) == ("ready", "1 parked call", "demo/where")
    assert row.pid > 0
    assert is_alive(row.pid)
    assert [ready.instance for ready in mesh.caller.of(messages.Ready)] == [row.instance]
    await until(lambda: "ran 2" in logged(mesh, "where"))
    if kind.is_docker:
        _, uid, host, folder = first
        assert (uid, host, folder) == (65534, row.instance, "/algorithm")


async def test_an_idle_instance_is_retired(mesh: Mesh, kind: Kind) -> None:
    where = await mesh.shelf.publish("demo/where/1.0.0", WHERE, idle_s=0.5)

    await mesh.caller(where, 1, 60)
    await gone(mesh)

    (death,) = died(mesh)
    assert (death.reason, death.detail) == ("retired", "idle")
    assert not kind.is_docker or kind.containers() == []


async def test_a_crash_is_told_as_one(mesh: Mesh) -> None:
    crash = await mesh.shelf.publish("demo/crash/1.0.0", CRASH)
    assert value(await mesh.caller(crash, 0, 60)) == "alive"

    mesh.caller.start(crash, 1)

    await until(lambda: died(mesh), 10)
    (death,) = died(mesh)
    assert (death.reason, death.detail) == ("crash", "was ended by SIGSEGV")


async def test_a_load_that_raises_is_told_in_its_own_words(mesh: Mesh) -> None:
    broken = await mesh.shelf.publish("demo/broken/1.0.0", BROKEN)

    code, message = error(await mesh.caller(broken, 1, 60))

    assert code == "load_failed"
    assert "load() failed: RuntimeError: no weights here" in message
    await until(lambda: "Traceback" in logged(mesh, "broken"))


async def test_a_hold_starts_an_instance_before_its_first_call(mesh: Mesh) -> None:
    where = await mesh.shelf.publish("demo/where/1.0.0", WHERE)

    async with playing(mesh.connection) as prewarmer:
        prewarmer.hold(where, "called about every 12 s")
        await until(lambda: mesh.caller.of(messages.Ready), 60)
        (row,) = await mesh.ps()
        assert row.reason == "called about every 12 s"
        async with asyncio.timeout(5):
            assert value(await mesh.caller.start(where, 1, demand=False))


async def test_a_retired_instance_finishes_what_it_does(mesh: Mesh) -> None:
    sleep = await mesh.shelf.publish("demo/sleep/1.0.0", SLEEP, max_instances=1)
    assert value(await mesh.caller(sleep, 0, 60)) == "slept"

    running = mesh.caller.start(sleep, 1.5)
    await until_so(lambda: works(mesh))
    stopping = asyncio.create_task(stop(mesh, "demo/sleep"))

    async with asyncio.timeout(10):
        assert value(await running) == "slept"
    await stopping
    await gone(mesh)
    assert [death.reason for death in died(mesh)] == ["retired"]


async def test_too_much_memory_is_told_as_such(mesh: Mesh) -> None:
    eats = await mesh.shelf.publish("demo/eats/1.0.0", EATS, memory_bytes=128 * MIB)

    mesh.caller.start(eats, 400)

    await until(lambda: died(mesh), 60)
    (death,) = died(mesh)
    assert death.reason == "memory_exceeded"


async def test_a_run_that_hangs_with_the_gil_held_is_ended_at_its_limit_and_not_before(mesh: Mesh) -> None:
    hangs = await mesh.shelf.publish("demo/hangs/1.0.0", HANGS, timeout_s=3.5)
    assert value(await mesh.caller(hangs, 0, 60)) == "done"

    mesh.caller.start(hangs, 1)

    await until(lambda: died(mesh), 20)
    (death,) = died(mesh)
    assert death.reason == "timeout"


async def test_a_program_in_another_language_is_run(mesh: Mesh, kind: Kind) -> None:
    program = await publish_program(mesh, kind, "python3" if kind.is_docker else sys.executable)

    answer = value(await mesh.caller(program, "hello", 60))

    (row,) = await mesh.ps()
    assert answer == f"hello from {row.instance}"
    await mesh.caller(program, "again")
    await stop(mesh, "demo/program")
    await gone(mesh)
    assert [(death.reason, death.detail) for death in died(mesh)] == [("retired", "stopped by request")]


async def test_a_program_that_is_not_there_is_named(mesh: Mesh, kind: Kind) -> None:
    program = await publish_program(mesh, kind, "no-such-program")

    code, message = error(await mesh.caller(program, "hello", 60))

    assert code == "load_failed"
    assert "its command 'no-such-program' cannot be run: it is not in the" in message


async def test_a_launcher_that_was_killed_leaves_nothing_once_the_next_one_is_there(kind: Kind) -> None:
    async with kind.mesh() as mesh:
        where = await mesh.shelf.publish("demo/where/1.0.0", WHERE)
        with killed_launcher(kind, mesh) as process:
            await until_so(mesh.answers, 20)
            first = value(await mesh.caller(where, 1, 60))
            process.kill()
            process.wait()
        if kind.is_docker:
            assert len(kind.containers()) == 1

        await mesh.begin()
        if kind.is_docker:
            await until(lambda: kind.containers() == [], 20)
        second = value(await mesh.caller(where, 2, 60))

        assert first != second
        assert len(await mesh.ps()) == 1
        assert not kind.is_docker or (len(kind.containers()), len(kind.volumes())) == (1, 1)


async def works(mesh: Mesh) -> bool:
    return any(row.load for row in await mesh.ps())


async def stop(mesh: Mesh, algorithm: str) -> None:
    from algomesh_broker import platform

    await mesh.ask("stop", platform.Stop(), platform.Done, algorithm)


async def publish_program(mesh: Mesh, kind: Kind, program: str) -> VersionId:
    archive = pack_archive({"program.py": PROGRAM})
    image = BARE_IMAGE if kind.is_docker else ""
    return await mesh.shelf.publish(
        "demo/program/1.0.0", "", archive=archive, command=[program, "program.py"], image=image, max_instances=1
    )


@contextlib.contextmanager
def killed_launcher(kind: Kind, mesh: Mesh):  # type: ignore[no-untyped-def]
    code = (
        "import asyncio; from algomesh_services.launcher import service, settings as s; "
        "asyncio.run(service.run(s.Settings.from_environment()))"
    )
    environment = {
        **os.environ,
        "ALGOMESH_NATS": kind.url,
        "ALGOMESH_STATE": str(mesh.settings.state),
        "ALGOMESH_DRIVER": kind.name,
        "ALGOMESH_DOCKER_IMAGE": kind.docker.image,
    }
    with (kind.folder / "launcher.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
