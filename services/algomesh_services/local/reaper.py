"""What the supervisor's children leave behind: adopted, and killed.

The supervisor is a subreaper, so whatever loses its parent below it becomes its child. A child that it did not
start itself is therefore an orphan. Everything the supervising process starts must go through
`algomesh_broker.child.spawn`, on the event loop's thread, or run before; else the reaper takes it for an orphan.
"""

import os

from algomesh.instance.descendants import children, kill_trees
from algomesh.instance.prctl import become_subreaper
from algomesh_broker.child import own_pids


class Reaper:
    """Kills orphans of this process; `adopt` makes it a subreaper first."""

    def __init__(self) -> None:
        self._spared: frozenset[int] = frozenset()

    def adopt(self) -> None:
        """From now on become the parent of every orphan below us. Children that run already are left alone."""
        self._spared = frozenset(children(os.getpid())) - own_pids()
        become_subreaper()

    def sweep(self, *, within_s: float = 0.1) -> list[int]:
        """Kill and collect all orphans and what is below them; return those left after `within_s` seconds.

        It holds the event loop for that long at most, and on purpose: a child that is being started elsewhere
        meanwhile would look like an orphan.
        """
        if not self._orphans():
            return []
        return kill_trees(self._orphans, spare=self._spared | own_pids(), within_s=within_s)

    def _orphans(self) -> list[int]:
        spared = self._spared | own_pids()
        return [pid for pid in children(os.getpid()) if pid not in spared]
