"""The state directory: everything a mesh on one machine keeps, in one place that one mesh uses at a time.

    lock       who uses it (a lock of the kernel's, so that it cannot be left behind)
    nats/ postgres/ archives/ versions/ logs/ secrets/ run/

It and its folders are ours alone (mode 0700). What is wrong with it is said before any program starts.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import platformdirs

from algomesh_services.local.errors import (
    StateError,
    StateFull,
    StateInUse,
    StateNotADirectory,
    StateNotOurs,
    StateReadOnly,
)

FOLDERS: Final = ("nats", "postgres", "archives", "versions", "logs", "secrets", "run")
# A new database has 40 MiB, and a server that runs out of disk in its first minute helps nobody.
NEEDED_BYTES: Final = 96 * 1024 * 1024
_PROBE_BYTES: Final = 64 * 1024
_DYING_S: Final = 5.0
_SECRET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")


def default_state_path() -> Path:
    """Where a mesh keeps its state when nobody says otherwise: `~/.local/share/algomesh`, or as XDG says."""
    return Path(platformdirs.user_data_dir("algomesh"))


class StateDirectory:
    """A state directory in use: `with StateDirectory(path) as state:` makes, checks and locks it.

    `lock_fd` may be passed on to child processes: the directory then counts as used until the last of them ended.
    """

    def __init__(self, path: Path | str | None = None, *, needed_bytes: int = NEEDED_BYTES) -> None:
        self.path = Path(os.path.abspath(Path(path).expanduser())) if path else default_state_path()  # noqa: PTH100
        self.nats = self.path / "nats"
        self.postgres = self.path / "postgres"
        self.archives = self.path / "archives"
        self.versions = self.path / "versions"
        self.logs = self.path / "logs"
        self.secrets = self.path / "secrets"
        self.run = self.path / "run"
        self._needed_bytes = needed_bytes
        self._lock_fd: int | None = None

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the lock."""
        assert self._lock_fd is not None, "the state directory is not locked"
        return self._lock_fd

    def open(self) -> None:
        """Create what is missing, take the lock, and see that files can be written.

        Raises:
            StateInUse: another process uses it.
            StateNotADirectory, StateReadOnly, StateNotOurs, StateFull, StateError: it cannot be used.
        """
        with self._errors():
            if not self.path.is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                self.path.chmod(0o700)
            self._refuse_foreign()
            self._lock_fd = self._lock()
        try:
            with self._errors():
                for name in FOLDERS:
                    folder = self.path / name
                    folder.mkdir(mode=0o700, exist_ok=True)
                self._probe()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the directory free."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """The secret `name`, which `make` provides the first time; two who ask at once get the same.

        Raises:
            StateError: it cannot be read or written.
        """
        assert _SECRET_NAME.fullmatch(name), name
        path = self.secrets / name
        with self._errors():
            if not path.exists():
                _create_private(path, make())
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return path.read_text(encoding="utf-8")

    def _refuse_foreign(self) -> None:
        """Root could write into another user's state, and would lock that user out of it."""
        with contextlib.suppress(FileNotFoundError):
            owner = (self.path / "lock").stat().st_uid
            if owner != os.geteuid():
                raise StateNotOurs(self.path, _user_name(owner))

    def _lock(self) -> int:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_up = time.monotonic() + _DYING_S
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                holder = _pid_in(fd)
                # A holder that was killed leaves children that end within moments, and hold the lock until then.
                if holder is None or _is_alive(holder) or time.monotonic() > give_up:
                    raise StateInUse(self.path, holder)
                time.sleep(0.02)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _probe(self) -> None:
        space = os.statvfs(self.path)
        free_bytes = space.f_bavail * space.f_frsize
        if space.f_blocks and free_bytes < self._needed_bytes:
            raise StateFull(self.path, free_bytes=free_bytes, needed_bytes=self._needed_bytes)
        # A quota, or a mount that lies, shows only when something is written.
        probe = self.run / f".probe-{os.getpid()}"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = Path(os.fsdecode(error.filename)) if error.filename else self.path
            raise _as_state_error(error, path) from error


def _as_state_error(error: OSError, path: Path) -> StateError:
    match error.errno:
        case errno.EROFS:
            return StateReadOnly(path)
        case errno.ENOSPC | errno.EDQUOT:
            return StateFull(path)
        case errno.EACCES | errno.EPERM:
            return StateNotOurs(path)
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return StateNotADirectory(path)
        case _:
            return StateError(path, f"{path} cannot be used: {error.strerror}; choose another with --state")


def _create_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 that appears complete or not at all; one that is there already stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
