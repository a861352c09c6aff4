"""The launcher in a mesh with its registry, its permissions and the SDK: calls that start what they need."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh.clients import AsyncClient
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_services.launcher import service
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.settings import Settings
from tests.conditions import is_alive, until
from tests.integration.launcher_mesh import GIB, pack_archive
from tests.integration.registry_fixtures import ADMIN_KEY, Mesh, ask, publish, running_mesh
from tests.serving import running

pytestmark = pytest.mark.integration

CODE = """
import os, time
import algomesh
from algomesh import algorithm

@algorithm("demo/{name}", version="1.0.0"{options})
def main(x):
    {body}
"""


@dataclass
class There:
    """A mesh with a launcher, an administrator's connection to publish with, and a client."""

    mesh: Mesh
    admin: Connection
    client: AsyncClient

    async def publish(self, name: str, body: str, **options: object) -> str:
        said = "".join(f", {key}={value!r}" for key, value in options.items() if key == "calls")
        code = CODE.format(name=name, body=body.strip().replace("\n", "\n    "), options=said)
        archive = pack_archive({f"algo_{name}.py": dedent(code)})
        await publish(self.admin, f"demo/{name}/1.0.0", data=archive, entry=f"algo_{name}:main", **options)
        return f"demo/{name}"

    async def ps(self) -> list[platform.InstanceRow]:
        return (await ask(self.admin, "ps", platform.Ps(), platform.InstanceRows, program="launcher")).instances


def settings_of(mesh: Mesh) -> Settings:
    return Settings(
        nats_url=mesh.url,
        state=mesh.settings.state,
        capacity=Capacity(max_instances=20, memory_bytes=64 * GIB),
        stop_s=2.0,
    )


@asynccontextmanager
async def launcher(mesh: Mesh) -> AsyncIterator[None]:
    async with running(lambda stopping, ready: service.serve(settings_of(mesh), stopping, on_ready=ready), 30):
        yield


@pytest_asyncio.fixture
async def there(tmp_path: Path, postgres: str) -> AsyncIterator[There]:
    async with (
        running_mesh(tmp_path, postgres) as mesh,
        launcher(mesh),
        algomesh.connect(ADMIN_KEY, mesh.url) as client,
    ):
        yield There(mesh, await mesh.admin(), client)


async def test_a_published_algorithm_answers_its_first_call(there: There) -> None:
    name = await there.publish("shout", "return x.upper()")

    first = await there.client.algo(name).pipe("hello")
    second = await there.client.algo(name).pipe(first)

    assert (first.result, second.result) == ("HELLO", "HELLO")
    assert first.metadata.cold_start_s > 0
    assert second.metadata.cold_start_s == 0
    assert len(await there.ps()) == 1


async def test_an_algorithm_calls_another_which_is_started_for_it(there: There) -> None:
    await there.publish("inner", "return x + 1")
    outer = await there.publish(
        "outer", 'return algomesh.current().client.algo("demo/inner").pipe(x).result * 10', calls=["demo/inner"]
    )

    assert (await there.client.algo(outer).pipe(4)).result == 50
    assert len(await there.ps()) == 2


async def test_a_failed_start_reaches_the_caller_as_a_typed_error(there: There) -> None:
    good = await there.publish("good", "return x")
    archive = pack_archive({"algo_bad.py": "import missing_package_of_mine\n"})
    await publish(there.admin, "demo/bad/1.0.0", data=archive, entry="algo_bad:main")

    with pytest.raises(errors.LoadFailed, match="missing_package_of_mine"):
        await there.client.algo("demo/bad").pipe(1, timeout=20)
    assert (await there.client.algo(good).pipe(1)).result == 1


async def test_a_killed_instance_is_replaced_and_its_run_repeated(there: There) -> None:
    name = await there.publish("waits", "time.sleep(1.5)\nreturn os.getpid()")
    running = asyncio.create_task(there.client.algo(name).pipe(1))

    async def busy() -> list[platform.InstanceRow]:
        return [row for row in await there.ps() if row.load]

    while not (rows := await busy()):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # `running` has been said after 100 ms
    os.kill(rows[0].pid, signal.SIGKILL)
    response = await running

    assert response.metadata.attempts == 2
    assert response.result != rows[0].pid


async def test_many_callers_and_few_slots_lose_and_double_nothing(there: There) -> None:
    name = await there.publish("count", "time.sleep(0.002)\nreturn x", max_instances=4)
    algo = there.client.algo(name)

    for cycle in range(20):
        numbers = range(cycle * 64, cycle * 64 + 64)
        responses = await asyncio.gather(*(algo.pipe(number) for number in numbers))
        assert [response.result for response in responses] == list(numbers)
        assert {response.metadata.attempts for response in responses} == {1}

    assert 1 < len(await there.ps()) <= 4


async def test_instances_see_neither_secrets_nor_the_launchers_environment(there: There, needs_root: None) -> None:
    state = str(there.mesh.settings.state)
    name = await there.publish("spy", "return [os.getuid(), os.path.exists(x), sorted(os.environ)]")

    uid, sees_it, environment = (await there.client.algo(name).pipe(f"{state}/secrets/pepper")).result

    assert uid != 0
    assert not sees_it
    assert not [key for key in environment if key.startswith("ALGOMESH_")]


async def test_a_launcher_that_is_killed_leaves_no_instance_and_the_next_starts_clean(
    tmp_path: Path, postgres: str
) -> None:
    async with running_mesh(tmp_path, postgres) as mesh, algomesh.connect(ADMIN_KEY, mesh.url) as client:
        there = There(mesh, await mesh.admin(), client)
        name = await there.publish("pid", "return os.getpid()")
        code = (
            "import asyncio; from algomesh_services.launcher import service, settings as s; "
            "asyncio.run(service.run(s.Settings.from_environment()))"
        )
        environment = {**os.environ, "ALGOMESH_NATS": mesh.url, "ALGOMESH_STATE": str(mesh.settings.state)}
        with (tmp_path / "launcher.log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
        try:
            first = (await client.algo(name).pipe(1)).result
            assert is_alive(first)
        finally:
            process.kill()
            process.wait()
        await until(lambda: not is_alive(first), 5)

        async with launcher(mesh):
            assert (await client.algo(name).pipe(1)).result != first
            assert len(await there.ps()) == 1


async def test_too_much_memory_and_too_long_a_run_are_told_as_such(there: There) -> None:
    eats = await there.publish(
        "eats", "block = b'x' * (200 * 2**20); time.sleep(5); return len(block)", memory_bytes=96 * 2**20
    )
    hangs = await there.publish("hangs", "while True: pass", timeout_s=0.5)

    with pytest.raises(errors.MemoryExceeded):
        await there.client.algo(eats).pipe(1, timeout=30)
    with pytest.raises(errors.RunTimeout):
        await there.client.algo(hangs).pipe(1, timeout=30)
