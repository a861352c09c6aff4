"""What the ledger shows of itself: rows, delays, what is not written yet. What runs did is counted in run_counts.py."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from algomesh_broker.connection import Connection
from algomesh_broker.metrics import CONNECTED
from algomesh_broker.names import VersionId
from algomesh_broker.platform import FetchManifest, StoredManifest
from algomesh_observability.metrics import REGISTRY, counter, gauge, histogram
from algomesh_services.asking import Programs
from algomesh_services.ledger.run_counts import RunCounts
from algomesh_services.ledger.shares import Shares

_LAG_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0)

if TYPE_CHECKING:
    from algomesh_services.ledger.keeper import Keeper

RUNS: Final = RunCounts(REGISTRY)
WRITE_SECONDS: Final = histogram(
    "algomesh_ledger_write_seconds", "Time to put a batch of events into PostgreSQL, waiting for it included."
)
DELAY_SECONDS: Final = histogram(
    "algomesh_ledger_delay_seconds",
    "From when a batch's oldest event reached its stream until it was in the table.",
    bounds=_LAG_S,
)
ROWS: Final = counter("algomesh_ledger_rows_total", "Events put into the table of runs.")
DROPPED: Final = counter(
    "algomesh_ledger_dropped_total", "Events that are in no table: unreadable, not_allowed or refused.", ("reason",)
)
LOST: Final = counter(
    "algomesh_ledger_lost_runs_total", "Runs marked lost, by what became of their instance.", ("reason",)
)
LAG_SECONDS: Final = gauge(
    "algomesh_ledger_lag_seconds", "How long the oldest event that the ledger has and the table has not has waited."
)
WAITING: Final = gauge("algomesh_ledger_waiting_messages", "Messages with events that are not in the table.")


@asynccontextmanager
async def watch(keeper: "Keeper", connection: Connection) -> AsyncIterator[None]:
    """Show how a ledger is while the block runs."""
    programs = Programs(connection)

    async def share(version: VersionId) -> float:
        wanted = FetchManifest(version=str(version.version))
        stored = await programs.ask("registry", "manifest", wanted, StoredManifest, algorithm=version.algorithm)
        return stored.manifest.options.gpu

    shares = Shares(share)
    RUNS.share_of = shares.of
    ends = [
        LAG_SECONDS.follow(lambda: {(): keeper.lag.lag_s(time.time())}),
        WAITING.follow(lambda: {(): float(keeper.lag.waiting)}),
        CONNECTED.follow(lambda: {("nats",): float(connection.is_connected), ("postgres",): float(keeper.is_stored)}),
    ]
    try:
        yield
    finally:
        for end in ends:
            end()
        RUNS.share_of = lambda _: None
        await shares.close()
