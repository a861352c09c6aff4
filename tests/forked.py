"""Processes forked from one that has imported everything, as a zygote forks instances: milliseconds each, not a third
of a second.

`Forked.start` runs a function of a module as a process of its own: its own pid, standard streams, environment, working
directory and exit status, and what it imports beyond `PRELOADED`. What a test says of a fresh interpreter (which
modules a command loads, what its command line shows) starts one instead.

The forking process is this module run as a program. It speaks over one socket pair: for each order, which brings the
three standard streams, it tells the pid, and when that process has ended, its status. It ends, and kills what it
forked, when the tests' process ends.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

PRELOADED = ("algomesh.instance.boot", "algomesh_services.cli", "rich.live", "rich.table", "numpy")
_ROOT = Path(__file__).resolve().parents[1]
_MOST_BYTES = 128 * 1024


class Order(msgspec.Struct):
    """What to run: a function without parameters in a module, which ends its process or returns its exit status."""

    module: str
    function: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


class Told(msgspec.Struct):
    """A process was forked (`status` is None), or has ended."""

    pid: int
    status: int | None = None


class Forked:
    """One process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, forker: "_Forker") -> None:
        self.pid = pid
        self._forker = forker

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal that killed it, or None while it runs."""
        return self._forker.ended.get(self.pid)

    def poll(self) -> int | None:
        """The same, as of now."""
        self._forker.hear(lambda: self.pid in self._forker.ended, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        self._forker.hear(lambda: self.pid in self._forker.ended, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @classmethod
    def start(
        cls, target: str, *arguments: str, stdin: int, stdout: int, stderr: int, environment: dict[str, str]
    ) -> "Forked":
        """Run `module:function`, with `arguments` in sys.argv and these files as standard streams."""
        module, _, function = target.partition(":")
        order = Order(module, function, list(arguments), str(Path.cwd()), environment)
        forker = _forker()
        return cls(forker.fork(order, [stdin, stdout, stderr]), forker)


def prepare() -> None:
    """Wait until the forking process is there: a second at the first time, which else is the first start's."""
    _forker()


class _Forker:
    """The tests' end."""

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self._begun: list[int] = []
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", "tests.forked"], stdin=theirs.fileno(), cwd=_ROOT)
        if not self._socket.recv(_MOST_BYTES):
            raise RuntimeError("the process that forks others could not import what it is to have")

    def fork(self, order: Order, files: list[int]) -> int:
        data = msgspec.msgpack.encode(order)
        assert len(data) <= _MOST_BYTES
        with self._lock:
            socket.send_fds(self._socket, [data], files)
            while not self._begun:
                self._hear_one(None)
            return self._begun.pop()

    def hear(self, enough: Any, timeout_s: float | None) -> None:
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while not enough():
            with self._lock:
                left_s = None if give_up is None else max(0.0, give_up - time.monotonic())
                # Not for long: others want to start something, or wait too.
                heard = self._hear_one(0.05 if left_s is None else min(0.05, left_s))
            if not heard and left_s == 0.0:
                return

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)

    def _hear_one(self, timeout_s: float | None) -> bool:
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return False
        data = self._socket.recv(_MOST_BYTES)
        if not data:
            raise RuntimeError("the process that forks others has ended")
        told = msgspec.msgpack.decode(data, type=Told)
        if told.status is None:
            self.ended.pop(told.pid, None)
            self._begun.append(told.pid)
        else:
            self.ended[told.pid] = told.status
        return True


@functools.cache
def _forker() -> _Forker:
    forker = _Forker()
    atexit.register(forker.close)
    return forker


def _serve(control: socket.socket) -> None:
    """Fork what is ordered, and tell what has ended, until nobody is there to order."""
    control.send(b"ready")
    waking, woken = socket.socketpair()
    for end in (waking, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([control, waking], [], [])
        if waking in ready:
            waking.recv(4096)
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                running.discard(pid)
                control.send(msgspec.msgpack.encode(Told(pid, os.waitstatus_to_exitcode(status))))
        if control in ready:
            data, files, _, _ = socket.recv_fds(control, _MOST_BYTES, 3)
            if not data:
                break
            pid = os.fork()
            if pid == 0:
                _become(msgspec.msgpack.decode(data, type=Order), files, [control, waking, woken])
            running.add(pid)
            for file in files:
                os.close(file)
            control.send(msgspec.msgpack.encode(Told(pid)))
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become(order: Order, files: list[int], ours: list[socket.socket]) -> None:
    """Be what was ordered. Does not return."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        for each in ours:
            each.close()
        os.environ.clear()
        os.environ.update(order.environment)
        os.chdir(order.folder)
        sys.argv[:] = [order.module, *order.arguments]
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(open(number, mode, closefd=False), "utf-8", errors, line_buffering=number == 2)  # noqa: SIM115
            for number, mode, errors in ((0, "rb", "strict"), (1, "wb", "strict"), (2, "wb", "backslashreplace"))
        )
        try:
            status = getattr(importlib.import_module(order.module), order.function)() or 0
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _preload() -> None:
    for name in PRELOADED:
        module = importlib.import_module(name)
        for each in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
            if not each.name.endswith("__main__"):
                importlib.import_module(each.name)
    from algomesh_services.cli.app import app

    with contextlib.redirect_stdout(io.StringIO()):  # typer imports most of itself when it is used
        app(["ls", "--help"], standalone_mode=False)
    gc.freeze()


if __name__ == "__main__":
    _preload()
    with socket.socket(fileno=os.dup(0)) as control:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        _serve(control)
