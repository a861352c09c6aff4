"""A child process that cannot outlive the process that started it.

Used for everything a mesh starts on one machine: nats-server, PostgreSQL and the programs (the launcher's instances
have their zygotes). `spawn` sets PR_SET_PDEATHSIG between fork and exec, so that even `kill -9` of the parent reaches
the child. Linux ties that to the *thread* that forked: spawn from one that lives as long as the child should,
which in practice means the event loop of the main thread. Linux only.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1
_CLONE_NEWUSER: Final = 0x10000000
_LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024
# Looked up at import: between fork and exec nothing may be loaded.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

_own_pids: set[int] = set()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom a child runs as: by default, whoever we are.

    `uid` and `gid` are those of another user (only root may). `namespace_uid` keeps our user and lets the child see
    it under that number, in a user namespace of its own: PostgreSQL refuses to run as uid 0 and is content with this.
    """

    uid: int | None = None
    gid: int | None = None
    namespace_uid: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the child has just our own rights."""
        return self.uid is None and self.namespace_uid is None


OURS: Final = Identity()


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run and how.

    `environment` is the child's whole environment (None: ours). Output goes to the end of `log` (None: to where our
    own stderr goes); a log over 16 MiB is first moved to `<log>.1`. `death_signal` is what the child gets when we
    die.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    death_signal: signal.Signals = signal.SIGKILL
    identity: Identity = OURS
    pass_fds: tuple[int, ...] = ()
    log: Path | None = None


class ChildProcess:
    """One running child, watched by its pidfd: no thread, no SIGCHLD handler, no signal to a pid used again."""

    def __init__(self, popen: "subprocess.Popen[bytes]", loop: asyncio.AbstractEventLoop) -> None:
        self._popen = popen
        self._loop = loop
        self._exited = asyncio.Event()
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The child's process id, also after its end."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._popen.returncode

    async def wait(self) -> int:
        """Wait for the end; return the `returncode`."""
        await self._exited.wait()
        returncode = self._popen.returncode
        assert returncode is not None
        return returncode

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; nothing happens when the child has already ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def stop(self, signals: Sequence[signal.Signals] = (signal.SIGTERM,), grace_s: float = 3.0) -> int:
        """Ask with each of `signals` in turn, `grace_s` seconds in all, then SIGKILL; return the `returncode`."""
        try:
            for signum in signals:
                self.send(signum)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(grace_s, 0.0) / len(signals)):
                        return await self.wait()
        finally:
            self.send(signal.SIGKILL)
        return await self.wait()

    async def kill(self) -> int:
        """SIGKILL and wait for the end."""
        self.send(signal.SIGKILL)
        return await self.wait()

    def _reap(self) -> None:
        if self._popen.poll() is None:  # woken too early
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _own_pids.discard(self.pid)
        self._exited.set()


def spawn(command: Command) -> ChildProcess:
    """Start `command` in a session of its own, with no standard input. Call it in a running event loop.

    Raises:
        OSError: the program is missing, may not be run, or the log cannot be written.
    """
    loop = asyncio.get_running_loop()
    identity = command.identity
    log = _open_log(command.log)
    try:
        popen = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log if log is not None else 2,
            stderr=log if log is not None else 2,
            env=command.environment,
            pass_fds=command.pass_fds,
            start_new_session=True,  # a terminal's Ctrl-C is ours alone: we stop children in order
            user=identity.uid,
            group=identity.gid,
            extra_groups=None if identity.uid is None else [],
            # Runs after the change of user, which would clear the death signal again.
            preexec_fn=_before_exec(command, os.getpid()),  # noqa: PLW1509 - a few system calls, nothing else
        )
    finally:
        if log is not None:
            log.close()
    _own_pids.add(popen.pid)
    return ChildProcess(popen, loop)


def own_pids() -> frozenset[int]:
    """The children that `spawn` started in this process and that have not ended."""
    return frozenset(_own_pids)


def last_lines(path: Path | None, count: int = 5, *, offset: int = 0) -> list[str]:
    """The last `count` lines written to a log behind `offset` bytes; none when there is no such file."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A log that shrank was rotated: all of it is new.
            file.seek(max(offset if offset <= size else 0, size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def log_size_bytes(path: Path | None) -> int:
    """How much is in a log now: the `offset` behind which the next child's lines begin."""
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def _open_log(path: Path | None) -> IO[bytes] | None:
    if path is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")  # noqa: PTH123


def _before_exec(command: Command, parent: int) -> Callable[[], None]:
    """What the child does between fork and exec. Only system calls: other threads' locks may be held for ever."""
    inside = command.identity.namespace_uid
    maps = [(b"/proc/self/setgroups", b"deny")] if inside is not None else []
    if inside is not None:
        maps += [
            (b"/proc/self/uid_map", b"%d %d 1" % (inside, os.geteuid())),
            (b"/proc/self/gid_map", b"%d %d 1" % (inside, os.getegid())),
        ]
    signum = int(command.death_signal)

    def before_exec() -> None:
        if maps and _LIBC.unshare(_CLONE_NEWUSER) != 0:
            os._exit(126)
        for path, text in maps:
            try:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, text)
                os.close(fd)
            except OSError:
                os._exit(126)
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(126)  # the second: our parent died before we could ask to be told

    return before_exec
