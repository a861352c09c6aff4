"""Which versions want instances though nobody calls them: those with `min_instances`, the newest of each major number.

Older ones give their places up when a newer one is published; called, they start like any other. The directory does
not say what a version wants, so manifests are fetched, one after the other and in no haste.
"""

import asyncio

import structlog

from algomesh_broker.errors import BrokerError
from algomesh_broker.names import VersionId
from algomesh_services.launcher.bundles import BadArchive, Bundles
from algomesh_services.launcher.provision import as_failure

log = structlog.get_logger("algomesh.launcher")

_RETRY_S = 1.0
_MANY, _PAUSE_S = 100, 0.005  # thousands of manifests are asked for beside the calls, not before them


class Minimums:
    """`floors` are the versions found so far, with how many instances they want."""

    def __init__(self, bundles: Bundles) -> None:
        self.floors: dict[VersionId, int] = {}
        self._bundles = bundles
        self._newest: dict[str, frozenset[VersionId]] = {}
        self._unlearned: dict[VersionId, None] = {}
        self._wake = asyncio.Event()

    def update(self, algorithm: str, versions: list[VersionId]) -> None:
        """These are the versions of `algorithm` now."""
        newest = frozenset({version.version.major: version for version in sorted(versions)}.values())
        for version in self._newest.pop(algorithm, frozenset()) - newest:
            self.floors.pop(version, None)
            self._unlearned.pop(version, None)
        if newest:
            self._newest[algorithm] = newest
        for version in newest:
            self._unlearned.pop(version, None)
            self._unlearned[version] = None
        self._wake.set()

    async def learn(self) -> None:
        """Find out about one version, as soon as there is one to find out about."""
        while not self._unlearned:
            self._wake.clear()
            await self._wake.wait()
        version, _ = self._unlearned.popitem()  # what was published just now comes before what a start has found
        if len(self._unlearned) > _MANY:
            await asyncio.sleep(_PAUSE_S)
        try:
            manifest = await self._bundles.manifest(version)
        except (BrokerError, BadArchive) as error:
            log.warning("manifest_missing", version=str(version), error=str(error))
            if as_failure(version, error).blame == "machine":
                self._unlearned[version] = None
                await asyncio.sleep(_RETRY_S)
            return
        if version not in self._newest.get(version.algorithm, ()):
            return  # a newer one was published meanwhile
        if manifest.options.min_instances > 0:
            self.floors[version] = manifest.options.min_instances
        else:
            self.floors.pop(version, None)
