"""The zygote: a process that has imported what instances need, and forks one of them in milliseconds when told to.

`python -P -m algomesh.instance.zygote --control-fd N --preload torch,numpy` is started by the launcher's process
driver. It sets the thread variables to 1, imports, and makes sure that it may be forked: one thread, no GPU
device open. Then it says `Ready` (or `Unfit`, and ends) and waits in a plain blocking loop: no asyncio, no
connection, no credentials. While it has nothing to do it keeps one child forked ahead, the standby (`child.py`),
which gets the next order; the time of the fork, mostly the copying of page tables, is then nobody's wait.

It guarantees: an `Exited` report means that nothing the instance started is left; when the launcher goes, by any
signal, everything below the zygote is killed; credentials of one instance are not in the memory of the next.
"""

import argparse
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from algomesh.instance import child, control, descendants, prctl
from algomesh_observability import telemetry

DEFAULT_ENTRY: Final = "algomesh.instance.boot:main"
THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
UNFIT_CODE: Final = 3

_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
_SETTLE_S = 0.2
_QUIET_MS = 100.0
_SWEEP_S = 2.0


class _Terminated(BaseException):
    """SIGTERM came."""


def main(arguments: list[str] | None = None) -> int:
    """Run a zygote until its launcher goes; return its exit code."""
    options = _parse(arguments)
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # While it imports it cannot watch the socket, and there is nothing below it yet that would have to be ended.
    prctl.set_parent_death_signal(signal.SIGKILL)
    prctl.become_subreaper()
    launcher = socket.socket(fileno=options.control_fd)
    launcher.set_inheritable(False)
    os.chdir("/")

    modules = [name for name in options.preload.split(",") if name]
    entry, reason = prepare(modules, options.entry)
    if entry is None:
        with contextlib.suppress(OSError):
            control.send_report(launcher, control.Unfit(reason))
        return UNFIT_CODE
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        signal.signal(signal.SIGTERM, _terminate)
        prctl.set_parent_death_signal(0)
        _Zygote(launcher, entry).serve()
    except (_Terminated, ConnectionError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        while descendants.kill_descendants():
            pass
    return 0


def prepare(modules: list[str], entry: str) -> tuple[child.Entry | None, str]:
    """Import `modules` and `entry`; return the entry, or None and the sentence why this process must not be forked."""
    try:
        for name in modules:
            importlib.import_module(name)
        module, _, function = entry.partition(":")
        found: child.Entry = getattr(importlib.import_module(module), function)
        telemetry.preload()
    except BaseException as error:  # a module may raise anything while it is imported, SystemExit too
        return None, f"importing {', '.join([*modules, entry])} failed: {type(error).__name__}: {error}"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reason = _unfit_reason(modules)
    return (None, reason) if reason else (found, "")


@dataclass(frozen=True)
class _Standby:
    """A child that waits for its order."""

    pid: int
    orders: socket.socket

    def give(self, order: memoryview, fds: list[int]) -> bool:
        """Hand over what makes it an instance; False when it has died meanwhile."""
        with self.orders:
            try:
                control.send_order(self.orders, order, fds)
            except ConnectionError:
                return False
        return True


class _Zygote:
    """The loop: orders in, reports out, dead instances swept up after."""

    def __init__(self, launcher: socket.socket, entry: child.Entry) -> None:
        self._launcher = launcher
        self._entry = entry
        self._buffer = bytearray(control.MAX_ORDER_BYTES)
        self._instances: set[int] = set()
        self._standby: _Standby | None = None
        self._wants_standby = True
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)

    def serve(self) -> None:
        """Obey until the launcher closes its end."""
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        control.send_report(self._launcher, control.Ready())
        poller = select.poll()
        poller.register(self._launcher, select.POLLIN)
        poller.register(self._wakeup, select.POLLIN)
        while True:
            ready = poller.poll(_QUIET_MS if self._wants_standby else None)
            if not ready:
                self._prepare_standby()
            for fd, _ in ready:
                if fd == self._wakeup.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._wakeup.recv(4096)
                    self._bury()
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        order, fds = control.receive_order(self._launcher, self._buffer)
        if not order:
            return False
        try:
            if len(fds) == 2:
                self._start(order, fds)
            else:
                reason = "the order came without its log and its watch page: out of file descriptors"
                control.send_report(self._launcher, control.Refused(control.read_head(order), reason))
        finally:
            for fd in fds:
                os.close(fd)
            order[:] = bytes(len(order))  # the next child inherits this memory, and not these credentials
            order.release()
        return True

    def _start(self, order: memoryview, fds: list[int]) -> None:
        """Give the order to the standby, or to a child forked for it."""
        instance = control.read_head(order)
        standby, self._standby = self._standby, None
        self._wants_standby = True
        try:
            if standby is None or not standby.give(order, fds):
                standby = self._fork()
                standby.give(order, fds)
        except OSError as error:
            control.send_report(self._launcher, control.Refused(instance, f"fork failed: {error.strerror}"))
            return
        self._instances.add(standby.pid)
        pidfd = os.pidfd_open(standby.pid)
        try:
            control.send_report(self._launcher, control.Spawned(instance, standby.pid), [pidfd])
        finally:
            os.close(pidfd)

    def _prepare_standby(self) -> None:
        """Fork ahead; where that fails, not again before the next order, whose refusal says why."""
        self._wants_standby = False
        if self._standby is None:
            with contextlib.suppress(OSError):
                self._standby = self._fork()

    def _fork(self) -> "_Standby":
        zygote = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._detach()
                ours.close()
                child.run(self._entry, theirs, zygote=zygote)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        return _Standby(pid, ours)

    def _detach(self) -> None:
        """In the child: forget the sockets, so that no object closes their numbers again when others have them."""
        signal.set_wakeup_fd(-1)
        for connection in (self._launcher, self._wakeup, self._waker):
            connection.close()

    def _bury(self) -> None:
        """Reap what has died, and kill what dead instances left behind: such processes became children of this one."""
        dead: list[control.Exited] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self._standby is not None and pid == self._standby.pid:
                self._standby.orders.close()
                self._standby, self._wants_standby = None, True
            if pid in self._instances:
                self._instances.discard(pid)
                dead.append(control.Exited(pid, status))
        if dead:
            waiting = [] if self._standby is None else [self._standby.pid]
            descendants.kill_descendants(spare={*self._instances, *waiting}, within_s=_SWEEP_S)
        for report in dead:
            control.send_report(self._launcher, report)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="algomesh.instance.zygote", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, help="a SOCK_SEQPACKET socket to the launcher")
    parser.add_argument("--preload", default="", help="modules to import, separated by commas")
    parser.add_argument("--entry", default=DEFAULT_ENTRY, help="module:function called in each child")
    return parser.parse_args(arguments)


def _unfit_reason(modules: list[str]) -> str:
    named = ", ".join(modules) or "the instance's own modules"
    give_up = time.monotonic() + _SETTLE_S
    while (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        if time.monotonic() > give_up:
            return f"importing {named} started {threads - 1} threads, which a fork would lose"
        time.sleep(0.005)
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink())
            if target.startswith(_GPU_DEVICES):
                return f"importing {named} opened {target}, which cannot be shared by a fork"
    return ""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Leave the work to the wakeup socket; without a handler the kernel's default would wake nobody."""


if __name__ == "__main__":
    sys.exit(main())
