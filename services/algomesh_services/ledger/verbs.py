"""What the ledger is asked: `runs`. Who may ask is the broker's to say."""

from typing import Final

from algomesh_broker.platform import RunRows, Runs, unpack
from algomesh_broker.request_server import Handler
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.ledger.store import Store

MOST_ROWS: Final = 1_000


class Verbs:
    """The verbs by name in `table`. Each raises StoreAway or BadMessage."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.table: dict[str, Handler] = {"runs": self._runs}

    async def _runs(self, request: PlatformRequest, body: bytes) -> RunRows:
        """The subject's algorithm counts more than the body's: it is what the broker allowed."""
        wanted = unpack(Runs, body)
        algorithm = request.algorithm or wanted.algorithm
        limit = max(0, min(wanted.limit, MOST_ROWS))
        return RunRows(runs=await self._store.latest(limit, algorithm=algorithm[:130], root=wanted.root[:64]))
