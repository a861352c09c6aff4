"""A program that runs as one child process: how it is prepared, when it is ready, how it is stopped.

`NatsServer`, the local PostgreSQL and the mesh's own programs are `Program`s. Alone, a program is an async context
manager (tests use it so); in a mesh on one machine the supervisor starts it and starts it again when it dies.
"""

import asyncio
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from algomesh_broker.child import ChildProcess, Command, last_lines, log_size_bytes, spawn


class ProgramError(Exception):
    """A program on this machine could not be started; `str()` says why and what to do."""

    code = "program_failed"


class ProgramDied(ProgramError):
    """A program ended before it was ready, and said why only in its log."""

    code = "program_died"

    def __init__(self, name: str, returncode: int, lines: list[str]) -> None:
        how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
        said = f"; its last words: {' / '.join(lines)}" if lines else ""
        super().__init__(f"{name} {how} before it was ready{said}")
        self.name = name
        self.returncode = returncode
        self.lines = lines


class ProgramNotReady(ProgramError):
    """A program runs but was not ready in time."""

    code = "program_not_ready"

    def __init__(self, name: str, within_s: float, lines: list[str]) -> None:
        said = f"; its last words: {' / '.join(lines)}" if lines else ""
        super().__init__(f"{name} was not ready within {within_s:g} s{said}")
        self.name = name
        self.lines = lines


class Program(ABC):
    """One program and, once started, its process.

    A subclass says what to run (`prepare`), when it is ready (`wait_ready`) and, if it can, why it died (`explain`).
    """

    name: str
    log: Path | None = None
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    grace_s: float = 3.0
    ready_within_s: float = 30.0
    _process: ChildProcess | None = None

    @abstractmethod
    async def prepare(self) -> Command:
        """Write what the program needs and say what to run; called before every start.

        Raises:
            Exception: a typed error that says what is wrong; the program is then not started.
        """

    async def wait_ready(self, pid: int) -> None:  # noqa: B027 - a program may be ready as soon as it runs
        """Return once the process `pid` does its work. The caller limits the time."""

    def explain(self, lines: list[str]) -> Exception | None:
        """A typed error for a program that died with these last lines in its log, or None when they say nothing."""
        del lines
        return None

    @property
    def pid(self) -> int | None:
        """The process id while the program runs."""
        return self._process.pid if self.is_running and self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the program and wait until it is ready.

        Raises:
            ProgramError: it died, was not ready in time, or could not be executed. Nothing is left running.
        """
        if self.is_running:
            return
        command = await self.prepare()
        before = log_size_bytes(command.log)
        try:
            process = spawn(command)
        except OSError as error:
            raise ProgramError(f"{self.name} could not be started: {error}") from error
        self._process = process
        try:
            await self._until_ready(process, command, before)
        except BaseException:
            await process.kill()
            raise

    async def wait(self) -> int:
        """Wait for the end of the running process; return its exit status (negative: the signal)."""
        assert self._process is not None, f"{self.name} was never started"
        return await self._process.wait()

    async def stop(self, grace_s: float | None = None) -> None:
        """Ask the program to end, then make it; at most `grace_s` seconds (its own `grace_s` by default)."""
        if self._process is not None:
            await self._process.stop(self.stop_signals, self.grace_s if grace_s is None else grace_s)

    async def kill(self) -> None:
        """SIGKILL the program, as a crash would, and wait for its end."""
        if self._process is not None:
            await self._process.kill()

    async def restart(self) -> None:
        """Stop the program and start it again, at the same address."""
        await self.stop()
        await self.start()

    def signal(self, signum: signal.Signals) -> None:
        """Send the running process a signal."""
        if self._process is not None:
            self._process.send(signum)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _until_ready(self, process: ChildProcess, command: Command, offset: int) -> None:
        ready = asyncio.create_task(self.wait_ready(process.pid), name=f"{self.name} ready")
        ended = asyncio.create_task(process.wait(), name=f"{self.name} ended")
        tasks = {ready, ended}
        try:
            await asyncio.wait(tasks, timeout=self.ready_within_s, return_when=asyncio.FIRST_COMPLETED)
            # Readiness may have been seen, or have failed, in the very moment of the end: the end counts.
            if process.returncode is not None:
                lines = last_lines(command.log, 20, offset=offset)
                raise self.explain(lines) or ProgramDied(self.name, process.returncode, lines[-5:])
            if not ready.done():
                raise ProgramNotReady(self.name, self.ready_within_s, last_lines(command.log, offset=offset))
            ready.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
