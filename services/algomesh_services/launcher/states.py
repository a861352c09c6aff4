"""What the control loop remembers of versions that somebody wants, or wanted lately: failures, rests, stops."""

from dataclasses import dataclass

from algomesh_broker import messages
from algomesh_services.launcher.instance import StartFailed

_BACK_OFF_FIRST_S, _BACK_OFF_LAST_S = 0.5, 30.0
_SILENT_TRIES = 2


@dataclass(eq=False)
class VersionState:
    """One version. Before `blocked_until` it is not launched, and `unable` is what those hear who wait for it.

    Before `rest_until` it is launched for calls only; `is_stopped` means the same until its next call.
    """

    used_at: float
    failures: int = 0
    blocked_until: float = 0.0
    rest_until: float = 0.0
    unable: messages.Unable | None = None
    is_stopped: bool = False

    def forgive(self) -> None:
        """Forget earlier failures."""
        self.failures, self.blocked_until, self.unable = 0, 0.0, None

    def fail(self, failure: StartFailed, now: float) -> float:
        """Block it for a while, longer every time, and return for how many seconds."""
        self.failures += 1
        wait_s = min(_BACK_OFF_LAST_S, _BACK_OFF_FIRST_S * 2.0 ** min(self.failures - 1, 16))
        self.blocked_until = now + wait_s
        # A registry that restarts, a fork that failed for once: those who wait need not hear of it.
        is_final = failure.blame == "version" or self.failures > _SILENT_TRIES
        self.unable = messages.Unable(code=failure.code, message=failure.message) if is_final else None
        return wait_s
