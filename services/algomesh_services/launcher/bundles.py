"""What an instance is started from: the manifest of its version, and its archive, unpacked on this machine's disk.

Both come from the registry and are kept: manifests in memory, unpacked archives by digest in the state directory, the
least recently used of them dropped when all take more than `limit_bytes`. What is kept costs a start no waiting.
"""

import asyncio
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from algomesh_broker import platform
from algomesh_broker.names import VersionId
from algomesh_broker.platform import ArchiveChunk, FetchArchive, FetchManifest, Manifest, StoredManifest
from algomesh_services.asking import Programs
from algomesh_services.launcher import unpack
from algomesh_services.launcher.unpack import BadArchive

__all__ = ["BadArchive", "Bundle", "Bundles"]

log = structlog.get_logger("algomesh.launcher")

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KNOWN_MANIFESTS = 4096
_CHUNKS_AT_ONCE = 4
_CHUNK_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A version, ready to be started."""

    manifest: Manifest
    digest: str
    folder: Path


class Bundles:
    """Manifests and unpacked archives. `in_use` says which digests instances run from: those stay on disk."""

    in_use: Callable[[], Collection[str]] = frozenset

    def __init__(self, programs: Programs, folder: Path, limit_bytes: int) -> None:
        self._programs = programs
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._manifests: OrderedDict[VersionId, StoredManifest] = OrderedDict()
        self._unpacked: OrderedDict[str, int] = OrderedDict()  # digest → bytes, least recently used first
        self._manifest_tasks: dict[VersionId, asyncio.Task[StoredManifest]] = {}
        self._archive_tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Make the folder, clear away what was left half done, and see what is there. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # The state directory above it keeps other users out; instances get this folder bound into their view.
        self._folder.chmod(0o755)
        self._unpacked.update(await asyncio.to_thread(_survey, self._folder))

    async def close(self) -> None:
        """End what is being fetched."""
        tasks = [*self._manifest_tasks.values(), *self._archive_tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def known_manifest(self, version: VersionId) -> Manifest | None:
        """The manifest, if it is in memory."""
        stored = self._manifests.get(version)
        return stored.manifest if stored is not None else None

    def forget(self, version: VersionId, digest: str = "") -> None:
        """Ask the registry again for this version's manifest, unless the one we have is of `digest`."""
        stored = self._manifests.get(version)
        if stored is not None and stored.digest != digest:
            del self._manifests[version]

    async def manifest(self, version: VersionId) -> Manifest:
        """The manifest, from memory or from the registry.

        Raises Refused when the registry does not have it, Unreachable, BadMessage.
        """
        return (await self._stored(version)).manifest

    async def prepare(self, version: VersionId) -> Bundle:
        """Manifest and unpacked archive.

        Raises Refused, Unreachable, BadMessage as `manifest`, BadArchive for one that is not what its digest says or
        cannot be unpacked, OSError when the disk refuses.
        """
        stored = await self._stored(version)
        folder = self._folder / stored.digest
        if stored.digest not in self._unpacked or not folder.is_dir():
            await _once(self._archive_tasks, stored.digest, lambda: self._fetch(version, stored.digest))
        self._touch(stored.digest)
        return Bundle(manifest=stored.manifest, digest=stored.digest, folder=folder)

    async def _stored(self, version: VersionId) -> StoredManifest:
        stored = self._manifests.get(version)
        if stored is None:
            stored = await _once(self._manifest_tasks, version, lambda: self._fetch_manifest(version))
        else:
            self._manifests.move_to_end(version)
        return stored

    async def _fetch_manifest(self, version: VersionId) -> StoredManifest:
        asked = FetchManifest(version=str(version.version))
        stored = await self._programs.ask("registry", "manifest", asked, StoredManifest, algorithm=version.algorithm)
        if not _DIGEST.fullmatch(stored.digest):  # it becomes a folder's name
            raise BadArchive(f"the registry names its archive {stored.digest!r}, which is not a SHA-256 digest")
        self._manifests[version] = stored
        while len(self._manifests) > _KNOWN_MANIFESTS:
            self._manifests.popitem(last=False)
        return stored

    async def _fetch(self, version: VersionId, digest: str) -> None:
        draft = self._folder / f".fetched.{digest}"
        try:
            size_bytes = await self._download(version, digest, draft)
            found = await asyncio.to_thread(_digest_of, draft)
            if found != digest:
                raise BadArchive(f"its archive came as {found[:12]}…, and should be {digest[:12]}…")
            unpacked_bytes = await asyncio.to_thread(unpack.unpack, draft, self._folder / digest, self._limit_bytes)
        finally:
            draft.unlink(missing_ok=True)
        self._unpacked[digest] = unpacked_bytes
        log.info("version_unpacked", version=str(version), digest=digest[:12], archive_bytes=size_bytes)
        await self._drop_surplus(digest)

    async def _download(self, version: VersionId, digest: str, draft: Path) -> int:
        """Write the archive to `draft`, a few pieces at once; return its size."""

        async def piece(offset: int) -> ArchiveChunk:
            return await self._programs.ask(
                "registry", "archive", FetchArchive(digest=digest, offset=offset), ArchiveChunk,
                algorithm=version.algorithm, timeout_s=_CHUNK_TIMEOUT_S,
            )  # fmt: skip

        first = await piece(0)
        size_bytes = first.size_bytes
        if size_bytes > self._limit_bytes:
            raise BadArchive(
                f"its archive has {size_bytes / 2**20:.0f} MiB, more than this launcher keeps of all versions"
            )
        with draft.open("wb") as file:
            file.write(first.data)
            offset = len(first.data)
            while offset < size_bytes:
                ahead = range(offset, size_bytes, platform.CHUNK_BYTES)[:_CHUNKS_AT_ONCE]
                for at, chunk in zip(ahead, await asyncio.gather(*map(piece, ahead)), strict=True):
                    if not chunk.data or at != offset:
                        raise BadArchive(f"its archive ends after {offset} of {size_bytes} bytes")
                    file.write(chunk.data)
                    offset += len(chunk.data)
        return size_bytes

    def _touch(self, digest: str) -> None:
        self._unpacked.move_to_end(digest)
        try:
            os.utime(self._folder / digest)
        except OSError:  # only the order of use after a restart depends on it
            log.warning("touch_failed", digest=digest[:12])

    async def _drop_surplus(self, newest: str) -> None:
        keep = {newest, *self.in_use(), *self._archive_tasks}
        total = sum(self._unpacked.values())
        for digest in [digest for digest in self._unpacked if digest not in keep]:
            if total <= self._limit_bytes:
                return
            total -= self._unpacked.pop(digest)
            await asyncio.to_thread(unpack.remove, self._folder / digest)
            log.info("version_dropped", digest=digest[:12])


async def _once(
    tasks: dict[Key, asyncio.Task[Value]], key: Key, start: Callable[[], Coroutine[object, object, Value]]
) -> Value:
    """Do this once for all who ask meanwhile; one who stops waiting does not end it for the others."""
    task = tasks.get(key)
    if task is None:
        task = tasks[key] = asyncio.get_running_loop().create_task(start(), name=f"fetch {key}")
        task.add_done_callback(lambda done: _finish(tasks, key, done))
    return await asyncio.shield(task)


def _finish(tasks: dict[Key, asyncio.Task[Value]], key: Key, done: asyncio.Task[Value]) -> None:
    tasks.pop(key, None)
    if not done.cancelled():
        done.exception()  # read: perhaps nobody waits any more


def _survey(folder: Path) -> list[tuple[str, int]]:
    unpack.clear_drafts(folder)
    found = [path for path in folder.iterdir() if path.is_dir() and _DIGEST.fullmatch(path.name)]
    return [(path.name, unpack.folder_bytes(path)) for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
