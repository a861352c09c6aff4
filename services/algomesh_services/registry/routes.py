"""Route tokens: whether a caller may have a route travelled, and the registry's signature on it.

Asked once per pipeline and caller, never per call.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from algomesh_broker import grants, platform
from algomesh_broker.identity import verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import CallRights
from algomesh_broker.request_server import Refusal
from algomesh_broker.route import Route
from algomesh_services.registry.rights import Rights

_SHORT_BYTES = 4_096  # longer ones are read in a thread: 4,096 steps take 30 ms
_MOST_NAMED = 5


class RouteSigner:
    """Signs routes with the registry's nkey `seed`; `launchers` are the public nkeys that instance tokens bear."""

    def __init__(
        self, seed: bytes, launchers: tuple[str, ...], rights: Rights, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._seed, self._launchers, self._rights, self._clock = seed, launchers, rights, clock

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
            await self._rights.calls_of(str(version))
            if self._rights.is_pipeline(str(version)):
                raise Refusal(
                    "bad_reference", f"{version} is a named pipeline; its sender puts its stages in its place"
                )
        self._check(caller, rights, route.versions)
        grant, expires = grants.sign_route(caller, ask.route, self._seed, lifetime_s=ask.lifetime_s, now=self._clock())
        return platform.RouteGrant(grant=grant, expires=expires)

    async def _rights_of(self, caller: str, token: str) -> CallRights:
        if caller.startswith("k~"):
            return await self._rights.of_key(caller)
        claims = verify_instance_token(token, self._launchers, self._clock())
        version = claims.version_id
        if version.caller != caller:
            raise Refusal("permission_denied", f"the token of an instance of {version} was sent by {caller}")
        return CallRights.of_patterns(await self._rights.calls_of(str(version)))

    @staticmethod
    def _check(caller: str, rights: CallRights, versions: Iterable[VersionId]) -> None:
        refused = list(dict.fromkeys(v.algorithm for v in versions if not rights.covers(v.owner, v.name)))
        if not refused:
            return
        named = ", ".join(refused[:_MOST_NAMED]) + (", …" if len(refused) > _MOST_NAMED else "")
        who = "this key" if caller.startswith("k~") else f"{caller.replace('~', '/')} as it was published"
        raise Refusal("permission_denied", f"{who} may not call {named}, which this pipeline has among its stages")
