"""One call inside an instance, from its arrival to its end."""

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Struct

from algomesh.allowance import Allowance
from algomesh.context import Host, RunContext
from algomesh.transport import Origin
from algomesh_broker.grants import Granted
from algomesh_broker.messages import Call
from algomesh_broker.route import END, Place

if TYPE_CHECKING:
    from algomesh.instance.inflow import Inflow
    from algomesh.instance.outflow import Outflow

# What code that was asked to stop is given to do so.
GRACE_S: Final = 2.0


class Job(Struct, eq=False):
    """A call that this instance has. Times are the loop's, in seconds.

    `caller` waits for the answer: the subject's caller, or for a hop who the route says. `run` is this run's own
    id: the call's, or for a step of a pipeline one made of it. `granted` and `place` are set for such a step,
    and `next` is the one that comes after it, END when the answer goes to the caller. `is_cached` says that its output
    is that of another run. `reader` is who reads the parts: caller, session, call. `waited_ms` is how long it lay with
    the stream.
    """

    call: Call
    subject: str
    caller: str
    arrived: float
    deadline: float
    run: str
    next: int
    writers: list[str]
    is_parked: bool = False
    granted: Granted | None = None
    place: Place | None = None
    cold_ms: float = 0.0
    started: float = 0.0
    started_at: float = 0.0
    limit: float = 0.0
    said_at: float = 0.0
    abandoned_at: float = 0.0
    has_slot: bool = False
    is_cached: bool = False
    is_over: bool = False
    is_unread: bool = False
    waited_ms: float = 0.0
    gone: int = 0
    calling: set[asyncio.Task[Any]] | None = None
    inflow: "Inflow | None" = None
    outflow: "Outflow | None" = None
    reader: tuple[str, str, str] | None = None
    task: "asyncio.Task[None] | None" = None
    host: Host | None = None
    algorithm: str = ""
    _allowance: Allowance | None = None
    _context: RunContext | None = None

    @classmethod
    def of(
        cls,
        call: Call,
        subject: str,
        caller: str,
        now: float,
        is_parked: bool = False,
        granted: Granted | None = None,
        place: Place | None = None,
    ) -> Self:
        """The job in a call that has just come."""
        deadline = now + call.time_left_ms / 1000
        if place is None:
            return cls(call, subject, caller, now, deadline, call.run, END, call.writers, is_parked)
        run = f"{call.run}-{call.at}"
        return cls(call, subject, caller, now, deadline, run, place.next, call.writers, is_parked, granted, place)

    @property
    def allowance(self) -> Allowance:
        """What is left of its budget; made when it is first asked for, since few runs lead to others."""
        if self._allowance is None:
            self._allowance = Allowance(self.call.root, self.call.budget)
        return self._allowance

    @property
    def has_news(self) -> bool:
        """Whether something it called has failed, or met a cold start."""
        return self._context is not None and self._context.has_news

    @property
    def context(self) -> RunContext:
        """What its code may know of it; made when it is first asked for, in the loop's thread or before its own."""
        if self._context is None:
            call = self.call
            origin = Origin(
                self.run,
                call.root,
                call.root_caller,
                call.depth,
                call.budget,
                self.limit,
                self.allowance,
                call.traceparent,
            )
            self._context = RunContext(
                self.host, origin, parent=call.parent, caller=self.caller, algorithm=self.algorithm
            )
        return self._context
