"""What runs below a process, and how to end all of it although it forks, daemonizes and ignores signals.

Used by the zygote for what an instance left behind, and by the launcher and the supervisor for everything.
Together with `prctl.become_subreaper` no descendant escapes: an orphan comes to the subreaper as a child.
Trees are first stopped, until a look at /proc shows nothing that still runs, and then killed, so that a fork bomb
loses the race; whole process groups are signalled at once where nobody who is spared belongs to them.
Only the standard library is imported.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

_PAUSE_S = 0.0005


def children(pid: int) -> list[int]:
    """Return the pids whose parent is `pid`, zombies included; empty when `pid` has gone."""
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            text = (thread / "children").read_text()
        except FileNotFoundError:
            if thread.exists():  # a kernel without CONFIG_PROC_CHILDREN
                return _children_by_scan(pid)
            continue
        except OSError:
            continue
        found += map(int, text.split())
    return found


def descendants(roots: Iterable[int], *, spare: Collection[int] = ()) -> list[int]:
    """Return `roots` and everything below them, parents first, without `spare` and what is below those."""
    found: list[int] = []
    seen = set(spare)
    queue = list(roots)
    for pid in queue:
        if pid not in seen:
            seen.add(pid)
            found.append(pid)
            queue += children(pid)
    return found


def kill_descendants(pid: int | None = None, *, spare: Collection[int] = (), within_s: float = 5.0) -> list[int]:
    """Kill everything below `pid` (this process by default) except `spare` and what is below those.

    Returns when nothing is left, or after `within_s` seconds the pids that could not be killed. Zombies that are
    children of this process are reaped, so spare the children whose exit status somebody still waits for.
    """
    root = os.getpid() if pid is None else pid
    return kill_trees(
        lambda: [child for child in children(root) if child not in spare], spare={root, *spare}, within_s=within_s
    )


def kill_trees(find: Callable[[], list[int]], *, spare: Collection[int] = (), within_s: float = 5.0) -> list[int]:
    """Kill the trees whose roots `find` names, asking it again until it names none that lives.

    Returns the pids that could not be killed in `within_s` seconds; see `kill_descendants`.
    """
    give_up = time.monotonic() + within_s
    groups = {group for pid in {os.getpid(), *spare} if (group := _group(pid)) is not None}
    pause = _PAUSE_S
    while True:
        roots = find()
        stopped: set[int] = set()
        while fresh := [pid for pid in descendants(roots, spare=spare) if pid not in stopped]:
            for pid in fresh:
                _send(pid, signal.SIGSTOP, groups)
            stopped.update(fresh)
            roots = find()
            if time.monotonic() > give_up:
                break
        for pid in stopped:
            _send(pid, signal.SIGKILL, groups)
        reap(stopped)
        left = [pid for pid in descendants(find(), spare=spare) if not is_zombie(pid)]
        if not left:
            reap(find())
            return []
        if time.monotonic() > give_up:
            return left
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def reap(pids: Iterable[int]) -> None:
    """Collect those of `pids` that are dead children of this process, without waiting."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def orphans(since_ticks: int) -> list[int]:
    """Return this process' adopted children: those of another session that were started at `since_ticks` or later.

    That is how to tell what an instance left behind from what this process started itself: instances live in
    sessions of their own, and neither they nor what they start may gain privileges.
    """
    own = stat_fields(os.getpid())
    if own is None:
        return []
    own_session, own_unprivileged = own[3], _has_no_new_privileges(os.getpid())
    found = []
    for pid in children(os.getpid()):
        fields = stat_fields(pid)
        if fields is None or fields[3] == own_session or int(fields[19]) < since_ticks:
            continue
        if own_unprivileged or _has_no_new_privileges(pid):
            found.append(pid)
    return found


def start_ticks(pid: int) -> int:
    """Return when `pid` started, in clock ticks since the machine did; 0 when it has gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def is_zombie(pid: int) -> bool:
    """Return whether `pid` is dead (and at most waits to be reaped)."""
    fields = stat_fields(pid)
    return fields is None or fields[0] in "ZX"


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on (so field 3 of proc(5) is at 0), None when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _children_by_scan(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if (fields := stat_fields(int(folder.name))) is not None and int(fields[1]) == pid:
            found.append(int(folder.name))
    return found


def _send(pid: int, number: signal.Signals, spared_groups: Collection[int]) -> None:
    group = _group(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group and group not in spared_groups:
            os.killpg(group, number)
        else:
            os.kill(pid, number)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _has_no_new_privileges(pid: int) -> bool:
    try:
        return "\nNoNewPrivs:\t1\n" in Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
