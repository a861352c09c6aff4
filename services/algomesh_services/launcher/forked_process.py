"""An instance that was forked from a zygote: its pidfd, its watch page (or leases), its log, and how it ended.

Made by `process_driver`; callers see it as `driver.Process`. Its death is known within milliseconds by the pidfd, how
it ended a little later by its zygote's report, which also says that nothing it started is left.
"""

import asyncio
import contextlib
import mmap
import os
import signal
from typing import Final

import structlog

from algomesh.instance import watch
from algomesh_services.launcher import logs, memory
from algomesh_services.launcher.driver import Exit, ExitReason, LaunchSpec, Watch
from algomesh_services.launcher.zygote_link import ZygoteLink

log = structlog.get_logger()

_MEASURE_INTERVAL_S: Final = 1.0
_MIB: Final = 1024 * 1024


class ForkedProcess:
    """One instance; see `driver.Process` for what the public methods promise."""

    def __init__(
        self,
        spec: LaunchSpec,
        link: ZygoteLink,
        *,
        pid: int,
        pidfd: int,
        log_fd: int,
        page: mmap.mmap,
        uid: int | None,
    ) -> None:
        """Take ownership of `pidfd` and `log_fd`."""
        self.instance = spec.instance
        self.pid = pid
        self.uid = uid
        self.link = link
        self.watch: Watch = spec.leased if spec.command and spec.leased is not None else watch.WatchReader(page)
        self._spec = spec
        self._pidfd = pidfd
        self._log_fd = log_fd
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._is_dead = False
        self._asked: ExitReason | None = None
        self._reason: ExitReason | None = None
        self._detail = ""
        self._measured_s = 0.0
        self._measured_bytes = 0
        self._resident_bytes = 0
        self._log_failed = False
        self._log_lock = asyncio.Lock()

    async def wait(self) -> Exit:
        """Return how it ended, once it has, and all that it started is gone."""
        return await asyncio.shield(self._exit)

    def terminate(self, reason: ExitReason = "retired") -> None:
        """Ask it to drain and go."""
        if self._send(signal.SIGTERM):
            self._asked = self._asked or reason

    def kill(self, reason: ExitReason, detail: str = "") -> None:
        """End it now; the first reason given stays."""
        if not self._is_dead:
            self.give_reason(reason, detail)
            self._send(signal.SIGKILL)

    def give_reason(self, reason: ExitReason, detail: str = "") -> None:
        """Say why it is about to be killed by somebody else."""
        if self._reason is None:
            self._reason, self._detail = reason, detail

    def memory_bytes(self) -> int:
        """Return the memory that is its own, with its descendants'."""
        return 0 if self._is_dead else memory.memory_bytes(self.pid, self.link.pid)

    def needs_measuring(self, now_s: float) -> bool:
        """Return whether it may have more memory than it is allowed, judged by what is cheap to read."""
        limit = self._spec.memory_bytes
        if limit is None or self._is_dead:
            return False
        resident = memory.resident_bytes(self.pid)
        if resident <= limit:
            return False
        has_grown = resident - self._resident_bytes >= limit - self._measured_bytes
        if not has_grown and now_s - self._measured_s < _MEASURE_INTERVAL_S:
            return False
        self._resident_bytes, self._measured_s = resident, now_s
        return True

    async def enforce_memory(self) -> None:
        """Measure, and kill it when it has more than it is allowed."""
        limit = self._spec.memory_bytes
        self._measured_bytes = await asyncio.to_thread(self.memory_bytes)
        if limit is not None and self._measured_bytes > limit:
            used = f"used {self._measured_bytes / _MIB:.0f} MiB of the {limit / _MIB:.0f} MiB it may use"
            self.kill("memory_exceeded", used)

    async def cut_log(self, limit_bytes: int) -> None:
        """Keep the log within bounds; a failure is logged once."""
        async with self._log_lock:
            if self._log_fd < 0:
                return
            try:
                if logs.is_over(self._log_fd, limit_bytes):
                    # A descriptor of the thread's own: this task may be cancelled, the thread cannot be.
                    await asyncio.to_thread(self._cut, os.dup(self._log_fd), limit_bytes)
            except OSError as error:
                self._say_once(error)

    def _cut(self, log_fd: int, limit_bytes: int) -> None:
        try:
            logs.cut(log_fd, self._spec.log_path, limit_bytes)
        finally:
            os.close(log_fd)

    def _say_once(self, error: OSError) -> None:
        if not self._log_failed:
            log.warning("log_tail_lost", instance=self.instance, error=str(error))
            self._log_failed = True

    async def follow(self, log_limit_bytes: int) -> None:
        """Wait for the death, find out how it ended, and tell everyone who waits."""
        loop = asyncio.get_running_loop()
        died = asyncio.Event()
        loop.add_reader(self._pidfd, died.set)
        status: int | None = None
        try:
            await died.wait()
            self._is_dead = True
            status = await self.link.exit_status(self.pid)
            await self.cut_log(log_limit_bytes)
        finally:
            loop.remove_reader(self._pidfd)
            self._is_dead = True
            os.close(self._pidfd)
            self._close_log()
            if not self._exit.done():
                self._exit.set_result(self._describe(status))

    def _close_log(self) -> None:
        log_fd, self._log_fd = self._log_fd, -1
        os.close(log_fd)

    def _describe(self, status: int | None) -> Exit:
        ended = None if status is None else os.waitstatus_to_exitcode(status)
        code = ended if ended is not None and ended >= 0 else None
        number = -ended if ended is not None and ended < 0 else None
        reason, detail = self._reason, self._detail
        if reason is None and self._asked is not None and number in (None, signal.SIGTERM):
            reason = self._asked
        if reason is None and status is None and self.link.lost.is_set():
            reason, detail = "zygote_lost", "died with the zygote it was forked from"
        if reason is None:
            reason = "exit" if code is not None else "crash"
        return Exit(code=code, signal=number, reason=reason, detail=detail)

    def _send(self, number: signal.Signals) -> bool:
        if self._is_dead:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
            return True
        return False
