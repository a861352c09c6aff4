"""The launcher's end of one zygote: starting it, giving it orders, hearing what became of them.

Used by `process_driver` alone. A link lives as long as its zygote: `ready` resolves to nothing, or to the
sentence why it is unfit; `lost` is set when the zygote has died, whatever the cause. Everything runs on the event
loop's thread.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from algomesh.instance import control, descendants
from algomesh_services.launcher.driver import LaunchFailed

_EXIT_REPORT_S = 4.0
_SEND_S = 10.0
_CLOSE_S = 3.0


class ZygoteGone(LaunchFailed):
    """The zygote has died, and had not forked the instance, or the instance has died with it; another can be asked."""


class ZygoteLink:
    """One running zygote."""

    def __init__(
        self,
        command: Sequence[str],
        preload: frozenset[str],
        environment: Mapping[str, str],
        on_lost: Callable[["ZygoteLink"], None],
    ) -> None:
        """Start `command` with `--control-fd` and its number appended; `on_lost` is called once when it has died."""
        self.preload = preload
        self.instances: set[str] = set()
        self.closing = False
        self.lost = asyncio.Event()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_lost = on_lost
        self._spawned: dict[str, asyncio.Future[tuple[int, int]]] = {}
        self._exited: dict[int, asyncio.Future[int | None]] = {}
        self._order = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.callback(self._control.close)
            # A session of its own: Ctrl-C reaches the launcher, which then ends the zygote in its own order.
            self._process = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            on_failure.pop_all()
        self._pidfd = os.pidfd_open(self._process.pid)
        self.started_ticks = descendants.start_ticks(self._process.pid)
        self._loop.add_reader(self._control.fileno(), self._hear)
        self._loop.add_reader(self._pidfd, self._died)

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    async def spawn(self, instance: str, order: bytes, fds: Sequence[int]) -> tuple[int, int]:
        """Have `instance` forked and return its pid and its pidfd, which the caller closes; raises LaunchFailed."""
        answer: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        self._spawned[instance] = answer
        try:
            async with asyncio.timeout(_SEND_S):
                await self._send(order, fds)
                return await answer
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise LaunchFailed(f"the zygote did not start {instance} in {_SEND_S:.0f} s") from error
            raise ZygoteGone(f"the zygote of {instance} has died") from error
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._disown(*answer.result())
            raise
        finally:
            self._spawned.pop(instance, None)  # an answer that comes later has no owner: its instance is killed

    async def exit_status(self, pid: int) -> int | None:
        """Return the status of a dead instance once it and all it started are gone; None when nobody knows it."""
        exited = self._exited.get(pid)
        if exited is None:
            return None
        try:
            async with asyncio.timeout(_EXIT_REPORT_S):
                return await asyncio.shield(exited)
        except TimeoutError:
            return None
        finally:
            self._exited.pop(pid, None)

    def hang_up(self) -> None:
        """Close the conversation: the zygote kills everything below it and ends."""
        self.closing = True
        self._close_control()

    def kill(self) -> None:
        """End the zygote without its help; its instances die with it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Hang up and wait until the zygote has gone, by force if it takes too long."""
        self.hang_up()
        if not self.ready.done():  # it still imports: it would notice late, and nothing runs below it yet
            self.kill()
        for limit_s in (_CLOSE_S, 1.0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self.lost.wait()
                return
            self.kill()

    async def _send(self, order: bytes, fds: Sequence[int]) -> None:
        async with self._order:
            while True:
                try:
                    control.send_order(self._control, order, fds)
                except BlockingIOError:
                    await asyncio.sleep(0.005)  # the zygote is forking; a full socket is rare and short
                else:
                    return

    def _hear(self) -> None:
        while self._control.fileno() >= 0:
            try:
                received = control.receive_report(self._control)
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:  # the end: the pidfd tells the rest
                self._loop.remove_reader(self._control.fileno())
                return
            self._take(*received)

    def _take(self, report: control.Report, fds: list[int]) -> None:
        match report:
            case control.Ready():
                self._settle("")
            case control.Unfit(reason=reason):
                self._settle(reason)
            case control.Spawned(instance=instance, pid=pid) if fds:
                self._exited[pid] = self._loop.create_future()
                answer = self._spawned.pop(instance, None)
                if answer is None or answer.done():
                    self._disown(pid, fds.pop())
                else:
                    answer.set_result((pid, fds.pop()))
            case control.Spawned(instance=instance, pid=pid):
                self._refuse(instance, "the launcher is out of file descriptors")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            case control.Refused(instance=instance, reason=reason):
                self._refuse(instance, reason)
            case control.Exited(pid=pid, status=status):
                exited = self._exited.get(pid)
                if exited is not None and not exited.done():
                    exited.set_result(status)
        for fd in fds:
            os.close(fd)

    def _settle(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_result(reason)

    def _refuse(self, instance: str, reason: str) -> None:
        answer = self._spawned.pop(instance, None)
        if answer is not None and not answer.done():
            answer.set_exception(LaunchFailed(reason))

    def _disown(self, pid: int, pidfd: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        self._exited.pop(pid, None)

    def _died(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._hear()  # what it said last
        self._close_control()
        code = self._process.wait()
        self._settle(f"the zygote ended with code {code} while it was starting")
        for instance, answer in self._spawned.items():
            if not answer.done():
                answer.set_exception(ZygoteGone(f"the zygote died while it was starting {instance}"))
        for exited in self._exited.values():
            if not exited.done():
                exited.set_result(None)
        self.lost.set()
        self._on_lost(self)

    def _close_control(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
