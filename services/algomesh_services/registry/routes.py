"""Route tokens: whether a caller may have a route travelled, and the registry's signature on it.

Asked once per pipeline and caller, never per call. Everything is looked up in memory; only what memory does not have
yet, since another registry made it a moment ago, is asked of PostgreSQL.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from algomesh_broker import grants, platform
from algomesh_broker.identity import verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import CallRights
from algomesh_broker.request_server import Refusal
from algomesh_broker.route import Route
from algomesh_services.registry.callout import Grants
from algomesh_services.registry.keys import KeyRing

_SHORT_BYTES = 4_096  # longer ones are read in a thread: 4,096 steps take 30 ms
_MOST_NAMED = 5


class RouteSigner:
    """Signs routes with the registry's nkey `seed`; `launchers` are the public nkeys that instance tokens bear."""

    def __init__(
        self,
        seed: bytes,
        launchers: tuple[str, ...],
        keys: KeyRing,
        versions: Grants,
        *,
        find_key: Callable[[str], Awaitable[object]],
        find_version: Callable[[str], Awaitable[object]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._seed, self._launchers = seed, launchers
        self._keys, self._versions = keys, versions
        self._find_key, self._find_version = find_key, find_version
        self._clock = clock

    async def sign(self, caller: str, ask: platform.RouteAsk) -> platform.RouteGrant:
        """The token with which `caller`, as the subject says it, may have this route travelled.

        Raises Refusal (permission_denied, unknown_version), Unauthenticated for a bad instance token, BadMessage for
        what is no route, StoreAway.
        """
        if len(ask.route) <= _SHORT_BYTES:
            route = Route.decode(ask.route)
        else:
            route = await asyncio.to_thread(Route.decode, ask.route)
        rights = await self._rights_of(caller, ask.token)
        for version in route.versions:
            await self._calls_of(str(version))
            if self._versions.is_pipeline(str(version)):
                raise Refusal(
                    "bad_reference", f"{version} is a named pipeline; its sender puts its stages in its place"
                )
        self._check(caller, rights, route.versions)
        grant, expires = grants.sign_route(caller, ask.route, self._seed, lifetime_s=ask.lifetime_s, now=self._clock())
        return platform.RouteGrant(grant=grant, expires=expires)

    async def _rights_of(self, caller: str, token: str) -> CallRights:
        if caller.startswith("k~"):
            if not self._keys.knows(caller.removeprefix("k~")):
                await self._find_key(caller.removeprefix("k~"))
            return CallRights.of_scopes(self._keys.scopes_of(caller))
        claims = verify_instance_token(token, self._launchers, self._clock())
        version = claims.version_id
        if version.caller != caller:
            raise Refusal("permission_denied", f"the token of an instance of {version} was sent by {caller}")
        return CallRights.of_patterns(await self._calls_of(str(version)))

    async def _calls_of(self, version: str) -> tuple[str, ...]:
        calls = self._versions.calls_of(version)
        if calls is None:
            await self._find_version(version)
            calls = self._versions.calls_of(version)
        if calls is None:
            raise Refusal("unknown_version", f"{version} was never published")
        return calls

    @staticmethod
    def _check(caller: str, rights: CallRights, versions: Iterable[VersionId]) -> None:
        refused = list(dict.fromkeys(v.algorithm for v in versions if not rights.covers(v.owner, v.name)))
        if not refused:
            return
        named = ", ".join(refused[:_MOST_NAMED]) + (", …" if len(refused) > _MOST_NAMED else "")
        who = "this key" if caller.startswith("k~") else f"{caller.replace('~', '/')} as it was published"
        raise Refusal("permission_denied", f"{who} may not call {named}, which this pipeline has among its stages")
