"""What instances say of themselves whose watch page this launcher cannot read: in containers, and in other languages.

Such an instance publishes `lease.<its id>` at every change of its phase and once a second. A `LeaseWatch` folds this
into the face that a watch page has; three seconds of silence after the first lease are a death (fleet.py,
externals.py). While the launcher itself heard nothing, for want of a connection or of time, nobody's silence counts.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

from algomesh.instance.watch import Phase
from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage
from algomesh_broker.messages import InstanceLease, LeasePhase

log = structlog.get_logger("algomesh.launcher")

SILENT_S: Final = 3.0
# Instances may come back to a server later than their launcher, and then wait for the registry to let them in.
RECONNECT_S: Final = 10.0
_STALLED_S: Final = 1.0
_CODES: Final = ("load_failed", "memory_exceeded")
_PHASES: Final[dict[LeasePhase, Phase]] = {
    "importing": Phase.IMPORTING,
    "loading": Phase.LOADING,
    "connecting": Phase.CONNECTING,
    "ready": Phase.READY,
    "draining": Phase.DRAINING,
}


class LeaseWatch:
    """One instance by what it has said; see `driver.Watch` for most of the names. `on_taken` follows every lease."""

    def __init__(self) -> None:
        self.phase = Phase.FORKED
        self.active = 0
        self.runs_total = 0
        self.deadline_ns = 0
        self.has_ended = False
        self.failure = ""
        self.heard_at: float | None = None
        self.on_taken: Callable[[], None] = lambda: None
        self._began_ns: dict[Phase, int] = {}

    def take(self, lease: InstanceLease, now: float) -> None:
        """Take what was heard at `now` (seconds of the monotonic clock). `ended` is no phase: the last one stays."""
        now_ns = round(now * 1e9)
        self.heard_at = now
        self.active, self.runs_total = max(0, lease.active), max(0, lease.total)
        self.deadline_ns = now_ns - lease.overdue_ms * 1_000_000 if lease.overdue_ms > 0 else 0
        if lease.phase == "ended":
            self.has_ended, self.failure, self.active = True, lease.failure, 0
        else:
            self.phase = _PHASES[lease.phase]
            self._began_ns.setdefault(self.phase, now_ns)
        self.on_taken()

    def overdue(self, now_ns: int) -> bool:
        """Return whether a run should have ended before `now_ns`."""
        return 0 < self.deadline_ns < now_ns

    def began_ns(self, phase: Phase) -> int:
        """When `phase` was first heard of; 0 when it was not."""
        return self._began_ns.get(phase, 0)

    @property
    def why_failed(self) -> tuple[str, str]:
        """The code and the sentence with which its start failed; both empty where it said none."""
        code, _, sentence = self.failure.partition(" ")
        return code if code in _CODES or not code else "load_failed", sentence.strip()


class Leases:
    """Hears all leases; gives those of instances that are expected to their watches, others to `on_unexpected`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_unexpected: Callable[[InstanceLease, float], None] = lambda _lease, _now: None
        self._clock = clock
        self._watches: dict[str, LeaseWatch] = {}
        self._looked_at = clock()
        self._forgiven_until = 0.0

    async def hear(self, connection: Connection) -> Subscription:
        """Take every lease from now on, and forgive silence after a reconnect. Raises Forbidden, Unreachable."""
        connection.on_reconnect.append(self.forgive)
        return await connection.subscribe(subjects.ALL_LEASES, self._on_message)

    def expect(self, instance: str) -> LeaseWatch:
        """The watch of an instance, which it fills if it says anything."""
        return self._watches.setdefault(instance, LeaseWatch())

    def forget(self, instance: str) -> None:
        """Its leases mean nothing any more."""
        self._watches.pop(instance, None)

    def take(self, lease: InstanceLease) -> None:
        """Take one lease."""
        watch = self._watches.get(lease.instance)
        if watch is not None:
            watch.take(lease, self._clock())
        else:
            self.on_unexpected(lease, self._clock())

    def forgive(self) -> None:
        """Nothing could be heard for a while: silence until now was ours."""
        self._forgiven_until = self._clock() + RECONNECT_S

    def silent(self, now: float) -> dict[str, float]:
        """Who has been silent for too long after its first lease, and how many seconds; ask several times a second."""
        stalled_s, self._looked_at = now - self._looked_at, now
        if stalled_s > _STALLED_S:  # what was said meanwhile has not been read yet
            self._forgiven_until = max(self._forgiven_until, now + SILENT_S)
        if now < self._forgiven_until:
            return {}
        ages = ((name, now - watch.heard_at) for name, watch in self._watches.items() if watch.heard_at is not None)
        return {name: age for name, age in ages if age > SILENT_S}

    def _on_message(self, message: Message) -> None:
        try:
            lease = codec.decode_lease(message.data)
        except BadMessage as error:
            log.warning("lease_unreadable", subject=message.subject, error=str(error))
            return
        if message.subject != subjects.lease(lease.instance):  # the subject is what the server has checked
            log.warning("lease_of_another", subject=message.subject, instance=lease.instance)
            return
        self.take(lease)
