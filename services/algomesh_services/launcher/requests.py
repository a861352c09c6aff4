"""What the launcher is asked: `ps`, `stop` and `logs`. Whoever the broker lets ask is answered."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from msgspec import Struct

from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.names import Reference, Version, is_token
from algomesh_broker.platform import Done, InstanceRow, InstanceRows, LogLines, Logs, Ps, Stop
from algomesh_services.launcher import log_reader
from algomesh_services.launcher.control import Control
from algomesh_services.launcher.fleet import Fleet, wait_over
from algomesh_services.launcher.instance import Instance

log = structlog.get_logger("algomesh.launcher")

PROGRAM = "launcher"
_AT_ONCE = 16
_STOP_WITHIN_S = 3.0


class Requests:
    """Answers until `close`."""

    def __init__(self, connection: Connection, fleet: Fleet, control: Control, logs: Path) -> None:
        self._connection, self._fleet, self._control, self._logs = connection, fleet, control, logs
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._verbs: dict[str, Callable[[str, bytes], Awaitable[Struct]]] = {
            "ps": self._ps,
            "stop": self._stop,
            "logs": self._read_logs,
        }

    async def open(self) -> None:
        """Listen. Raises Forbidden, Unreachable."""
        self._subscription = await self._connection.subscribe(subjects.platform_requests(PROGRAM), self._on_request)

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        if self._subscription is not None:
            await self._subscription.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_request(self, message: Message) -> None:
        try:
            request, ask = subjects.parse_platform(message.subject), codec.decode_ask(message.data)
        except BadMessage as error:
            log.warning("request_unreadable", subject=message.subject, error=str(error))
            return
        if not (is_token(ask.session) and is_token(ask.call)):
            log.warning("request_unreadable", subject=message.subject, error="session or call is not a token")
            return
        if len(self._tasks) >= _AT_ONCE:
            self._answer(
                request, ask, messages.Answer(code="overloaded", message="the launcher is asked too much at once")
            )
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(request, ask), name=f"{request.verb} {request.algorithm}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: subjects.PlatformRequest, ask: messages.Ask) -> None:
        verb = self._verbs.get(request.verb)
        try:
            if verb is None:
                raise BadMessage(f"the launcher knows no {request.verb!r}; it knows {', '.join(self._verbs)}")
            answer = messages.Answer(body=platform.pack(await verb(request.algorithm, ask.body)))
        except BrokerError as error:
            answer = messages.Answer(code=error.code, message=str(error))
        except Exception as error:
            log.exception("request_failed", verb=request.verb, algorithm=request.algorithm)
            answer = messages.Answer(
                code="mesh_error", message=f"the launcher failed: {type(error).__name__}; see its log"
            )
        self._answer(request, ask, answer)

    def _answer(self, request: subjects.PlatformRequest, ask: messages.Ask, answer: messages.Answer) -> None:
        mine = self._connection.identity.caller
        try:
            self._connection.publish(subjects.reply(mine, request.caller, ask.session, ask.call), codec.encode(answer))
        except BrokerError as error:
            log.warning("answer_lost", verb=request.verb, error=str(error))

    async def _ps(self, algorithm: str, body: bytes) -> InstanceRows:
        platform.unpack(Ps, body)
        chosen = [each for each in self._fleet.instances.values() if algorithm in ("", each.version.algorithm)]
        memory = await asyncio.to_thread(_measure, chosen)  # milliseconds each
        rows = [_row(instance, memory_bytes) for instance, memory_bytes in zip(chosen, memory, strict=True)]
        return InstanceRows(instances=sorted(rows, key=lambda row: (row.algorithm, row.version, row.since)))

    async def _stop(self, algorithm: str, body: bytes) -> Done:
        """Answer when the instances are gone, or a while later when they still finish runs."""
        asked = platform.unpack(Stop, body)
        stopped = self._control.stop(_named(algorithm, "stop"), _exact(asked.version))
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await wait_over(stopped)
        except TimeoutError:
            log.info("stop_draining", algorithm=algorithm, instances=len(stopped))
        return Done(count=len(stopped))

    async def _read_logs(self, algorithm: str, body: bytes) -> LogLines:
        asked = platform.unpack(Logs, body)
        lines = await asyncio.to_thread(
            log_reader.read_lines,
            self._logs,
            _named(algorithm, "logs"),
            version=_exact(asked.version),
            run=asked.run,
            count=asked.lines,
        )
        return LogLines(lines=lines)


def _row(instance: Instance, memory_bytes: int) -> InstanceRow:
    return InstanceRow(
        algorithm=instance.version.algorithm,
        version=str(instance.version.version),
        instance=instance.id,
        pid=instance.process.pid if instance.process is not None else 0,
        state=instance.state,
        load=instance.load,
        since=instance.since,
        reason=instance.reason,
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
