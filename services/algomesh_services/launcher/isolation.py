"""Which uid instances get, and what of the file system they do not see.

Where the launcher is root, an instance runs under another uid and can read neither the state directory nor root's
home. Python and the code may themselves lie below a folder that only root may enter, such as a 0700 home; then
the zygote sees that folder covered, with only what is needed bound back (`mounts.py`). `prepare` tries what it
has planned, once, with a real process, and returns the strongest `Isolation` that works and a sentence about what
is missing. The levels:

    namespace  another uid, and mounts of its own that hide what is secret
    uid        another uid; only file modes protect what is secret
    none       the launcher's own uid: code in one mesh is mutually trusted

What a run leaves to the uid alone: /tmp and /dev/shm are shared, and so is the network.
"""

import asyncio
import json
import os
import pwd
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

NOBODY = range(65534, 65535)
MUTUAL_TRUST = "code in one mesh is mutually trusted"

_CAP_SETUID, _CAP_SYS_ADMIN = 7, 21
_PROBE_TIMEOUT_S = 30.0
_PACKAGES = ("algomesh", "algomesh_broker", "algomesh_observability")
_PROBE = """
import contextlib, json, os, random, socket, sys
import algomesh.instance.zygote
for path in json.loads(sys.argv[1]):
    with contextlib.suppress(OSError):
        os.listdir(path)
        sys.exit(f"{path} can be listed by uid {os.getuid()}")
for path in json.loads(sys.argv[2]):
    if not os.access(path, os.R_OK):
        sys.exit(f"{path} cannot be read by uid {os.getuid()}")
"""


@dataclass(frozen=True, kw_only=True)
class MountPlan:
    """What a zygote's view of the file system covers, and what it binds back read-only."""

    cover: tuple[str, ...] = ()
    bind: tuple[str, ...] = ()

    def wrap(self, command: Sequence[str], *, uid: int | None = None) -> list[str]:
        """Return the command that runs `command` in this view, as `uid` when given."""
        program = Path(__file__).with_name("mounts.py")
        plan = json.dumps({"cover": self.cover, "bind": self.bind})
        become = [] if uid is None else ["--as", str(uid)]
        return [sys.executable, "-I", "-S", str(program), *become, plan, *command]


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What instances are kept from; `reason` says what is weaker than it could be, and is empty when nothing is."""

    level: Literal["namespace", "uid", "none"] = "none"
    uids: range = field(default=range(0))
    mounts: MountPlan | None = None
    reason: str = ""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return the command that starts a zygote."""
        return list(command) if self.mounts is None else self.mounts.wrap(command)


async def prepare(
    *, hidden: Iterable[Path], readable: Iterable[Path] = (), uids: range = NOBODY, python: str = sys.executable
) -> Isolation:
    """Find the strongest isolation that works here, in a few hundred milliseconds, without raising for what does not.

    `hidden` are folders instances must not see (the state directory; root's home is added); `readable` are
    folders they need beside Python and the code (the unpacked versions; they must exist already), also below
    hidden ones; `uids` are given to instances in turn, the least used first. Secrets must be 0600 all the same:
    they are all that protects them at level `uid`.
    """
    if os.geteuid() != 0:
        return Isolation(reason=f"the launcher does not run as root, so instances share its uid: {MUTUAL_TRUST}")
    capabilities = _effective_capabilities()
    if not capabilities >> _CAP_SETUID & 1:
        return Isolation(reason=f"the launcher may not change uids (no CAP_SETUID): {MUTUAL_TRUST}")

    secret = [path for path in (*map(_absolute, hidden), _home()) if path.is_dir() and path != Path("/")]
    wanted = [path for path in map(_absolute, readable) if path.exists()]
    needed = needed_paths(wanted)
    checks = ([str(path) for path in secret], [str(path) for path in wanted])
    problem = "no CAP_SYS_ADMIN"
    if capabilities >> _CAP_SYS_ADMIN & 1:
        plan = plan_mounts(needed, secret, uid=uids[0])
        problem = await _probe(plan, uids[0], python, *checks)
        if not problem:
            return Isolation(level="namespace", uids=uids, mounts=plan)
    without = f"instances do not get a file system view of their own ({problem})"
    visible = await _probe(MountPlan(), uids[0], python, *checks)
    if not visible:
        return Isolation(level="uid", uids=uids, reason=f"{without}: file modes alone protect the launcher's files")
    if "can be listed" in visible:
        return Isolation(level="uid", uids=uids, reason=f"{without}, and {visible}")
    return Isolation(reason=f"{without}, and without it another uid cannot run the code ({visible}): {MUTUAL_TRUST}")


def needed_paths(readable: Iterable[Path] = ()) -> list[Path]:
    """Return what an instance must be able to read: Python, its packages, this project's sources and `readable`."""
    found = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), *map(Path, filter(None, sys.path))]
    for package in _PACKAGES:
        spec = find_spec(package)
        found += map(Path, spec.submodule_search_locations or () if spec else ())
    found += map(_absolute, readable)
    link = Path(sys.executable)
    while link.is_symlink():
        link = link.parent / link.readlink()
        found.append(Path(os.path.normpath(link.parent)))
    found += [path.resolve() for path in found]
    return list(dict.fromkeys(path for path in found if path.is_absolute() and path.exists()))


def plan_mounts(needed: Iterable[Path], hidden: Iterable[Path], *, uid: int) -> MountPlan:
    """Decide what to cover so that `uid` sees `needed` and nothing of `hidden`."""
    root = Path("/")
    wanted = [path for path in needed if path != root]
    covers = {path for path in map(_absolute, hidden) if path != root and path.is_dir()}
    for path in wanted:
        closed = next((folder for folder in reversed(path.parents) if not _may_enter(folder, uid)), None)
        if closed is not None and closed != root:
            covers.add(closed)
    binds = [path for path in wanted if any(cover in (path, *path.parents) for cover in covers)]
    binds = [path for path in binds if not any(_shows(other, path, covers) for other in binds)]
    return MountPlan(cover=tuple(sorted(map(str, covers))), bind=tuple(sorted(map(str, binds))))


def _shows(other: Path, path: Path, covers: Iterable[Path]) -> bool:
    """Return whether binding `other` shows `path` already: it lies below, and no cover lies between."""
    return other in path.parents and not any(other in c.parents and c in (path, *path.parents) for c in covers)


def _may_enter(folder: Path, uid: int) -> bool:
    facts = folder.stat()
    if facts.st_uid == uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid == uid:  # an instance's gid is its uid's number
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)


async def _probe(plan: MountPlan, uid: int, python: str, hidden: list[str], readable: list[str]) -> str:
    """Run Python as an instance would; return what went wrong, in one line, or nothing."""
    command = [python, "-P", "-c", _PROBE, json.dumps(hidden), json.dumps(readable)]
    process = await asyncio.create_subprocess_exec(
        *plan.wrap(command, uid=uid),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return "trying it took too long"
    if process.returncode == 0:
        return ""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}"


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _home() -> Path:
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links, and both ends matter
