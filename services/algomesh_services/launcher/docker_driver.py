"""The driver `docker`: each instance is a container of its own, made through the Engine API.

A container gets its boot record, with its token, on stdin, and nothing secret in its environment; it runs without
root, its root file system cannot be written, it has no capability and no way to get one, and as much memory, processes
and GPUs as its version declares. A Python version's main process is `algomesh.instance.contained`, another's is its
own command; both say by leases how they are. See `driver.Driver` for what the methods promise.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog
from msgspec.structs import replace

from algomesh_broker.boot import Boot
from algomesh_broker.platform import unpack
from algomesh_services.launcher import logs
from algomesh_services.launcher.docker_built import BuiltImages, Retention
from algomesh_services.launcher.docker_engine import LABEL, Engine
from algomesh_services.launcher.docker_files import Mounted, VersionFiles
from algomesh_services.launcher.docker_images import Images
from algomesh_services.launcher.docker_orphans import LauncherLock, remove_orphans
from algomesh_services.launcher.docker_process import ContainerProcess
from algomesh_services.launcher.driver import Blame, LaunchFailed, LaunchSpec
from algomesh_services.launcher.settings import DockerSettings

log = structlog.get_logger("algomesh.launcher")

_NOBODY: Final = "65534:65534"
_MOST_PROCESSES: Final = 512
_TMP_BYTES: Final = 256 * 2**20
# What a Python instance has before it has imported anything of the version's: not counted against its own memory, as
# it is not in the process driver, where the zygote has it.
_RUNTIME_BYTES: Final = 96 * 2**20
_MEASURE_EVERY_S: Final = 10.0
_DROP_EVERY_S: Final = 60.0
_STOP_S: Final = 5.0
_LOG_OPTIONS: Final = {"max-size": "8m", "max-file": "1"}
_NOT_PASSED_ON: Final = frozenset({"CUDA_VISIBLE_DEVICES"})  # in a container its devices count from 0


class DockerDriver:
    """Starts instances as containers."""

    def __init__(
        self,
        settings: DockerSettings,
        *,
        state: Path,
        launcher: str,
        watch_interval_s: float = 0.2,
        log_limit_bytes: int = logs.DEFAULT_LIMIT_BYTES,
        retention: Retention | None = None,
    ) -> None:
        """Prepare a driver for the launcher `launcher`, whose state directory marks what is its mesh's.

        `retention` says how long images that were built stay; without it, as the settings say.
        """
        self._settings, self._state, self._launcher = settings, state, launcher
        self._watch_interval_s, self._log_limit_bytes = watch_interval_s, log_limit_bytes
        self._retention = retention or Retention(most=settings.kept_images)
        self._processes: dict[str, ContainerProcess] = {}
        self._launching: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self._is_swept = False
        self._sweeping = asyncio.Lock()
        self._closing = False

    async def __aenter__(self) -> Self:
        """Take the lock that says that this launcher lives. Raises OSError, LaunchFailed."""
        self._lock = self._stack.enter_context(LauncherLock(self._state, self._launcher))
        self._engine = await self._stack.enter_async_context(Engine(self._settings.host))
        shared = {f"{LABEL}mesh": self._lock.mesh}
        if self._settings.project:
            shared[f"{LABEL}project"] = self._settings.project
        self._labels = {**shared, f"{LABEL}launcher": self._launcher}
        self._built = BuiltImages(self._engine, self._lock.mesh, shared, self._state, self._retention)
        self._images = Images(self._engine, self._settings.image, self._built)
        self._files = VersionFiles(self._engine, self._launcher, self._labels, self._settings.versions)
        self._begin(self._watch(), "watch containers")
        self._begin(self._keep_house(), "measure containers")
        self._begin(self._built.keep_pruned(), "prune images")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill every instance, and wait until its container is gone."""
        self._closing = True
        for process in self._processes.values():
            process.kill("stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(process.wait() for process in list(self._processes.values())))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(LaunchFailed):
            for container, labels in (await self._engine.containers(f"{LABEL}launcher={self._launcher}")).items():
                if labels.get(f"{LABEL}mesh") == self._lock.mesh:
                    await self._engine.remove(container)
            await self._files.drop_unused(set)
        await self._stack.aclose()

    async def warm(self, preload: frozenset[str]) -> None:
        """See that the engine answers, that nothing of a dead launcher is left there, and that the image is there."""
        await self._sweep()
        await self._images.base()

    def know_published(self, digests: Callable[[], Collection[str]]) -> None:
        """From now on, images of versions whose digests are not among these are removed after a while."""
        self._built.published = digests

    async def launch(self, spec: LaunchSpec) -> ContainerProcess:
        """Start a container; raises LaunchFailed with a sentence."""
        if self._closing:
            raise LaunchFailed("the launcher is stopping")
        if spec.instance in self._processes or spec.instance in self._launching:
            raise LaunchFailed(f"an instance {spec.instance} runs already")
        if spec.leased is None:
            raise LaunchFailed(f"{spec.instance} cannot be watched: nobody hears its leases")
        self._launching[spec.instance] = spec.digest
        try:
            await self._sweep()
            async with self._images.chosen(spec) as image:
                mounted = await self._files.mount(spec, image)
                process = await self._start(spec, image, mounted)
        finally:
            del self._launching[spec.instance]
        self._processes[spec.instance] = process
        self._begin(self._follow(process), f"follow {spec.instance}")
        self._begin(process.measure(), f"measure {spec.instance}")
        return process

    async def _start(self, spec: LaunchSpec, image: str, mounted: Mounted) -> ContainerProcess:
        try:
            log_fd = logs.open_log(spec.log_path)
        except OSError as error:
            raise LaunchFailed(f"the log {spec.log_path} cannot be written: {error.strerror}") from error
        boot = replace(unpack(Boot, spec.boot), folder=mounted.folder, nats_url=self._settings.nats_url)
        container = ""
        try:
            config = self._config(spec, image, mounted)
            blame: Blame = "version" if spec.image else "machine"
            container = await self._engine.create(f"algomesh-{spec.instance}", config, blame=blame)
            await self._engine.start_with(container, boot.as_line())
            state = await self._engine.state(container) or {}
        except BaseException:
            os.close(log_fd)
            if container:
                with contextlib.suppress(LaunchFailed):
                    await self._engine.remove(container)
            raise
        assert spec.leased is not None
        return ContainerProcess(
            spec, self._engine,
            container=container, pid=int(state.get("Pid", 0)), watch=spec.leased, log_fd=log_fd, begin=self._begin,
        )  # fmt: skip

    def _config(self, spec: LaunchSpec, image: str, mounted: Mounted) -> dict[str, Any]:
        environment = {name: value for name, value in spec.environment.items() if name not in _NOT_PASSED_ON}
        threads = str(spec.threads)
        environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment |= {"HOME": "/tmp", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: S108
        contained = ["python3", "-P", "-m", "algomesh.instance.contained"]
        labels = {f"{LABEL}{name}": value for name, value in spec.labels.items()}
        return {
            "Image": image,
            "Entrypoint": list(spec.command) or contained,
            "Cmd": [],
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "WorkingDir": mounted.folder,
            "User": _NOBODY,
            "Hostname": spec.instance,
            "Labels": {**labels, **self._labels, f"{LABEL}instance": spec.instance},
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "StopSignal": "SIGTERM",
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": self._host_config(spec, mounted),
        }

    def _host_config(self, spec: LaunchSpec, mounted: Mounted) -> dict[str, Any]:
        runtime_bytes = 0 if spec.command else _RUNTIME_BYTES
        memory = 0 if spec.memory_bytes is None else spec.memory_bytes + runtime_bytes
        host: dict[str, Any] = {
            "Init": True,  # signals reach a main process that has no handler, and orphans are reaped
            "Mounts": [mounted.mount],
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={_TMP_BYTES}"},  # noqa: S108  # the container's own
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": _MOST_PROCESSES,
            "Memory": memory,
            "MemorySwap": memory,  # the same: no swap beyond it
            "OomScoreAdj": 500,
            "NetworkMode": self._settings.network,
            "LogConfig": {"Type": "json-file", "Config": _LOG_OPTIONS},
            "RestartPolicy": {"Name": "no"},
        }
        if spec.gpus:
            host["DeviceRequests"] = [
                {"Driver": "nvidia", "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu", "compute", "utility"]]}
            ]
        return host

    async def _sweep(self) -> None:
        """Remove what dead launchers of this mesh have left, once, as soon as the engine answers."""
        async with self._sweeping:
            if not self._is_swept:
                count = await remove_orphans(self._engine, self._lock)
                self._is_swept = True
                if count:
                    log.info("orphans_removed", count=count)

    async def _follow(self, process: ContainerProcess) -> None:
        try:
            await process.follow(self._log_limit_bytes)
        finally:
            self._processes.pop(process.instance, None)

    async def _watch(self) -> None:
        """Kill what is overdue."""
        while True:
            await asyncio.sleep(self._watch_interval_s)
            now_ns = time.monotonic_ns()
            for process in list(self._processes.values()):
                if process.watch.overdue(now_ns):
                    late_s = (now_ns - process.watch.deadline_ns) / 1e9
                    process.kill("timeout", f"was killed {late_s:.1f} s after the deadline of a run")

    async def _keep_house(self) -> None:
        """Measure memory now and then, and drop the volumes of versions that are not used."""
        dropped_at = time.monotonic()
        while True:
            await asyncio.sleep(_MEASURE_EVERY_S)
            await asyncio.gather(*(process.measure() for process in list(self._processes.values())))
            if time.monotonic() - dropped_at >= _DROP_EVERY_S:
                dropped_at = time.monotonic()
                await self._files.drop_unused(self._digests)

    def _digests(self) -> set[str]:
        return {process.digest for process in self._processes.values()} | set(self._launching.values())

    def _begin(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
