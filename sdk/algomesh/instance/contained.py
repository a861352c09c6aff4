"""The main process of a container that runs a Python version: `python -m algomesh.instance.contained`.

It reads the boot record, one line of JSON, from stdin, and forks the instance, which is the same as under a zygote
(`boot.main`), with a watch page. It stays outside of that process, so that it can say by leases what the page shows
though user code holds the GIL for minutes. SIGTERM goes on to the instance, which drains. When its launcher has been
silent for 15 s, it drains too: a container outlives its launcher by no more than that and its runs. It ends with the
instance's exit code, or 128 and the signal that ended it.
"""

import asyncio
import contextlib
import mmap
import os
import signal
import sys
import time
import traceback
from typing import Final, NoReturn

from algomesh.instance import boot as instance
from algomesh.instance import prctl, watch
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import LOAD_FAILED_CODE, Boot
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.names import Version, VersionId
from algomesh_broker.platform import pack

LAUNCHER_SILENT_S: Final = 15.0
_EVERY_S: Final = 1.0
_LOOK_S, _LOOK_WHILE_STARTING_S, _BUSY_CHANGE_S = 0.05, 0.005, 0.2
_LAST_RESORT_NS: Final = 5 * 10**9  # the launcher kills earlier, and knows why
_BAD_RECORD_CODE: Final = 64  # EX_USAGE of sysexits.h
_PHASES: Final[dict[watch.Phase, messages.LeasePhase]] = {
    watch.Phase.FORKED: "importing",
    watch.Phase.IMPORTING: "importing",
    watch.Phase.LOADING: "loading",
    watch.Phase.CONNECTING: "connecting",
    watch.Phase.READY: "ready",
    watch.Phase.DRAINING: "draining",
}


def main() -> int:
    """Be the main process of one container; return the exit code."""
    try:
        boot = Boot.of_line(sys.stdin.buffer.readline())
    except BadMessage as error:
        sys.stderr.write(f"stdin has no boot record: {error}\n")
        return _BAD_RECORD_CODE
    fd, page = watch.create_page()
    os.close(fd)
    pid = os.fork()
    if pid == 0:
        _be_instance(boot, page)
    return asyncio.run(_Teller(boot, pid, watch.WatchReader(page)).tell())


def lease_of(boot: Boot, reader: watch.WatchReader, now_ns: int) -> messages.InstanceLease:
    """What the page shows at `now_ns` (CLOCK_MONOTONIC), as a lease."""
    late_ns = now_ns - reader.deadline_ns if reader.deadline_ns else 0
    return messages.InstanceLease(
        instance=boot.instance,
        phase=_PHASES[reader.phase],
        active=reader.active,
        total=reader.runs_total,
        overdue_ms=max(0, late_ns // 1_000_000),
    )


def _be_instance(boot: Boot, page: mmap.mmap) -> NoReturn:
    """In the child: what `child.py` does under a zygote, as far as the engine has not done it for the container."""
    code = LOAD_FAILED_CODE
    try:
        os.setsid()
        prctl.set_parent_death_signal(signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        watch.WatchWriter(page).enter(watch.Phase.FORKED)
        code = instance.main(pack(boot), page)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # whatever it is, it ends here
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


class _Teller:
    """Says how the instance is, while it is."""

    def __init__(self, boot: Boot, pid: int, reader: watch.WatchReader) -> None:
        self._boot, self._pid, self._reader = boot, pid, reader
        self._status: int | None = None
        self._ended = asyncio.Event()
        self._heard_launcher_at = time.monotonic()

    async def tell(self) -> int:
        """Tell until the instance has ended; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        self._reap()  # it may have died before anybody listened
        telling = loop.create_task(self._connect_and_tell(), name="tell")
        guarding = loop.create_task(self._guard(), name="guard")
        await self._ended.wait()
        guarding.cancel()
        with contextlib.suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(1.0):
                await telling
        telling.cancel()
        await asyncio.gather(telling, guarding, return_exceptions=True)
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    async def _connect_and_tell(self) -> None:
        version = VersionId(self._boot.owner, self._boot.name, Version.parse(self._boot.version))
        identity = Identity.of_instance(self._boot.token, version, self._boot.instance).with_own_inbox()
        while not self._ended.is_set():
            try:
                connection = await Connection.open(self._boot.nats_url, identity, name=f"{self._boot.instance} lease")
            except BrokerError:
                await asyncio.sleep(0.2)
                continue
            async with connection:
                connection.on_reconnect.append(self._forgive)
                connection.join(subjects.host_beat(self._boot.launcher), self._on_beat)
                self._forgive()
                await self._tell(connection)
            return

    async def _tell(self, connection: Connection) -> None:
        told: messages.InstanceLease | None = None
        told_at = 0.0
        while not self._ended.is_set():
            now = time.monotonic()
            lease = lease_of(self._boot, self._reader, time.monotonic_ns())
            is_due = told is None or told.phase != lease.phase or now - told_at >= _EVERY_S
            if not is_due and told is not None and now - told_at >= _BUSY_CHANGE_S:
                is_due = (told.active, told.total) != (lease.active, lease.total)
            if is_due and connection.is_connected:  # old words that waited for a server would tell nothing
                connection.publish(subjects.lease(self._boot.instance), codec.encode(lease))
                told, told_at = lease, now
            is_starting = self._reader.phase < watch.Phase.READY
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_WHILE_STARTING_S if is_starting else _LOOK_S):
                    await self._ended.wait()
            if connection.is_connected and time.monotonic() - self._heard_launcher_at > LAUNCHER_SILENT_S:
                self._forgive()
                sys.stderr.write("its launcher has been silent for too long: drains\n")
                self._terminate()
        # Unless its start failed, of which its log and its exit code tell more.
        if self._status == 0 and connection.is_connected:
            last = messages.InstanceLease(instance=self._boot.instance, phase="ended", total=self._reader.runs_total)
            connection.publish(subjects.lease(self._boot.instance), codec.encode(last))
            await connection.flush(0.5)

    async def _guard(self) -> None:
        """End what hangs, though nobody outside has done it."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._reader.overdue(time.monotonic_ns() - _LAST_RESORT_NS):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)

    def _on_beat(self, message: Message) -> None:
        with contextlib.suppress(BadMessage):
            if codec.decode_host_beat(message.data).alive:
                self._forgive()
            else:
                self._terminate()

    def _forgive(self) -> None:
        self._heard_launcher_at = time.monotonic()

    def _terminate(self) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def _reap(self) -> None:
        while self._status is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._status = status
                self._ended.set()


if __name__ == "__main__":
    sys.exit(main())
