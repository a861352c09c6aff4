"""One instance, as the launcher knows it."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from algomesh.instance.watch import Phase as WatchPhase
from algomesh_broker import messages
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import Place
from algomesh_services.launcher.driver import Process
from algomesh_services.launcher.reconcile import InstanceView, State

_WIRE_PHASES: dict[WatchPhase, messages.Phase] = {
    WatchPhase.FORKED: "forking",
    WatchPhase.IMPORTING: "importing",
    WatchPhase.LOADING: "loading",
    WatchPhase.CONNECTING: "connecting",
    WatchPhase.READY: "ready",
    WatchPhase.DRAINING: "ready",
}
Blame = Literal["version", "machine"]


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
    """One instance; times are of the monotonic clock in seconds, but for `since`, seconds since the epoch."""

    id: str
    version: VersionId
    options: Options
    place: Place
    reason: str
    launched_at: float
    since: float
    state: State = "starting"
    digest: str = ""
    process: Process | None = None
    start_ms: int = 0
    ready_at: float = 0.0
    idle_since: float = 0.0
    runs_total: int = 0
    retired: str = ""
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def phase(self) -> messages.Phase:
        """How far its start has come."""
        return "queued" if self.process is None else _WIRE_PHASES[self.process.watch.phase]

    @property
    def load(self) -> int:
        """Runs under way."""
        return 0 if self.process is None else self.process.watch.active

    def observe(self, now: float) -> None:
        """Look whether it is working, or has worked since the last look."""
        if self.process is not None:
            total = self.process.watch.runs_total
            if self.process.watch.active or total != self.runs_total:
                self.idle_since, self.runs_total = now, total

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
