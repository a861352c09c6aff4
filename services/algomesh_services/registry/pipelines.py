"""Whether a named pipeline may be published, or an alias lead to one: stages that are there, no way back to itself.

A pipeline is data: nothing of its author's is imported here. It is compiled as a caller would compile it, against
the directory as it would be with the new version, or the new alias, in it.
"""

import asyncio
import hashlib
from functools import partial

from msgspec.structs import replace

from algomesh.compiling import compile_route
from algomesh.errors import MeshError
from algomesh.pipeline import Pipeline, Stage
from algomesh_broker.directory import Known, Resolved, UnknownAlgorithm, UnknownVersion
from algomesh_broker.errors import BrokerError
from algomesh_broker.messages import AlgorithmEntry, VersionEntry
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.permissions import CallRights
from algomesh_broker.platform import Publish
from algomesh_broker.request_server import Refusal
from algomesh_broker.route import Route
from algomesh_services.registry.mirror import Mirror

_MOST_BYTES = 768 * 1024  # of all pipelines of one name: they travel in one message, which some servers hold to 1 MiB
_MOST_NAMED = 5


class Pipelines:
    """Checks against the directory that `mirror` writes."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    async def check_new(self, version: VersionId, publish: Publish, rights: CallRights) -> None:
        """Whether this pipeline may be published by who has these `rights`. Raises Refusal, StoreAway."""
        data = publish.manifest.pipeline
        if hashlib.sha256(data).hexdigest() != publish.digest:
            raise Refusal("digest_mismatch", f"the pipeline {version} is not what its digest says; publish it again")
        try:
            await asyncio.to_thread(Pipeline.from_json, data)
        except MeshError as error:
            raise Refusal("bad_manifest", f"{version}: {error}") from error
        entry = await self._mirror.stored_entry(version.owner, version.name)
        others = [] if entry is None else [each for each in entry.versions if each.version != str(version.version)]
        if len(data) + sum(len(each.pipeline) for each in others) > _MOST_BYTES:
            raise Refusal("bad_manifest", f"{version.algorithm} has too many long pipelines; take another name for it")
        added = VersionEntry(version=str(version.version), pipeline=data)
        entry = AlgorithmEntry(
            owner=version.owner,
            name=version.name,
            versions=[*others, added],
            aliases={} if entry is None else entry.aliases,
        )
        route = await self._compiled(version, entry)
        refused = list(dict.fromkeys(v.algorithm for v in route.versions if not rights.covers(v.owner, v.name)))
        if refused:
            named = ", ".join(refused[:_MOST_NAMED]) + (", …" if len(refused) > _MOST_NAMED else "")
            raise Refusal(
                "permission_denied",
                f"{version} has stages that the publishing key may not call itself: {named}; "
                f"publish with a key that has {' '.join(f'call:{name}' for name in refused[:_MOST_NAMED])}",
            )

    async def check_alias(self, entry: AlgorithmEntry, alias: str, weights: dict[str, int]) -> None:
        """Whether an alias of the algorithm that `entry` is may mean this. Raises Refusal, StoreAway."""
        entry = replace(entry, aliases={**entry.aliases, alias: weights})
        for each in entry.versions:
            if each.pipeline and each.version in weights:
                await self._compiled(VersionId.parse(f"{entry.owner}/{entry.name}/{each.version}"), entry)

    async def _compiled(self, version: VersionId, entry: AlgorithmEntry) -> Route:
        """The route of a named pipeline, in a directory that has this `entry`. Raises Refusal, StoreAway."""
        known = {version.algorithm: Known(entry)}
        while True:
            try:
                return await asyncio.to_thread(compile_route, Stage(str(version)), partial(self._resolve, known))
            except (UnknownAlgorithm, UnknownVersion) as error:
                # The directory may be a moment behind another registry.
                found = None
                if error.algorithm not in known:
                    found = await self._mirror.stored_entry(*error.algorithm.split("/"))
                if found is None:
                    raise Refusal(error.code, f"{version} has a stage that is not there: {error}") from error
                known[error.algorithm] = Known(found)
            except (MeshError, BrokerError) as error:
                raise Refusal(error.code, f"{version}: {error}") from error

    def _resolve(self, known: dict[str, Known], reference: Reference) -> Resolved:
        """What a reference means; of an alias that means several versions, rather one that leads on.

        In a thread: it reads the directory, and writes nothing there.
        """
        found = known.get(reference.algorithm)
        if found is None:
            entry = self._mirror.directory.entry(reference.algorithm)
            if entry is None or not entry.versions:
                raise UnknownAlgorithm(reference.algorithm, [])
            found = Known(entry)
        if reference.is_alias:
            for target in found.targets(reference.version):
                if target.entry.pipeline:
                    return target
        return found.find(reference)[0]
