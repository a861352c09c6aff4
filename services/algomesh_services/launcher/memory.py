"""How much memory an instance takes that would be free without it.

The sum over the instance and its descendants of PSS and swap, less the part of PSS that are pages of the zygote: those
are there anyway. Where the kernel does not let us read smaps_rollup (no CAP_SYS_PTRACE over another uid) the growth
of the resident set over the zygote's takes its place. All figures are bytes; a process that has gone counts as 0.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from algomesh.instance import descendants

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class _Rollup:
    pss: int = 0
    private: int = 0
    swap: int = 0

    @property
    def shared(self) -> int:
        return max(0, self.pss - self.private)


def resident_bytes(pid: int) -> int:
    """Return the resident set of `pid` and all below it: cheap, and never less than `memory_bytes` without swap."""
    return sum(_resident(each) for each in descendants.descendants([pid]))


def memory_bytes(pid: int, zygote: int) -> int:
    """Return the memory of `pid` and all below it, less what it shares with `zygote`; takes milliseconds."""
    share = _rollup(zygote)
    return sum(_own(each, zygote, share) for each in descendants.descendants([pid]))


def _own(pid: int, zygote: int, share: _Rollup | None) -> int:
    rollup = _rollup(pid)
    if rollup is None or share is None:
        return max(0, _resident(pid) - _resident(zygote))
    # Every process that has a page of the zygote is charged the same part of it, so what the zygote is charged for
    # its shared pages is the most that this process is.
    return rollup.pss + rollup.swap - min(rollup.shared, share.shared)


def _rollup(pid: int) -> _Rollup | None:
    """Return the figures of smaps_rollup, zeros when the process has gone, None when they may not be read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError:
        return None
    except OSError:
        return _Rollup()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines()[1:])}
    private = kib.get("Private_Clean", 0) + kib.get("Private_Dirty", 0) + kib.get("Private_Hugetlb", 0)
    return _Rollup(kib.get("Pss", 0) * 1024, private * 1024, kib.get("SwapPss", 0) * 1024)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
