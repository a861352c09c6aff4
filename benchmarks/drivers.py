"""Start times of the launcher's two drivers: a process forked from a zygote, and a container on a real Docker engine.

Two meshes run side by side, and rounds go from one to the other. In each round the same small algorithm is called when
no instance is there (cold), and again when one was started ahead by a hold, as the pre-warmer would (pre-started), and
once more (warm). The containers' image is ALGOMESH_DOCKER_IMAGE, or else the one that the tests build.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final

import algomesh
from algomesh.clients import AsyncClient
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity
from benchmarks import figures
from benchmarks.mesh import Mesh

ROUNDS: Final = 10
VERSION: Final = "bench/small/1.0.0"
SOURCE: Final = """
from algomesh import algorithm


@algorithm("bench/small", version="1.0.0", idle=0.3)
def small(x: int) -> int:
    return x
"""


class Side:
    """One mesh, with the means to call it and to wish for instances in it."""

    def __init__(self, mesh: Mesh, client: AsyncClient, wisher: Connection) -> None:
        self.took: dict[str, list[float]] = {"cold": [], "hold to ready": [], "pre-started": [], "warm": []}
        self._mesh, self._client, self._wisher = mesh, client, wisher
        self._ready = asyncio.Event()

    async def open(self) -> None:
        """Hear what becomes ready."""
        await self._wisher.subscribe(subjects.ALL_FLEET, self._on_fleet)

    async def measure(self, *, is_counted: bool = True) -> None:
        """One round."""
        small = self._client.algo("bench/small")
        took: dict[str, float] = {}
        await self._until_gone()
        began = time.perf_counter()
        await small.pipe(1)
        took["cold"] = time.perf_counter() - began
        await self._until_gone()
        self._ready.clear()
        began = time.perf_counter()
        wishing = asyncio.create_task(self._wish())
        await self._ready.wait()
        took["hold to ready"] = time.perf_counter() - began
        for which in ("pre-started", "warm"):
            began = time.perf_counter()
            await small.pipe(1)
            took[which] = time.perf_counter() - began
        wishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await wishing
        if is_counted:
            for which, seconds in took.items():
                self.took[which].append(seconds)

    async def _wish(self) -> None:
        """Hold the version, as the pre-warmer would, and let it go in the end."""
        hold = messages.Hold(version=VERSION, key="bench", start_ms=0, until_ms=60_000, reason="benchmark", gain=1.0)
        try:
            while True:
                self._wisher.publish(subjects.HOLDS, codec.encode(messages.Holds(holds=[hold], is_whole=True)))
                await asyncio.sleep(1)
        finally:
            self._wisher.publish(subjects.HOLDS, codec.encode(messages.Holds(holds=[], is_whole=True)))

    async def _until_gone(self) -> None:
        while await asyncio.to_thread(self._mesh.cli, "ps"):
            await asyncio.sleep(0.1)

    def _on_fleet(self, message: Any) -> None:
        if message.subject.startswith("fleet.bench.") and isinstance(codec.decode_fleet(message.data), messages.Ready):
            self._ready.set()


def find_image() -> str:
    """An image with algomesh in it."""
    from tests.integration.docker_fixtures import instance_image

    return os.environ.get("ALGOMESH_DOCKER_IMAGE") or instance_image()


async def measure(meshes: dict[str, Mesh]) -> dict[str, dict[str, list[float]]]:
    """Rounds in turn; the first of each is not counted: it starts the zygote, and sends the files."""
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, mesh in meshes.items():
            environment = mesh.environment
            client = await stack.enter_async_context(
                algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"])
            )
            identity = program_identity(mesh.state / "secrets", "prewarmer")
            wisher = await stack.enter_async_context(await Connection.open(environment["ALGOMESH_URL"], identity))
            sides[name] = Side(mesh, client, wisher)
            await sides[name].open()
        for number in range(ROUNDS + 1):
            for side in sides.values():
                await side.measure(is_counted=number > 0)
        return {name: side.took for name, side in sides.items()}


def run() -> dict[str, Any]:
    """Measure and print."""
    common = {"ALGOMESH_PREWARM": "off", "ALGOMESH_METRICS": "off"}
    with ExitStack() as stack:
        project = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (project / "small.py").write_text(SOURCE)
        docker = {"ALGOMESH_DRIVER": "docker", "ALGOMESH_DOCKER_IMAGE": find_image()}
        meshes = {
            "process": stack.enter_context(Mesh(common)),
            "docker": stack.enter_context(Mesh(common | docker)),
        }
        for mesh in meshes.values():
            mesh.cli("publish", str(project))
        took = asyncio.run(measure(meshes))
    rows = [
        [f"{name}, {which}", *(f"{x * 1000:.1f}" for x in (figures.median(of), min(of), max(of)))]
        for name, side in took.items()
        for which, of in side.items()
    ]
    title = f"A call of a small algorithm by driver, {ROUNDS} rounds in turn"
    figures.table(title, ["", "median ms", "least ms", "most ms"], rows)
    return {name: {which: figures.median(of) for which, of in side.items()} for name, side in took.items()}
