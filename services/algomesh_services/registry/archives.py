"""Archives on disk: one file per digest, taken in piece by piece and checked before it counts.

A half-sent archive lies beside the whole ones under its sender's name, so nobody can spoil
another's upload, and an upload that was cut off goes on where it stopped.
"""

import asyncio
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from algomesh_broker.platform import CHUNK_BYTES, ArchiveChunk, Upload
from algomesh_broker.request_server import Refusal

T = TypeVar("T")
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_STALE_S = 86_400.0
_AT_ONCE = 4


class Archives:
    """The archives below one directory. `limit_bytes` bounds a single one."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._partial = directory / "partial"
        self._limit_bytes = limit_bytes
        self._disk = asyncio.Semaphore(_AT_ONCE)
        self._busy: set[Path] = set()

    def prepare(self, now: float | None = None) -> None:
        """Make the directories, and drop uploads nobody has gone on with for a day. Raises OSError."""
        self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in self._partial.iterdir():
            if part.stat().st_mtime < (time.time() if now is None else now) - _STALE_S:
                part.unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        """Whether this archive is here, whole and checked. Raises Refusal for what is no digest."""
        return self._path(digest).is_file()

    async def take(self, upload: Upload, caller: str) -> int:
        """Take one piece, and say how many bytes are here now.

        A piece that does not begin where the last one ended is not taken: the answer tells the sender
        where to go on. With the last byte the digest is checked. Raises Refusal.
        """
        path = self._path(upload.digest)
        if not 1 <= upload.size_bytes <= self._limit_bytes:
            limit = self._limit_bytes / 2**20
            raise Refusal(
                "archive_too_large",
                f"the archive has {upload.size_bytes / 2**20:.1f} MiB; an archive has 1 byte to {limit:.0f} MiB",
            )
        if len(upload.data) > CHUNK_BYTES:
            raise Refusal("bad_message", f"a piece has at most {CHUNK_BYTES} bytes; this one has {len(upload.data)}")
        part = self._partial / f"{upload.digest}.{caller}"
        if part in self._busy:
            raise Refusal("overloaded", "another piece of this archive is being written; send one after the other")
        self._busy.add(part)
        try:
            return await self._on_disk(lambda: _take(path, part, upload))
        finally:
            self._busy.discard(part)

    async def read(self, digest: str, offset: int) -> ArchiveChunk:
        """At most CHUNK_BYTES of an archive from `offset`. Raises Refusal."""
        path = self._path(digest)
        return await self._on_disk(lambda: _read(path, max(0, offset)))

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise Refusal("bad_message", "a digest is the sha-256 of the archive, 64 characters 0-9 and a-f")
        return self._directory / digest

    async def _on_disk(self, work: Callable[[], T]) -> T:
        async with self._disk:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
                raise Refusal("storage_failed", f"the registry cannot keep archives: {why}") from error


def _take(path: Path, part: Path, upload: Upload) -> int:
    if path.is_file():
        return upload.size_bytes if path.stat().st_size == upload.size_bytes else path.stat().st_size
    received = part.stat().st_size if part.exists() else 0
    if upload.offset == received and upload.data:
        if received + len(upload.data) > upload.size_bytes:
            part.unlink(missing_ok=True)
            raise Refusal("digest_mismatch", f"more bytes came than the {upload.size_bytes} that were announced")
        with part.open("ab") as file:
            file.write(upload.data)
        received += len(upload.data)
    if received == upload.size_bytes:
        _finish(path, part, upload.digest)
    elif received > upload.size_bytes:
        # An earlier attempt announced another size: begin anew.
        part.unlink()
        return 0
    return received


def _finish(path: Path, part: Path, digest: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            part.unlink()
            raise Refusal("digest_mismatch", f"the archive's sha-256 is {found}, not {digest}; send it again")
        os.fsync(file.fileno())
    part.replace(path)


def _read(path: Path, offset: int) -> ArchiveChunk:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(min(offset, size_bytes))
            return ArchiveChunk(size_bytes=size_bytes, data=file.read(CHUNK_BYTES))
    except FileNotFoundError as error:
        raise Refusal("unknown_archive", f"there is no archive {path.name}") from error
