"""What both meshes are given to do: first calls, calls through code, and calls at a steady period."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from algomesh.clients import AsyncClient
from algomesh.pipeline import Pipeline, stage
from algomesh_services.demo_prewarm.figures import Called, Kind, Side, with_cold_starts
from algomesh_services.demo_prewarm.watch import Watch

PIPELINE: Final = ("warm/first", "warm/second", "warm/third", "warm/fourth")
CODE: Final = ("warm/one", "warm/two", "warm/three", "warm/four")
IDLE_S: Final = 2.0
"""After how long an unused instance goes where nothing is predicted; services/catalog/prewarm_chain says the same."""
PERIOD_S: Final = 6 * IDLE_S
LEARNING: Final = 10
CODE_CALLS: Final = 6
_PIPELINE: Final = stage("warm/first") | stage("warm/second") | stage("warm/third") | stage("warm/fourth")
_CODE_AFTER_S: Final = 5.0
_EDGE: Final = 96

Tell = Callable[[Called], None]


class Workload:
    """The calls of one mesh. `tell` is called after each."""

    def __init__(self, name: str, client: AsyncClient, watch: Watch, tell: Tell) -> None:
        self.name = name
        self._client, self._watch, self._tell = client, watch, tell
        self._calls: list[Called] = []
        self._picture = np.random.default_rng(4).random((3, _EDGE, _EDGE), dtype=np.float32)

    async def import_torch(self) -> str:
        """Have torch imported, which is once for a machine and nothing to compare; its version. Raises MeshError."""
        response = await self._client.algo("warm/torch").pipe(None, timeout=120)
        return str(response.result)

    async def at_once(self) -> float:
        """Start the four of the pipeline together, by a call of each; the seconds until all have answered, cold again.

        Raises MeshError.
        """
        began = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for name in PIPELINE:
                calls.create_task(self._client.algo(name).pipe(self._picture), name=name)
        took_s = time.monotonic() - began
        await self._watch.stop(PIPELINE)
        await self._watch.gone()
        return took_s

    async def pipeline(self) -> Called:
        """One picture through the pipeline. Raises MeshError."""
        return await self._call("pipeline", _PIPELINE)

    async def code(self) -> Called:
        """One picture to the service that calls the next, and so on. Raises MeshError."""
        return await self._call("code", stage(CODE[0]))

    async def rounds(self, began: float, *, periodic: int) -> None:
        """From `began` on (monotonic), when the first call of the pipeline was: one more at each period.

        In the quiet between the first of them are the calls through code. Raises MeshError.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._code_rounds(began), name=f"{self.name}: code")
            for number in range(1, periodic + 1):
                await _sleep_until(began + number * PERIOD_S)
                await self.pipeline()

    async def finish(self, *, is_prewarmed: bool) -> Side:
        """Everything that happened. Raises MeshError."""
        ended = time.time()
        lives = self._watch.lives(ended)
        runs = await self._watch.runs({call.root for call in self._calls}, len(PIPELINE))
        saved = await self._watch.savings() if is_prewarmed else None
        return Side(
            name=self.name,
            ended=ended,
            lives=lives,
            runs=runs,
            calls=with_cold_starts(self._calls, runs),
            saved_s=None if saved is None else saved.saved_s,
            starts={} if saved is None else saved.starts,
        )

    async def _code_rounds(self, began: float) -> None:
        for number in range(CODE_CALLS):
            await _sleep_until(began + number * PERIOD_S + _CODE_AFTER_S)
            await self.code()

    async def _call(self, kind: Kind, value: Pipeline) -> Called:
        at, began = time.time(), time.monotonic()
        response = await self._client.algo(value).pipe(self._picture)
        called = Called(kind, response.metadata.run_id, at, time.monotonic() - began)
        self._calls.append(called)
        self._tell(called)
        return called


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))
