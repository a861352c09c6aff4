"""From the fork to the first call: import the algorithm, load it and connect at the same time, take calls.

`main` is what a zygote calls in its child. It returns the instance's exit code: 0 after a drain, else one of
those in algomesh_broker/boot.py, after the reason has been written as the log's last line.
"""

import asyncio
import contextlib
import importlib
import mmap
import os
import signal
import sys
import time
from typing import Any, Final

from algomesh import errors
from algomesh.decorator import Algorithm
from algomesh.instance import command, output, run_logs, run_spans
from algomesh.instance.runner import STUCK_CODE, Runner
from algomesh.instance.watch import Phase, WatchWriter
from algomesh.loop_thread import new_event_loop
from algomesh_broker.boot import IMPORT_FAILED_CODE, LOAD_FAILED_CODE, NOT_CONNECTED_CODE, Boot, failure_line
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.names import Version, VersionId
from algomesh_broker.platform import unpack
from algomesh_observability import telemetry
from algomesh_observability.logger import get_logger

with contextlib.suppress(ImportError):  # in the zygote: importing it takes longer than everything else in a start
    import uvloop  # noqa: F401

log = get_logger("algomesh.instance")

_CONNECT_S: Final = 30.0
_DRAIN_S: Final = 30.0


def main(record: bytes, page: mmap.mmap) -> int:
    """Be one instance until SIGTERM; return the exit code."""
    boot = unpack(Boot, record)
    watch = WatchWriter(page)
    marks = {"fork_ms": time.monotonic_ns()}
    output.redirect()
    run_logs.configure(boot)
    if boot.command:
        return command.become(boot)
    watch.enter(Phase.IMPORTING)
    try:
        algorithm = import_algorithm(boot)
    except BaseException as error:  # whatever an import raises
        return _give_up(IMPORT_FAILED_CODE, error, "cannot be imported")
    run_spans.begin(boot)
    watch.enter(Phase.LOADING)
    marks["import_ms"] = time.monotonic_ns()
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_serve(boot, algorithm, watch, marks))
    finally:
        output.finish()
        telemetry.shut_down()


def import_algorithm(boot: Boot) -> Algorithm[Any, Any]:
    """Import the entry from the unpacked archive. Raises whatever the import does, or LoadFailed."""
    os.chdir(boot.folder)
    sys.path.insert(0, boot.folder)
    module_name, _, attribute = boot.entry.partition(":")
    found = getattr(importlib.import_module(module_name), attribute, None)
    wanted = VersionId(boot.owner, boot.name, Version.parse(boot.version))
    if not isinstance(found, Algorithm) or found.version_id != wanted:
        raise errors.LoadFailed(f"{boot.entry} is {found!r}, not the algorithm {wanted}")
    return found


async def _serve(boot: Boot, algorithm: Algorithm[Any, Any], watch: WatchWriter, marks: dict[str, int]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    identity = Identity.of_instance(boot.token, algorithm.version_id, boot.instance)
    connecting = loop.create_task(
        Connection.open(boot.nats_url, identity, name=boot.instance, timeout_s=_CONNECT_S), name="connect"
    )
    try:
        if algorithm.is_class:
            await asyncio.to_thread(algorithm.loaded)
    except BaseException as error:  # whatever load() raises
        connecting.cancel()
        return _give_up(LOAD_FAILED_CODE, error, "load() failed")
    watch.enter(Phase.CONNECTING)
    marks["load_ms"] = time.monotonic_ns()
    try:
        connection = await connecting
    except BrokerError as error:
        return _give_up(NOT_CONNECTED_CODE, error, "cannot connect to the mesh", show_traceback=False)
    async with connection:
        runner = Runner(connection, algorithm, boot, watch, ready_ns=time.monotonic_ns())
        marks["connect_ms"] = time.monotonic_ns()
        # Before its first call can come: whoever dies of that was ready, and did not fail to start.
        watch.enter(Phase.READY)
        await runner.open()
        log.info("ready", **_spans(boot.launched_ns, marks))
        await _wait_for_end(stop, runner)
        watch.enter(Phase.DRAINING)
        await runner.drain(_DRAIN_S if boot.options.timeout_s is None else min(_DRAIN_S, boot.options.timeout_s))
        with contextlib.suppress(BrokerError):  # its last answers must be with the server before its death is told
            await connection.flush()
    return STUCK_CODE if runner.stuck.is_set() else 0


def _spans(began_ns: int, marks: dict[str, int]) -> dict[str, float]:
    """How long each phase of the start took, in milliseconds."""
    ends = list(marks.values())
    return {
        name: round((end - start) / 1e6, 1) for name, start, end in zip(marks, [began_ns, *ends], ends, strict=False)
    }


async def _wait_for_end(stop: asyncio.Event, runner: Runner) -> None:
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(runner.stuck.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _give_up(code: int, error: BaseException, what: str, *, show_traceback: bool = True) -> int:
    if show_traceback:
        output.log_exception(error)
    text = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    print(failure_line("load_failed", f"{what}: {text[:1000]}"))  # noqa: T201  # to the log, where the launcher reads it
    sys.stdout.flush()
    return code
