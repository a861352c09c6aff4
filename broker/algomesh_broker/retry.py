"""When to try again to reach a NATS server: the decisions, without clock and socket.

After a restart of nats-server everybody comes back at once, and callers (keys, instances) can only be let
in by the registry, whom the server asks. A caller that connects before the registry waits for nothing
until the server gives up, a second later. So programs, which the server knows itself, try again soonest, and a
caller lets them pass: it waits for a moment between the server's greeting and its own CONNECT (ADR 0002).
"""

import random
from typing import Final

from algomesh_broker.errors import Unauthenticated

# The server asks the registry and gives up after a second (`authorization.CALLOUT_TIMEOUT_S`); a quicker no is
# the registry's own.
_SILENCE_S: Final = 0.95
_FIRST_OF_PROGRAM_S, _FIRST_OF_CALLER_S, _LAST_S = 0.02, 0.05, 0.5
_SHARE_OF_OUTAGE: Final = 0.25
_PAUSE_OF_CALLER_S: Final = (0.1, 0.2)
_REFUSALS_TO_BELIEVE: Final = 20
_REFUSED_S: Final = 10.0


def is_silence(error: Exception, took_s: float) -> bool:
    """Whether an attempt that took `took_s` was refused because the registry said nothing at all."""
    return isinstance(error, Unauthenticated) and took_s >= _SILENCE_S


class Retry:
    """The attempts of one outage that began at `now`, of a program of the mesh or of a caller."""

    def __init__(self, *, is_program: bool, now: float) -> None:
        self._is_program = is_program
        self._began = now
        self._refusals = 0

    def wait_s(self, error: Exception, *, took_s: float, now: float) -> float:
        """How long to wait after an attempt that took `took_s` and failed so.

        The longer the server is away, the longer: a quarter of the outage, within limits.
        """
        first_s = _FIRST_OF_PROGRAM_S if self._is_program else _FIRST_OF_CALLER_S
        wait_s = first_s
        if not is_silence(error, took_s):  # whoever was not answered has waited enough
            self._refusals += isinstance(error, Unauthenticated)
            wait_s = min(_LAST_S, max(first_s, _SHARE_OF_OUTAGE * (now - self._began)))
        if self._refusals > _REFUSALS_TO_BELIEVE:  # the key was revoked
            wait_s = _REFUSED_S
        return wait_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter

    def pause_s(self) -> float:
        """How long to wait between the server's greeting and our CONNECT, so that the registry is there first."""
        return 0.0 if self._is_program else random.uniform(*_PAUSE_OF_CALLER_S)  # noqa: S311  # jitter
