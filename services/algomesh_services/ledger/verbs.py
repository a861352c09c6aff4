"""What the ledger is asked: `runs` and `history`. Who may ask is the broker's to say."""

from typing import Final

from algomesh_broker.platform import History, RunRows, Runs, unpack
from algomesh_broker.request_server import Handler
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.ledger.store import Store

MOST_ROWS: Final = 1_000
MOST_HISTORY: Final = 5_000


class Verbs:
    """The verbs by name in `table`. Each raises StoreAway or BadMessage."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.table: dict[str, Handler] = {"runs": self._runs, "history": self._history}

    async def _runs(self, request: PlatformRequest, body: bytes) -> RunRows:
        """The subject's algorithm counts more than the body's: it is what the broker allowed."""
        wanted = unpack(Runs, body)
        algorithm = request.algorithm or wanted.algorithm
        limit = max(0, min(wanted.limit, MOST_ROWS))
        return RunRows(runs=await self._store.latest(limit, algorithm=algorithm[:130], root=wanted.root[:64]))

    async def _history(self, _: PlatformRequest, body: bytes) -> RunRows:
        """Page by page: the next is asked for with the last run of this one, and when that began."""
        wanted = unpack(History, body)
        limit = max(0, min(wanted.limit, MOST_HISTORY))
        return RunRows(runs=await self._store.history(wanted.since, limit, after=wanted.after[:64]))
