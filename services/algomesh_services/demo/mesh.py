"""A mesh of a demo's own: `algomesh up` as a child, in a folder of the demo's."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from algomesh_services.local.running import RunningMesh
from algomesh_services.local.supervisor import Child


@asynccontextmanager
async def own_mesh(folder: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[RunningMesh]:
    """A mesh with its state below `folder`; it ends with the block, or with this process.

    `environment` is added to ours.

    Raises ProgramError, OSError.
    """
    state = folder / "state"

    async def ready(_: int) -> None:
        while RunningMesh.find(state) is None:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.02)

    argv = (sys.executable, "-P", "-m", "algomesh_services.cli", "up", "--port", "0", "--state", str(state), "--json")
    up = Child(
        "algomesh up",
        argv,
        environment=environment,
        ready=ready,
        log=folder / "up.log",
        grace_s=6.0,
        ready_within_s=120.0,
    )
    async with up:
        running = RunningMesh.find(state)
        assert running is not None
        yield running
