"""Where a plain function runs: in a thread, or inline in the loop, where a call costs no hand-over. Pure.

It starts in a thread. When its runs have proved short it goes inline; runs that hold up the loop send it back,
and it must then prove itself four times as long. A single slow run on a busy machine is no reason either way.
`ALGOMESH_DISPATCH=inline|thread` fixes the choice for plain functions.
"""

import os
from typing import Any, Final, Literal

from algomesh.decorator import Algorithm

Dispatch = Literal["inline", "thread", "await"]

SHORT_S: Final = 0.001
LONG_S: Final = 0.005
VERY_LONG_S: Final = 0.05
_PROOF, _MOST_PROOF = 16, 4096
_STRIKES, _FORGIVE_AFTER = 3, 32


class DispatchChoice:
    """The choice for one instance; `mode` is what it is now.

    `strikes` is what speaks against going on inline; without any, a run of up to LONG_S needs not be observed.
    """

    def __init__(self, mode: Dispatch, *, is_fixed: bool) -> None:
        self.mode = mode
        self._is_fixed = is_fixed or mode == "await"
        self._needed = _PROOF
        self.strikes = 0
        self._proof = 0
        self._good = 0

    def observe(self, took_s: float, cpu_s: float | None = None) -> bool:
        """Learn from a run that took `took_s` seconds, `cpu_s` of them computing; True when the mode has changed.

        A run that computed little but took long has waited, for something or just for a busy machine: no proof.
        """
        if self._is_fixed:
            return False
        if self.mode == "inline":
            return self._observe_inline(took_s)
        if took_s <= SHORT_S:
            self._proof += 1
        elif cpu_s is None or cpu_s > SHORT_S or took_s > VERY_LONG_S:
            self._proof = max(0, self._proof - 4)
        if self._proof < self._needed:
            return False
        self.mode, self.strikes, self._good = "inline", 0, 0
        return True

    def _observe_inline(self, took_s: float) -> bool:
        if took_s <= LONG_S:
            self._good += 1
            if self._good >= _FORGIVE_AFTER:
                self._good, self.strikes = 0, max(0, self.strikes - 1)
            return False
        self.strikes += _STRIKES if took_s > VERY_LONG_S else 1
        if self.strikes < _STRIKES:
            return False
        self.mode, self._proof = "thread", 0
        self._needed = min(_MOST_PROOF, 4 * self._needed)
        return True


def choose_dispatch(algorithm: Algorithm[Any, Any]) -> DispatchChoice:
    """The dispatch to begin with; what may wait for others must not do so in the loop."""
    if algorithm.is_async:
        return DispatchChoice("await", is_fixed=True)
    options = algorithm.options
    if options.calls or options.batch_max or algorithm.yields or algorithm.item_taken is not None:
        return DispatchChoice("thread", is_fixed=True)
    wanted = os.environ.get("ALGOMESH_DISPATCH", "")
    return DispatchChoice("inline" if wanted == "inline" else "thread", is_fixed=wanted in ("inline", "thread"))
