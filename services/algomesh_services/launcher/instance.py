"""One instance, as the launcher knows it."""

import asyncio
from dataclasses import dataclass, field

from algomesh.instance.watch import Phase as WatchPhase
from algomesh_broker import messages
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import Place
from algomesh_services.launcher.driver import Blame, Process
from algomesh_services.launcher.leases import LeaseWatch
from algomesh_services.launcher.reconcile import InstanceView, State

_WIRE_PHASES: dict[WatchPhase, messages.Phase] = {
    WatchPhase.FORKED: "forking",
    WatchPhase.IMPORTING: "importing",
    WatchPhase.LOADING: "loading",
    WatchPhase.CONNECTING: "connecting",
    WatchPhase.READY: "ready",
    WatchPhase.DRAINING: "ready",
}


@dataclass(frozen=True, kw_only=True)
class StartFailed:
    """An instance died before it was ready; `blame` says whether another would do the same.

    `version`: its code is at fault. `machine`: it could not be started or connected here and now.
    """

    blame: Blame
    code: str
    message: str


@dataclass(eq=False, kw_only=True)
class Instance:
    """One instance; times are of the monotonic clock in seconds, but for `since`, seconds since the epoch.

    `key` names the hold it was launched for; it is empty when a call waited, or a minimum wanted it.
    """

    id: str
    version: VersionId
    options: Options
    place: Place
    reason: str
    key: str = ""
    launched_at: float
    since: float
    state: State = "starting"
    digest: str = ""
    process: Process | None = None
    leased: LeaseWatch = field(default_factory=LeaseWatch)
    start_ms: int = 0
    load_ms: int = 0
    prepared_at: float = 0.0
    forked_at: float = 0.0
    ready_at: float = 0.0
    idle_since: float = 0.0
    runs_total: int = 0
    is_working: bool = False
    retired: str = ""
    trace: str = ""
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def phase(self) -> messages.Phase:
        """How far its start has come."""
        return "queued" if self.process is None else _WIRE_PHASES[self.process.watch.phase]

    @property
    def load(self) -> int:
        """Runs under way."""
        return 0 if self.process is None else self.process.watch.active

    def observe(self, now: float) -> bool:
        """Look whether it works, or has worked since the last look; return whether it has begun or ended to."""
        if self.process is None:
            return False
        watch = self.process.watch
        was_working, self.is_working = self.is_working, watch.active > 0
        has_worked = watch.runs_total != self.runs_total
        if self.is_working or has_worked:
            self.idle_since, self.runs_total = now, watch.runs_total
        return self.is_working != was_working or (has_worked and not self.is_working)

    @property
    def view(self) -> InstanceView:
        """What a decision needs to know of it."""
        return InstanceView(
            instance=self.id,
            version=self.version,
            state=self.state,
            load=self.load,
            idle_since=self.idle_since,
            place=self.place,
        )
