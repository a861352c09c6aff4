"""Which versions want instances though nobody calls them: those with `min_instances`, the newest of each major number.

Older ones give their places up when a newer one is published; called, they start like any other. The directory says
how many a version wants; its manifest, which a launch needs, is fetched here, so that no call has to come first.
"""

import asyncio
from collections.abc import Mapping

import structlog

from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_services.launcher.bundles import BadArchive, Bundles
from algomesh_services.launcher.provision import as_failure

log = structlog.get_logger("algomesh.launcher")

_RETRY_S = 1.0


class Minimums:
    """`floors` are the versions found so far, with how many instances they want."""

    def __init__(self, bundles: Bundles) -> None:
        self.floors: dict[VersionId, int] = {}
        self._bundles = bundles
        self._wanted: dict[str, frozenset[VersionId]] = {}
        self._unlearned: dict[VersionId, None] = {}
        self._wake = asyncio.Event()

    def update(self, algorithm: str, versions: Mapping[VersionId, int]) -> None:
        """These are the versions of `algorithm` now, and how many instances each wants."""
        newest = {version.version.major: version for version in sorted(versions)}.values()
        wanted = frozenset(version for version in newest if versions[version] > 0)
        for version in self._wanted.pop(algorithm, frozenset()) - wanted:
            self.floors.pop(version, None)
            self._unlearned.pop(version, None)
        if wanted:
            self._wanted[algorithm] = wanted
            self._unlearned.update(dict.fromkeys(wanted))
            self._wake.set()

    async def learn(self) -> None:
        """Find out about one version, as soon as there is one to find out about."""
        while not self._unlearned:
            self._wake.clear()
            await self._wake.wait()
        version, _ = self._unlearned.popitem()
        try:
            manifest = await self._bundles.manifest(version)
        except (BrokerError, BadArchive) as error:
            log.warning("manifest_missing", version=str(version), error=str(error))
            if as_failure(version, error).blame == "machine":
                self._unlearned[version] = None
                await asyncio.sleep(_RETRY_S)
            return
        if version in self._wanted.get(version.algorithm, ()):  # else a newer one was published meanwhile
            self.floors[version] = manifest.options.min_instances
