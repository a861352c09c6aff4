"""The log of an instance: a file that the instance appends to and that is never much larger than its limit.

The instance writes without knowing of the limit. When the file has grown past it, its last half goes to NAME.1 (which
replaces the one before) and the file is emptied; writers append, so they go on at its new end. What is printed between
the copy and the emptying is lost; nothing else of the tail is.
"""

import os
from pathlib import Path

DEFAULT_LIMIT_BYTES = 8 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024


def open_log(path: Path) -> int:
    """Open `path` for appending, readable by the launcher's user only, and return its descriptor; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def is_over(log_fd: int, limit_bytes: int) -> bool:
    """Return whether the log has to be cut."""
    return os.fstat(log_fd).st_size > limit_bytes


def cut(log_fd: int, path: Path, limit_bytes: int) -> None:
    """Keep the last `limit_bytes / 2` in NAME.1 and empty the log; on a full disk it is emptied without a copy.

    Raises OSError when there was no copy to be had, after the log was emptied.
    """
    size = os.fstat(log_fd).st_size
    try:
        kept = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _copy(log_fd, kept, max(0, size - limit_bytes // 2))
        finally:
            os.close(kept)
    finally:
        os.ftruncate(log_fd, 0)


def _copy(source: int, target: int, offset: int) -> None:
    most = _CHUNK_BYTES * 1024
    while most > 0 and (chunk := os.pread(source, _CHUNK_BYTES, offset)):
        os.write(target, chunk)
        offset += len(chunk)
        most -= len(chunk)
