"""What callers may call: keys by their scopes, versions by the calls they were granted.

Everything is looked up in memory; only what memory does not have yet, since another registry made it a moment ago, is
asked of PostgreSQL.
"""

from collections.abc import Awaitable, Callable, Iterable

from algomesh_broker.names import Reference, check_caller
from algomesh_broker.permissions import CallRights
from algomesh_broker.request_server import Refusal
from algomesh_services.registry.callout import Grants
from algomesh_services.registry.keys import KeyRing


class Rights:
    """`find_key` and `find_version` look up in PostgreSQL what memory does not have, and raise StoreAway."""

    def __init__(
        self,
        keys: KeyRing,
        versions: Grants,
        *,
        find_key: Callable[[str], Awaitable[object]],
        find_version: Callable[[str], Awaitable[object]],
    ) -> None:
        self._keys, self._versions = keys, versions
        self._find_key, self._find_version = find_key, find_version

    async def of_key(self, caller: str) -> CallRights:
        """What the key `k~<id>` may call: nothing, if there is no such key. Raises StoreAway."""
        id_ = caller.removeprefix("k~")
        if not self._keys.knows(id_):
            await self._find_key(id_)
        return CallRights.of_scopes(self._keys.scopes_of(caller))

    async def calls_of(self, version: str) -> tuple[str, ...]:
        """The patterns of what an instance of `owner/name/1.2.0` may call.

        Raises Refusal (unknown_version), StoreAway.
        """
        calls = self._versions.calls_of(version)
        if calls is None:
            await self._find_version(version)
            calls = self._versions.calls_of(version)
        if calls is None:
            raise Refusal("unknown_version", f"{version} was never published")
        return calls

    async def allowed(self, caller: str, algorithms: Iterable[str]) -> list[str]:
        """Those of `algorithms` (`owner/name`) that a caller, `k~<id>` or `owner~name` in some version, may call.

        Raises BadName for what is no caller or no algorithm, StoreAway.
        """
        wanted = [Reference.parse(algorithm) for algorithm in algorithms]
        if check_caller(caller).startswith("k~"):
            rights = await self.of_key(caller)
        else:
            algorithm = caller.replace("~", "/")
            calls = self._versions.calls_of_any(algorithm)
            if calls is None:
                await self._find_version(f"{algorithm}/0.0.0")  # finds all of its versions
                calls = self._versions.calls_of_any(algorithm)
            rights = CallRights.of_patterns(calls or ())
        return [each.algorithm for each in wanted if rights.covers(each.owner, each.name)]

    def is_pipeline(self, version: str) -> bool:
        """Whether `owner/name/1.2.0` is a named pipeline, which has no instances."""
        return self._versions.is_pipeline(version)
