"""What a replay needs of a mesh: its recorded runs, page by page, and what its algorithms are."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from algomesh.errors import MeshError, PermissionDenied, Unreachable
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_services.prewarmer.replay_fleet import Traits

MOST_RUNS: Final = 100_000
_PAGE: Final = 5_000
_PAGE_WITHIN_S: Final = 60.0
_AT_ONCE: Final = 8
# As the pre-warmer counts and keeps: what has no share of a GPU still takes memory, and stays for its own idle time.
_LEAST_GPU: Final = 0.05
_LINGER_S: Final = 1.0


class KnownTraits(NamedTuple):
    """What is known of each algorithm, and how many of them nobody publishes any more."""

    known: dict[str, Traits]
    unpublished: int


async def read_history(
    connection: Connection, since: float, on_progress: Callable[[int], None]
) -> list[platform.RunRow]:
    """The runs that began after `since` (seconds since the epoch), oldest first, at most MOST_RUNS of them.

    on_progress: told how many there are so far. Raises PermissionDenied, Unreachable.
    """
    rows: dict[tuple[str, int], platform.RunRow] = {}
    after = ""
    while len(rows) < MOST_RUNS:
        body = platform.History(since=since, limit=_PAGE, after=after)
        page = (await ask(connection, "ledger", "history", "", body, platform.RunRows, _PAGE_WITHIN_S)).runs
        before = len(rows)
        rows.update(((row.run, row.attempt), row) for row in page)
        on_progress(len(rows))
        if len(rows) == before:
            break
        last = page[-1]
        since, after = last.queued_at or last.started_at or last.ended_at or since, last.run
    return list(rows.values())[:MOST_RUNS]


async def read_traits(connection: Connection, cold_s: Mapping[str, float], versions: Mapping[str, str]) -> KnownTraits:
    """What the algorithms of a history cost, by the manifests of the versions that ran last.

    Raises PermissionDenied, Unreachable.
    """
    free = asyncio.Semaphore(_AT_ONCE)

    async def fetch(algorithm: str) -> platform.Options | None:
        body = platform.FetchManifest(version=versions[algorithm])
        async with free:
            try:
                stored = await ask(connection, "registry", "manifest", algorithm, body, platform.StoredManifest)
            except (PermissionDenied, Unreachable):
                raise
            except MeshError:  # it was deleted since
                return None
        return stored.manifest.options

    options = await asyncio.gather(*map(fetch, cold_s))
    known = {
        algorithm: _traits(cold_s[algorithm], found or platform.Options())
        for algorithm, found in zip(cold_s, options, strict=True)
    }
    return KnownTraits(known, sum(found is None for found in options))


def _traits(cold_s: float, options: platform.Options) -> Traits:
    return Traits(
        cold_s,
        gpu=max(options.gpu, _LEAST_GPU),
        linger_s=_LINGER_S if options.gpu > 0 else options.idle_s,
        latency_value=options.latency_value if options.prewarm else 0.0,
    )
