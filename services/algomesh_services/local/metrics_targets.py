"""Where the programs of a mesh on one machine show their metrics, told to Prometheus by a file.

`<state>/run/prometheus.json` is what a `file_sd_configs` of Prometheus reads: a target for each program, with its name
as the label `program`. The ports are free ones on loopback, and from one `up` to the next the same where they still
are free. ALGOMESH_METRICS=off in the environment of `up` does without.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from algomesh_services.local.errors import PortInUse
from algomesh_services.local.ports import check_port

HOST: Final = "127.0.0.1"
FILE: Final = "prometheus.json"


def choose_metrics(run: Path, programs: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Each program's `host:port`, written to the file in `run`; none where they are off. Raises OSError."""
    if environment.get("ALGOMESH_METRICS", "").strip().lower() in ("off", "0", "no", "false"):
        (run / FILE).unlink(missing_ok=True)
        return {}
    before = _known(run / FILE)
    chosen: dict[str, str] = {}
    for program in programs:
        taken = {int(address.rpartition(":")[2]) for address in chosen.values()}
        chosen[program] = f"{HOST}:{_port(before.get(program, 0), taken)}"
    targets = [{"targets": [address], "labels": {"program": program}} for program, address in chosen.items()]
    draft = run / f".{FILE}.{os.getpid()}"
    draft.write_text(json.dumps(targets, indent=2) + "\n")
    draft.replace(run / FILE)
    return chosen


def _port(wanted: int, taken: set[int]) -> int:
    if wanted and wanted not in taken:
        with suppress(PortInUse, OverflowError):
            return check_port(HOST, wanted)
    while (found := check_port(HOST, 0)) in taken:
        pass
    return found


def _known(file: Path) -> dict[str, int]:
    """The ports in a file of an earlier life."""
    try:
        targets = json.loads(file.read_text())
        return {str(target["labels"]["program"]): int(target["targets"][0].rpartition(":")[2]) for target in targets}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}
