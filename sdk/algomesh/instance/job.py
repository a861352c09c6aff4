"""One call inside an instance, from its arrival to its end."""

import asyncio

from algomesh.context import RunContext
from algomesh_broker.messages import Call


class Job:
    """A call that this instance has. Times are the loop's, in seconds."""

    __slots__ = (
        "abandoned_at",
        "arrived",
        "call",
        "caller",
        "children",
        "cold_ms",
        "context",
        "deadline",
        "gone",
        "has_slot",
        "is_parked",
        "limit",
        "said_at",
        "started",
        "started_at",
        "subject",
        "task",
    )

    def __init__(self, call: Call, subject: str, caller: str, now: float, *, is_parked: bool = False) -> None:
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
        self.children = 0
        self.gone = 0
        self.task: asyncio.Task[None] | None = None
        self.context: RunContext | None = None
