"""What the tests of the pre-warmer call: the chain of services/catalog under other names, also at a steady period."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

import algomesh
from algomesh.clients import AsyncClient
from algomesh.pipeline import Pipeline, stage
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import read_admin_key
from algomesh_broker.identity import Identity
from algomesh_services.demo_prewarm.figures import Called, Side, with_cold_starts
from algomesh_services.demo_prewarm.watch import Watch
from tests.catalog import CATALOG
from tests.integration.up_fixtures import Up

PICTURE = np.random.default_rng(4).random((3, 96, 96), dtype=np.float32)
STAGES = ("first", "second", "third", "fourth")


def pipeline_of(owner: str) -> Pipeline:
    """The four stages of `owner` in a row."""
    first, second, third, fourth = (stage(name) for name in names_of(owner))
    return first | second | third | fourth


def names_of(owner: str) -> tuple[str, ...]:
    """The four stages of `owner`."""
    return tuple(f"{owner}/{name}" for name in STAGES)


def publish_chain(up: Up, folder: Path, owner: str, *, idle_s: float, load_s: float = 0.9, more: str = "") -> None:
    """Publish the project under another owner, with other times, and `more` options of its stages."""
    project = folder / owner
    shutil.copytree(CATALOG / "prewarm_chain", project)
    code = (project / "chain.py").read_text()
    changes = (
        ('"warm/', f'"{owner}/'),
        ("LOAD_S = 0.9", f"LOAD_S = {load_s}"),
        ("IDLE_S = 2.0", f"IDLE_S = {idle_s}"),
        ('idle=IDLE_S, preload=["torch"])', f'idle=IDLE_S, preload=["torch"]{more})'),
    )
    for before, after in changes:
        assert before in code
        code = code.replace(before, after)
    (project / "chain.py").write_text(code)
    published = up.run("publish", str(project))
    assert published.returncode == 0, published.stderr


class Mesh(NamedTuple):
    """A client and an observer of one mesh."""

    client: AsyncClient
    watch: Watch
    calls: list[Called]

    async def call(self, what: Pipeline | str) -> Called:
        """One picture through it."""
        at, began = time.time(), time.monotonic()
        response = await self.client.algo(what).pipe(PICTURE)
        took_s, cold_s = time.monotonic() - began, response.metadata.cold_start_s
        called = Called("pipeline", response.metadata.run_id, at, took_s, cold_s=cold_s)
        self.calls.append(called)
        return called

    async def at_once(self, owner: str) -> float:
        """Start the four stages of `owner` together, by a call of each; seconds until the last has answered."""
        began = time.monotonic()
        await asyncio.gather(*(self.call(name) for name in names_of(owner)))
        return time.monotonic() - began

    async def gone(self, owner: str, timeout_s: float = 30.0) -> None:
        """Wait until nothing of `owner` is up."""
        async with asyncio.timeout(timeout_s):
            while any(row.algorithm.startswith(f"{owner}/") for row in await self.watch.instances()):
                await asyncio.sleep(0.1)

    async def cold_starts(self, *calls: Called) -> list[int]:
        """Of how many of its runs each call waited for an instance, as the ledger has it; each call has four."""
        runs = await self.watch.runs({call.root for call in calls}, len(STAGES))
        return [call.cold_starts for call in with_cold_starts(calls, runs)]


@asynccontextmanager
async def mesh_of(up: Up) -> AsyncIterator[Mesh]:
    """Ours, as its administrator."""
    key = read_admin_key(up.state / "secrets")
    assert key
    async with (
        await Connection.open(up.said["nats"], Identity.of_key(key), name="test") as connection,
        algomesh.connect(key, up.said["nats"]) as client,
    ):
        watch = Watch(connection)
        await watch.open()
        yield Mesh(client, watch, [])


class Beat:
    """Calls the pipeline of `owner` once in `period_s`, in a thread, from the beginning of the block to its end.

    `count` are the calls so far, `in_a_row` the latest of them that waited for no instance.
    """

    def __init__(self, up: Up, owner: str, period_s: float) -> None:
        self.period_s, self.owner = period_s, owner
        self.count = self.in_a_row = 0
        self._up = up
        self._stopping = threading.Event()
        self._side: Side | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"beat of {owner}")

    def __enter__(self) -> "Beat":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    def stop(self) -> Side:
        """End, and return everything that happened."""
        self.__exit__()
        if self._error is not None:
            raise self._error
        assert self._side is not None
        return self._side

    def _run(self) -> None:
        try:
            asyncio.run(self._beat())
        except BaseException as error:
            self._error = error

    async def _beat(self) -> None:
        async with mesh_of(self._up) as mesh:
            began = time.monotonic()
            while not self._stopping.is_set():
                called = await mesh.call(pipeline_of(self.owner))
                self.in_a_row = 0 if called.cold_s else self.in_a_row + 1
                self.count += 1
                wait_s = began + self.count * self.period_s - time.monotonic()
                await asyncio.to_thread(self._stopping.wait, max(0.0, wait_s))
            ended = time.time()
            runs = await mesh.watch.runs({call.root for call in mesh.calls}, len(STAGES))
            lives = mesh.watch.lives(ended)
            self._side = Side(
                name=self.owner, ended=ended, lives=lives, runs=runs, calls=with_cold_starts(mesh.calls, runs)
            )
