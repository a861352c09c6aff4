"""The instances of this launcher: from the decision to start one until its death has been told.

Each instance has one task that follows it. It learns that the instance is ready, and how far it has come, from the
watch page, and its death from the driver, within milliseconds; both are published on `fleet.<owner>.<name>.<version>`.
What is to be launched or retired is decided elsewhere (reconcile.py, control.py).
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Protocol

import structlog

from algomesh.instance.watch import Phase as WatchPhase
from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.boot import IMPORT_FAILED_CODE, LOAD_FAILED_CODE, NOT_CONNECTED_CODE, Boot, find_failure
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher import log_reader, metrics
from algomesh_services.launcher.budget import Place
from algomesh_services.launcher.bundles import Bundle
from algomesh_services.launcher.driver import Driver, Exit, LaunchFailed, LaunchSpec, Process
from algomesh_services.launcher.instance import Instance, StartFailed
from algomesh_services.launcher.leases import Leases
from algomesh_services.launcher.settings import Settings
from algomesh_services.launcher.start_spans import StartSpans

log = structlog.get_logger("algomesh.launcher")

_POLL_S, _SLOW_POLL_S, _POLL_FAST_FOR_S = 0.005, 0.025, 5.0
_LATEST_FIRST: tuple[messages.Phase, ...] = ("ready", "connecting", "loading", "importing", "forking")


class FleetEvents(Protocol):
    """Who wants to know what becomes of instances; called from the loop, must not wait."""

    def on_ready(self, instance: Instance) -> None:
        """It takes calls."""

    def on_start_failed(self, instance: Instance, failure: StartFailed) -> None:
        """It died before it was ready; `on_gone` follows."""

    def on_gone(self, instance: Instance) -> None:
        """It is dead, and its place is free."""


class Fleet:
    """Starts, follows and retires instances.

    `prepare` fetches what one is started from, `sign` makes its token, `route_key` is with what it checks route tokens.
    `on_change` is called whenever one has begun or ended to be there, to be ready, to work; it must not wait.
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        *,
        publish: Callable[[str, bytes], None],
        sign: Callable[[VersionId, str], str],
        prepare: Callable[[VersionId], Awaitable[Bundle]],
        route_key: str = "",
        leases: Leases | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instances: dict[str, Instance] = {}
        self.events: FleetEvents | None = None
        self.spans: StartSpans | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._settings, self._driver, self._route_key = settings, driver, route_key
        self._publish, self._sign, self._prepare, self._clock = publish, sign, prepare, clock
        self._leases = leases or Leases(clock)
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def of_version(self, version: VersionId) -> list[Instance]:
        """The instances of a version that stay, ready or not."""
        return [each for each in self.instances.values() if each.version == version and each.state != "draining"]

    def runs_total(self, version: VersionId) -> int:
        """How many runs its instances have begun so far."""
        running = [each.process for each in self.of_version(version) if each.process is not None]
        return sum(process.watch.runs_total for process in running)

    def digests(self) -> set[str]:
        """The archives that instances run from."""
        return {instance.digest for instance in self.instances.values()}

    def phase(self, version: VersionId) -> messages.Phase:
        """How far the first instance of a version has come; `queued` when there is none."""
        phases = {each.phase for each in self.of_version(version)}
        for phase in _LATEST_FIRST:
            if phase in phases:
                return phase
        return "queued"

    def observe(self, now: float, some: Iterable[Instance] | None = None) -> None:
        """Look at every instance, so that what is decided is decided on how things stand at this moment."""
        for instance in self.instances.values() if some is None else some:
            if instance.state == "starting" and instance.process is not None:
                self._notice_ready(instance, instance.process, now)
            if instance.observe(now):
                self.on_change()

    def launch(self, version: VersionId, options: Options, place: Place, reason: str, key: str = "") -> Instance:
        """Begin an instance; it counts from now on, and its process follows. `key` is that of the hold it is for."""
        instance = Instance(
            id=f"{self._settings.launcher}-{next(self._numbers)}",
            version=version,
            options=options,
            place=place,
            reason=reason,
            key=key,
            launched_at=self._clock(),
            since=time.time(),
        )
        instance.leased = self._leases.expect(instance.id)
        self.instances[instance.id] = instance
        if self.spans is not None:
            instance.trace = self.spans.begun(instance)
        self._begin(self._follow(instance), instance.id)
        self.on_change()
        return instance

    def retire(self, instance: Instance, reason: str, grace_s: float | None = None) -> None:
        """Let an instance drain and go; it is killed when it takes longer than its version's timeout, or `grace_s`."""
        if instance.state == "draining":
            return
        if instance.process is not None:
            self._notice_ready(instance, instance.process, self._clock())
        log.info("instance_retired", instance=instance.id, version=str(instance.version), reason=reason)
        instance.state, instance.retired = "draining", reason
        self.on_change()
        if grace_s is None:
            timeout_s = instance.options.timeout_s
            grace_s = self._settings.drain_s if timeout_s is None else min(timeout_s, self._settings.drain_s)
        self._begin(self._drain(instance, grace_s), f"{instance.id} drains")

    def end_silent(self, now: float) -> None:
        """Kill those that said they live, and have said nothing for too long."""
        for name, silent_s in self._leases.silent(now).items():
            instance = self.instances.get(name)
            if instance is not None and instance.process is not None:
                what = "did not end after it said so" if instance.leased.has_ended else "lost its lease"
                instance.process.kill("crash", f"{what}: nothing was heard of it for {silent_s:.1f} s")

    async def close(self, grace_s: float) -> None:
        """Retire everything, and return when it is gone; what is left after `grace_s` is killed."""
        for instance in list(self.instances.values()):
            was_draining = instance.state == "draining"
            self.retire(instance, "the launcher stops", grace_s)
            if was_draining:
                self._begin(self._drain(instance, grace_s), f"{instance.id} ends")
        await wait_over(list(self.instances.values()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, coroutine: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, instance: Instance) -> None:
        """One instance's life. Whatever happens in it, the end is told, and the place given back."""
        exit_: Exit | None = None
        failure: StartFailed | None = None
        if instance.trace:
            structlog.contextvars.bind_contextvars(trace_id=instance.trace)
        try:
            exit_, failure = await self._live(instance)
        except Exception as error:
            log.exception("instance_lost_track", instance=instance.id)
            failure = StartFailed(blame="machine", code="load_failed", message=f"{instance.version}: {error}")
            if instance.process is not None:
                instance.process.kill("stopped", f"its launcher failed: {error}")
        finally:
            self.instances.pop(instance.id, None)
            self._leases.forget(instance.id)
            reason, detail = _as_death(instance, exit_, failure)
            self._say(instance.version, messages.Death(instance=instance.id, reason=reason, detail=detail))
            log.info("instance_died", instance=instance.id, version=str(instance.version), reason=reason, detail=detail)
            self._begin(self._prune_logs(instance.version), f"prune logs of {instance.version}")
            instance.is_over.set()
            if self.spans is not None:
                self.spans.ended(instance, failure)
            metrics.ended(instance, reason, failure.code if failure is not None else "")
            self.on_change()
            if self.events is not None:
                if failure is not None:
                    self.events.on_start_failed(instance, failure)
                self.events.on_gone(instance)

    async def _live(self, instance: Instance) -> tuple[Exit | None, StartFailed | None]:
        try:
            process = await self._start(instance)
        except LaunchFailed as error:
            message = f"{instance.version} cannot be started here: {error}"
            return None, StartFailed(blame=error.blame, code="load_failed", message=message)
        except StartRefused as refused:
            return None, refused.failure
        if process is None:
            return None, None
        exited = asyncio.create_task(process.wait(), name=f"{instance.id} exit")
        try:
            if await self._wait_ready(instance, process, exited):
                return await exited, None
            exit_ = await exited
        finally:
            exited.cancel()
        return exit_, await asyncio.to_thread(_explain, instance, exit_, self._log_path(instance))

    async def _start(self, instance: Instance) -> Process | None:
        bundle = await self._prepare(instance.version)
        instance.prepared_at = self._clock()
        if instance.retired:
            return None
        instance.digest = bundle.digest
        manifest = bundle.manifest
        boot = Boot(
            instance=instance.id,
            launcher=self._settings.launcher,
            owner=instance.version.owner,
            name=instance.version.name,
            version=str(instance.version.version),
            folder=str(bundle.folder),
            entry=manifest.entry,
            nats_url=self._settings.nats_url,
            token=self._sign(instance.version, instance.id),
            options=manifest.options,
            launched_ns=round(instance.launched_at * 1e9),
            reason=instance.reason,
            note=instance.place.note,
            threads=self._settings.threads,
            route_key=self._route_key,
            command=manifest.command,
        )
        spec = LaunchSpec(
            instance=instance.id,
            boot=platform.pack(boot),
            log_path=self._log_path(instance),
            preload=frozenset(() if manifest.command else manifest.options.preload),
            environment=self._devices(instance.place) | self._settings.instance_environment,
            threads=self._settings.threads,
            memory_bytes=manifest.options.memory_bytes,
            leased=instance.leased,
            command=tuple(manifest.command),
            folder=bundle.folder,
            digest=bundle.digest,
            image=manifest.image,
            requirements=tuple(manifest.requirements),
            gpus=instance.place.gpus,
            labels={"launcher": self._settings.launcher, "version": str(instance.version), "reason": instance.reason},
        )
        process = await self._driver.launch(spec)
        instance.process = process
        log.info(
            "instance_launched",
            instance=instance.id,
            version=str(instance.version),
            pid=process.pid,
            reason=instance.reason,
            note=instance.place.note,
            took_ms=round((self._clock() - instance.launched_at) * 1e3, 1),
        )
        if instance.retired:  # while the zygote forked
            process.terminate()
        return process

    async def _wait_ready(self, instance: Instance, process: Process, exited: "asyncio.Task[Exit]") -> bool:
        """Return True once it is ready, False when it died before; one that takes too long is killed."""
        limit_s, forked_at = self._settings.start_timeout_s, self._clock()
        instance.forked_at = forked_at
        while not exited.done():
            now = self._clock()
            if self._notice_ready(instance, process, now):
                return True
            if now - forked_at > limit_s:
                process.kill("timeout", f"was not ready within {limit_s:g} s")
                limit_s = float("inf")
            quick = now - forked_at < _POLL_FAST_FOR_S
            await asyncio.wait({exited}, timeout=_POLL_S if quick else _SLOW_POLL_S)
        return self._notice_ready(instance, process, self._clock())  # it may have been, between two looks

    def _notice_ready(self, instance: Instance, process: Process, now: float) -> bool:
        """Return whether it has become ready; the first time, that is told."""
        if process.watch.phase < WatchPhase.READY:
            return False
        if instance.state != "starting":  # told already, or retired in the last moment: it takes nothing
            return True
        instance.state = "ready"
        instance.start_ms = round((now - instance.launched_at) * 1e3)
        instance.load_ms = max(1, round((now - (instance.forked_at or instance.launched_at)) * 1e3))
        instance.ready_at = instance.idle_since = now
        self.on_change()
        self._say(instance.version, messages.Ready(instance=instance.id, start_ms=instance.start_ms))
        log.info("instance_ready", instance=instance.id, version=str(instance.version), start_ms=instance.start_ms)
        if self.spans is not None:
            self.spans.ended(instance)
        metrics.started(instance)
        if self.events is not None:
            self.events.on_ready(instance)
        return True

    async def _drain(self, instance: Instance, grace_s: float) -> None:
        if instance.process is not None:
            instance.process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await instance.is_over.wait()
        except TimeoutError:
            if instance.process is not None:
                instance.process.kill("retired", f"did not end within {grace_s:g} s after it was retired")

    async def _prune_logs(self, version: VersionId) -> None:
        folder = log_reader.version_folder(self._settings.logs, version)
        try:
            await asyncio.to_thread(log_reader.prune, folder, set(self.instances))
        except OSError as error:
            log.warning("logs_not_pruned", version=str(version), error=str(error))

    def _log_path(self, instance: Instance) -> Path:
        return log_reader.log_path(self._settings.logs, instance.version, instance.id)

    def _devices(self, place: Place) -> dict[str, str]:
        """An instance sees its own GPUs and no other; where there is none, nothing is said about it."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)} if self._settings.capacity.gpus else {}

    def _say(self, version: VersionId, message: messages.Fleet) -> None:
        try:
            self._publish(subjects.fleet(version), codec.encode(message))
        except BrokerError as error:
            log.warning("fleet_message_lost", version=str(version), error=str(error))


class StartRefused(Exception):
    """What an instance is started from cannot be had; raised by `prepare`."""

    def __init__(self, failure: StartFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


async def wait_over(instances: Iterable[Instance]) -> None:
    """Return once all of them are dead."""
    for instance in instances:
        await instance.is_over.wait()


def _explain(instance: Instance, exit_: Exit, path: Path) -> StartFailed | None:
    """Why it died before it was ready; None when nobody and nothing is to blame. Reads the end of its log."""
    if instance.retired or exit_.reason in ("retired", "stopped", "zygote_lost"):
        return None
    said = find_failure(log_reader.last_lines(path))
    code, sentence = instance.leased.why_failed
    if code:
        return StartFailed(blame="version", code=code, message=f"{instance.version}: {sentence or 'no reason given'}")
    what = said.message if said is not None else f"it {exit_}"
    if said is None and not exit_.detail:
        what += " before it was ready"
    if exit_.code == NOT_CONNECTED_CODE:
        return StartFailed(blame="machine", code="load_failed", message=f"{instance.version} could not connect: {what}")
    code = said.code if said is not None and exit_.code in (LOAD_FAILED_CODE, IMPORT_FAILED_CODE) else "load_failed"
    if exit_.reason == "memory_exceeded":
        code = "memory_exceeded"
    hint = f"see `algomesh logs {instance.version}`"
    return StartFailed(blame="version", code=code, message=f"{instance.version}: {what}; {hint}")


def _as_death(instance: Instance, exit_: Exit | None, failure: StartFailed | None) -> tuple[str, str]:
    """Reason and detail as they are published."""
    if failure is not None:
        reason = exit_.reason if exit_ is not None and exit_.reason == "memory_exceeded" else "load_failed"
        return reason, failure.message
    if exit_ is None or instance.retired or exit_.reason in ("retired", "stopped"):
        return "retired", instance.retired or "the launcher stops"
    if exit_.reason == "zygote_lost":
        return "crash", str(exit_)
    return exit_.reason, str(exit_)
