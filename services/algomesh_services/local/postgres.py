"""The embedded PostgreSQL: its data directory, its process, its address.

It listens on a unix socket in a folder of mode 0700 and nowhere else, with a password (scram) that stands only in a
passfile of mode 0600; `dsn` names that file. Every commit is on disk before it is acknowledged. If we die it ends
within a second. The first start takes about a second, later ones less than a tenth.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from algomesh_broker.child import Command, last_lines, spawn
from algomesh_broker.program import Program
from algomesh_services.courtesy import NICENESS
from algomesh_services.local.errors import (
    DatabaseFailed,
    DatabaseInUse,
    DatabaseUnusable,
    DatabaseVersion,
    StateFull,
)
from algomesh_services.local.postgres_binaries import DATABASE_UID, Installation, find_installation

USER: Final = "algomesh"
DATABASE: Final = "postgres"
_SOCKET: Final = ".s.PGSQL.5432"
# sizeof(sockaddr_un.sun_path) less its NUL.
_SOCKET_PATH_LIMIT: Final = 107
# A previous server whose supervisor was killed ends within a moment.
_PREDECESSOR_S: Final = 5.0
_FATAL: Final = re.compile(r"(?:FATAL|PANIC|initdb: error|postgres): +(?P<reason>.*)")
# Small, since it shares the machine with the algorithms, and durable: fsync stays on.
_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",  # fewer whole pages in the log: a third less of it
    "recovery_init_sync_method": "syncfs",  # after a crash: 0.1 s where a sync per file takes over 1 s
    "io_method": "sync",  # the others keep worker processes
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_replication_slots": "0",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "cluster_name": "algomesh",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres(Program):
    """A PostgreSQL of our own. `async with Postgres(directory) as postgres:` runs one for the block.

    `directory` holds the data, the passfile and the log (unless `log` names another); it is created when missing.
    `is_durable_at_birth=False` leaves writing the fresh database to disk to the system, for tests.
    """

    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)  # fast shutdown, then at once (and recovery at the next start)
    ready_within_s = 60.0  # recovery after a crash may have much to do

    def __init__(
        self,
        directory: Path,
        *,
        log: Path | None = None,
        max_connections: int = 60,
        installation: Installation | None = None,
        is_durable_at_birth: bool = True,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.passfile = directory / "passfile"
        self.log = log or directory / "postgres.log"
        self.sockets = _socket_folder(directory)
        self._max_connections = max_connections
        self._installation = installation
        self._is_durable_at_birth = is_durable_at_birth
        self._pass_fds = pass_fds
        self._folder_fds: list[int] = []

    @property
    def dsn(self) -> str:
        """The address for asyncpg and libpq, without the password: that is in the file it names."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """The address of another database of this server."""
        query = urlencode({"host": str(self.sockets), "passfile": str(self.passfile)})
        return f"postgresql://{USER}@/{database}?{query}"

    async def prepare(self) -> Command:
        """Make the database if there is none, and see that nobody else serves it.

        Raises:
            DatabaseMissing, DatabaseUnusable: PostgreSQL is not installed or cannot run here.
            DatabaseVersion: the data are those of another major version.
            DatabaseInUse: another server serves them.
            DatabaseFailed, StateFull: the database could not be made.
        """
        if self._installation is None:
            self._installation = await find_installation()
        installation = self._installation
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_data(installation)
            if not self.data.exists():
                await self._create(installation)
            await self._wait_for_predecessor()
            await asyncio.to_thread(_give_to, self.data, installation.owner_uid)
            self._make_socket_folder(installation)
            data, sockets = self._names_for(installation, self.data, self.sockets)
        except OSError as error:
            raise DatabaseFailed(f"{self.directory} cannot be used: {error}") from error
        settings = {**_SETTINGS, "max_connections": str(self._max_connections), "unix_socket_directories": sockets}
        return Command(
            argv=(
                str(installation.bin / "postgres"),
                "-D",
                data,
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ),
            environment=installation.environment,
            # Ends it and all its processes at once; what was committed is recovered at the next start.
            death_signal=signal.SIGQUIT,
            identity=installation.identity,
            pass_fds=(*self._pass_fds, *self._folder_fds),
            log=self.log,
        )

    async def wait_ready(self, pid: int) -> None:
        """Return once postmaster.pid names the process `pid` and says that it takes connections."""
        self._close_folders()  # the process has them now
        while True:
            lines = _read_lines(self.data / "postmaster.pid")
            if len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready":
                # Inherited by what it starts, which is a session each: where those share out the processors first it
                # has no effect, and who should give way there says so by itself (postgres_pool.py).
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
                return
            await asyncio.sleep(0.005)

    def explain(self, lines: list[str]) -> Exception | None:
        """The server's own fatal line."""
        for line in lines:
            if match := _FATAL.search(line):
                reason = match["reason"]
                return StateFull(self.data) if "No space left on device" in reason else DatabaseFailed(reason)
        return None

    def _check_data(self, installation: Installation) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = (self.data / "PG_VERSION").read_text().strip()
            if found != installation.major:
                raise DatabaseVersion(self.data, found, installation.major)
            if not self.passfile.exists():
                raise DatabaseFailed(f"{self.passfile}, which holds the password of {self.data}, is missing")

    async def _create(self, installation: Installation) -> None:
        """Run initdb beside the final place, so that one cut short leaves nothing that looks like a database."""
        building = self.directory / "data.new"
        await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
        building.mkdir(mode=0o700)
        password = secrets.token_hex(24)
        self._write_passfile(password)
        identity = installation.initdb_identity
        _give_to(building, os.geteuid() if identity.uid is None else identity.uid)
        (data,) = self._names_for(installation, building)
        # A file in memory that only we and initdb can open.
        password_fd = os.memfd_create("password")
        try:
            os.write(password_fd, password.encode() + b"\n")
            os.fchmod(password_fd, 0o600)
            if identity.uid is not None:
                os.fchown(password_fd, identity.uid, -1)
            command = Command(
                argv=(
                    str(installation.bin / "initdb"),
                    *("-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile=/proc/self/fd/{password_fd}"),
                    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    "--sync-method=syncfs" if self._is_durable_at_birth else "--no-sync",
                    "--no-instructions",
                ),
                environment=installation.environment,
                identity=identity,
                pass_fds=(password_fd, *self._folder_fds),
                log=self.directory / "initdb.log",
            )
            process = spawn(command)
            try:
                status = await process.wait()
            finally:
                await process.kill()
        except OSError as error:
            raise DatabaseUnusable(str(error)) from error
        finally:
            os.close(password_fd)
        if status != 0:
            lines = last_lines(command.log, 20)
            raise self.explain(lines) or DatabaseFailed(f"initdb ended with status {status}: {' / '.join(lines[-3:])}")
        building.rename(self.data)

    def _write_passfile(self, password: str) -> None:
        self.passfile.unlink(missing_ok=True)
        fd = os.open(self.passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(f"*:*:*:{USER}:{password}\n")
            file.flush()
            os.fsync(fd)

    async def _wait_for_predecessor(self) -> None:
        """Wait for the end of a server whose supervisor was killed, then clear what it left.

        PostgreSQL takes any process with the old pid for that server; we look where the process lives. A server that
        was killed itself leaves processes that soon notice; until then its memory is in use, and no other can begin.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _PREDECESSOR_S
        pid_file = self.data / "postmaster.pid"
        while lines := _read_lines(pid_file):
            pid = int(lines[0]) if lines[0].isdigit() else 0
            if not _serves(pid, self.data):
                pid = await asyncio.to_thread(_left_of, self.data)
            if not pid:
                pid_file.unlink(missing_ok=True)
                return
            if loop.time() > give_up:
                raise DatabaseInUse(self.data, pid)
            await asyncio.sleep(0.02)

    def _make_socket_folder(self, installation: Installation) -> None:
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        status = self.sockets.lstat()
        # In a folder for temporary files somebody else may have made it first. DATABASE_UID is nobody but us.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {os.geteuid(), DATABASE_UID}:
            raise DatabaseUnusable(f"{self.sockets} should be our folder for its socket and belongs to somebody else")
        self.sockets.chmod(0o700)
        _give_to(self.sockets, installation.owner_uid)

    def _names_for(self, installation: Installation, *folders: Path) -> list[str]:
        """The folders' paths as the server should be told them.

        Another user cannot walk there from the root (our home may be closed to it), so it gets each folder opened.
        """
        self._close_folders()
        if installation.identity.is_ours:
            return [str(folder) for folder in folders]
        self._folder_fds = [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders]
        return [f"/proc/self/fd/{fd}" for fd in self._folder_fds]

    def _close_folders(self) -> None:
        for fd in self._folder_fds:
            os.close(fd)
        self._folder_fds = []


def _socket_folder(directory: Path) -> Path:
    """A folder for the socket: in `directory` if the path is short enough, else a short one of its own."""
    folder = directory / "socket"
    if len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_LIMIT:
        return folder
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    parents = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - ours alone, checked
    for parent in parents:
        if parent and os.access(parent, os.W_OK):
            folder = Path(parent) / f"algomesh-{os.geteuid()}-{digest}"
            if len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_LIMIT:
                break
    return folder


def _give_to(folder: Path, uid: int) -> None:
    """Make `uid` the owner of a folder and all it holds; the folder last, so that half of it is done again."""
    if folder.lstat().st_uid == uid:
        return
    for path in [*folder.rglob("*"), folder]:
        os.chown(path, uid, -1, follow_symlinks=False)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _serves(pid: int, data: Path) -> bool:
    """Whether the process `pid` is a server of this data directory: it works in it."""
    try:
        return pid > 1 and Path(f"/proc/{pid}/cwd").samefile(data)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's process; ours and our database's we may look at
        return False


def _left_of(data: Path) -> int:
    """A process that a server of this data directory has left; 0 when there is none."""
    for process in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "comm").read_text().strip() == "postgres" and _serves(int(process.name), data):
                return int(process.name)
    return 0
