"""A pre-warmer in this process, with real servers and a registry; tests play instances, callers and launchers."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.messages import Demand, Hold, Machine, MachineInstance, Sight, Sights
from algomesh_broker.names import VersionId
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.service import serve
from algomesh_services.prewarmer.settings import Settings
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, publish, running_mesh
from tests.serving import running

_numbers = itertools.count(1)


def run_id() -> str:
    """As long as a real one."""
    return f"{next(_numbers):032x}"


class Stage:
    """What tests play on: one launcher's machine, instances and callers; and what the pre-warmer says to launchers."""

    def __init__(self, mesh: Mesh, settings: Settings) -> None:
        self.mesh, self.settings = mesh, settings
        self.key = ""
        self.wall: Callable[[], float] = time.time
        self.holds: dict[tuple[str, str], Hold] = {}
        self.told: set[tuple[str, str]] = set()
        self.off: list[str] = []
        self.wholes = 0
        self.rows: dict[str, MachineInstance] = {}
        self.born: dict[str, float] = {}
        self._instances: dict[str, Connection] = {}

    async def enter(self, *algorithms: str, **fields: Any) -> None:
        """Publish version 1.0.0 of these, and get ready to play."""
        self.admin = await self.mesh.admin()
        self.key = self.admin.identity.caller
        for algorithm in algorithms:
            await publish(self.admin, f"{algorithm}/1.0.0", **fields)
        self.launcher = await self.mesh.program("launcher")
        await self.launcher.subscribe(subjects.HOLDS, self._on_holds)

    @asynccontextmanager
    async def prewarmer(self, clock: Clock | None = None) -> AsyncIterator["asyncio.Task[None]"]:
        """A pre-warmer, until the block ends."""
        async with running(lambda stopping, ready: serve(self.settings, stopping, ready, clock)) as task:
            yield task

    async def instance(self, algorithm: str) -> Connection:
        """The connection of an instance of this algorithm."""
        found = self._instances.get(algorithm)
        if found is None:
            found = self._instances[algorithm] = await self.mesh.instance(
                f"{algorithm}/1.0.0", f"host-{len(self._instances)}"
            )
        return found

    # What launchers say

    def has(self, instance: str, algorithm: str, *, start_ms: int = 0, **fields: Any) -> None:
        """The machine has this instance, as given; `tell` says so."""
        self.born.setdefault(instance, time.monotonic() - fields.pop("age_s", start_ms / 1000))
        self.rows[instance] = MachineInstance(
            instance=instance, version=f"{algorithm}/1.0.0", state="ready" if start_ms else "starting", age_ms=0,
            start_ms=start_ms, **fields,
        )  # fmt: skip

    async def tell(self, launcher: str = "host") -> None:
        """The launcher says what it has."""
        now = time.monotonic()
        rows = [
            msgspec.structs.replace(row, age_ms=int((now - self.born[row.instance]) * 1000))
            for row in self.rows.values()
        ]
        self.launcher.publish(subjects.machine(launcher), codec.encode(Machine(launcher=launcher, instances=rows)))
        await self.launcher.flush()  # what others say from now on comes later

    async def learn_cold_start(self, algorithm: str, start_ms: int) -> None:
        """The fleet has started the algorithm once, and let it go."""
        self.has(f"host-old-{algorithm.replace('/', '-')}", algorithm, age_s=start_ms / 1000)
        await self.tell()
        self.has(f"host-old-{algorithm.replace('/', '-')}", algorithm, start_ms=start_ms, idle_ms=0)
        await self.tell()
        self.rows.clear()
        await self.tell()

    # What callers and instances say

    async def demand(self, algorithm: str, run: str, **fields: Any) -> None:
        """The administrator has parked a call."""
        known: dict[str, Any] = {"run": run, "root": run, "root_caller": self.key}
        wanted = Demand(**known | fields)
        self.admin.publish(subjects.demand(VersionId.parse(f"{algorithm}/1.0.0"), self.key), codec.encode(wanted))
        await self.admin.flush()

    def sight(self, run: str, root: str = "", **fields: Any) -> Sight:
        known: dict[str, Any] = {
            "run": run, "root": root or run, "parent": "", "caller": self.key, "root_caller": self.key,
            "attempt": 1, "started_at": self.wall(),
        }  # fmt: skip
        return Sight(**known | fields)

    async def tell_of(self, algorithm: str, *sights: Sight, one_in: int = 1) -> None:
        """An instance tells of runs."""
        connection = await self.instance(algorithm)
        version = VersionId.parse(f"{algorithm}/1.0.0")
        connection.publish(subjects.sights(version), codec.encode(Sights(runs=list(sights), one_in=one_in)))
        await connection.flush()

    async def chain(self, *algorithms: str, step_s: float = 0.02, root: str = "") -> str:
        """A warm request in which each calls the next after `step_s`; its root."""
        root = root or run_id()
        runs = [root, *(run_id() for _ in algorithms[1:])]
        began: list[Sight] = []
        for place, algorithm in enumerate(algorithms):
            began.append(self.sight(runs[place], root, parent=runs[place - 1] if place else ""))
            await self.tell_of(algorithm, began[-1])
            await asyncio.sleep(step_s)
        for place in reversed(range(len(algorithms))):
            await self.tell_of(algorithms[place], msgspec.structs.replace(began[place], ended_at=self.wall()))
        return root

    async def learn(self, *algorithms: str, step_s: float = 0.02, times: int = 3) -> None:
        """Play a chain until the pre-warmer has learned it, and so many times at least."""
        for played in range(1, 50):
            root = await self.chain(*algorithms, step_s=step_s)
            if played >= times and self.was_ahead(algorithms[-1], root):
                return
        raise AssertionError(f"{' | '.join(algorithms)} was not learned")

    # What the pre-warmer says

    def ahead(self, algorithm: str, root: str = "") -> list[Hold]:
        """Those of them that are for requests under way, or for this one."""
        return [hold for hold in self.held(algorithm) if hold.key.startswith(f"path:{root}")]

    def held(self, algorithm: str) -> list[Hold]:
        """The holds on an algorithm now."""
        return [hold for hold in self.holds.values() if hold.version == f"{algorithm}/1.0.0"]

    def was_ahead(self, algorithm: str, root: str = "") -> bool:
        """Whether launchers were ever told to start it for a request, for this one where given."""
        return any(version == f"{algorithm}/1.0.0" and key.startswith(f"path:{root}") for version, key in self.told)

    async def heard(self, count: int = 2) -> None:
        """Wait until the pre-warmer has said everything so many times more."""
        wanted = self.wholes + count
        await until(lambda: self.wholes >= wanted, 10)

    def _on_holds(self, message: Message) -> None:
        holds = codec.decode_holds(message.data)
        if holds.is_whole:
            self.holds, self.off = {}, holds.off
            self.wholes += 1
        for key in holds.released:
            self.holds.pop(key, None)
        for hold in holds.holds:
            self.holds[hold.version, hold.key] = hold
            self.told.add((hold.version, hold.key))


@asynccontextmanager
async def stages(folder: Path, postgres: str, **fields: Any) -> AsyncIterator[Stage]:
    """A mesh with a registry, and no pre-warmer yet."""
    async with running_mesh(folder, postgres) as mesh:
        settings = Settings(nats=mesh.url, postgres=postgres, state=mesh.settings.state, write_s=0.05, grace_s=2.0)
        yield Stage(mesh, replace(settings, **fields))
