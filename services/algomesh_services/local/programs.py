"""The mesh's own programs as children of `up`: how they are run, and how it is seen that they are ready.

Each runs `algomesh serve NAME` and writes JSON lines to its log; the one with the event `ready` is what is waited
for. At the first start all of them come up side by side: the last one in the list is ready when all are.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from algomesh_broker.child import Command, last_lines, log_size_bytes
from algomesh_broker.program import ProgramDied
from algomesh_services.local.supervisor import Child

# How long each may take to stop; what they leave over belongs to the two servers.
_GRACE_S: Final = {"registry": 0.8, "ledger": 0.8, "prewarmer": 0.8, "launcher": 2.0, "gateway": 1.0}
# In this order they are started; in reverse they stop, so that what comes from outside ends first.
NAMES: Final = ("registry", "ledger", "prewarmer", "launcher", "gateway")
_KEEP_RECORDS: Final = ("registry", "ledger", "prewarmer")
_LOOK_S: Final = 0.02


class MeshProgram(Child):
    """One of NAMES. `waits_for` are those whose readiness is waited for as well, at the first start."""

    def __init__(
        self,
        name: str,
        *,
        environment: Mapping[str, str],
        log: Path,
        pass_fds: tuple[int, ...] = (),
        waits_for: "Sequence[MeshProgram] | None" = None,
        ready_within_s: float = 60.0,
    ) -> None:
        # -P: what lies in the folder where somebody happens to start the mesh is not imported.
        argv = (sys.executable, "-P", "-m", "algomesh_services.cli", "serve", name)
        super().__init__(
            name,
            argv,
            environment=environment,
            log=log,
            grace_s=_GRACE_S[name],
            ready_within_s=ready_within_s,
            pass_fds=pass_fds,
        )
        self.starts = 0
        self.log_offset = 0
        self._waits_for = waits_for

    async def prepare(self) -> Command:
        """Remember where in the log this start begins."""
        self.starts += 1
        self.log_offset = log_size_bytes(self.log)
        return await super().prepare()

    async def wait_ready(self, pid: int) -> None:
        """Wait for this program's own `ready`, or at the first start for everybody's, in the last one of them."""
        del pid
        waiting: Sequence[MeshProgram] = (self,)
        if self.starts == 1:
            waiting = () if self._waits_for is None else (*self._waits_for, self)
        while waiting := [program for program in waiting if not _says_ready(program.log, program.log_offset)]:
            for program in waiting:
                program._refuse_early_end(is_first_start=self.starts == 1)
            await asyncio.sleep(_LOOK_S)

    def explain(self, lines: list[str]) -> Exception | None:
        """Its own last words, read from what is JSON in them."""
        said = [text for line in lines if (text := _sentence(line))]
        return ProgramDied(self.name, self._status(), said[-3:]) if said else None

    def _refuse_early_end(self, *, is_first_start: bool) -> None:
        """Programs wait for their servers by themselves: one that ends while the mesh starts has another reason."""
        if is_first_start and (self.starts > 1 or not self.is_running):
            lines = last_lines(self.log, 20, offset=self.log_offset)
            raise self.explain(lines) or ProgramDied(self.name, self._status(), lines[-3:])

    def _status(self) -> int:
        status = self._process.returncode if self._process is not None else None
        return 1 if status is None else status


def mesh_programs(
    environment: Mapping[str, str],
    logs: Path,
    *,
    postgres: str,
    metrics: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> list[MeshProgram]:
    """All of them, in the order of their start. Only those that keep records are told of the database.

    `metrics` is where each shows its own, `host:port`.
    With ALGOMESH_PREWARM=off the mesh does without the pre-warmer, and unused instances stay for fixed times.
    """
    programs: list[MeshProgram] = []
    is_prewarmed = os.environ.get("ALGOMESH_PREWARM", "").strip().lower() not in ("off", "0", "no", "false")
    for name in (name for name in NAMES if is_prewarmed or name != "prewarmer"):
        known = {**environment, "ALGOMESH_POSTGRES": postgres if name in _KEEP_RECORDS else ""}
        known["ALGOMESH_METRICS"] = (metrics or {}).get(name, "")
        if name == "launcher":  # its goodbye must come before the supervisor's patience ends
            known["ALGOMESH_GRACE_S"] = str(0.6 * _GRACE_S[name])
        is_last = name == NAMES[-1]
        programs.append(
            MeshProgram(
                name,
                environment=known,
                log=logs / f"{name}.log",
                pass_fds=pass_fds,
                waits_for=tuple(programs) if is_last else None,
            )
        )
    return programs


def _says_ready(log: Path | None, offset: int) -> bool:
    return any(_event(line) == "ready" for line in last_lines(log, 10_000, offset=offset))


def _event(line: str) -> str:
    if '"ready"' not in line:
        return ""
    try:
        found = json.loads(line)
    except ValueError:
        return ""
    return str(found.get("event", "")) if isinstance(found, dict) else ""


def _sentence(line: str) -> str:
    """A line of a log for people: what a JSON line says went wrong, or the line itself."""
    try:
        found = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(found, dict):
        return line.strip()
    if found.get("level") not in ("warning", "error", "critical"):
        return ""
    why = found.get("error") or found.get("reason") or ""
    return f"{found.get('event', '')}: {why}".strip(": ")
