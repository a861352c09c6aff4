"""A call that waits for its answer, and what is decided about it: pure, no I/O.

sent ── no responders ──▶ parked ── Running ──▶ running ──▶ answered
  │ ▲                        │                     │
  │ └──────── resent when its instance, or one that may have had it, has died
  └── Running, Result, Failure

A chain of a pipeline is one such call: it goes through these states at every step, and `at` is the step that was
heard of last. It is resent from its head.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from algomesh import errors
from algomesh.chain import ANYWHERE, Chain
from algomesh_broker.messages import Call, Part, Result, Running
from algomesh_broker.names import VersionId

SENT, PARKED, RUNNING = "sent", "parked", "running"

# Dying of these is the run's own doing; another instance would die of it too.
OWN_FAULT: Final[dict[str, type[errors.MeshError]]] = {
    "timeout": errors.RunTimeout,
    "memory_exceeded": errors.MemoryExceeded,
}
# Leaving in good order: what was accepted has been answered or parked, but for a run that outlasted the drain.
_IN_ORDER: Final = frozenset({"retired", "stopped"})


class Pending(Struct, eq=False):
    """One call under way. Times are the loop's, in seconds."""

    version: VersionId
    call: Call
    subject: str
    deadline: float
    chain: Chain
    future: "asyncio.Future[Result]"
    on_part: Callable[[Part], None] | None = None
    on_progress: Callable[[Running], None] | None = None
    at: int = ANYWHERE
    state: str = SENT
    instance: str = ""
    losses: int = 0
    parts: int = 0
    was_parked: bool = False
    parked_at: float = 0.0
    homeless_since: float = 0.0
    cold_s: float = 0.0
    doubted_at: float = 0.0

    @property
    def is_over_cleanly(self) -> bool:
        """Whether nothing about this call can still arrive: answered at its first attempt, by a live instance."""
        return self.future.done() and not self.future.cancelled() and self.call.attempt == 1 and not self.was_parked

    def taken(self, instance: str, ready_ms: int, now: float, at: int = ANYWHERE) -> None:
        """An instance has it; if it was not ready yet when the call was parked, that wait was a cold start."""
        if at < self.at:
            return  # the word of a step that has been left since
        if self.parked_at:
            waited_s = now - self.parked_at
            if ready_ms / 1000 < waited_s:
                self.cold_s += waited_s - ready_ms / 1000
            self.parked_at = 0.0
        self.state, self.at = RUNNING, at
        self.instance = instance
        self.doubted_at = 0.0

    def waits(self, at: int, now: float) -> None:
        """It lies with the stream, before step `at`."""
        if self.state == SENT or at > self.at:
            self.state, self.was_parked, self.at, self.instance = PARKED, True, at, ""
            self.parked_at = self.parked_at or now

    def moved(self, at: int) -> None:
        """It has left the instance that had it, for step `at`."""
        if self.state == RUNNING and at > self.at:
            self.state, self.at, self.instance = SENT, at, ""

    def may_have_died_with(self, version: VersionId, instance: str, reason: str) -> bool:
        """Whether the death of `instance` may have taken this call along."""
        if self.state == RUNNING:
            return self.instance == instance
        return self.state == SENT and reason not in _IN_ORDER and version in self.chain.stages.values()

    def waits_for(self, version: VersionId) -> bool:
        """Whether it is parked for `version`."""
        return self.state == PARKED and self.chain.stages.get(self.at) == version

    def answered_by(self, at: int) -> str:
        """The algorithm whose answer from step `at` this is."""
        return self.chain.stages.get(at, self.version).algorithm

    def fail(self, error: errors.MeshError) -> None:
        """End it with an error, once."""
        if not self.future.done():
            self.future.set_exception(error)

    def cut(self) -> errors.MeshError:
        """The end of a call whose parts are being read: it cannot be begun again."""
        what = f"it was cut off after {self.parts} parts, which cannot be taken back; call again"
        return errors.InstanceLost(what, stage=str(self.version))

    def lost(self, reason: str, detail: str) -> errors.MeshError | None:
        """Count a death; None when it may be sent again, else the error it ends in."""
        stage = str(self.version)
        own = OWN_FAULT.get(reason)
        if own is not None and self.state == RUNNING:
            return own(_OWN_FAULT_TEXT[reason].format(detail=detail or reason), stage=stage)
        if self.parts:
            return self.cut()
        self.losses += 1
        attempts = self.chain.attempts
        allowed = attempts.get(self.at if self.state == RUNNING else ANYWHERE, attempts[ANYWHERE])
        if self.losses < allowed:
            return None
        what = detail or reason
        hint = "it may not be repeated (retry=False)" if allowed == 1 else f"it was tried {self.losses} times"
        return errors.InstanceLost(
            f"the instance that ran it died ({what}); {hint}. See `algomesh logs {stage}`", stage=stage
        )


_OWN_FAULT_TEXT = {
    "timeout": "the run took longer than the algorithm's timeout and was ended ({detail}); "
    "raise `timeout` in @algorithm or send less at once",
    "memory_exceeded": "the run took more memory than its version declares and was ended ({detail}); "
    "raise `memory` in @algorithm or send less at once",
}
