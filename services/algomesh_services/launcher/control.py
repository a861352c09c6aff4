"""The control loop: hears what is wanted and what has happened, asks `reconcile`, and carries out what it says.

A version without an instance is launched in the very callback of its first demand. Where instances exist, a demand
only makes the loop count, a moment later, what still waits; a net once a second finds what no demand told of.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping

import structlog

from algomesh_broker import codec, messages, subjects
from algomesh_broker.errors import BadName, BrokerError, StreamError
from algomesh_broker.names import Version, VersionId
from algomesh_services.launcher.bundles import Bundles
from algomesh_services.launcher.expected import Expected
from algomesh_services.launcher.externals import Externals
from algomesh_services.launcher.fleet import Fleet
from algomesh_services.launcher.instance import Instance, StartFailed
from algomesh_services.launcher.learning import Learning
from algomesh_services.launcher.looks import Looks
from algomesh_services.launcher.minimums import Minimums
from algomesh_services.launcher.parking import Parking
from algomesh_services.launcher.provision import no_instance_of
from algomesh_services.launcher.reconcile import Launch, Refuse, Retire, VersionView, reconcile
from algomesh_services.launcher.refusals import Refusals
from algomesh_services.launcher.settings import Settings
from algomesh_services.launcher.states import VersionState

log = structlog.get_logger("algomesh.launcher")

NET_S = 1.0
HOUSEKEEPING_S = 0.25
_SHORT_LIFE_S = 2.0
_FORGET_AFTER_S = 30.0
_FORGET_AT_ONCE = 100
_LEARN_AT_ONCE = 2


class Control:
    """Decides for one fleet. `run` does the work; everything else is called from the loop and never waits."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        parking: Parking,
        bundles: Bundles,
        *,
        publish: Callable[[str, bytes], None],
        is_published: Callable[[VersionId], bool] = lambda _: True,
        externals: Externals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._fleet, self._parking, self._bundles = settings, fleet, parking, bundles
        self._publish, self._is_published, self._clock = publish, is_published, clock
        self._externals = externals
        self._states: dict[VersionId, VersionState] = {}
        self._minimums = Minimums(bundles)
        self._refusals = Refusals(parking, self._say)
        self._unmet: dict[VersionId, int] = {}
        self._looks = Looks(fleet, parking, clock)
        self._expected = Expected(fleet, lambda: self._reconcile({}), clock, launcher=settings.launcher)
        self._learning = Learning(bundles, self._on_known, self._failed)
        self._is_open = True
        fleet.events = self
        if externals is not None:
            externals.on_gone = self._looks.soon

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forever(self._look, 0.0), name="look")
                tasks.create_task(self._forever(self._cast_net, NET_S), name="net")
                tasks.create_task(self._forever(self._keep_house, HOUSEKEEPING_S), name="housekeeping")
                tasks.create_task(self._forever(self._expected.follow, 0.0), name="follow holds")
                tasks.create_task(self._forever(self._expected.watch, 0.0), name="watch")
                for number in range(_LEARN_AT_ONCE):
                    tasks.create_task(self._forever(self._minimums.learn, 0.0), name=f"learn {number}")
        finally:
            self._is_open = False
            await self._refusals.close()
            await self._learning.close()

    def close(self) -> None:
        """Start nothing any more, whatever happens."""
        self._is_open = False

    # What is wanted

    def on_demand(self, version: VersionId) -> None:
        """Somebody has parked a call of `version`."""
        if not self._is_open:
            return
        state = self._state(version)
        state.used_at, state.is_stopped = self._clock(), False
        if self._fleet.of_version(version):
            self._looks.soon(version)
        elif not self._is_served_outside(version) and self._may_launch(version, state):
            self._reconcile({version: 1})
            self._looks.soon(version)

    def on_holds(self, said: messages.Holds) -> None:
        """The pre-warmer has said what it wishes to have up."""
        if self._is_open:
            self._expected.hear(said)
            self._learn_held()

    def on_entry(self, entry: messages.AlgorithmEntry) -> None:
        """An algorithm was published, changed or (with no versions) deleted."""
        known, minimums = {}, {}
        for each in entry.versions:
            try:
                version = VersionId(entry.owner, entry.name, Version.parse(each.version))
                known[version], minimums[version] = each.digest, each.min_instances
            except BadName as error:
                log.warning("directory_entry_unreadable", algorithm=f"{entry.owner}/{entry.name}", error=str(error))
        self._forget_changed(f"{entry.owner}/{entry.name}", known)
        self._minimums.update(f"{entry.owner}/{entry.name}", minimums)

    async def restore(self) -> None:
        """Make the stream and the consumers of all that runs again, after a server has lost them."""
        await self._parking.ensure()
        running = {instance.version for instance in self._fleet.instances.values()} | self._outside()
        for version in running:
            await self._parking.ensure_consumer(version)
            self._looks.soon(version)
        log.info("streams_restored", versions=len(running))

    def stop(self, algorithm: str, version: str = "") -> list[Instance]:
        """Retire an algorithm's instances, ready or not; they stay away until the next call, wanted up or not."""

        def is_meant(each: VersionId) -> bool:
            return each.algorithm == algorithm and version in ("", str(each.version))

        stopped = [instance for instance in self._fleet.instances.values() if is_meant(instance.version)]
        wanted = {*self._minimums.floors, *self._expected.book.versions(), *(each.version for each in stopped)}
        for instance in stopped:
            self._fleet.retire(instance, "stopped by request")
        for each in filter(is_meant, wanted):
            self._state(each).is_stopped = True
        return stopped

    def explain(self, instance: Instance) -> str:
        """Why an instance is up."""
        return self._expected.explain(instance)

    # What has happened: FleetEvents

    def on_ready(self, instance: Instance) -> None:
        """Forget earlier failures, and that it was stopped: somebody has called it since."""
        state = self._state(instance.version)
        state.forgive()
        state.is_stopped = False
        self._expected.on_ready(instance)

    def on_start_failed(self, instance: Instance, failure: StartFailed) -> None:
        """Back off, and tell those who wait, unless others serve them."""
        if self._is_open:
            self._failed(instance.version, failure)

    def on_gone(self, instance: Instance) -> None:
        """A place is free; whoever waited for one, or for this instance, comes next."""
        if not self._is_open:
            return
        now = self._clock()
        if not instance.retired and instance.state == "ready" and now - instance.ready_at < _SHORT_LIFE_S:
            self._state(instance.version).rest_until = now + _SHORT_LIFE_S  # its minimum, or hold, would be a storm
        if self._unmet or self._expected.book.is_alive(now):
            self._reconcile(self._unmet.copy())
        self._looks.soon(instance.version)

    # Deciding and doing

    def _reconcile(self, waiting: Mapping[VersionId, int]) -> None:
        if not self._is_open:
            return
        now = self._clock()
        self._fleet.observe(now)
        views = [instance.view for instance in self._fleet.instances.values()]
        held = self._expected.book.held(now)
        if held:  # what is only expected must know of all calls that wait for a place
            waiting = {**self._unmet, **waiting}
        waiting = {each: count for each, count in waiting.items() if not self._is_served_outside(each)}
        wanted = {*waiting, *self._minimums.floors, *held, *(view.version for view in views)}
        versions = {version: view for version in wanted if (view := self._view(version, now)) is not None}
        refused: set[VersionId] = set()
        for action in reconcile(versions, views, waiting, self._settings.capacity, now):
            match action:
                case Launch(version=version, place=place, reason=reason, key=key):
                    self._fleet.launch(version, versions[version].options, place, reason, key)
                    if version in waiting:
                        self._beat(version, waiting[version])
                case Retire(instance=name, reason=reason):
                    self._fleet.retire(self._fleet.instances[name], reason)
                case Refuse(version=version, message=message):
                    refused.add(version)
                    self._refusals.tell(version, messages.Unable(code="no_capacity", message=f"{version}: {message}"))
        for version, count in waiting.items():
            has_none = version in versions and not self._fleet.of_version(version)
            if has_none and version not in refused and count > 0 and now >= self._state(version).blocked_until:
                self._unmet[version] = count  # those that leave make room: see on_gone
            else:
                self._unmet.pop(version, None)

    def _view(self, version: VersionId, now: float) -> VersionView | None:
        manifest = self._bundles.known_manifest(version)
        if manifest is not None:
            options = manifest.options
        elif running := self._fleet.of_version(version):
            options = running[0].options
        else:
            return None
        state = self._states.get(version)
        minimum, blocked_until = self._minimums.floors.get(version, 0), 0.0
        hold = self._expected.hold(version, options, now)
        if hold is not None and ((manifest is not None and manifest.pipeline) or not self._is_published(version)):
            hold = None
        if state is not None:
            blocked_until = state.blocked_until
            if state.is_stopped or now < state.rest_until:
                minimum, hold = 0, None
        if self._is_served_outside(version):
            minimum, hold = 0, None
        return VersionView(
            version=version,
            options=options,
            minimum=minimum,
            blocked_until=blocked_until,
            hold=hold,
            is_managed=self._expected.manages(version, options, now),
            unheld_since=self._expected.book.unheld_since(version, now),
        )

    def _may_launch(self, version: VersionId, state: VersionState) -> bool:
        """Whether a version without an instance can have one now; if not, tell those who wait, or read its manifest."""
        if self._clock() < state.blocked_until:
            if state.unable is not None:
                self._refusals.tell(version, state.unable)
            return False
        manifest = self._bundles.known_manifest(version)
        if manifest is None:
            self._learning.begin(version)
            return False
        if manifest.pipeline:
            self._refusals.tell(version, no_instance_of(version))
            return False
        return True

    def _failed(self, version: VersionId, failure: StartFailed) -> None:
        state = self._state(version)
        wait_s = state.fail(failure, self._clock())
        log.warning(
            "start_failed", version=str(version), code=failure.code, error=failure.message,
            failures=state.failures, next_try_in_s=wait_s,
        )  # fmt: skip
        if state.unable is not None and not any(each.state == "ready" for each in self._fleet.of_version(version)):
            self._refusals.tell(version, state.unable)

    def _learn_held(self) -> None:
        """Read the manifests of what is held, or will be, so that its launch need not wait for them."""
        now = self._clock()
        for version in self._expected.book.versions():
            if self._bundles.known_manifest(version) is None and self._is_published(version):
                state = self._states.get(version)
                if state is None or now >= state.blocked_until:
                    self._learning.begin_ahead(version)

    def _on_known(self, version: VersionId, is_called: bool) -> None:
        if not is_called:
            self._reconcile({})
        elif self._may_launch(version, self._state(version)):
            self._reconcile({version: 1})
            self._looks.soon(version)

    # The loops

    async def _look(self) -> None:
        """Launch what those need who have waited for a moment."""
        self._serve(await self._looks.next())

    async def _cast_net(self) -> None:
        """Count everything that waits: demands may be lost, and those who wait are told how things stand."""
        try:
            counted = await self._parking.waiting()
        except StreamError:
            await self.restore()
            return
        waiting = {version: count for version, count in counted.items() if count > 0}
        for version, count in waiting.items():
            self._beat(version, count)
        alone = {version: n for version, n in waiting.items() if not self._fleet.of_version(version)}
        self._serve({version: n for version, n in alone.items() if not self._is_served_outside(version)})
        for version in waiting:
            if self._fleet.of_version(version):
                self._looks.soon(version)
        await self._forget_unused(waiting)

    def _serve(self, waiting: Mapping[VersionId, int]) -> None:
        known = {}
        now = self._clock()
        for version, count in waiting.items():
            state = self._state(version)
            state.used_at = now
            if self._fleet.of_version(version) or self._may_launch(version, state):
                known[version] = count
        if known:
            self._reconcile(known)

    async def _keep_house(self) -> None:
        """Retire what is idle, and keep minimums; end what has fallen silent."""
        self._fleet.end_silent(self._clock())
        self._learn_held()
        self._reconcile({})

    async def _forever(self, turn: Callable[[], Coroutine[object, object, None]], pause_s: float) -> None:
        """Do one thing again and again; what goes wrong is logged, and the next turn comes all the same."""
        is_failing = False
        while True:
            try:
                await turn()
                is_failing = False
            except BrokerError as error:
                if not is_failing:
                    log.warning("turn_failed", turn=turn.__name__.strip("_"), error=str(error))
                is_failing = True
            except Exception:
                log.exception("turn_failed", turn=turn.__name__.strip("_"))
                is_failing = True
            await asyncio.sleep(max(pause_s, NET_S if is_failing else 0.0))

    # Small parts

    def _is_served_outside(self, version: VersionId) -> bool:
        return self._externals is not None and self._externals.serves(version)

    def _outside(self) -> set[VersionId]:
        return set() if self._externals is None else self._externals.versions()

    def _state(self, version: VersionId) -> VersionState:
        state = self._states.get(version)
        if state is None:
            state = self._states[version] = VersionState(used_at=self._clock())
        return state

    def _forget_changed(self, algorithm: str, known: Mapping[VersionId, str]) -> None:
        """What is published anew starts anew: no instance of the old content goes on, no old failure counts."""
        for version, state in self._states.items():
            if version.algorithm == algorithm:
                state.forgive()
                state.is_stopped = False
        for version in known.keys() | {each for each in self._states if each.algorithm == algorithm}:
            self._bundles.forget(version, known.get(version, ""))
        for instance in list(self._fleet.instances.values()):
            if instance.version.algorithm != algorithm:
                continue
            digest = known.get(instance.version)
            if digest is None:
                self._fleet.retire(instance, "deleted")
            elif digest and instance.digest and digest != instance.digest:
                self._fleet.retire(instance, "replaced")

    async def _forget_unused(self, waiting: Mapping[VersionId, int]) -> None:
        """Drop consumers and memories of versions that nobody has wanted for a while."""
        running = (instance.version for instance in self._fleet.instances.values())
        busy = {*waiting, *running, *self._outside(), *self._expected.book.versions()}
        now = self._clock()
        for version in busy & self._states.keys():
            self._states[version].used_at = now
        long_ago = now - _FORGET_AFTER_S
        for version in list(self._parking.consumers - busy)[:_FORGET_AT_ONCE]:
            if version not in self._states or self._states[version].used_at < long_ago:
                await self._parking.remove_consumer(version)
        for version, state in list(self._states.items()):
            idle = version not in busy and state.used_at < long_ago and now >= state.blocked_until
            if idle and not state.is_stopped and version not in self._parking.consumers:
                del self._states[version]

    def _beat(self, version: VersionId, waiting: int) -> None:
        running = self._fleet.of_version(version)
        phase: messages.Phase = "ready" if self._is_served_outside(version) else self._fleet.phase(version)
        self._say(version, messages.Starting(phase=phase, waiting=waiting, instances=len(running)))

    def _say(self, version: VersionId, message: messages.Fleet) -> None:
        try:
            self._publish(subjects.fleet(version), codec.encode(message))
        except BrokerError as error:
            log.warning("fleet_message_lost", version=str(version), error=str(error))
