"""Runs a command and fails when it leaves a process behind.

This process makes itself the subreaper of everything the command starts, so that a daemon, an orphan or a
child that called setsid comes back to it and can be named, whatever it did to its environment. What is still
alive a moment after the command has ended is listed, killed, and turns the exit status to 1.

Usage: leftovers.py COMMAND [ARGUMENT...]
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# A process that was told to stop may need this long to be gone; one that was forgotten needs longer.
GRACE_S = 5.0


def main(command: list[str]) -> int:
    """Run the command; its exit status, or 1 when something outlived it."""
    become_subreaper()
    pid = os.posix_spawnp(command[0], command, os.environ)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    status = wait_as_init(pid)
    left = wait_for_descendants(GRACE_S)
    if not left:
        return status
    report(f"{len(left)} process(es) outlived `{' '.join(command)}`:")
    for pid, line in sorted(left.items()):
        report(f"  {pid}: {line}")
    kill_descendants()
    return status or 1


def become_subreaper() -> None:
    """Have orphans below this process reparented to it rather than to init.

    Raises OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def wait_as_init(pid: int) -> int:
    """The exit status of a child; meanwhile orphans that end are collected at once, as init would."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def wait_for_descendants(grace_s: float) -> dict[int, str]:
    """What still lives below this process once the grace is over: command lines by pid."""
    until = time.monotonic() + grace_s
    while True:
        reap()
        left = descendants()
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def kill_descendants() -> None:
    """Kill until nothing is left: the children of what is killed arrive here in their turn."""
    while left := descendants():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
        reap()


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def descendants() -> dict[int, str]:
    """The command line of every living process below this one, by pid."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    queue = list(children.get(os.getpid(), ()))
    while queue:
        pid = queue.pop()
        found[pid] = command_line(pid)
        queue.extend(children.get(pid, ()))
    return found


def parent_of(entry: Path) -> int | None:
    """The parent of a process that lives; None for a zombie or one that has just gone."""
    try:
        state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def command_line(pid: int) -> str:
    """What the process was started as, cut to a line."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "(gone)"
    return " ".join(raw.replace(b"\0", b" ").decode(errors="replace").split())[:200] or "(no command line)"


def report(line: str) -> None:
    """Say it where the command's own output went."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
