"""What user code prints goes to the instance's log, a line at a time, marked with its run.

A line is `<seconds since the epoch> <run or -> <text>`. Writing never raises into user code: a full disk or a
closed descriptor loses lines, not runs.
"""

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable

from algomesh import errors
from algomesh.context import entered

_LONGEST = 64 * 1024
_MOST_PARTIAL = 256


class LogStream(io.TextIOBase):
    """Stands in for sys.stdout and sys.stderr inside an instance."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial: dict[str, str] = {}
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Log whole lines, keep the rest until it is whole."""
        context = entered()
        run = context.run if context is not None else "-"
        with self._lock:
            *lines, rest = (self._partial.pop(run, "") + text).split("\n")
            if len(rest) > _LONGEST:
                lines.append(rest)
                rest = ""
            if rest and len(self._partial) < _MOST_PARTIAL:
                self._partial[run] = rest
            self._log(run, lines)
        return len(text)

    def flush(self) -> None:
        """Log what there is of this run, also of a line that is not whole; the lines of others are theirs to end."""
        context = entered()
        run = context.run if context is not None else "-"
        with self._lock:
            if rest := self._partial.pop(run, ""):
                self._log(run, [rest])

    def finish(self) -> None:
        """Log what there is of all runs; nothing more is expected."""
        with self._lock:
            partial, self._partial = self._partial, {}
            for run, rest in partial.items():
                self._log(run, [rest])

    def renew_lock(self) -> None:
        """In a child that user code has forked: whoever held the lock then is not in this process."""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def fileno(self) -> int:
        """The log itself; what is written there directly carries no run."""
        return self._fd

    def isatty(self) -> bool:
        """It never is."""
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a constant here
        """Always UTF-8."""
        return "utf-8"

    def _log(self, run: str, lines: Iterable[str]) -> None:
        at = f"{time.time():.3f} {run} "
        data = "".join(f"{at}{line}\n" for line in lines).encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]


def redirect() -> None:
    """Send print, warnings and tracebacks of this process to its log (file descriptor 2)."""
    fd = os.dup(2)
    for name in ("stdout", "stderr"):
        stream = LogStream(fd)
        setattr(sys, name, stream)
        os.register_at_fork(after_in_child=stream.renew_lock)


def finish() -> None:
    """Log what was printed and never ended by a line break; for the end of this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LogStream):
            stream.finish()


def log_exception(error: BaseException) -> None:
    """Write a traceback to the log, under the current run."""
    with contextlib.suppress(Exception):
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()


def error_of(error: BaseException) -> errors.MeshError:
    """What a caller learns of an exception in user code; the traceback stays in the log."""
    if isinstance(error, errors.AlgorithmError | errors.BadOutput | errors.BadInput):
        if not isinstance(error, errors.BadOutput):
            log_exception(error)
        return error
    log_exception(error)
    if isinstance(error, errors.MeshError):  # a child's: its own code and stage go on to the caller
        return error
    if isinstance(error, SystemExit):
        return errors.AlgorithmError(f"the algorithm called exit({error.code!r})", error_type="SystemExit")
    text = str(error) or "no message"
    return errors.AlgorithmError(f"{type(error).__name__}: {text}", error_type=type(error).__name__)
