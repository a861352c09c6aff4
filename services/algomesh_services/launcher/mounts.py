"""Start a program in a view of the file system of its own: some folders covered, some bound back read-only.

`python -I -S mounts.py PLAN PROGRAM ARGUMENT…` is run by the process driver in front of a zygote, and becomes it.
PLAN is JSON: `{"cover": [path…], "bind": [path…]}`. A covered folder appears empty and cannot be listed, but for
the way to what is bound below it. Needs CAP_SYS_ADMIN; the mounts are private and end with the processes that see
them. With `--as UID` before the plan the program runs under that uid. Only the standard library is imported, none
of this project's modules.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_INHERITED = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime: the same bits in both calls
_FAILED_CODE = 4

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Cover, bind and execute; return only when that failed, after a line on stderr."""
    uid = None
    if arguments[0] == "--as":
        uid = int(arguments[1])
        arguments = arguments[2:]
    plan, program = json.loads(arguments[0]), arguments[1:]
    try:
        if plan["cover"] or plan["bind"]:
            enter(plan["cover"], plan["bind"])
        os.chdir("/")
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        os.execv(program[0], program)  # noqa: S606  # no shell is wanted
    except OSError as error:
        print(f"{error.strerror}: {error.filename or program[0]}", file=sys.stderr)  # noqa: T201
    return _FAILED_CODE


def enter(cover: list[str], bind: list[str]) -> None:
    """Give this process its own mounts; raises OSError, and then the process must not go on."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        _raise("unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in bind}
    umask = os.umask(0o066)
    steps = [(path, False) for path in cover] + [(path, True) for path in bind]
    for path, is_bind in sorted(steps, key=lambda step: (step[0].count("/"), step[1])):
        if is_bind:
            _bind(sources[path], path)
        elif Path(path).is_dir():
            _mount("algomesh", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0711,size=1m")
    os.umask(umask)
    for fd in sources.values():
        os.close(fd)


def _bind(source: int, path: str) -> None:
    origin, target = Path(f"/proc/self/fd/{source}"), Path(path)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)  # in a cover: passable, not listable
        if origin.is_dir():
            target.mkdir()
        else:
            target.touch()
    _mount(str(origin), path, None, _MS_BIND | _MS_REC)
    inherited = os.statvfs(path).f_flag & _INHERITED
    _mount("none", path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | inherited)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    if _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        _raise(target)


def _raise(name: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
