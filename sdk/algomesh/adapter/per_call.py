"""A program that is run once for each call: the input on its stdin, the output on its stdout.

Its exit code says whether it went well, and the last line on its stderr why not.
"""

import asyncio
import contextlib
import sys
from asyncio import StreamReader
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from algomesh import content, errors
from algomesh.adapter import program

Gives = Literal["", "text", "json", "binary"]

_PIECE = 64 * 1024
_KEPT_OF_STDERR = 8 * 1024


class PerCall:
    """Runs `words` for each call. What it writes is text, JSON or bytes as `gives` says; text, if it is, by default."""

    def __init__(self, words: Sequence[str], gives: Gives = "") -> None:
        self._words, self._gives = list(words), gives

    async def __aenter__(self) -> Self:
        """Nothing runs between calls."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is left: each run ends what it started."""

    async def run(self, value: Any) -> Any:
        """What the program makes of `value`. Raises BadInput, AlgorithmError, BadOutput, LoadFailed."""
        given = content.encode(value)
        if given.content_type not in ("text", "json", "binary"):
            raise errors.BadInput(f"a {given.content_type} cannot be a program's stdin; send text, JSON or bytes")
        process = await program.start(self._words, error_pipe=True)
        try:
            output, said = await self._speak(process, bytes(given.payload))
        finally:
            await program.end(process)
        if process.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            why = program.said_of_end(process.returncode)
            raise errors.AlgorithmError(f"the program {why}{f': {last}' if last else ''}", error_type="ProgramFailed")
        return self._read(output)

    async def _speak(self, process: Process, given: bytes) -> tuple[bytes, bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        writing = asyncio.ensure_future(_write(process, given))
        listening = asyncio.ensure_future(_listen(process.stderr))
        try:
            output = await _all_of(process.stdout)
            await process.wait()
            return output, await listening
        finally:
            for task in (writing, listening):
                task.cancel()
            await asyncio.gather(writing, listening, return_exceptions=True)

    def _read(self, output: bytes) -> Any:
        if self._gives == "binary":
            return output
        if self._gives == "json":
            try:
                return msgspec.json.decode(output)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise errors.BadOutput(f"the program wrote what is no JSON: {program.shown(output)}") from error
        try:
            return output.decode().removesuffix("\n")  # as a shell takes a program's output
        except UnicodeDecodeError as error:
            if self._gives == "text":
                raise errors.BadOutput(f"the program wrote what is no UTF-8 text: {program.shown(output)}") from error
            return output


async def _write(process: Process, given: bytes) -> None:
    stdin = process.stdin
    assert stdin is not None
    with contextlib.suppress(OSError):  # it need not read all of it
        stdin.write(given)
        await stdin.drain()
    stdin.close()


async def _all_of(stream: StreamReader) -> bytes:
    pieces = bytearray()
    while piece := await stream.read(_PIECE):
        pieces += piece
        if len(pieces) > program.LONGEST_BYTES:
            raise errors.BadOutput(f"the program wrote over {program.LONGEST_BYTES // 2**20} MiB")
    return bytes(pieces)


async def _listen(stream: StreamReader) -> bytes:
    """Show what it says on stderr, and keep the end of it."""
    kept = b""
    while piece := await stream.read(_PIECE):
        sys.stderr.write(piece.decode(errors="replace"))
        kept = (kept + piece)[-_KEPT_OF_STDERR:]
    return kept
