"""Runs beyond a run's own budget: leased from the registry for a root, little at first, then more at once."""

import asyncio
from collections import OrderedDict
from typing import Final

from algomesh import errors
from algomesh.allowance import TOO_MANY, Allowance
from algomesh.requests import ask
from algomesh_broker.connection import Connection
from algomesh_broker.platform import Lease, Leased
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.leasing")

_MOST_AT_ONCE: Final = 64
_MOST_ROOTS: Final = 4_096
_ASK_S: Final = 5.0


class _Root:
    __slots__ = ("at_once", "left", "lock")

    def __init__(self) -> None:
        self.left = 0
        self.at_once = 1
        self.lock = asyncio.Lock()


class Leases:
    """What one connection has leased from the registry, root by root."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._roots: OrderedDict[str, _Root] = OrderedDict()

    async def take(self, allowance: Allowance, runs: int) -> None:
        """Begin `runs` runs for which the allowance has no budget. Raises BudgetExceeded.

        When the registry is away nobody is refused: depth is bounded without it.
        """
        root = self._roots.setdefault(allowance.root, _Root())
        self._roots.move_to_end(allowance.root)
        while len(self._roots) > _MOST_ROOTS:
            self._roots.popitem(last=False)
        async with root.lock:
            if root.left < runs:
                await self._lease(allowance.root, root, runs)
            root.left -= runs

    async def _lease(self, name: str, root: _Root, runs: int) -> None:
        wanted = max(runs - root.left, root.at_once)
        try:
            leased = await ask(self._connection, "registry", "lease", "", Lease(root=name, runs=wanted), Leased, _ASK_S)
            granted = leased.runs
        except errors.Unreachable as error:
            log.warning("runs_not_counted", root=name, error=str(error))
            granted = max(wanted, _MOST_AT_ONCE)
        root.left += granted
        root.at_once = min(2 * root.at_once, _MOST_AT_ONCE)
        if root.left < runs:
            raise errors.BudgetExceeded(TOO_MANY)
