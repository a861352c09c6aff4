"""What the machine of a launcher has: its memory and its GPUs, as they are found and not as they are set."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from algomesh_services.environment import listed


def machine_memory_bytes(root: Path = Path("/")) -> int:
    """The memory of this machine, or of the control group we are in where that is less."""
    found: list[int] = []
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            found.append(int(line.split()[1]) * 1024)
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found)


def find_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs an instance could be given, as CUDA_VISIBLE_DEVICES names them; empty when there is none."""
    nodes = [path.name for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if not nodes:
        return ()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return tuple(map(str, range(len(nodes)))) if visible is None else listed(visible)
