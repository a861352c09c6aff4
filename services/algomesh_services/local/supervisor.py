"""The supervisor: starts the programs of a mesh in order, keeps them up, and leaves nothing behind.

A program that dies is started again at once, at the same address; one that dies again and again is started at growing
intervals of up to five seconds, and the log says so with its last words. Nothing survives the supervisor: each child
asked the kernel for a signal at its parent's death, and orphans come to the supervisor, which kills them.
It must run on the event loop of the main thread, in a process that starts no children by other means.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import structlog

from algomesh_broker.child import Command, last_lines
from algomesh_broker.program import Program, ProgramError
from algomesh_services.local.errors import ChildFailed
from algomesh_services.local.reaper import Reaper

log = structlog.get_logger(__name__)

# What passes before the n-th start of a program that keeps dying.
_DELAYS_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
_QUICK_DEATH_S: Final = 5.0
_SWEEP_S: Final = 1.0
# Kept back from each child's share of the time to stop, for those stopped after it and for killing.
_RESERVE_S: Final = 0.3


class Child(Program):
    """A program given by its command line.

    `environment` is added to ours. `ready` gets the process id and returns once the program works (None: at once);
    the supervisor limits its time to `ready_within_s` seconds and watches for the end meanwhile. `death_signal` is
    what the child gets when we die: SIGTERM lets a Python program clean up. Output goes to `log`, or to our stderr.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[int], Awaitable[None]] | None = None,
        log: Path | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
        stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,),
        grace_s: float = 3.0,
        ready_within_s: float = 30.0,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.log = log
        self.stop_signals = stop_signals
        self.grace_s = grace_s
        self.ready_within_s = ready_within_s
        self._argv = tuple(argv)
        self._environment = dict(environment or {})
        self._ready = ready
        self._death_signal = death_signal
        self._pass_fds = pass_fds

    async def prepare(self) -> Command:
        """Our environment of this moment, and the additions."""
        return Command(
            argv=self._argv,
            environment={**os.environ, **self._environment},
            death_signal=self._death_signal,
            pass_fds=self._pass_fds,
            log=self.log,
        )

    async def wait_ready(self, pid: int) -> None:
        """Ask `ready`."""
        if self._ready is not None:
            await self._ready(pid)


class Supervisor:
    """Runs `programs`: `async with Supervisor(programs):` starts them in order and stops them in reverse.

    `stop_within_s` bounds the whole stop. After `complain_after` quick deaths in a row a program is reported as
    failing; it is still started again.
    """

    def __init__(self, programs: Sequence[Program], *, stop_within_s: float = 5.0, complain_after: int = 3) -> None:
        self._programs = tuple(programs)
        self._stop_within_s = stop_within_s
        self._complain_after = complain_after
        self._keepers: list[asyncio.Task[None]] = []
        self._reaper = Reaper()
        self._restarts = {program.name: 0 for program in self._programs}
        assert len(self._restarts) == len(self._programs), "two programs have one name"

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the programs that run now."""
        return {program.name: program.pid for program in self._programs if program.pid is not None}

    @property
    def restarts(self) -> dict[str, int]:
        """How often each program was started again."""
        return dict(self._restarts)

    async def start(self) -> None:
        """Start the programs, each when the one before it is ready. If one fails, all are stopped again.

        Raises:
            LocalError: a program could not be started; the sentence says which and what to do.
        """
        self._reaper.adopt()
        try:
            for program in self._programs:
                try:
                    await program.start()
                except ProgramError as error:
                    raise ChildFailed(program.name, str(error), error.code) from error
                log.info("child_ready", program=program.name, pid=program.pid)
                self._keepers.append(asyncio.create_task(self._keep(program), name=f"keep {program.name}"))
            self._keepers.append(asyncio.create_task(self._sweep_for_ever(), name="sweep"))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the programs in reverse order and kill what they leave; everything is gone in `stop_within_s`.

        A cancellation meanwhile (a second Ctrl-C) kills them all at once.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stop_within_s
        keepers, self._keepers = self._keepers, []
        try:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            running = [program for program in reversed(self._programs) if program.is_running]
            for index, program in enumerate(running):
                others = len(running) - index
                share = deadline - loop.time() - _RESERVE_S * others
                await program.stop(max(0.0, min(program.grace_s, share)))
                self._reaper.sweep()
        finally:
            for program in self._programs:
                program.signal(signal.SIGKILL)
            left = self._reaper.sweep(within_s=max(0.2, deadline - loop.time()))
            if left:
                log.error("orphans_left", pids=left)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _keep(self, program: Program) -> None:
        """Start `program` again whenever it ends, until cancelled."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        quick_deaths = 0
        reason = ""
        while True:
            if program.is_running:
                status = await program.wait()
                self._reaper.sweep()
                log.warning("child_died", program=program.name, status=status, lived_s=round(loop.time() - began, 3))
                reason = f"ended with status {status}"
                quick_deaths = quick_deaths + 1 if loop.time() - began < _QUICK_DEATH_S else 0
            if quick_deaths >= self._complain_after:
                last_words = last_lines(program.log)
                log.error(
                    "child_failing", program=program.name, deaths=quick_deaths, reason=reason, last_words=last_words
                )
            await asyncio.sleep(_DELAYS_S[min(quick_deaths, len(_DELAYS_S) - 1)])
            began = loop.time()
            try:
                await program.start()
            except Exception as error:  # whatever it is, the next attempt may succeed
                reason = str(error)
                quick_deaths += 1
                log.warning("child_not_restarted", program=program.name, error=reason)
                continue
            self._restarts[program.name] += 1
            log.info("child_restarted", program=program.name, pid=program.pid, took_s=round(loop.time() - began, 3))

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._reaper.sweep()
