"""What the pre-warmer is asked: `graph`, `starts`, `savings`. Who may ask is the broker's to say."""

import time
from collections.abc import Callable
from typing import Final

from algomesh_broker.platform import (
    Edge,
    Graph,
    GraphEdges,
    Savings,
    SavingsRow,
    StartRows,
    Starts,
    unpack,
)
from algomesh_broker.request_server import Handler
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.store import Store

MOST_ROWS: Final = 1_000
MOST_EDGES: Final = 4_000  # in one message, which some servers hold to 1 MiB


class Verbs:
    """The verbs by name in `table`. Each raises StoreAway or BadMessage."""

    def __init__(self, store: Store, policy: BreakEvenPolicy, wall: Callable[[], float] = time.time) -> None:
        self._store, self._policy, self._wall = store, policy, wall
        self.table: dict[str, Handler] = {"graph": self._graph, "starts": self._starts, "savings": self._savings}

    async def _graph(self, request: PlatformRequest, body: bytes) -> GraphEdges:
        """Who calls whom; of an algorithm, what it calls and who calls it. The most likely, where there are many."""
        wanted = unpack(Graph, body)
        algorithm = request.algorithm or wanted.algorithm
        edges = [edge for edge in self._policy.graph() if not algorithm or algorithm in (edge.caller, edge.callee)]
        in_time = await self._store.in_time()
        edges.sort(key=lambda edge: edge.probability, reverse=True)
        return GraphEdges(
            edges=[
                Edge(
                    caller_of=edge.caller,
                    algorithm=edge.callee,
                    probability=edge.probability,
                    delay_s=edge.delay_s,
                    count=edge.count,
                    in_time=in_time.get((edge.caller, edge.callee)),
                )
                for edge in edges[:MOST_EDGES]
            ]
        )

    async def _starts(self, request: PlatformRequest, body: bytes) -> StartRows:
        """The subject's algorithm counts more than the body's: it is what the broker allowed."""
        wanted = unpack(Starts, body)
        algorithm = request.algorithm or wanted.algorithm
        limit = max(0, min(wanted.limit, MOST_ROWS))
        return StartRows(starts=await self._store.starts(limit, algorithm[:130]))

    async def _savings(self, _: PlatformRequest, body: bytes) -> SavingsRow:
        wanted = unpack(Savings, body)
        return await self._store.savings(wanted.since, self._wall(), max(0, min(wanted.calls, MOST_ROWS)))
