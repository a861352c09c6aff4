"""The stream of parked calls as the launcher uses it: it makes stream and consumers, counts by version, and purges.

The stream lives in the server's memory, and with it its consumers: after every reconnect `ensure` is called again, and
consumers are made anew when they are next needed. Every method raises StreamError when JetStream says no, Unreachable
when it says nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping

import structlog

from algomesh_broker import subjects
from algomesh_broker.errors import BadMessage
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin

log = structlog.get_logger("algomesh.launcher")

_AT_ONCE = 8


class Parking:
    """The stream `parked`, by version. `counted` is what `waiting` found last."""

    def __init__(self, admin: JetStreamAdmin) -> None:
        self._admin = admin
        self.counted: Counter[VersionId] = Counter()
        self._consumers: set[VersionId] = set()
        self._changing: dict[VersionId, asyncio.Task[None]] = {}

    @property
    def consumers(self) -> frozenset[VersionId]:
        """The versions whose consumer this launcher made."""
        return frozenset(self._consumers)

    async def ensure(self) -> None:
        """Make the stream unless it is there; consumers made before are no longer relied on."""
        self._consumers.clear()
        if await self._admin.ensure_parked():
            log.info("stream_created", stream=subjects.PARKED_STREAM)

    async def ensure_consumer(self, version: VersionId) -> None:
        """Make the version's consumer unless this has been done; its instances pull from it."""
        while (changing := self._changing.get(version)) is not None:
            await asyncio.wait({changing})
        if version not in self._consumers:
            await self._change(version, self._make(version))

    async def remove_consumer(self, version: VersionId) -> None:
        """Remove the consumer that `ensure_consumer` made; what is parked stays."""
        if version in self._consumers and version not in self._changing:
            self._consumers.discard(version)
            await self._change(version, self._remove(version))

    async def waiting(self) -> Counter[VersionId]:
        """How many calls are parked, by version."""
        self.counted = _by_version(await self._admin.pending_parked())
        return self.counted

    async def waiting_for(self, versions: Iterable[VersionId]) -> Counter[VersionId]:
        """The same for some versions only."""
        wanted = list(versions)
        if len(wanted) > _AT_ONCE:
            every = await self.waiting()
            return Counter({version: every[version] for version in wanted})
        total: Counter[VersionId] = Counter()
        for counted in await asyncio.gather(*map(self._admin.pending_parked, wanted)):
            total.update(_by_version(counted))
        return total

    async def purge(self, version: VersionId) -> int:
        """Drop the version's parked calls; return how many there were."""
        return await self._admin.purge_parked(version)

    async def _make(self, version: VersionId) -> None:
        await self._admin.ensure_version(version)
        self._consumers.add(version)

    async def _remove(self, version: VersionId) -> None:
        await self._admin.delete_version(version)

    async def _change(self, version: VersionId, doing: Coroutine[object, object, None]) -> None:
        """One change of one consumer at a time: the server may do two requests in either order."""
        task = self._changing[version] = asyncio.get_running_loop().create_task(doing, name=f"consumer of {version}")
        task.add_done_callback(lambda done: self._changed(version, done))
        await asyncio.shield(task)

    def _changed(self, version: VersionId, done: asyncio.Task[None]) -> None:
        self._changing.pop(version, None)
        if not done.cancelled():
            done.exception()  # read: whoever waited may have gone


def _by_version(counts: Mapping[str, int]) -> Counter[VersionId]:
    found: Counter[VersionId] = Counter()
    for subject, count in counts.items():
        try:
            found[subjects.parse_work(subject).version] += count
        except BadMessage:  # no permission lets anybody park it, but a server's operator could
            log.warning("parked_subject_unknown", subject=subject)
    return found
