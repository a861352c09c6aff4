"""An instance in a container of its own: its leases, its log, and how it ended.

Made by `docker_driver`; callers see it as `driver.Process`. The engine says when the container has ended; its output is
copied to the instance's log while it runs. The container is removed from here, and not by the engine, since its exit
code, whether it had too little memory, and its last lines would go with it.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from algomesh.instance.watch import Phase
from algomesh_broker.boot import failure_line
from algomesh_services.launcher import log_reader, logs
from algomesh_services.launcher.docker_engine import Engine
from algomesh_services.launcher.driver import Exit, ExitReason, LaunchFailed, LaunchSpec, Watch

log = structlog.get_logger("algomesh.launcher")

_TAIL_S: Final = 3.0
_RETRY_S: Final = 0.5
_MIB: Final = 1024 * 1024
_NOT_EXECUTABLE, _NOT_FOUND, _SIGNALLED = 126, 127, 128  # exit codes, as a shell would give them


class ContainerProcess:
    """One instance; see `driver.Process` for what the public methods promise."""

    def __init__(
        self,
        spec: LaunchSpec,
        engine: Engine,
        *,
        container: str,
        pid: int,
        watch: Watch,
        log_fd: int,
        begin: Callable[[Coroutine[None, None, None], str], None],
    ) -> None:
        """Take ownership of `log_fd`; `begin` runs what cannot be waited for here."""
        self.instance = spec.instance
        self.pid = pid
        self.watch = watch
        self.container = container
        self.digest = spec.digest
        self._spec, self._engine, self._log_fd, self._begin = spec, engine, log_fd, begin
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._is_dead = False
        self._asked: ExitReason | None = None
        self._reason: ExitReason | None = None
        self._detail = ""
        self._memory_bytes = 0

    async def wait(self) -> Exit:
        """Return how it ended, once it has, and its container is gone."""
        return await asyncio.shield(self._exit)

    def terminate(self, reason: ExitReason = "retired") -> None:
        """Ask it to drain and go."""
        if not self._is_dead:
            self._asked = self._asked or reason
            self._begin(self._signal("SIGTERM"), f"terminate {self.instance}")

    def kill(self, reason: ExitReason, detail: str = "") -> None:
        """End it now; the first reason given stays."""
        if not self._is_dead:
            if self._reason is None:
                self._reason, self._detail = reason, detail
            self._begin(self._signal("SIGKILL"), f"kill {self.instance}")

    def memory_bytes(self) -> int:
        """What the engine said last."""
        return 0 if self._is_dead else self._memory_bytes

    async def measure(self) -> None:
        """Ask the engine how much memory it has."""
        with contextlib.suppress(LaunchFailed):
            self._memory_bytes = await self._engine.memory_bytes(self.container)

    async def follow(self, log_limit_bytes: int) -> None:
        """Copy what it prints, wait for its end, find out how it ended, remove it, and tell everyone who waits."""
        state: dict[str, Any] | None = None
        line = self._engine.connect()
        copying = asyncio.create_task(self._copy_log(log_limit_bytes), name=f"log of {self.instance}")
        try:
            while True:
                try:
                    await line.wait(self.container)
                    state = await self._engine.state(self.container)
                except LaunchFailed as error:
                    log.warning("container_not_followed", instance=self.instance, error=str(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                if state is None or not state.get("Running"):
                    break
            self._is_dead = True
            await asyncio.wait({copying}, timeout=_TAIL_S)
            self._explain_start(state)
            with contextlib.suppress(LaunchFailed):
                await self._engine.remove(self.container)
        finally:
            self._is_dead = True
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            await line.close()
            os.close(self._log_fd)
            if not self._exit.done():
                self._exit.set_result(self._describe(state))

    async def _copy_log(self, limit_bytes: int) -> None:
        """Append the output to the log, which is kept within bounds; go on where it was when the line was cut."""
        since = 0.0
        while not self._is_dead:
            line = self._engine.connect()
            try:
                async for data in line.printed(self.container, since):
                    since = time.time()
                    os.write(self._log_fd, data)
                    if logs.is_over(self._log_fd, limit_bytes):
                        logs.cut(self._log_fd, self._spec.log_path, limit_bytes)
            except LaunchFailed:
                await asyncio.sleep(_RETRY_S)
            except OSError as error:
                log.warning("log_tail_lost", instance=self.instance, error=str(error))
                return
            else:
                return
            finally:
                await line.close()

    async def _signal(self, name: str) -> None:
        try:
            await self._engine.signal(self.container, name)
        except LaunchFailed as error:
            log.warning("signal_not_sent", instance=self.instance, signal=name, error=str(error))

    def _explain_start(self, state: dict[str, Any] | None) -> None:
        """Say as the instance would have said it, had it come so far, that its image lacks what it begins with."""
        status = 0 if state is None else state.get("ExitCode", 0)
        image = self._spec.image or "that the launcher runs it in"
        lines = log_reader.last_lines(self._spec.log_path, 3) if self.watch.phase == Phase.FORKED else []
        sentence = ""
        if lines and status in (_NOT_EXECUTABLE, _NOT_FOUND):
            program = self._spec.command[0] if self._spec.command else "python3"
            why = "it is not in" if status == _NOT_FOUND else "it is no program in"
            sentence = f"its command {program!r} cannot be run: {why} the image {image}"
        elif lines and status == 1 and not self._spec.command and "No module named" in lines[-1]:
            sentence = f"the image {image} does not hold algomesh: {lines[-1].strip()}"
        if sentence:
            with contextlib.suppress(OSError):
                os.write(self._log_fd, f"{failure_line('load_failed', sentence)}\n".encode())

    def _describe(self, state: dict[str, Any] | None) -> Exit:
        reason, detail = self._reason, self._detail
        if state is None:
            return Exit(code=None, signal=None, reason=reason or "crash", detail=detail or "its container was removed")
        status = int(state.get("ExitCode", 0))
        number = status - _SIGNALLED if _SIGNALLED < status < _SIGNALLED + signal.NSIG else None
        code = status if number is None else None
        if reason is None and state.get("OOMKilled"):
            limit = self._spec.memory_bytes
            allowed = "" if limit is None else f" beyond the {limit / _MIB:.0f} MiB it may use"
            return Exit(code=code, signal=number, reason="memory_exceeded", detail=f"took memory{allowed}")
        if reason is None and self._asked is not None and number in (None, signal.SIGTERM):
            reason = self._asked
        if reason is None:
            reason = "exit" if code is not None else "crash"
        return Exit(code=code, signal=number, reason=reason, detail=detail)
