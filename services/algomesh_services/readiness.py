"""Whether a program is ready, told to whoever runs it in a container: a file that is touched while it is.

ALGOMESH_READY_FILE names the file; without it nothing is told. A probe asks whether the file is younger than some
seconds, which costs it no connection and no interpreter. It also fails when the program's event loop hangs.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger("algomesh.readiness")

TOUCH_S: Final = 1.0


async def show_ready(is_ready: Callable[[], bool], environment: Mapping[str, str] = os.environ) -> None:
    """Touch the file each second while `is_ready()`, remove it otherwise, until cancelled."""
    place = environment.get("ALGOMESH_READY_FILE", "").strip()
    if not place:
        return
    path, said = Path(place), ""
    try:
        while True:
            try:
                (_touch if is_ready() else _remove)(path)
                said = ""
            except OSError as error:  # the program works all the same; whoever probes it will say that it does not
                if str(error) != said:
                    said = str(error)
                    log.warning("readiness_not_shown", error=said)
            await asyncio.sleep(TOUCH_S)
    finally:
        with suppress(OSError):
            _remove(path)


# A file in memory: neither takes long enough for a thread.
def _touch(path: Path) -> None:
    path.touch(mode=0o644)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
