"""A pre-warmer and two launchers: one of them starts what is held, not both."""

import asyncio
import time
from pathlib import Path

import pytest

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Message
from algomesh_services.launcher import service
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.settings import Settings
from tests.conditions import until
from tests.integration.launcher_mesh import GIB, pack_archive
from tests.integration.prewarmer_fixtures import Stage, run_id, stages
from tests.integration.registry_fixtures import publish
from tests.serving import running

pytestmark = pytest.mark.integration

A, B = "demo/a", "demo/b"
CODE = """
from algomesh import algorithm
@algorithm("demo/b", version="1.0.0")
def main(x):
    return x
"""


class Machines:
    """Every instance of B that any launcher ever told of, by launcher; and the launchers."""

    def __init__(self) -> None:
        self.launchers: set[str] = set()
        self.instances: dict[str, set[str]] = {}
        self.ready: set[str] = set()

    def hear(self, message: Message) -> None:
        machine = codec.decode_machine(message.data)
        self.launchers.add(machine.launcher)
        for each in machine.instances:
            if each.version == f"{B}/1.0.0":
                self.instances.setdefault(machine.launcher, set()).add(each.instance)
                if each.state == "ready":
                    self.ready.add(each.instance)


async def hold_b(stage: Stage) -> None:
    """A pipeline is under way that goes on to B."""
    now = time.time()
    sight = stage.sight(f"{run_id()}-0", run_id(), stages=[f"{B}/1.0.0"], started_at=now - 1e-3, ended_at=now)
    await stage.tell_of(A, sight)


async def test_one_of_two_launchers_starts_what_is_held(tmp_path: Path, postgres: str) -> None:
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A)
        archive = pack_archive({"algo_b.py": CODE})
        await publish(stage.admin, f"{B}/1.0.0", data=archive, entry="algo_b:main", idle_s=0.2)
        machines = Machines()
        observer = await stage.mesh.program("prewarmer")
        await observer.subscribe(subjects.ALL_MACHINES, machines.hear)
        settings = [
            Settings(
                nats_url=stage.mesh.url,
                state=stage.mesh.settings.state,
                capacity=Capacity(max_instances=20, memory_bytes=64 * GIB),
                launcher=f"launch0{number}",
            )
            for number in range(2)
        ]
        first, second = (
            lambda stopping, ready, one=one: service.serve(one, stopping, on_ready=ready) for one in settings
        )
        async with running(first, 30), running(second, 30), stage.prewarmer():
            await until(lambda: len(machines.launchers) == 2, 10)
            await stage.heard(2)

            await hold_b(stage)
            await until(lambda: machines.ready, 20)
            await stage.heard(2)

            assert [len(each) for each in machines.instances.values()] == [1]
            assert {hold.launcher for hold in stage.held(B)} == set(machines.instances) <= {"launch00", "launch01"}


async def test_where_the_named_one_starts_nothing_another_is_named(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algomesh_services.prewarmer.placement.PATIENCE_S", 0.3)
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A, B)
        async with stage.prewarmer():
            named: set[str] = set()
            for launcher in ("host", "other"):  # neither has room
                await stage.tell(launcher)
            await stage.heard(1)
            await hold_b(stage)

            async with asyncio.timeout(15):
                while named != {"host", "other"}:
                    for launcher in ("host", "other"):
                        await stage.tell(launcher)
                    named |= {hold.launcher for hold in stage.held(B)}
                    await asyncio.sleep(0.05)
