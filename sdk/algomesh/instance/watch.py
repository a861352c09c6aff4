"""The watch page: what an instance is doing, in 4 KiB of memory that its launcher reads at any moment.

The launcher makes the page and hands it to the instance, which writes it through `WatchWriter` (well under a
microsecond a call, no system call). The launcher reads it through `WatchReader`, so a run that hangs past its
deadline is seen although it holds the GIL and nothing in the instance can say so. The page is sealed: the
instance cannot shrink it under its reader. All times are nanoseconds of CLOCK_MONOTONIC, which one machine's
processes share; each field is one aligned 64-bit word, so a reader never sees half of it. Only the standard
library is imported.
"""

import enum
import fcntl
import mmap
import os
import time
from collections.abc import Hashable
from typing import Final

SIZE_BYTES: Final = 4096

_DEADLINE, _ACTIVE, _HEARTBEAT, _PHASE, _TOTAL, _BEGAN = 0, 1, 2, 3, 4, 8


class Phase(enum.IntEnum):
    """How far an instance has come."""

    FORKED = 0
    IMPORTING = 1
    LOADING = 2
    CONNECTING = 3
    READY = 4
    DRAINING = 5


def create_page() -> tuple[int, mmap.mmap]:
    """Make an empty page and return its file descriptor, which the caller hands on and closes, and its mapping."""
    fd = os.memfd_create("algomesh-watch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, open_page(fd)


def open_page(fd: int) -> mmap.mmap:
    """Map the page behind `fd`; the descriptor may be closed afterwards."""
    return mmap.mmap(fd, SIZE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


class WatchWriter:
    """The instance's side; one thread (the instance's loop) writes."""

    def __init__(self, page: mmap.mmap | bytearray) -> None:
        self._words = memoryview(page).cast("Q")
        self._deadlines: dict[Hashable, int] = {}
        self._earliest_ns = 0
        self._total = 0

    def enter(self, phase: Phase, now_ns: int | None = None) -> None:
        """Say that `phase` began at `now_ns` (now by default)."""
        self._words[_BEGAN + phase] = time.monotonic_ns() if now_ns is None else now_ns
        self._words[_PHASE] = phase

    def beat(self, now_ns: int) -> None:
        """Say that the instance's loop was alive at `now_ns`."""
        self._words[_HEARTBEAT] = now_ns

    def begin(self, run: Hashable, deadline_ns: int = 0) -> None:
        """Say that `run` began and must be killed if it still runs at `deadline_ns` (grace included; 0: never)."""
        words, deadlines = self._words, self._deadlines
        deadlines[run] = deadline_ns
        words[_ACTIVE] = len(deadlines)
        self._total += 1
        words[_TOTAL] = self._total
        if deadline_ns and (not self._earliest_ns or deadline_ns < self._earliest_ns):
            self._earliest_ns = words[_DEADLINE] = deadline_ns

    def end(self, run: Hashable) -> None:
        """Say that `run` has ended; a run that is not known is ignored."""
        words, deadlines = self._words, self._deadlines
        deadline_ns = deadlines.pop(run, 0)
        words[_ACTIVE] = len(deadlines)
        if deadline_ns and deadline_ns == self._earliest_ns:
            earliest_ns = min(filter(None, deadlines.values()), default=0) if deadlines else 0
            self._earliest_ns = words[_DEADLINE] = earliest_ns

    def begin_alone(self, deadline_ns: int) -> None:
        """As `begin`, for what runs while nothing else can begin or end; `end_alone` follows."""
        words = self._words
        words[_ACTIVE] = len(self._deadlines) + 1
        self._total += 1
        words[_TOTAL] = self._total
        if not 0 < self._earliest_ns <= deadline_ns:
            words[_DEADLINE] = deadline_ns

    def end_alone(self) -> None:
        """What `begin_alone` told of has ended."""
        words = self._words
        words[_ACTIVE] = len(self._deadlines)
        words[_DEADLINE] = self._earliest_ns

    def move(self, run: Hashable, deadline_ns: int) -> None:
        """Say that `run`, which began, must be killed at another time."""
        before, self._deadlines[run] = self._deadlines[run], deadline_ns
        if before == self._earliest_ns or not self._earliest_ns or 0 < deadline_ns < self._earliest_ns:
            self._earliest_ns = self._words[_DEADLINE] = min(filter(None, self._deadlines.values()), default=0)

    def release(self) -> None:
        """Let go of the page, so that its mapping can be closed."""
        self._words.release()


class WatchReader:
    """The launcher's side; it trusts nothing on the page but for what an instance may say about itself."""

    def __init__(self, page: mmap.mmap | bytearray) -> None:
        self._words = memoryview(page).cast("Q")

    def overdue(self, now_ns: int) -> bool:
        """Return whether a run should have ended before `now_ns`."""
        deadline_ns = self._words[_DEADLINE]
        return 0 < deadline_ns < now_ns

    @property
    def deadline_ns(self) -> int:
        """When the earliest deadline of a running run passes; 0 when there is none."""
        return self._words[_DEADLINE]

    @property
    def active(self) -> int:
        """How many runs are running."""
        return self._words[_ACTIVE]

    @property
    def runs_total(self) -> int:
        """How many runs have begun so far."""
        return self._words[_TOTAL]

    @property
    def heartbeat_ns(self) -> int:
        """When the instance's loop was last seen alive; 0 before it ran."""
        return self._words[_HEARTBEAT]

    @property
    def phase(self) -> Phase:
        """How far the instance has come; FORKED when the page holds nonsense."""
        number = self._words[_PHASE]
        return Phase(number) if number <= Phase.DRAINING else Phase.FORKED

    def began_ns(self, phase: Phase) -> int:
        """When `phase` began; 0 when it has not."""
        return self._words[_BEGAN + phase]

    def release(self) -> None:
        """Let go of the page, so that its mapping can be closed."""
        self._words.release()
