"""A long-lived program that reads one line of JSON per call and writes one line of JSON per answer.

A text goes in as a JSON string, everything else as it is. An answer `{"error": "sentence"}`, perhaps with a `"type"`,
is the program's own word for a failure. Each child has one call at a time, so answers need no numbers; a child that
ends, says what is no JSON, says something unasked, or is still busy when its call is given up, is killed, and the next
call gets a new one.
"""

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import Any, Self

import msgspec

from algomesh import content, errors
from algomesh.adapter import program
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.adapter")


class Lines:
    """A pool of such children, one for each call under way; an async context manager that leaves none behind."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()

    async def __aenter__(self) -> Self:
        """Start the first, so that a command which cannot be run is known at once. Raises LoadFailed."""
        self._idle.append(await self._new())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End them all."""
        await asyncio.gather(*(child.close() for child in self._all), return_exceptions=True)
        self._all.clear()

    async def run(self, value: Any) -> Any:
        """What the program answers to `value`. Raises BadInput, AlgorithmError, BadOutput, LoadFailed."""
        line = _line_of(value)
        child = await self._take()
        try:
            answer = await child.ask(line)
        except BaseException:
            self._drop(child)
            raise
        self._idle.append(child)
        return _read(answer)

    async def _take(self) -> "_Child":
        while self._idle:
            child = self._idle.pop()
            if child.is_fit:
                return child
            self._drop(child)
        return await self._new()

    async def _new(self) -> "_Child":
        child = _Child(await program.start(self._words))
        self._all.add(child)
        return child

    def _drop(self, child: "_Child") -> None:
        closing = asyncio.ensure_future(child.close())
        closing.add_done_callback(lambda _: self._all.discard(child))


class _Child:
    """One process and the task that reads what it says."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._asked: asyncio.Future[bytes] | None = None
        self._unfit = ""
        self._reading = asyncio.ensure_future(self._read())
        self._closing: asyncio.Future[None] | None = None

    @property
    def is_fit(self) -> bool:
        """Whether the next call may go to it."""
        return not self._unfit and not self._reading.done() and not program.has_ended(self._process)

    async def ask(self, line: bytes) -> bytes:
        """Its answer to a line. Raises AlgorithmError when it ends instead, BadOutput when the line is too long."""
        if not self.is_fit:  # it ended while nobody looked
            raise self._ended()
        self._asked = asyncio.get_running_loop().create_future()
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line)
        draining = asyncio.ensure_future(stdin.drain())  # it may answer before it has read all
        try:
            return await self._asked
        finally:
            self._asked = None
            draining.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await draining

    async def close(self) -> None:
        """End it; once for all who ask."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._unfit = self._unfit or "it was ended"
        await program.end(self._process)
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                line = await stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    break
            except asyncio.LimitOverrunError:
                self._fail(errors.BadOutput(f"the program wrote a line of over {program.LONGEST_BYTES // 2**20} MiB"))
                return
            if self._asked is None or self._asked.done():
                self._unfit = f"it said something that nobody had asked for: {program.shown(line)}"
                log.warning("program_spoke_unasked", line=program.shown(line))
                return
            self._asked.set_result(line)
        await self._process.wait()
        self._fail(self._ended())

    def _ended(self) -> errors.AlgorithmError:
        how = self._unfit or program.said_of_end(self._process.returncode)
        return errors.AlgorithmError(f"the program {how} before it answered", error_type="ProgramEnded")

    def _fail(self, error: errors.MeshError) -> None:
        self._unfit = self._unfit or program.said_of_end(self._process.returncode)
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)


def _line_of(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        raise errors.BadInput("bytes cannot be a line of JSON; send text or JSON, or serve the program with --per-call")
    try:
        return content.encode_json(value) + b"\n"
    except errors.BadOutput as error:
        raise errors.BadInput(f"the input cannot be a line of JSON: {error.message}") from error


def _read(line: bytes) -> Any:
    try:
        answer = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.BadOutput(f"the program answered with a line that is no JSON: {program.shown(line)}") from error
    if isinstance(answer, dict) and isinstance(answer.get("error"), str) and answer.keys() <= {"error", "type"}:
        raise errors.AlgorithmError(answer["error"], error_type=str(answer.get("type", "")))
    return answer
