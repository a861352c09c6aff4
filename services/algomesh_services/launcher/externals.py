"""Instances that no launcher started: a user runs them (`algomesh serve --exec`), with a token that the registry gave.

Their ids are `x`, eight characters and a number. They are known by their leases, each of which shows the token: it
says which version they run and whose key attached them. Of the launchers of a mesh only the one with the lowest id
speaks for them: it publishes their Ready and their Death, and answers for them in `ps`; all launchers beat for them,
as their hosts would. While one is ready its version needs no instance of ours; what is parked it pulls itself. None is
ever retired from here.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog

from algomesh.instance.watch import Phase
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError, Unauthenticated
from algomesh_broker.identity import InstanceClaims, verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.platform import InstanceRow
from algomesh_services.launcher.leases import Leases, LeaseWatch
from algomesh_services.launcher.parking import Parking

log = structlog.get_logger("algomesh.launcher")

_ID = re.compile(r"(x[a-z0-9]{8})-[0-9]{1,9}", re.ASCII)
_TURN_S: Final = 0.25
_BEAT_S: Final = 1.0
_LAUNCHER_SILENT_S: Final = 3.0


def host_of(instance: str) -> str:
    """What stands for a launcher in an external instance's id; empty for the id of any other instance."""
    found = _ID.fullmatch(instance)
    return found[1] if found else ""


@dataclass(eq=False, kw_only=True)
class External:
    """One external instance; `since` is seconds since the epoch, the other times are of the monotonic clock."""

    id: str
    version: VersionId
    by: str
    watch: LeaseWatch
    heard_first: float
    since: float
    is_told_ready: bool = False
    start_ms: int = 0
    consumer: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def is_ready(self) -> bool:
        """Whether it takes calls."""
        return self.watch.phase == Phase.READY and not self.watch.has_ended

    @property
    def row(self) -> InstanceRow:
        """It, as `ps` shows it."""
        state = "ready" if self.is_ready else "draining" if self.watch.phase == Phase.DRAINING else "starting"
        return InstanceRow(
            algorithm=self.version.algorithm,
            version=str(self.version.version),
            instance=self.id,
            pid=0,
            state=state,
            load=self.watch.active,
            since=self.since,
            reason=f"attached by {self.by}" if self.by else "runs outside",
            start_ms=self.start_ms,
        )


class Externals:
    """The external instances of the mesh, as `launcher` hears them.

    `signers` are the public keys whose tokens are good. `on_ready` and `on_gone` are told of versions; they must not
    wait.
    """

    def __init__(
        self,
        launcher: str,
        leases: Leases,
        parking: Parking,
        *,
        signers: Iterable[str],
        publish: Callable[[str, bytes], None],
        is_connected: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_ready: Callable[[VersionId], None] = lambda _: None
        self.on_gone: Callable[[VersionId], None] = lambda _: None
        self._launcher, self._leases, self._parking, self._signers = launcher, leases, parking, tuple(signers)
        self._publish, self._is_connected, self._clock = publish, is_connected, clock
        self._known: dict[str, External] = {}
        self._refused: dict[str, str] = {}
        self._launchers: dict[str, float] = {}
        leases.on_unexpected = self.take

    async def open(self, connection: Connection) -> None:
        """Hear the other launchers. Raises Forbidden, Unreachable."""
        await connection.subscribe(subjects.HOST_BEATS, self._on_beat)

    async def run(self) -> None:
        """Notice who has died, and beat for who lives, until cancelled."""
        beaten_at = -_BEAT_S
        while True:
            now = self._clock()
            self.bury(now)
            if now - beaten_at >= _BEAT_S:
                beaten_at = now
                for host in {host_of(name) for name in self._known}:
                    self._beat(host)
            await asyncio.sleep(_TURN_S)

    def serves(self, version: VersionId) -> bool:
        """Whether one is ready to take this version's calls."""
        return any(each.is_ready and each.version == version for each in self._known.values())

    def versions(self) -> set[VersionId]:
        """The versions of all that live."""
        return {each.version for each in self._known.values()}

    def rows(self, algorithm: str = "") -> list[InstanceRow]:
        """All of them, or those of one algorithm, as `ps` shows them; by the speaking launcher only."""
        if not self._speaks():
            return []
        return [each.row for each in self._known.values() if algorithm in ("", each.version.algorithm)]

    def take(self, lease: messages.InstanceLease, now: float) -> None:
        """An instance says something that this launcher has not started."""
        if not host_of(lease.instance) or lease.phase == "ended":
            return
        external = self._learn(lease, now)
        if external is not None:
            external.watch.on_taken = lambda: self._look(external, self._clock())
            external.watch.take(lease, now)

    def bury(self, now: float) -> None:
        """Tell the deaths of those that have ended, or have been silent for too long."""
        silent = self._leases.silent(now)
        for external in list(self._known.values()):
            if external.watch.has_ended:
                self._gone(external, "exit", external.watch.why_failed[1] or "ended")
            elif external.id in silent:
                self._gone(
                    external, "crash", f"lost its lease: nothing was heard of it for {silent[external.id]:.1f} s"
                )

    def _learn(self, lease: messages.InstanceLease, now: float) -> External | None:
        """Believe the token, or say once why not."""
        if self._refused.get(lease.instance) == lease.token:
            return None
        try:
            claims = self._checked(lease)
        except Unauthenticated as error:
            log.warning("lease_refused", instance=lease.instance, error=str(error))
            while len(self._refused) >= 256:
                del self._refused[next(iter(self._refused))]
            self._refused[lease.instance] = lease.token
            return None
        external = External(
            id=lease.instance,
            version=claims.version_id,
            by=claims.by,
            watch=self._leases.expect(lease.instance),
            heard_first=now,
            since=time.time(),
        )
        external.consumer = asyncio.get_running_loop().create_task(
            self._ensure_consumer(external.version), name=f"consumer for {external.id}"
        )
        self._known[external.id] = external
        log.info("external_heard", instance=external.id, version=str(external.version), by=external.by)
        self._beat(host_of(external.id))
        return external

    def _checked(self, lease: messages.InstanceLease) -> InstanceClaims:
        claims = verify_instance_token(lease.token, self._signers, time.time())
        if claims.instance != lease.instance:
            raise Unauthenticated(f"the token is that of {claims.instance}")
        return claims

    async def _ensure_consumer(self, version: VersionId) -> None:
        """What it pulls parked calls from; where that cannot be had now, the launcher's next restore makes it."""
        try:
            await self._parking.ensure_consumer(version)
        except BrokerError as error:
            log.warning("consumer_missing", version=str(version), error=str(error))

    def _look(self, external: External, now: float) -> None:
        if external.is_ready and not external.is_told_ready:
            external.is_told_ready = True
            external.start_ms = max(0, round((now - external.heard_first) * 1e3))
            self._say(external.version, messages.Ready(instance=external.id, start_ms=external.start_ms))
            log.info("external_ready", instance=external.id, version=str(external.version))
            self.on_ready(external.version)

    def _gone(self, external: External, reason: str, detail: str) -> None:
        del self._known[external.id]
        self._leases.forget(external.id)
        self._say(external.version, messages.Death(instance=external.id, reason=reason, detail=detail))
        log.info("external_gone", instance=external.id, version=str(external.version), reason=reason, detail=detail)
        self.on_gone(external.version)

    # Who speaks

    def _on_beat(self, message: Message) -> None:
        with contextlib.suppress(BadMessage):
            beat = codec.decode_host_beat(message.data)
            if _ID.fullmatch(f"{beat.launcher}-1"):
                return
            if beat.alive:
                self._launchers[beat.launcher] = self._clock()
            else:
                self._launchers.pop(beat.launcher, None)

    def _speaks(self) -> bool:
        """Whether no launcher with a lower id lives."""
        now = self._clock()
        lower = (at for launcher, at in self._launchers.items() if launcher < self._launcher)
        return all(now - at > _LAUNCHER_SILENT_S for at in lower)

    def _say(self, version: VersionId, message: messages.Fleet) -> None:
        if self._speaks():
            self._tell(subjects.fleet(version), codec.encode(message))

    def _beat(self, host: str) -> None:
        """By every launcher, since two beats are as good as one, and three seconds without one are a loss."""
        if self._is_connected():
            self._tell(subjects.host_beat(host), codec.encode(messages.HostBeat(launcher=host)))

    def _tell(self, subject: str, data: bytes) -> None:
        try:
            self._publish(subject, data)
        except BrokerError as error:
            log.warning("fleet_message_lost", subject=subject, error=str(error))
