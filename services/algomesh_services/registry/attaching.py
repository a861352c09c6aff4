"""Attaching: who may publish an algorithm may also run an instance of it, wherever that is.

Such an instance (`algomesh serve --exec`) connects with a token that the registry signs, not a launcher; it says which
key asked for it. It is good for an hour, and the instance asks again before that is over, with its token. A key that is
revoked, or may not publish the algorithm any more, gets no further one, and its instances are refused and cut off.
"""

import re
import secrets
import time
from collections.abc import Callable
from typing import Final

import structlog

from algomesh_broker import platform
from algomesh_broker.errors import BadName, Unauthenticated
from algomesh_broker.identity import InstanceClaims, sign_instance_token, verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import ADMIN, PUBLISH, Pattern, Scope
from algomesh_broker.request_server import Refusal
from algomesh_broker.subjects import PlatformRequest
from algomesh_services.registry.keys import KeyRing
from algomesh_services.registry.store import Store

log = structlog.get_logger("algomesh.registry")

LIFETIME_S: Final = 3_600.0
_KNOWN_S: Final = 7 * 86_400.0
_OUTSIDE = re.compile(r"x[a-z0-9]{8}-1", re.ASCII)


class Attacher:
    """Signs with the registry's nkey `seed`, whose public half is `public`."""

    def __init__(
        self, store: Store, keys: KeyRing, seed: bytes, public: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._keys, self._seed, self._public, self._clock = store, keys, seed, public, clock

    async def attach(self, request: PlatformRequest, wanted: platform.Attach) -> platform.Attached:
        """A token for one instance of a published version.

        Raises Refusal (unknown_version, bad_reference, permission_denied), StoreAway.
        """
        try:
            version = VersionId.parse(f"{request.algorithm}/{wanted.version}")
        except BadName as error:
            raise Refusal(error.code, str(error)) from error
        if not may_attach(self._keys, request.caller, version):
            raise Refusal("permission_denied", f"to run {version}, a key needs publish:{version.algorithm}")
        stored = await self._store.manifest(version)
        if stored is None:
            raise Refusal("unknown_version", f"{version} was never published")
        if stored.manifest.pipeline:
            raise Refusal("bad_reference", f"{version} is a named pipeline, which has no instances")
        now = self._clock()
        instance = f"x{secrets.token_hex(4)}-1"
        if wanted.token:
            instance = self._known(wanted.token, version, request.caller, now).instance
        else:
            log.info("instance_attached", instance=instance, version=str(version), caller=request.caller)
        return platform.Attached(
            instance=instance,
            token=sign_instance_token(version, instance, self._seed, by=request.caller, lifetime_s=LIFETIME_S, now=now),
            expires=now + LIFETIME_S,
            route_key=self._public,
            options=stored.manifest.options,
        )

    def _known(self, token: str, version: VersionId, caller: str, now: float) -> InstanceClaims:
        """What the token of this caller's own instance of `version` says. Raises Refusal."""
        try:
            # One that is over connects nobody, and still proves who had it: the registry may have been away for long.
            claims = verify_instance_token(token, [self._public], now - _KNOWN_S)
        except Unauthenticated as error:
            raise Refusal("permission_denied", str(error)) from error
        if claims.version_id != version or claims.by != caller or not _OUTSIDE.fullmatch(claims.instance):
            raise Refusal("permission_denied", f"this token is not that of an instance of {version} that you attached")
        return claims


def may_attach(keys: KeyRing, caller: str, version: VersionId) -> bool:
    """Whether the key of `caller` lives, and may publish this algorithm."""
    wanted = Pattern(version.owner, version.name)
    return any(
        scope.kind == ADMIN or (scope.kind == PUBLISH and scope.pattern.covers(wanted))
        for scope in map(Scope.parse, keys.scopes_of(caller))
    )
