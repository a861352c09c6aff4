"""The demo itself: two meshes on this machine, one of them without the pre-warmer, and the same calls of both.

What is compared at a steady period runs in both at once, the calls of one in the quiet of the other; the first calls,
which are compared by the second, come one mesh after the other.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

import algomesh
from algomesh.publishing import publish
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import read_admin_key
from algomesh_broker.identity import Identity
from algomesh_services.demo.mesh import own_mesh
from algomesh_services.demo.posts import CATALOG
from algomesh_services.demo.screen import Screen
from algomesh_services.demo_prewarm.figures import Called, Side
from algomesh_services.demo_prewarm.picture import draw
from algomesh_services.demo_prewarm.report import as_json, show_table, show_timelines
from algomesh_services.demo_prewarm.watch import Watch
from algomesh_services.demo_prewarm.workload import (
    CODE_CALLS,
    IDLE_S,
    LEARNING,
    PERIOD_S,
    PIPELINE,
    Workload,
)

PROJECT: Final = "prewarm_chain"
SIDES: Final = ("without", "with")
_CHECKED: Final = 3
_QUIET_S: Final = 0.5


class Wanted(Struct, frozen=True, kw_only=True):
    """Where the picture goes, and how many periods after the first ten are looked at."""

    output: Path
    checked: int = _CHECKED


async def run(wanted: Wanted, screen: Screen) -> None:
    """The whole demo. Raises MeshError, LocalError, ProgramError, TimeoutError, OSError, ImportError."""
    screen.title("algomesh demo: four cold services in a row, without and with the pre-warmer")
    screen.text("Each takes about a second to start, and 20 ms for a picture; unused, it goes after "
                f"{IDLE_S:g} s. {' | '.join(PIPELINE)} is a pipeline; warm/one … four call each other.")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="algomesh-demo-") as folder:
        screen.title("1  Start two meshes on this machine, one without the pre-warmer")
        screen.moving("starting two meshes, publishing the services to both …")
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            meshes = [_mesh(Path(folder), name, screen) for name in SIDES]
            without, ahead = await asyncio.gather(*map(stack.enter_async_context, meshes))
            screen.text(f"Both ready, with nine services published, after {time.monotonic() - began:.0f} s.")
            at_once_s, sides = await _work(without, ahead, wanted, screen)
    screen.title("4  Side by side")
    show_table(screen, *sides, at_once_s=at_once_s)
    show_timelines(screen, *sides)
    await asyncio.to_thread(draw, wanted.output, *sides, at_once_s=at_once_s)
    screen.line()
    screen.text(f"Written: {wanted.output}. All of it is stopped, and nothing is left.")
    screen.line()
    screen.last_line(json.dumps({**as_json(*sides, at_once_s=at_once_s), "picture": str(wanted.output)}))


@asynccontextmanager
async def _mesh(folder: Path, name: str, screen: Screen) -> AsyncIterator[Workload]:
    """One mesh with the services published and torch imported."""

    def tell(called: Called) -> None:
        cold = f"{called.took_s:.2f} s" if called.took_s >= 0.5 else f"{called.took_s * 1000:.0f} ms"
        what = "pipeline" if called.kind == "pipeline" else "through code"
        screen.text(f"{name:>7}: {what} {cold}")

    environment = {"ALGOMESH_PREWARM": "off" if name == SIDES[0] else ""}
    below = folder / name
    below.mkdir()
    async with own_mesh(below, environment) as running:
        key = read_admin_key(Path(running.state) / "secrets") or ""
        async with (
            await Connection.open(running.nats, Identity.of_key(key), name="demo") as connection,
            algomesh.connect(key, running.nats) as client,
        ):
            await publish(connection, CATALOG / PROJECT)
            watch = Watch(connection)
            await watch.open()
            work = Workload(name, client, watch, tell)
            await work.import_torch()
            yield work


async def _work(without: Workload, ahead: Workload, wanted: Wanted, screen: Screen) -> tuple[float, tuple[Side, Side]]:
    screen.title("2  First calls, everything cold: the four started together by hand, then the pipeline")
    at_once_s = min([await without.at_once() for _ in range(2)])
    await asyncio.sleep(_QUIET_S)
    screen.text(f"By hand, all at once: {at_once_s:.2f} s until the last has answered")
    periodic = LEARNING + wanted.checked
    shared = f"every {PERIOD_S:g} s by pipeline, {CODE_CALLS} times through code"
    async with asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        await without.pipeline()
        tasks.create_task(without.rounds(began, periodic=periodic), name="without")
        await asyncio.sleep(max(0.0, began + 0.8 * PERIOD_S - time.monotonic()))
        began = time.monotonic()
        await ahead.pipeline()
        screen.title(f"3  Both at once, {periodic * PERIOD_S:.0f} s: {shared}")
        tasks.create_task(ahead.rounds(began, periodic=periodic), name="with")
    return at_once_s, (await without.finish(is_prewarmed=False), await ahead.finish(is_prewarmed=True))
