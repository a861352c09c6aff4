"""What versions want (their options), asked of the registry once for each: a version never changes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Set

import structlog

from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options

log = structlog.get_logger("algomesh.prewarmer")

LEAST_WEIGHT = 0.05
"""In GPUs: what an instance costs that needs none. Memory and a process are not free either."""

_MOST = 20_000
_AT_ONCE = 16
_AGAIN_S = 5.0  # a version that the registry does not know, or did not answer about


class Manifests:
    """Options by version (`owner/name/1.2.0`). `fetch` asks the registry, and raises BrokerError.

    `on_known` is called with each version that becomes known. `latency_value` is the mesh's own.
    """

    def __init__(
        self,
        fetch: Callable[[VersionId], Awaitable[Options]],
        on_known: Callable[[str], None],
        latency_value: float,
    ) -> None:
        self._fetch, self._on_known, self._latency_value = fetch, on_known, latency_value
        self._known: OrderedDict[str, Options] = OrderedDict()
        self._of: dict[str, set[str]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._not_before: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._loop = asyncio.get_running_loop()
        self._off: dict[str, None] = {}

    def options(self, version: str) -> Options | None:
        """What a version wants; None while that is not known, and then it is asked for."""
        found = self._known.get(version)
        if found is None:
            self._ask(version)
        return found

    def weight(self, version: str) -> float:
        """GPUs that an instance takes; 1 while that is not known."""
        options = self.options(version)
        return 1.0 if options is None else max(LEAST_WEIGHT, options.gpu)

    def latency_value(self, version: str) -> float:
        """What a second of latency is worth for it; 0 where the pre-warmer is to leave it alone."""
        options = self.options(version)
        if options is None:
            return self._latency_value
        if not options.prewarm:
            return 0.0
        return self._latency_value if options.latency_value is None else max(0.0, options.latency_value)

    def is_off(self, version: str) -> bool:
        """Whether the pre-warmer is to leave it alone."""
        return version in self._off

    @property
    def off(self) -> list[str]:
        """The versions that are left alone."""
        return list(self._off)

    def keep_only(self, algorithm: str, versions: Set[str]) -> None:
        """These are the versions of an algorithm. Others are deleted: nothing is known of them, and nothing asked."""
        for version in self._of.get(algorithm, set()) - versions:
            self._forget(version)
            self._deleted[version] = None
        for version in versions:
            self._deleted.pop(version, None)
        while len(self._deleted) > _MOST:
            self._deleted.popitem(last=False)
        for version, task in list(self._asking.items()):
            if version.rpartition("/")[0] == algorithm and version not in versions:
                task.cancel()

    async def close(self) -> None:
        """Give up what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _ask(self, version: str) -> None:
        if version in self._asking or version in self._deleted or len(self._asking) >= _MOST:
            return
        if self._loop.time() < self._not_before.get(version, 0.0):
            return
        task = asyncio.create_task(self._learn(version), name=f"prewarmer-manifest-{version}")
        self._asking[version] = task
        task.add_done_callback(lambda _: self._asking.pop(version, None))

    async def _learn(self, version: str) -> None:
        try:
            async with self._slots:
                options = await self._fetch(VersionId.parse(version))
        except BrokerError as error:
            log.debug("manifest_not_known", version=version, error=str(error))
            if len(self._not_before) >= _MOST:
                self._not_before.clear()
            self._not_before[version] = self._loop.time() + _AGAIN_S
            return
        self._not_before.pop(version, None)
        self._known[version] = options
        self._of.setdefault(version.rpartition("/")[0], set()).add(version)
        if len(self._known) > _MOST:
            self._forget(next(iter(self._known)))
        if self.latency_value(version) <= 0.0:
            self._off[version] = None
        self._on_known(version)

    def _forget(self, version: str) -> None:
        self._known.pop(version, None)
        self._off.pop(version, None)
        algorithm = version.rpartition("/")[0]
        self._of[algorithm].discard(version)
        if not self._of[algorithm]:
            del self._of[algorithm]
