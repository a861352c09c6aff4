"""The pre-warmer at work: what is heard goes to the policy, what the policy wishes goes to the launchers.

It answers within the same turn of the loop: a hold is published as soon as the message that led to it was read.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final

import structlog

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BadName, BrokerError
from algomesh_broker.messages import Holds, Sights
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import DIRECTORY_UPDATES
from algomesh_broker.platform import FetchManifest, MayCall, MayCalled, Options, StoredManifest
from algomesh_services.asking import Programs
from algomesh_services.prewarmer import metrics
from algomesh_services.prewarmer.actions import Action, Hold, Release
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.holding import NO_HURRY_S, Wish, Wishes
from algomesh_services.prewarmer.keeping import Tally
from algomesh_services.prewarmer.live_fleet import LiveFleet, Up
from algomesh_services.prewarmer.manifests import Manifests
from algomesh_services.prewarmer.permits import Permits
from algomesh_services.prewarmer.placement import Having, Placement
from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.shedding import Shedding, is_followed
from algomesh_services.prewarmer.sightings import Request, Sightings
from algomesh_services.prewarmer.spared import Began, Help, Spared
from algomesh_services.prewarmer.speculation import Speculation
from algomesh_services.prewarmer.starts import Start, Starts

log = structlog.get_logger("algomesh.prewarmer")

_WHOLE_S: Final = 1.0
_SETTLE_S: Final = 0.02  # what is due waits so long for a message to come, and is done along with that
_PATH: Final = "path:"
_DIRECTORY: Final = DIRECTORY_UPDATES.removesuffix(">")
_ASK_S: Final = 5.0


class Warming:
    """Hears and publishes from `hear` on, as long as `run` runs."""

    def __init__(
        self,
        connection: Connection,
        clock: Clock,
        latency_value: float,
        latency_values: Mapping[str, float],
        up_before: dict[str, Start],
    ) -> None:
        self._connection, self._clock = connection, clock
        self._loop = asyncio.get_running_loop()
        self._programs = Programs(connection)
        self.manifests = Manifests(self._fetch_options, self._on_known, latency_value)
        self._latency_value, self._latency_values = latency_value, latency_values
        self.fleet = LiveFleet(clock.now, self.manifests.weight)
        self.policy = BreakEvenPolicy(self.fleet, self._value)
        self.sightings = Sightings(self.policy, self.fleet, clock, self)
        self.placement = Placement()
        self.wishes = Wishes(self._may, self._place)
        self.permits = Permits(self._ask_permits, self._on_permits, clock.now)
        self.speculation = Speculation()
        self.starts = Starts(self.wishes.told, self.manifests.weight, self.speculation, up_before)
        self.tally = Tally()
        self.spared = Spared(self.manifests.options, self._help_of, lambda at_s: int(clock.wall_of(at_s) // 60))
        self.shedding = Shedding(self._loop.time())
        self._settling: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._is_hurrying = False
        self._is_new_s = clock.now()

    async def hear(self) -> None:
        """Hear from now on. Raises Forbidden, Unreachable."""
        await self._connection.subscribe(subjects.ALL_MACHINES, self._on_machine)
        await self._connection.subscribe(subjects.ALL_SIGHTS, self._on_sights)
        await self._connection.subscribe(subjects.ALL_DEMAND, self._on_demand)
        await self._connection.subscribe(DIRECTORY_UPDATES, self._on_entry)

    async def run(self) -> None:
        """Say everything once a second, ask what is to be known, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.permits.run(), name="prewarmer-permits")
            group.create_task(self._look(), name="prewarmer-look")

    async def close(self) -> None:
        """Publish nothing more."""
        for each in (self._settling, self._flushing):
            if each is not None:
                each.cancel()
        await self.manifests.close()

    # The books (sightings.Notes)

    def began(self, call: Began) -> None:
        """A call has begun."""
        self.tally.add(call.calls, call.calls if call.is_cold else 0)
        metrics.seen(call)
        self.spared.began(call)
        self.starts.called(call.version, call.called_s, call.after)

    def computed(self, caller: str, version: str, took_s: float, ended_s: float) -> None:
        """Runs took so long."""
        self.spared.used(version, ended_s)
        self.speculation.computed(caller, took_s * self.manifests.weight(version), self._clock.now())

    def _help_of(self, call: Began) -> Help | None:
        start = self.starts.ahead(call.version, call.called_s)
        cold_s = self.fleet.cold_start_s(call.version.rpartition("/")[0])
        if start is not None:
            until_s = start.ready_s or (call.called_s + call.waited_s if call.waited_s else start.started_s + cold_s)
            return Help(start.kind, max(0.0, until_s - start.started_s), start.instance)
        is_held = self.wishes.is_held(call.version, call.called_s)
        return Help("kept", cold_s) if is_held and not call.is_cold else None

    # Hearing

    def _on_machine(self, message: Message) -> None:
        try:
            machine = codec.decode_machine(message.data)
        except BadMessage as error:
            log.warning("message_unreadable", subject=message.subject, error=str(error))
            return
        now = self._clock.now()
        changes = self.fleet.hear(machine, now)
        for up in changes.come:
            self.starts.came(up, now)
            self.manifests.options(up.version)
            if up.row.runs_total and up.idle_s is not None:
                self.sightings.known_before(up.algorithm, up.idle_s)
                self.spared.used(up.version, up.idle_s)
        for up in changes.told:
            self.starts.told(up, now)
        for start in changes.started:
            self.policy.loaded(start.took_s, start.expected_s)
        self._gone(changes.gone, now)
        self._act(self.sightings.settle())

    def _on_sights(self, message: Message) -> None:
        try:
            version = _version_of(message.subject)
            sights = codec.decode_sights(message.data)
        except (BadMessage, BadName, TypeError) as error:
            log.warning("message_unreadable", subject=message.subject, error=str(error))
            return
        one_in = self.shedding.one_in
        if one_in > sights.one_in:
            runs = [sight for sight in sights.runs if is_followed(sight.root, one_in)]
            sights = Sights(runs=runs, one_in=one_in)
        if sights.runs:
            self._decide(lambda: self.sightings.sighted(version, sights))

    def _on_demand(self, message: Message) -> None:
        try:
            _, *tokens, caller = message.subject.split(".")
            version = VersionId.of_tokens(*tokens)
            demand = codec.decode_demand(message.data)
        except (BadMessage, BadName, TypeError, ValueError) as error:
            log.warning("message_unreadable", subject=message.subject, error=str(error))
            return
        if is_followed(demand.root or demand.run, self.shedding.one_in):
            self._decide(lambda: self.sightings.demanded(version, caller, demand))

    def _on_entry(self, message: Message) -> None:
        """What is published no longer is held no longer."""
        headers = message.headers or {}
        if not message.subject.startswith(_DIRECTORY) or "Nats-Subject" in headers:
            return  # an answer to somebody's request that was steered here; writes never look like this
        algorithm = message.subject.removeprefix(_DIRECTORY).replace(".", "/")
        try:
            versions = [] if "KV-Operation" in headers else codec.decode_entry(message.data).versions
        except BadMessage as error:
            log.warning("message_unreadable", subject=message.subject, error=str(error))
            return
        self.manifests.keep_only(algorithm, {f"{algorithm}/{each.version}" for each in versions})
        self.wishes.look_again([algorithm])
        self._act([])

    def _settle(self) -> None:
        self._settling = None
        if self.sightings.next_s <= self._clock.now():
            self._decide(self.sightings.settle)
        else:  # with a message that came meanwhile
            self._act([])

    def _gone(self, gone: Iterable[Up], now: float) -> None:
        for up in gone:
            self.starts.gone(up, now)

    # Wishing

    def _decide(self, decide: Callable[[], list[Action]]) -> None:
        began = self._loop.time()
        actions = decide()
        if self.sightings.next_s <= self._clock.now():
            actions += self.sightings.settle()  # here, to wake up less often
        self._act(actions)
        now = self._loop.time()
        metrics.DECISION_SECONDS.observe(now - began)
        if self.shedding.spent(now - began, now):
            log.info("share_followed_changed", one_in=self.shedding.one_in)

    def _act(self, actions: Iterable[Action]) -> None:
        now = self._clock.now()
        for action in actions:
            if isinstance(action, Release) or action.until_s <= now:  # the call that it was for has begun already
                self.wishes.release(action.algorithm, action.key)
            else:
                wish = self._wish(action)
                if wish is not None:
                    self.wishes.put(wish)
        if self.wishes.is_changed and not self._is_hurrying:
            self._is_hurrying = self.wishes.is_urgent(now, self.fleet.is_up)
            if self._is_hurrying:
                if self._flushing is not None:
                    self._flushing.cancel()
                self._flushing = self._loop.call_soon(self._flush)
            elif self._flushing is None:
                self._flushing = self._loop.call_later(NO_HURRY_S, self._flush)
        wait_s = max(0.0, self.sightings.next_s - now) + _SETTLE_S
        if wait_s < _WHOLE_S:  # what is later is done when everything is said
            at = self._loop.time() + wait_s
            if self._settling is not None:
                if self._settling.when() <= at + _SETTLE_S:
                    return
                self._settling.cancel()
            self._settling = self._loop.call_at(at, self._settle)

    def _wish(self, hold: Hold) -> Wish | None:
        """What the policy wishes for, with all that stands in the request it is for."""
        root = hold.key.removeprefix(_PATH)
        request = self.sightings.request(root) if root != hold.key else None
        named = request.versions.get(hold.algorithm) if request is not None else None
        version = named or hold.version or self.fleet.current(hold.algorithm)
        if not version:
            return None
        return Wish(
            hold.algorithm,
            hold.key,
            version,
            hold.start_s,
            hold.until_s,
            hold.why,
            _reason(hold, request),
            hold.gain_per_gpu_s,
            hold.after,
            request.caller if request is not None else "",
            tuple(request.callers) if request is not None else (),
            request is not None and hold.algorithm in request.signed,
        )

    def _may(self, wish: Wish) -> bool:
        """Whether launchers may be told of it: see permits.py and speculation.py."""
        if self.manifests.options(wish.version) is None or self.manifests.is_off(wish.version):
            return False
        if wish.why in ("gap", "called"):
            return True
        if not self.speculation.may(wish.caller, self._clock.now()):
            return False
        return (wish.why == "stage" and wish.is_signed) or self.permits.may(wish.callers, wish.algorithm)

    def _value(self, algorithm: str, caller: str | None) -> float:
        version = self.fleet.current(algorithm)
        value = self.manifests.latency_value(version) if version else self._latency_value
        if caller is None or (version and self.manifests.is_off(version)):
            return value  # an algorithm that is to be left alone is, whoever calls it
        return self._latency_values.get(caller, value)

    def _place(self, version: str, start_s: float, now: float) -> str:
        having = (
            Having(up.launcher, up.ready_s is not None)
            for up in self.fleet.of(version.rpartition("/")[0])
            if up.version == version and not up.is_draining
        )
        return self.placement.choose(version, self.fleet.launchers, having, start_s, now)

    # Publishing

    def _flush(self) -> None:
        self._flushing, self._is_hurrying = None, False
        holds = self.wishes.changes(self._clock.now())
        if holds is not None:
            self._publish(holds)

    async def _look(self) -> None:
        while True:
            now = self._clock.now()
            if self._is_new_s and now - self._is_new_s > _ASK_S and self.fleet.is_heard:
                self._is_new_s = 0.0
                self.starts.forget_known(now)
            self._gone(self.fleet.drop_silent(now), now)
            self._act(self.sightings.settle())
            self._publish(self.wishes.whole(self._clock.now(), self.manifests.off))
            await asyncio.sleep(_WHOLE_S)

    def _publish(self, holds: Holds) -> None:
        if self._connection.is_connected:  # what waited for a server would be old
            with suppress(BrokerError):
                self._connection.publish(subjects.HOLDS, codec.encode(holds))

    # Asking the registry

    async def _fetch_options(self, version: VersionId) -> Options:
        wanted = FetchManifest(version=str(version.version))
        stored = await self._programs.ask("registry", "manifest", wanted, StoredManifest, algorithm=version.algorithm)
        return stored.manifest.options

    async def _ask_permits(self, caller: str, algorithms: Iterable[str]) -> list[str]:
        wanted = MayCall(caller=caller, algorithms=list(algorithms))
        return (await self._programs.ask("registry", "may-call", wanted, MayCalled)).algorithms

    def _on_known(self, version: str) -> None:
        self.wishes.look_again([version.rpartition("/")[0]])
        self._act([])

    def _on_permits(self, algorithms: Iterable[str]) -> None:
        self.wishes.look_again(algorithms)
        self._act([])


@lru_cache(4096)
def _version_of(subject: str) -> VersionId:
    """The version that instances tell of on this subject. Raises BadName, TypeError."""
    return VersionId.of_tokens(*subject.split(".")[1:4])


def _reason(hold: Hold, request: Request | None) -> str:
    if hold.why == "stage" and request is not None and hold.algorithm in request.stage_numbers:
        return f"stage {request.stage_numbers[hold.algorithm]} of a pipeline under way"
    return hold.reason
