"""What a running mesh says about itself, so that a second terminal finds it: `<state>/run/mesh.json`, mode 0600.

The key is not in it: that is in `<state>/secrets/admin.key`. The file of a mesh that was killed stays behind, so
whoever reads it sees whether its process still runs.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

_NAME = "mesh.json"


@dataclass(frozen=True, kw_only=True)
class RunningMesh:
    """Where a mesh is reached, and where its programs show metrics. `pid` is that of `algomesh up`."""

    gateway: str
    nats: str
    state: str
    pid: int
    metrics: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, state: Path) -> Self | None:
        """The mesh that runs on this state directory, or None."""
        try:
            found = cls(**json.loads((state / "run" / _NAME).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if isinstance(found.pid, int) and _runs(found.pid) else None

    def write(self) -> None:
        """Say it. Raises OSError."""
        path = Path(self.state) / "run" / _NAME
        draft = path.with_name(f".{_NAME}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        draft.replace(path)

    def remove(self) -> None:
        """Say it no more."""
        (Path(self.state) / "run" / _NAME).unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
