"""The driver `process`: instances are forked from zygotes on this machine and watched by one task.

A zygote per set of preloaded modules, started when first needed, started again when it dies, ended when unused.
Where a set of modules must not be forked (it starts threads, opens a GPU, cannot be imported) its instances come
from the zygote that has preloaded nothing and import for themselves. The launcher's process becomes a subreaper,
so that even a zygote killed with SIGKILL leaves nothing behind. Nothing outlives the driver's context, nor the
launcher's death of any kind.
"""

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Final, Self

import structlog

from algomesh.instance import control, descendants, prctl, watch
from algomesh.instance.zygote import DEFAULT_ENTRY, THREAD_VARIABLES
from algomesh_services.launcher import logs
from algomesh_services.launcher.driver import LaunchFailed, LaunchSpec
from algomesh_services.launcher.forked_process import ForkedProcess
from algomesh_services.launcher.isolation import Isolation
from algomesh_services.launcher.zygote_link import ZygoteGone, ZygoteLink

log = structlog.get_logger()

_NO_MODULES: Final[frozenset[str]] = frozenset()
_MAX_PROCESSES: Final = 4096
_RESTARTS: Final = 3
_RESTART_WINDOW_S: Final = 30.0
_SWEEP_S: Final = 2.0
_STOP_S: Final = 3.0
_SHARED_FOLDER: Final = "/tmp"  # noqa: S108  # all that another uid may write
# What an instance may know of the launcher's environment: where things are, never what opens them.
_PASSED_ON: Final = frozenset(
    [
        *("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM"),
        *("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    ]
)


class ProcessDriver:
    """Starts instances as processes of this machine; see `driver.Driver` for what its methods promise."""

    def __init__(
        self,
        *,
        isolation: Isolation | None = None,
        entry: str = DEFAULT_ENTRY,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        zygote_idle_s: float = 600.0,
        ready_timeout_s: float = 120.0,
        watch_interval_s: float = 0.2,
        log_limit_bytes: int = logs.DEFAULT_LIMIT_BYTES,
    ) -> None:
        """Prepare a driver.

        `isolation` is what `isolation.prepare` found (None: instances keep the launcher's uid); `environment` is
        added to the little of the launcher's own that zygotes get; a zygote without instances ends after
        `zygote_idle_s`; modules whose import takes longer than `ready_timeout_s` are not preloaded.
        """
        self._isolation = isolation or Isolation()
        self._entry = entry
        self._python = python
        self._environment = zygote_environment(os.environ) | dict(environment or {})
        self._zygote_idle_s = zygote_idle_s
        self._ready_timeout_s = ready_timeout_s
        self._watch_interval_s = watch_interval_s
        self._log_limit_bytes = log_limit_bytes
        self._zygotes: dict[frozenset[str], ZygoteLink] = {}
        self._links: set[ZygoteLink] = set()
        self._unfit: dict[frozenset[str], str] = {}
        self._used_s: dict[frozenset[str], float] = {}
        self._losses: dict[frozenset[str], list[float]] = {}
        self._uids: Counter[int] = Counter()
        self._processes: dict[str, ForkedProcess] = {}
        self._launching: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        """Adopt orphans from now on, and watch."""
        prctl.become_subreaper()
        self._begin(self._watch(), "watch instances")
        self._begin(self._cut_logs(), "cut logs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill every instance, end every zygote and wait until they are gone."""
        self._closing = True
        for process in self._processes.values():
            process.give_reason("stopped")
        await asyncio.gather(*(link.close() for link in list(self._links)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(process.wait() for process in list(self._processes.values())))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def isolation(self) -> Isolation:
        """What instances are kept from."""
        return self._isolation

    @property
    def unfit(self) -> Mapping[frozenset[str], str]:
        """Which sets of modules cannot be preloaded, and the sentence why."""
        return self._unfit

    async def warm(self, preload: frozenset[str]) -> None:
        """Start the zygote for `preload` unless it runs; raises LaunchFailed when instances cannot be forked at all."""
        await self._zygote(preload)

    async def launch(self, spec: LaunchSpec) -> ForkedProcess:
        """Fork an instance; raises LaunchFailed with a sentence."""
        if spec.instance in self._processes or spec.instance in self._launching:
            raise LaunchFailed(f"an instance {spec.instance} runs already")
        uid = self._next_uid() if spec.isolated else None
        try:
            order = control.encode_order(spec.instance, self._settings(spec, uid), spec.boot)
            log_fd = logs.open_log(spec.log_path)
        except ValueError as error:
            raise LaunchFailed(str(error)) from error
        except OSError as error:
            raise LaunchFailed(f"the log {spec.log_path} cannot be written: {error.strerror}") from error
        self._launching.add(spec.instance)
        try:
            process = await self._fork(spec, order, log_fd, uid)
        except BaseException:
            os.close(log_fd)
            raise
        finally:
            self._launching.discard(spec.instance)
        self._processes[spec.instance] = process
        process.link.instances.add(spec.instance)
        self._uids.update([] if uid is None else [uid])
        self._begin(self._follow(process), f"follow {spec.instance}")
        return process

    async def _fork(self, spec: LaunchSpec, order: bytes, log_fd: int, uid: int | None) -> ForkedProcess:
        """Have a zygote fork the instance; one that has just died is replaced once."""
        try:
            watch_fd, page = watch.create_page()
        except OSError as error:
            raise LaunchFailed(f"{spec.instance} cannot be watched: {error.strerror}") from error
        try:
            link = await self._zygote(spec.preload)
            try:
                pid, pidfd = await link.spawn(spec.instance, order, [log_fd, watch_fd])
            except ZygoteGone:
                await link.close()
                link = await self._zygote(spec.preload)
                pid, pidfd = await link.spawn(spec.instance, order, [log_fd, watch_fd])
        finally:
            os.close(watch_fd)
        return ForkedProcess(spec, link, pid=pid, pidfd=pidfd, log_fd=log_fd, page=page, uid=uid)

    async def _zygote(self, preload: frozenset[str]) -> ZygoteLink:
        """Return a zygote that is ready, for `preload` if that can be forked, else the one for no modules."""
        if self._closing:
            raise LaunchFailed("the launcher is stopping")
        wanted = _NO_MODULES if preload in self._unfit else preload
        self._used_s[wanted] = time.monotonic()
        link = self._zygotes.get(wanted) or self._start_zygote(wanted)
        try:
            async with asyncio.timeout(self._ready_timeout_s):
                reason = await asyncio.shield(link.ready)
        except TimeoutError:
            reason = f"importing {', '.join(sorted(wanted))} took longer than {self._ready_timeout_s:.0f} s"
            link.kill()
        if not reason:
            return link
        if wanted == _NO_MODULES:
            raise LaunchFailed(f"no zygote can be had: {reason}")
        if not self._closing and wanted not in self._unfit:
            self._unfit[wanted] = reason
            log.warning("zygote_unfit", preload=sorted(wanted), reason=reason)
        return await self._zygote(preload)

    def _start_zygote(self, preload: frozenset[str]) -> ZygoteLink:
        command = [self._python, "-P", "-m", "algomesh.instance.zygote", "--entry", self._entry]
        command += ["--preload", ",".join(sorted(preload))]
        try:
            link = ZygoteLink(self._isolation.wrap(command), preload, self._environment, self._on_zygote_lost)
        except OSError as error:
            raise LaunchFailed(f"a zygote cannot be started: {error.strerror}") from error
        self._zygotes[preload] = link
        self._links.add(link)
        log.info("zygote_started", preload=sorted(preload), pid=link.pid)
        return link

    def _on_zygote_lost(self, link: ZygoteLink) -> None:
        self._links.discard(link)
        preload = link.preload
        if self._zygotes.get(preload) is link:
            del self._zygotes[preload]
        was_ready = link.ready.result() == ""
        if link.closing or not was_ready or self._closing:
            return
        log.error("zygote_lost", preload=sorted(preload), pid=link.pid, instances=sorted(link.instances))
        self._begin(self._recover(link), f"recover zygote {link.pid}")

    async def _recover(self, link: ZygoteLink) -> None:
        """Kill what the dead zygote's instances left to this process; start it again unless it dies all the time."""
        await asyncio.to_thread(descendants.kill_trees, lambda: self._orphans(link.started_ticks), within_s=_SWEEP_S)
        now = time.monotonic()
        losses = [at for at in self._losses.get(link.preload, []) if now - at < _RESTART_WINDOW_S] + [now]
        self._losses[link.preload] = losses
        if len(losses) <= _RESTARTS and not self._closing and link.preload not in self._zygotes:
            with contextlib.suppress(LaunchFailed):
                self._start_zygote(link.preload)

    def _orphans(self, since_ticks: int) -> list[int]:
        own = {link.pid for link in list(self._links)}
        return [pid for pid in descendants.orphans(since_ticks) if pid not in own]

    def _settings(self, spec: LaunchSpec, uid: int | None) -> control.Settings:
        places = {} if uid is None else {"HOME": _SHARED_FOLDER, "USER": "nobody", "LOGNAME": "nobody"}
        return control.Settings(
            uid=uid,
            gid=uid,
            environment=places | spec.environment,
            threads=spec.threads,
            nice=spec.nice,
            max_processes=None if uid is None else _MAX_PROCESSES,
        )

    def _next_uid(self) -> int | None:
        return min(self._isolation.uids, key=lambda uid: self._uids[uid], default=None)

    def _begin(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, process: ForkedProcess) -> None:
        """See one instance to its end."""
        try:
            await process.follow(self._log_limit_bytes)
        finally:
            self._processes.pop(process.instance, None)
            process.link.instances.discard(process.instance)
            self._used_s[process.link.preload] = time.monotonic()
            if process.uid is not None:
                self._uids[process.uid] -= 1

    async def _watch(self) -> None:
        """Kill what is overdue or too large, end idle zygotes."""
        for turn in itertools.count():
            await asyncio.sleep(self._watch_interval_s)
            now_ns = time.monotonic_ns()
            for process in list(self._processes.values()):
                try:
                    await self._inspect(process, now_ns)
                except Exception:  # one instance must not take the watch from the others
                    log.exception("inspection_failed", instance=process.instance)
            if turn % 16 == 0:
                self._end_idle_zygotes(now_ns / 1e9)

    async def _inspect(self, process: ForkedProcess, now_ns: int) -> None:
        if process.watch.overdue(now_ns):
            late_s = (now_ns - process.watch.deadline_ns) / 1e9
            process.kill("timeout", f"was killed {late_s:.1f} s after the deadline of a run")
        elif process.needs_measuring(now_ns / 1e9):
            await process.enforce_memory()

    async def _cut_logs(self) -> None:
        """Keep logs within bounds; apart from the watch, which must not wait for a slow disk."""
        while True:
            await asyncio.sleep(self._watch_interval_s)
            for process in list(self._processes.values()):
                await process.cut_log(self._log_limit_bytes)

    def _end_idle_zygotes(self, now_s: float) -> None:
        for preload, link in list(self._zygotes.items()):
            if (
                not link.instances
                and link.ready.done()
                and now_s - self._used_s.get(preload, now_s) > self._zygote_idle_s
            ):
                log.info("zygote_ended", preload=sorted(preload), pid=link.pid)
                del self._zygotes[preload]
                link.hang_up()


def zygote_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what zygotes get of `environment`: no secrets, and one thread for each mathematical library."""
    passed = {name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith("LC_")}
    return passed | dict.fromkeys(THREAD_VARIABLES, "1")
