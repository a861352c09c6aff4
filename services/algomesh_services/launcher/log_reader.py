"""Reads what instances printed: `<state>/logs/<owner>~<name>/<version>/<instance>.log`, and `.log.1` of a long one.

An instance writes a line as `<epoch seconds> <run, or -> <text>`; what C code or another program printed past it has no
such head, and is given with no run, at the time of the line before it. Everything here blocks.
"""

import heapq
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from algomesh_broker.boot import find_failure
from algomesh_broker.names import VersionId
from algomesh_broker.platform import LogLine

MOST_LINES = 5_000
_LINE = re.compile(r"(\d{9,11}(?:\.\d{1,9})?) (\S{1,64}) ?(.*)", re.DOTALL)
_BLOCK_BYTES = 64 * 1024
_SEARCHED_BYTES = 16 * 2**20  # of one file
_ANSWER_BYTES = 2 * 2**20
_LONGEST_LINE = 8 * 1024
_KEPT_FILES = 20


def log_path(logs: Path, version: VersionId, instance: str) -> Path:
    """Where an instance of `version` writes."""
    return version_folder(logs, version) / f"{instance}.log"


def version_folder(logs: Path, version: VersionId) -> Path:
    """Where all instances of `version` write."""
    return logs / version.caller / str(version.version)


def last_lines(path: Path, count: int = 20) -> list[str]:
    """The last `count` lines as they stand in the file; none when there is no file."""
    return [line.decode(errors="replace") for line in _tail(path, count)]


def read_lines(logs: Path, algorithm: str, *, version: str = "", run: str = "", count: int = 200) -> list[LogLine]:
    """The last `count` lines of an algorithm's instances, oldest first; of one version or one run when given."""
    folder = logs / algorithm.replace("/", "~")
    count = max(0, min(count, MOST_LINES))
    found: list[LogLine] = []
    for path in _files(folder, version):
        lines = _read(path, count, run)
        found = heapq.nlargest(count, [*found, *lines], key=lambda line: line.at) if lines else found
    found.sort(key=lambda line: line.at)  # stable: lines of one moment stay in their order
    return _bounded(found)


def prune(folder: Path, live: Collection[str]) -> None:
    """Keep the newest logs of one version's folder, and those of the instances that are `live`."""
    dead = [path for path in folder.glob("*.log") if path.stem not in live]
    dead.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in dead[_KEPT_FILES:]:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)


def _files(folder: Path, version: str) -> list[Path]:
    """The logs, those that were written to last first."""
    pattern = f"{version}/*.log" if version else "*/*.log"
    dated: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:  # pruned in this moment
            continue
    return [path for _, path in sorted(dated, reverse=True)]


def _read(path: Path, count: int, run: str) -> list[LogLine]:
    version, instance = path.parent.name, path.stem
    raw = _tail(path, None if run else count)
    if run or len(raw) < count:
        raw = _tail(path.with_name(f"{path.name}.1"), None if run else count - len(raw)) + raw
    found: list[LogLine] = []
    at = _born(path)
    for line in raw:
        text = line[:_LONGEST_LINE].decode(errors="replace")
        head = _LINE.fullmatch(text)
        if head is not None:
            at, of_run, text = float(head[1]), "" if head[2] == "-" else head[2], head[3]
        else:
            of_run = ""
        if (run and of_run != run) or find_failure([text]) is not None:
            continue  # the failure line is the launcher's; a traceback stands above it
        found.append(LogLine(at=at, version=version, instance=instance, run=of_run, line=text))
    return found[-count:] if count else []


def _tail(path: Path, count: int | None) -> list[bytes]:
    """The last lines of a file, read from its end; `count` None: as many as are searched at most."""
    if count is not None and count <= 0:
        return []
    try:
        with path.open("rb") as file:
            at = file.seek(0, os.SEEK_END)
            stop = max(0, at - _SEARCHED_BYTES)
            blocks: list[bytes] = []
            newlines = 0
            while at > stop and (count is None or newlines <= count):
                size = min(_BLOCK_BYTES, at - stop)
                at -= size
                file.seek(at)
                blocks.append(file.read(size))
                newlines += blocks[-1].count(b"\n")
    except OSError:
        return []
    lines = b"".join(reversed(blocks)).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines if count is None else lines[-count:]


def _born(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bounded(lines: Iterable[LogLine]) -> list[LogLine]:
    """As many of the last lines as fit into one answer."""
    kept: list[LogLine] = []
    size = 0
    for line in reversed(list(lines)):
        size += len(line.line) + 128
        if size > _ANSWER_BYTES:
            break
        kept.append(line)
    return kept[::-1]
