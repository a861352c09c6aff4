"""Standing back on a busy machine: a program that nobody waits for lets calls go first.

Niceness says so to the kernel; but where it shares the processors out by session first (autogroups, see sched(7)),
niceness counts only within a session, and a session has a niceness of its own. So both are set, where they can be.
"""

import contextlib
import errno
import os
import re
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 10
_NICE: Final = re.compile(rb"nice (-?\d+)")
# Who is not root may change one session in a tenth of a second, and all of these together.
_TRIES, _TRY_S = 5, 0.11


def give_way(pid: int | None = None) -> None:
    """This process, or `pid`, lets others go first from now on; where that is not allowed, all stays as it is.

    The session is changed only if it is the process's own: nobody else's in a terminal. May block for half a second.
    """
    pid = os.getpid() if pid is None else pid
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, pid) < NICENESS:
            os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            _give_way_as_session(Path(f"/proc/{pid}/autogroup"))


def _give_way_as_session(group: Path) -> None:
    for last in (*[False] * (_TRIES - 1), True):
        nice = _NICE.search(group.read_bytes())
        if nice is None or int(nice[1]) >= NICENESS:
            return
        try:
            group.write_text(str(NICENESS))
        except OSError as error:
            if error.errno != errno.EAGAIN or last:
                raise
            time.sleep(_TRY_S)
