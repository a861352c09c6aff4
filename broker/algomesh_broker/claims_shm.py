"""Payloads in shared memory: files in `/dev/shm/algomesh-<uid>`, for readers on the same machine.

`<uid>` is the launcher's, which makes the folder (`make_folder`) and clears it of what has expired (`sweep`). Writers
and readers may be anybody on the machine, the folder is theirs to write (mode 1733) but not to list, and so:

- a file's name has 128 random bits; who knows it may read the file, nobody but its writer may change or remove it;
- a file becomes readable, and unwritable, when all of it is there; its name says when it expires, by the clock that
  runs since boot, so that setting the time deletes nothing;
- the folder and the file are opened without following links, and looked at after opening: a file must be a plain one
  with one name, readable by all, and of the claimed size, so a claim makes nobody read what he alone may read;
- mapping is only for files of root or of the reader's own uid: who may truncate the file could kill by it whoever has
  mapped it (SIGBUS). What somebody else wrote is copied while it is read.

Nothing here waits for anything but memory; a large payload takes tens of milliseconds, which is a thread's work.
"""

import contextlib
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Self

from algomesh_broker.errors import ClaimGone
from algomesh_broker.messages import Claim

MAX_CLAIM_BYTES = 2**30
LONGEST_TTL_S = 86_400
_FOLDER_MODE = 0o1733
_FILE_MODE = 0o444
_KEEP_FREE_SHARE = 0.25
_PIECE_BYTES = 2**20
_NAME = re.compile(r"[0-9a-f]{32}-([0-9a-f]{1,12})", re.ASCII)
_HOST = re.compile(r"[0-9a-f-]{1,64}\.[0-9a-f]{1,16}-[0-9a-f]{1,16}\.([0-9]{1,10})", re.ASCII)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SharedMemoryFull(OSError):
    """There is no room, or what is left is for other programs."""


def boot_clock_s() -> float:
    """Seconds since this machine started: the clock of the names."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SharedMemory:
    """The shared memory of this machine, as far as it is for claims; `root` is where it is mounted."""

    def __init__(self, root: Path = Path("/dev/shm")) -> None:  # noqa: S108  # what is below it is checked
        self.root = root

    @cached_property
    def machine(self) -> str:
        """This machine and this mount, as anybody who sees the same files would name it; empty where there is none."""
        try:
            boot, facts = _BOOT_ID.read_text().strip(), self.root.stat()
        except OSError:
            return ""
        return f"{boot}.{facts.st_dev:x}-{facts.st_ino:x}"

    def host(self, uid: int) -> str:
        """What a claim says of where it lies: this machine, and whose folder."""
        return f"{self.machine}.{uid}" if self.machine else ""

    def is_here(self, host: str) -> bool:
        """Whether `host` names a folder of this machine."""
        return bool(self.machine) and host.rpartition(".")[0] == self.machine and _HOST.fullmatch(host) is not None

    def make_folder(self) -> str:
        """Make this uid's folder unless it is there, and return its host.

        Raises OSError when there is no shared memory, or when somebody else has taken the folder's name.
        """
        uid = os.geteuid()
        path = self._folder(uid)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_uid != uid:
                raise PermissionError(f"{path} belongs to somebody else")
            os.fchmod(descriptor, _FOLDER_MODE)
        finally:
            os.close(descriptor)
        return self.host(uid)

    def create(self, host: str, ttl_s: float, *, size_bytes: int = 0) -> "Draft":
        """Begin a file that expires after `ttl_s` seconds. Raises SharedMemoryFull, or OSError where it cannot be."""
        folder = self._open_folder(host)
        try:
            room = os.fstatvfs(folder)
            if size_bytes > (room.f_bavail - _KEEP_FREE_SHARE * room.f_blocks) * room.f_frsize:
                raise SharedMemoryFull(f"{size_bytes} bytes would fill {self.root}")
            expires = int(boot_clock_s() + min(ttl_s, LONGEST_TTL_S)) + 1
            name = f"{secrets.token_hex(16)}-{expires:x}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise
        return Draft(folder, descriptor, name, str(self._folder(_uid_of(host)) / name))

    def read(self, claim: Claim, *, copy: bool = False) -> memoryview:
        """All of it, read-only; mapped where the writer is trusted not to shrink it, unless a `copy` is wanted.

        Raises ClaimGone.
        """
        with Opened(self, claim) as file:
            size_bytes = claim.size_bytes
            if size_bytes and not copy and file.owner in (0, os.geteuid()):
                # Not populated: whoever looks at it pays for the pages he looks at, and the same for all of them.
                return memoryview(mmap.mmap(file.descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
            # A third faster than into memory of our own making, which would be cleared first.
            data = os.pread(file.descriptor, size_bytes, 0)
            if len(data) != size_bytes:
                raise file.cut_short()
            return memoryview(data)

    def pieces(self, claim: Claim) -> Iterator[memoryview]:
        """A piece at a time, never more than a mebibyte in memory. Raises ClaimGone."""
        with Opened(self, claim) as file:
            for at in range(0, claim.size_bytes, _PIECE_BYTES):
                wanted = min(_PIECE_BYTES, claim.size_bytes - at)
                piece = os.pread(file.descriptor, wanted, at)
                if len(piece) != wanted:
                    raise file.cut_short()
                yield memoryview(piece)

    def delete(self, claim: Claim) -> bool:
        """Remove a file, which only its writer and the folder's owner may; False when it stays or was gone."""
        try:
            folder = self._open_folder(claim.host)
        except OSError:
            return False
        try:
            os.unlink(self._name(claim), dir_fd=folder)
        except (OSError, ClaimGone):
            return False
        finally:
            os.close(folder)
        return True

    def sweep(self, now: float | None = None) -> int:
        """Remove from this uid's folder what has expired, or is no claim; return how many files that were.

        `now` is the time of `boot_clock_s`. A folder that is not there has nothing to remove.
        """
        now = boot_clock_s() if now is None else now
        try:
            folder = os.open(self._folder(os.geteuid()), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        removed = 0
        try:
            for name in os.listdir(folder):  # noqa: PTH208  # a descriptor, which nobody can exchange
                # Nobody may say that his file lives longer than the longest time to live.
                if now < expires_at(name) <= now + LONGEST_TTL_S + 1:
                    continue
                removed += _remove(folder, name)
        finally:
            os.close(folder)
        return removed

    def _folder(self, uid: int) -> Path:
        return self.root / f"algomesh-{uid}"

    def _open_folder(self, host: str) -> int:
        if not self.is_here(host):
            raise FileNotFoundError(f"{host!r} is not the shared memory of this machine")
        uid = _uid_of(host)
        descriptor = os.open(self._folder(uid), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        facts = os.fstat(descriptor)
        if facts.st_uid != uid or stat.S_IMODE(facts.st_mode) != _FOLDER_MODE:
            os.close(descriptor)
            raise PermissionError(f"{self._folder(uid)} is not a launcher's")
        return descriptor

    def _name(self, claim: Claim) -> str:
        """The name in the folder; never believe a path that came in a message."""
        folder, _, name = claim.path.rpartition("/")
        if folder != str(self._folder(_uid_of(claim.host))) or not _NAME.fullmatch(name):
            raise ClaimGone("a claim's path is not that of a claim")
        return name


class Draft:
    """A file that is being written; it is a claim once it is finished, and nothing when it is abandoned."""

    def __init__(self, folder: int, descriptor: int, name: str, path: str) -> None:
        self._folder, self._descriptor, self._name, self._path = folder, descriptor, name, path
        self.size_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises SharedMemoryFull, after which what was written before can still be read back."""
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, self.size_bytes)
            except OSError as error:
                raise SharedMemoryFull(f"shared memory takes no more: {error}") from error
            self.size_bytes += count
            view = view[count:]

    def finish(self, host: str, claim_id: str) -> Claim:
        """Make it readable and return its claim. Raises OSError."""
        os.fchmod(self._descriptor, _FILE_MODE)
        self._close()
        return Claim(id=claim_id, size_bytes=self.size_bytes, host=host, path=self._path)

    def read_back(self) -> Iterator[bytes]:
        """What was written so far, in pieces."""
        for at in range(0, self.size_bytes, _PIECE_BYTES):
            yield os.pread(self._descriptor, min(_PIECE_BYTES, self.size_bytes - at), at)

    def abandon(self) -> None:
        """Remove it; safe after `finish` too, when it does nothing."""
        if self._descriptor >= 0:
            _remove(self._folder, self._name)
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        os.close(self._folder)
        self._descriptor = -1


class Opened:
    """A claim's file, opened and looked at. Raises ClaimGone, on entering and while it is read."""

    def __init__(self, memory: SharedMemory, claim: Claim) -> None:
        self._memory, self._claim = memory, claim
        self.descriptor = -1
        self.owner = -1

    def __enter__(self) -> Self:
        memory, claim = self._memory, self._claim
        if not memory.is_here(claim.host):
            raise ClaimGone(f"the claim {claim.id} lies in the shared memory of another machine")
        name = memory._name(claim)
        if expires_at(name) <= boot_clock_s():
            raise ClaimGone(f"the claim {claim.id} has expired")
        try:
            folder = memory._open_folder(claim.host)
            try:
                # A pipe in the place of a file must not make the reader wait for a writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                self.descriptor = os.open(name, flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ClaimGone(f"the claim {claim.id} is not there: {error.strerror}") from error
        facts = os.fstat(self.descriptor)
        self.owner = facts.st_uid
        is_plain = stat.S_ISREG(facts.st_mode) and stat.S_IMODE(facts.st_mode) == _FILE_MODE and facts.st_nlink == 1
        if not is_plain or facts.st_size != claim.size_bytes or facts.st_size > MAX_CLAIM_BYTES:
            os.close(self.descriptor)
            raise ClaimGone(f"what lies in the place of the claim {claim.id} is something else")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def cut_short(self) -> ClaimGone:
        """What to raise when there is less to read than was claimed."""
        return ClaimGone(f"the claim {self._claim.id} was cut short by its writer")


def expires_at(name: str) -> float:
    """When the file of this name expires, by `boot_clock_s`; 0 for what is no claim's name."""
    found = _NAME.fullmatch(name)
    return int(found[1], 16) if found else 0.0


def _uid_of(host: str) -> int:
    return int(host.rpartition(".")[2])


def _remove(folder: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:  # a folder that somebody made here, or gone already
        return False
    return True
