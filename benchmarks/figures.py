"""What all benchmarks share: CPU time of processes, medians, and the line that says on what machine."""

import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The machine in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, Linux {platform.release()}"


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes so far, in seconds, from schedstat (nanoseconds) where there is one."""
    total = 0.0
    for pid in pids:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except OSError:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def median(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(title: str, head: list[str], rows: list[list[Any]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for column in head:
        shown.add_column(column, justify="left" if column == head[0] else "right")
    for row in rows:
        shown.add_row(*map(str, row))
    Console().print(shown)


class Stopwatch:
    """Wall time and CPU time of some processes over a block."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = list(pids)

    def __enter__(self) -> "Stopwatch":
        self._cpu, self._wall = cpu_s(self.pids), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = cpu_s(self.pids) - self._cpu
