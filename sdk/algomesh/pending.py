"""A call that waits for its answer, and what is decided about it: pure, no I/O.

sent ── no responders ──▶ parked ── Running ──▶ running ──▶ answered
  │ ▲                        │                     │
  │ └──────── resent when its instance, or one that may have had it, has died
  └── Running, Result, Failure
"""

import asyncio
from typing import Any, Final

from algomesh import errors
from algomesh_broker.messages import Call, Result
from algomesh_broker.names import VersionId

SENT, PARKED, RUNNING = "sent", "parked", "running"

# Dying of these is the run's own doing; another instance would die of it too.
OWN_FAULT: Final[dict[str, type[errors.MeshError]]] = {
    "timeout": errors.RunTimeout,
    "memory_exceeded": errors.MemoryExceeded,
}
# Leaving in good order: what was accepted has been answered or parked, but for a run that outlasted the drain.
_IN_ORDER: Final = frozenset({"retired", "stopped"})


class Pending:
    """One call under way. Times are the loop's, in seconds."""

    __slots__ = (
        "answer_prefix",
        "attempts_allowed",
        "call",
        "cold_s",
        "deadline",
        "doubted_at",
        "future",
        "homeless_since",
        "instance",
        "losses",
        "on_progress",
        "parked_at",
        "state",
        "subject",
        "version",
        "was_parked",
    )

    def __init__(
        self,
        version: VersionId,
        call: Call,
        subject: str,
        deadline: float,
        attempts_allowed: int,
        future: "asyncio.Future[Result]",
    ) -> None:
        self.version = version
        self.call = call
        self.subject = subject
        self.deadline = deadline
        self.attempts_allowed = attempts_allowed
        self.future = future
        self.answer_prefix = f"reply.{version.owner}.{version.name}."
        self.state = SENT
        self.instance = ""
        self.losses = 0
        self.was_parked = False
        self.parked_at = 0.0
        self.homeless_since = 0.0
        self.cold_s = 0.0
        self.doubted_at = 0.0
        self.on_progress: Any = None

    @property
    def is_over_cleanly(self) -> bool:
        """Whether nothing about this call can still arrive: answered at its first attempt, by a live instance."""
        return self.future.done() and not self.future.cancelled() and self.call.attempt == 1 and not self.was_parked

    def taken(self, instance: str, ready_ms: int, now: float) -> None:
        """An instance has it; if it was not ready yet when the call was parked, that wait was a cold start."""
        if self.parked_at:
            waited_s = now - self.parked_at
            if ready_ms / 1000 < waited_s:
                self.cold_s += waited_s - ready_ms / 1000
            self.parked_at = 0.0
        self.state = RUNNING
        self.instance = instance
        self.doubted_at = 0.0

    def may_have_died_with(self, instance: str, reason: str) -> bool:
        """Whether the death of `instance` may have taken this call along."""
        if self.state == RUNNING:
            return self.instance == instance
        return self.state == SENT and reason not in _IN_ORDER

    def fail(self, error: errors.MeshError) -> None:
        """End it with an error, once."""
        if not self.future.done():
            self.future.set_exception(error)

    def lost(self, reason: str, detail: str) -> errors.MeshError | None:
        """Count a death; None when it may be sent again, else the error it ends in."""
        stage = str(self.version)
        own = OWN_FAULT.get(reason)
        if own is not None and self.state == RUNNING:
            return own(_OWN_FAULT_TEXT[reason].format(detail=detail or reason), stage=stage)
        self.losses += 1
        if self.losses < self.attempts_allowed:
            return None
        what = detail or reason
        if self.attempts_allowed == 1:
            hint = "it may not be repeated (retry=False)"
        else:
            hint = f"it was tried {self.losses} times"
        return errors.InstanceLost(
            f"the instance that ran it died ({what}); {hint}. See `algomesh logs {stage}`", stage=stage
        )


_OWN_FAULT_TEXT = {
    "timeout": "the run took longer than the algorithm's timeout and was ended ({detail}); "
    "raise `timeout` in @algorithm or send less at once",
    "memory_exceeded": "the run took more memory than its version declares and was ended ({detail}); "
    "raise `memory` in @algorithm or send less at once",
}
