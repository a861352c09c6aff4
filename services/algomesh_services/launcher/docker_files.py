"""How a version's files come to the containers that run it: read-only, as `/algorithm` or in `/versions`.

With ALGOMESH_DOCKER_VERSIONS the engine sees the launcher's own folder of unpacked versions: a path on the engine's
machine is bound, one version at a time; a volume's name is mounted whole. Without it, which works with an engine on
any machine, each version is sent once into a volume of its own, by way of a container that is never started.
"""

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import structlog

from algomesh_services.launcher.docker_engine import Engine
from algomesh_services.launcher.driver import LaunchFailed, LaunchSpec

log = structlog.get_logger("algomesh.launcher")

FOLDER: Final = "/algorithm"
_ALL_VERSIONS: Final = "/versions"
_IN_MEMORY_BYTES: Final = 8 * 2**20


@dataclass(frozen=True)
class Mounted:
    """What a container's configuration says of the mount, and the version's folder in it."""

    mount: dict[str, Any]
    folder: str


class VersionFiles:
    """Mounts for one launcher; `labels` mark the volumes it makes."""

    def __init__(self, engine: Engine, launcher: str, labels: dict[str, str], shared: str = "") -> None:
        self._engine, self._launcher, self._labels, self._shared = engine, launcher, labels, shared
        self._made: dict[str, str] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def mount(self, spec: LaunchSpec, image: str) -> Mounted:
        """Have the files of `spec` where containers can see them. Raises LaunchFailed."""
        if self._shared.startswith("/"):
            source = f"{self._shared.rstrip('/')}/{spec.folder.name}"
            return Mounted({"Type": "bind", "Source": source, "Target": FOLDER, "ReadOnly": True}, FOLDER)
        if self._shared:
            mount = {"Type": "volume", "Source": self._shared, "Target": _ALL_VERSIONS, "ReadOnly": True}
            return Mounted(mount, f"{_ALL_VERSIONS}/{spec.folder.name}")
        async with self._making.setdefault(spec.digest, asyncio.Lock()):
            if spec.digest not in self._made:
                self._made[spec.digest] = await self._make(spec, image)
        name = self._made[spec.digest]
        return Mounted({"Type": "volume", "Source": name, "Target": FOLDER, "ReadOnly": True}, FOLDER)

    async def drop_unused(self, in_use: Callable[[], Collection[str]]) -> None:
        """Remove the volumes of versions but those whose digests are `in_use`, to be asked at the last moment."""
        for digest in list(self._made):
            async with self._making.setdefault(digest, asyncio.Lock()):
                if digest not in in_use():
                    await self._engine.remove_volume(self._made.pop(digest))

    async def _make(self, spec: LaunchSpec, image: str) -> str:
        name = f"algomesh-{self._launcher}-{spec.digest[:24]}"
        await self._engine.create_volume(name, self._labels)
        mount = {"Type": "volume", "Source": name, "Target": FOLDER, "VolumeOptions": {"NoCopy": True}}
        config = {
            "Image": image,
            "Entrypoint": ["never-started"],
            "Labels": self._labels,
            "HostConfig": {"Mounts": [mount], "NetworkMode": "none"},
        }
        container = await self._engine.create(f"{name}-files", config)
        try:
            with await asyncio.to_thread(pack_folder, spec.folder) as archive:
                await self._engine.fill(container, FOLDER, archive)
        except OSError as error:
            raise LaunchFailed(f"{spec.folder} cannot be read: {error.strerror}") from error
        finally:
            await self._engine.remove(container)
        log.info("version_sent", digest=spec.digest[:12], volume=name)
        return name


def pack_folder(folder: Path | None, *, zipped: bool = False, extra: dict[str, bytes] | None = None) -> IO[bytes]:
    """A tar of what is in `folder`, owned by root and readable by everybody, and of `extra` files. Raises OSError."""
    file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115  # the caller closes it
    with tarfile.open(fileobj=file, mode="w:gz" if zipped else "w") as tar:
        for path in sorted(folder.iterdir()) if folder is not None else ():
            tar.add(path, path.name, filter=_plain)
        for name, content in (extra or {}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    file.seek(0)
    return file


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode |= 0o555 if member.isdir() or member.mode & 0o100 else 0o444
    member.mode &= ~0o022
    return member
