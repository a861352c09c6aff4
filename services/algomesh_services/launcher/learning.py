"""Reads the manifests of versions that are to be launched, each once for all who want it meanwhile."""

import asyncio
from collections.abc import Callable

from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_services.launcher.bundles import BadArchive, Bundles
from algomesh_services.launcher.instance import StartFailed
from algomesh_services.launcher.provision import as_failure

AHEAD_AT_ONCE = 16


class Learning:
    """`on_known` is told the version whose manifest is in memory now, and whether a call waits for it."""

    def __init__(
        self,
        bundles: Bundles,
        on_known: Callable[[VersionId, bool], None],
        on_failed: Callable[[VersionId, StartFailed], None],
    ) -> None:
        self._bundles, self._on_known, self._on_failed = bundles, on_known, on_failed
        self._tasks: dict[VersionId, asyncio.Task[None]] = {}
        self._called: set[VersionId] = set()

    def begin(self, version: VersionId) -> None:
        """Read the manifest of a version that was called."""
        self._called.add(version)
        self._start(version)

    def begin_ahead(self, version: VersionId) -> None:
        """Read the manifest of one that is only expected; not now when many are being read."""
        if len(self._tasks) < AHEAD_AT_ONCE:
            self._start(version)

    async def close(self) -> None:
        """Read no more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, version: VersionId) -> None:
        if version not in self._tasks:
            self._tasks[version] = asyncio.get_running_loop().create_task(self._learn(version), name=f"learn {version}")

    async def _learn(self, version: VersionId) -> None:
        failure: StartFailed | None = None
        try:
            await self._bundles.manifest(version)
        except (BrokerError, BadArchive) as error:
            failure = as_failure(version, error)
        finally:
            self._tasks.pop(version, None)
            is_called = version in self._called
            self._called.discard(version)
        if failure is None:
            self._on_known(version, is_called)
        else:
            self._on_failed(version, failure)
