"""What the launcher is asked: `ps`, `stop` and `logs`. Whoever the broker lets ask is answered."""

import asyncio
from pathlib import Path

import structlog

from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BadMessage
from algomesh_broker.names import Reference, Version
from algomesh_broker.platform import Done, InstanceRow, InstanceRows, LogLines, Logs, Ps, Stop
from algomesh_broker.request_server import RequestServer
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.launcher import log_reader
from algomesh_services.launcher.control import Control
from algomesh_services.launcher.externals import Externals
from algomesh_services.launcher.fleet import Fleet, wait_over
from algomesh_services.launcher.instance import Instance

log = structlog.get_logger("algomesh.launcher")

PROGRAM = "launcher"
_AT_ONCE = 16
_STOP_WITHIN_S = 3.0


class Requests:
    """Answers from `open` to `close`. Every launcher answers, for the instances of its own."""

    def __init__(
        self, connection: Connection, fleet: Fleet, control: Control, logs: Path, externals: Externals | None = None
    ) -> None:
        self._fleet, self._control, self._logs, self._externals = fleet, control, logs, externals
        self._server = RequestServer(
            connection,
            PROGRAM,
            {"ps": self._ps, "stop": self._stop, "logs": self._read_logs},
            at_once=_AT_ONCE,
            is_shared=False,
            unknown_verb_code="bad_message",
            failed_code="mesh_error",
        )

    async def open(self) -> None:
        """Listen. Raises Forbidden, Unreachable."""
        await self._server.serve()

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        await self._server.close()

    async def _ps(self, request: PlatformRequest, body: bytes) -> InstanceRows:
        platform.unpack(Ps, body)
        chosen = [each for each in self._fleet.instances.values() if request.algorithm in ("", each.version.algorithm)]
        memory = await asyncio.to_thread(_measure, chosen)  # milliseconds each
        explain = self._control.explain
        rows = [_row(each, explain(each), memory_bytes) for each, memory_bytes in zip(chosen, memory, strict=True)]
        if self._externals is not None:
            rows += self._externals.rows(request.algorithm)
        return InstanceRows(instances=sorted(rows, key=lambda row: (row.algorithm, row.version, row.since)))

    async def _stop(self, request: PlatformRequest, body: bytes) -> Done:
        """Answer when the instances are gone, or a while later when they still finish runs."""
        asked = platform.unpack(Stop, body)
        stopped = self._control.stop(_named(request.algorithm, "stop"), _exact(asked.version))
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await wait_over(stopped)
        except TimeoutError:
            log.info("stop_draining", algorithm=request.algorithm, instances=len(stopped))
        return Done(count=len(stopped))

    async def _read_logs(self, request: PlatformRequest, body: bytes) -> LogLines:
        asked = platform.unpack(Logs, body)
        lines = await asyncio.to_thread(
            log_reader.read_lines,
            self._logs,
            _named(request.algorithm, "logs"),
            version=_exact(asked.version),
            run=asked.run,
            count=asked.lines,
        )
        return LogLines(lines=lines)


def _row(instance: Instance, reason: str, memory_bytes: int) -> InstanceRow:
    return InstanceRow(
        algorithm=instance.version.algorithm,
        version=str(instance.version.version),
        instance=instance.id,
        pid=instance.process.pid if instance.process is not None else 0,
        state=instance.state,
        load=instance.load,
        since=instance.since,
        reason=reason,
        start_ms=instance.start_ms,
        memory_bytes=memory_bytes,
        note=instance.place.note,
    )


def _measure(instances: list[Instance]) -> list[int]:
    return [0 if each.process is None else each.process.memory_bytes() for each in instances]


def _named(algorithm: str, verb: str) -> str:
    """Check the algorithm before it becomes part of a path. Raises BadName, BadMessage."""
    if not algorithm:
        raise BadMessage(f"{verb} needs an algorithm")
    return Reference.parse(algorithm).algorithm


def _exact(version: str) -> str:
    return str(Version.parse(version)) if version else ""
