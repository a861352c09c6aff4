"""What the registry does when it is asked: one method per verb.

Who may ask what is the broker's to say (permissions.py), so a method trusts the subject's caller and
algorithm, and nothing that stands in a body. It says no with a Refusal, whose codes are

bad_manifest          a field is out of bounds, or does not fit the subject
name_reserved         the owner is one the mesh keeps for itself
version_exists        versions never change; the sentence says which to publish as
requirements_missing  the mesh's environment lacks packages; each is named
archive_missing       publish came before upload
digest_mismatch       the archive is not what its digest says
archive_too_large     over the limit
storage_failed        the disk is full, or cannot be written
permission_denied     the key may not grant what the version wants to call, not call a route's stages, or not attach
unknown_algorithm, unknown_version, unknown_archive, unknown_key
bad_reference         a pipeline leads back to itself, or a name is no alias
bad_input             a pipeline's stages do not fit one another, or too much is asked at once
key_exists, bad_scope
overloaded            another piece of the same archive is being written

and those that the request server itself has: unknown_verb, unavailable (the database is away; nothing was changed),
overloaded (too many requests at once), internal_error.
"""

import structlog
from msgspec import Struct

from algomesh_broker import platform
from algomesh_broker.errors import BadName
from algomesh_broker.identity import key_id, new_key
from algomesh_broker.names import Reference, Version, VersionId
from algomesh_broker.permissions import CallRights
from algomesh_broker.platform import unpack
from algomesh_broker.request_server import Handler, Refusal
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.registry.archives import Archives
from algomesh_services.registry.attaching import Attacher
from algomesh_services.registry.keys import KeyRing, check_key_name, check_scopes
from algomesh_services.registry.leases import Leases
from algomesh_services.registry.mirror import Mirror
from algomesh_services.registry.pipelines import Pipelines
from algomesh_services.registry.rights import Rights
from algomesh_services.registry.routes import RouteSigner
from algomesh_services.registry.store import AliasRecord, KeyRecord, Store
from algomesh_services.registry.versions import (
    check_alias_set,
    check_calls,
    check_manifest,
    check_requirements,
    next_free,
)

log = structlog.get_logger("algomesh.registry")

_MOST_ASKED = 1_000


class Verbs:
    """The verbs by name in `table`. Each raises Refusal, StoreAway or BrokerError."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        archives: Archives,
        keys: KeyRing,
        rights: Rights,
        routes: RouteSigner,
        attacher: Attacher,
    ) -> None:
        self._store, self._mirror, self._archives, self._keys = store, mirror, archives, keys
        self._leases = Leases()
        self._rights, self._routes, self._pipelines = rights, routes, Pipelines(mirror)
        self._attacher = attacher
        self.table: dict[str, Handler] = {
            "upload": self._upload,
            "publish": self._publish,
            "archive": self._archive,
            "manifest": self._manifest,
            "attach": self._attach,
            "route": self._route,
            "lease": self._lease,
            "may-call": self._may_call,
            "alias-set": self._alias_set,
            "key-create": self._key_create,
            "key-list": self._key_list,
            "key-revoke": self._key_revoke,
        }

    async def _upload(self, request: PlatformRequest, body: bytes) -> Struct:
        upload = unpack(platform.Upload, body)
        return platform.Uploaded(received_bytes=await self._archives.take(upload, request.caller))

    async def _archive(self, _: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.FetchArchive, body)
        return await self._archives.read(wanted.digest, wanted.offset)

    async def _publish(self, request: PlatformRequest, body: bytes) -> Struct:
        publish = unpack(platform.Publish, body)
        manifest = publish.manifest
        version = check_manifest(manifest, request.algorithm)
        scopes = self._keys.scopes_of(request.caller)
        if manifest.pipeline:
            await self._pipelines.check_new(version, publish, CallRights.of_scopes(scopes))
        else:
            check_calls(version, manifest.options.calls, scopes)
            check_requirements(version, manifest.requirements)
            if not manifest.is_outside and not self._archives.has(publish.digest):
                raise Refusal("archive_missing", f"the archive of {version} is not here; upload it, then publish")
        created = await self._store.add_version(version, manifest, publish.digest, request.caller)
        if not created:
            await self._refuse_other_content(version, publish)
        await self._mirror.write(version.owner, version.name)
        log.info("version_published", version=str(version), created=created, caller=request.caller)
        return platform.Published(
            algorithm=version.algorithm, version=str(version.version), digest=publish.digest, created=created
        )

    async def _refuse_other_content(self, version: VersionId, publish: platform.Publish) -> None:
        kept = await self._store.manifest(version)
        if kept == platform.StoredManifest(manifest=publish.manifest, digest=publish.digest):
            return
        published = await self._store.versions(version.owner, version.name)
        free = next_free(version.version, (Version.parse(record.version) for record in published))
        raise Refusal(
            "version_exists",
            f"{version} is published with other content, and a version never changes; "
            f"set its version to {free} and publish again",
        )

    async def _manifest(self, request: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.FetchManifest, body)
        try:
            version = VersionId.parse(f"{request.algorithm}/{wanted.version}")
        except BadName as error:
            raise Refusal(error.code, str(error)) from error
        stored = await self._store.manifest(version)
        if stored is None:
            raise Refusal("unknown_version", f"{version} was never published")
        return stored

    async def _attach(self, request: PlatformRequest, body: bytes) -> Struct:
        return await self._attacher.attach(request, unpack(platform.Attach, body))

    async def _alias_set(self, request: PlatformRequest, body: bytes) -> Struct:
        asked = unpack(platform.AliasSet, body)
        owner, name, _ = Reference.parse(request.algorithm)
        entry = await self._mirror.stored_entry(owner, name)
        check_alias_set(asked, entry, request.algorithm)
        if asked.weights and entry is not None:
            await self._pipelines.check_alias(entry, asked.alias, asked.weights)
            await self._store.set_alias(AliasRecord(owner, name, asked.alias, asked.weights), request.caller)
        else:
            await self._store.remove_alias(owner, name, asked.alias)
        await self._mirror.write(owner, name)
        log.info(
            "alias_set", algorithm=request.algorithm, alias=asked.alias, weights=asked.weights, caller=request.caller
        )
        return platform.Done(count=len(asked.weights))

    async def _route(self, request: PlatformRequest, body: bytes) -> Struct:
        return await self._routes.sign(request.caller, unpack(platform.RouteAsk, body))

    async def _may_call(self, _: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.MayCall, body)
        if len(wanted.algorithms) > _MOST_ASKED:
            raise Refusal("bad_input", f"ask about {_MOST_ASKED:,} algorithms at once at most")
        return platform.MayCalled(algorithms=await self._rights.allowed(wanted.caller, wanted.algorithms))

    async def _lease(self, _: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.Lease, body)
        return platform.Leased(runs=self._leases.take(wanted.root, wanted.runs))

    async def _key_create(self, request: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.KeyCreate, body)
        name, scopes = check_key_name(wanted.name), check_scopes(wanted.scopes)
        key = new_key()
        record = await self._store.add_key(key_id(key), name, self._keys.hash(key), scopes)
        if record is None:
            raise Refusal("key_exists", f"there is a key called {name!r}; take another name, or revoke that one first")
        self._keys.put(record)
        log.info("key_created", key_id=record.id, name=name, scopes=scopes, caller=request.caller)
        return platform.KeyCreated(key=key, id=record.id, name=name, scopes=scopes)

    async def _key_list(self, _: PlatformRequest, body: bytes) -> Struct:
        unpack(platform.KeyList, body)
        return platform.KeyRows(keys=[_row(record) for record in await self._store.keys()])

    async def _key_revoke(self, request: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.KeyRevoke, body).key
        revoked = await self._store.revoke_keys(wanted)
        if not revoked:
            raise Refusal("unknown_key", f"no active key has the id or the name {wanted!r}; see `algomesh key list`")
        # Here from now on; every registry, this one too, hears of the change and closes their connections.
        for record in await self._store.keys():
            if record.id in revoked:
                self._keys.put(record)
        log.info("keys_revoked", key_ids=revoked, caller=request.caller)
        return platform.Done(count=len(revoked))


def _row(record: KeyRecord) -> platform.KeyRow:
    return platform.KeyRow(
        id=record.id,
        name=record.name,
        scopes=list(record.scopes),
        created_at=record.created_at,
        revoked_at=record.revoked_at,
    )
