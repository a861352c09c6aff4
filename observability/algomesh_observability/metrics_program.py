"""What every program shows of itself: which version of the mesh it is, and the room on the disk of its state."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from algomesh_observability import telemetry
from algomesh_observability.metrics import Family


def program_metrics() -> Callable[[], list[Family]]:
    """A source of a registry; the state directory is that in ALGOMESH_STATE."""
    labels = (_mesh_version(), platform.python_version())
    state = os.environ.get("ALGOMESH_STATE", "").strip()

    def collect() -> list[Family]:
        families = [
            Family(
                "algomesh_build_info",
                "gauge",
                "1, with the versions of the mesh and of Python.",
                ("mesh", "python"),
                [(labels, 1.0)],
                [],
            )
        ]
        tracing = telemetry.active
        if tracing is not None:
            families += [
                _total("algomesh_spans_exported_total", "Spans that the collector has taken.", tracing.exported),
                _total("algomesh_spans_dropped_total", "Spans that were lost on the way there.", tracing.dropped),
            ]
        room = _room(state)
        if room is not None:
            free, size = room
            families += [
                _bytes("algomesh_state_free_bytes", "Free room on the disk with the state directory.", free),
                _bytes("algomesh_state_size_bytes", "Size of the disk with the state directory.", size),
            ]
        return families

    return collect


def _bytes(name: str, help_: str, value: int) -> Family:
    return Family(name, "gauge", help_, (), [((), float(value))], [])


def _total(name: str, help_: str, value: int) -> Family:
    return Family(name, "counter", help_, (), [((), float(value))], [])


def _room(state: str) -> tuple[int, int] | None:
    """Free bytes and all bytes of the file system; None where there is none."""
    if not state:
        return None
    try:
        found = os.statvfs(state)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _mesh_version() -> str:
    try:
        return version("algomesh")
    except PackageNotFoundError:
        return "unknown"
