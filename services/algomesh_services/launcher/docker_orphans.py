"""What a launcher that was killed has left on the engine, and how the next one knows that it may remove it.

Everything a launcher makes there is labelled with its mesh and itself. It holds a lock on a file named after it in the
state directory for as long as it lives, whatever ends it; what is labelled with this mesh and a launcher whose lock
can be had is nobody's. Instances are removed and not adopted: their callers take them for lost when their launcher's
beat stops, and have sent their runs again (ADR 0014).
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Self

import structlog

from algomesh_services.launcher.docker_engine import LABEL, Engine

log = structlog.get_logger("algomesh.launcher")


class LauncherLock:
    """That a launcher lives, for all who share its state directory; a context manager. Raises OSError."""

    def __init__(self, state: Path, launcher: str) -> None:
        self.mesh = read_mesh(state)
        self._folder = state / "launchers"
        self._launcher = launcher
        self._fd = -1

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._folder / self._launcher, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def __exit__(self, *_: object) -> None:
        (self._folder / self._launcher).unlink(missing_ok=True)
        os.close(self._fd)

    def is_gone(self, launcher: str) -> bool:
        """Whether a launcher of this mesh lives no more."""
        if not launcher or launcher == self._launcher:
            return not launcher
        path = self._folder / Path(launcher).name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(fd)


def read_mesh(state: Path) -> str:
    """The name under which this state directory's containers are found again; made when it is first asked for."""
    path = state / "mesh-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    state.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".mesh-id.{os.getpid()}")
    draft.write_text(secrets.token_hex(6))
    try:
        os.link(draft, path)  # whoever was first has named it
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text().strip()


async def remove_orphans(engine: Engine, lock: LauncherLock) -> int:
    """Remove what launchers of this mesh that are gone have left; return how many containers. Raises LaunchFailed."""
    label, count = f"{LABEL}mesh={lock.mesh}", 0
    for container, labels in (await engine.containers(label)).items():
        if lock.is_gone(labels.get(f"{LABEL}launcher", "")):
            await engine.remove(container)
            count += 1
            log.info("orphan_removed", instance=labels.get(f"{LABEL}instance", ""), container=container[:12])
    for volume, labels in (await engine.volumes(label)).items():
        if lock.is_gone(labels.get(f"{LABEL}launcher", "")):
            await engine.remove_volume(volume)
    return count
