"""One call inside an instance, from its arrival to its end."""

import asyncio
from typing import TYPE_CHECKING, Any

from algomesh.allowance import Allowance
from algomesh.context import RunContext
from algomesh_broker.grants import Granted
from algomesh_broker.messages import Call
from algomesh_broker.route import END, Place

if TYPE_CHECKING:
    from algomesh.instance.inflow import Inflow
    from algomesh.instance.outflow import Outflow


class Job:
    """A call that this instance has. Times are the loop's, in seconds.

    `caller` waits for the answer: the subject's caller, or for a hop who the route says. `run` is this run's own
    id: the call's, or for a step of a pipeline one made of it. `granted` and `place` are set for such a step,
    and `next` is the one that comes after it, END when the answer goes to the caller. `is_cached` says that its output
    is that of another run.
    """

    __slots__ = (
        "abandoned_at",
        "allowance",
        "arrived",
        "call",
        "caller",
        "calling",
        "cold_ms",
        "context",
        "deadline",
        "gone",
        "granted",
        "has_slot",
        "inflow",
        "is_cached",
        "is_over",
        "is_parked",
        "is_unread",
        "limit",
        "next",
        "outflow",
        "place",
        "reader",
        "run",
        "said_at",
        "started",
        "started_at",
        "subject",
        "task",
        "writers",
    )

    def __init__(
        self,
        call: Call,
        subject: str,
        caller: str,
        now: float,
        *,
        is_parked: bool = False,
        granted: Granted | None = None,
        place: Place | None = None,
    ) -> None:
        self.call = call
        self.subject = subject
        self.caller = caller
        self.arrived = now
        self.deadline = now + call.time_left_ms / 1000
        self.is_parked = is_parked
        self.cold_ms = 0.0
        self.started = 0.0
        self.started_at = 0.0
        self.limit = 0.0
        self.said_at = 0.0
        self.abandoned_at = 0.0
        self.has_slot = False
        self.granted, self.place = granted, place
        self.next = END if place is None else place.next
        self.is_cached = False
        self.run = call.run if place is None else f"{call.run}-{call.at}"
        self.allowance = Allowance(call.root, call.budget)
        self.inflow: Inflow | None = None
        self.outflow: Outflow | None = None
        self.reader: tuple[str, str, str] | None = None  # who reads the parts: caller, session, call
        self.writers = call.writers
        self.is_over = self.is_unread = False
        self.calling: set[asyncio.Task[Any]] = set()
        self.gone = 0
        self.task: asyncio.Task[None] | None = None
        self.context: RunContext | None = None
