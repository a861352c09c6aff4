"""Answers nats-server when somebody connects: who is this, and what may they do.

A known key is answered inside the read, in about a millisecond. An unknown one is looked up once in
PostgreSQL, since another registry may have made it a moment ago. What is refused is logged with its
reason, at most a few times a second, and never with the key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from algomesh_broker import permissions
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BadName, Unauthenticated
from algomesh_broker.identity import caller_of_id, is_instance_token, key_id, verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.usertoken import AuthRequest, Issuer, read_request
from algomesh_services.postgres_pool import StoreAway
from algomesh_services.registry.attaching import may_attach
from algomesh_services.registry.keys import KeyRing
from algomesh_services.registry.metrics import AUTH_SECONDS
from algomesh_services.registry.store import KeyRecord, VersionRecord

log = structlog.get_logger("algomesh.registry")

QUEUE = "registry"
_LOOKUPS_AT_ONCE = 16
_LOGGED_A_SECOND = 5


class Grants:
    """What every published version may call, and which of them are pipelines, in memory. Its length: how many."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, ...]] = {}
        self._calls_of_any: dict[str, frozenset[str]] = {}
        self._pipelines: set[str] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, record: VersionRecord) -> None:
        """Know a version."""
        version = f"{record.owner}/{record.name}/{record.version}"
        self._calls[version] = record.calls
        algorithm = f"{record.owner}/{record.name}"
        self._calls_of_any[algorithm] = self._calls_of_any.get(algorithm, frozenset()).union(record.calls)
        if record.pipeline:
            self._pipelines.add(version)

    def is_pipeline(self, version: str) -> bool:
        """Whether `owner/name/1.2.0` is a named pipeline, which has no instances."""
        return version in self._pipelines

    def calls_of(self, version: str) -> tuple[str, ...] | None:
        """What `owner/name/1.2.0` may call; None when it was never published."""
        return self._calls.get(version)

    def calls_of_any(self, algorithm: str) -> frozenset[str] | None:
        """What some version of `owner/name` may call; None when none was ever published."""
        return self._calls_of_any.get(algorithm)


class Callout:
    """One registry's share of the connections; `find_key` and `find_version` ask PostgreSQL."""

    def __init__(
        self,
        connection: Connection,
        issuer: Issuer,
        launchers: tuple[str, ...],
        keys: KeyRing,
        grants: Grants,
        *,
        find_key: Callable[[str], Awaitable[KeyRecord | None]],
        find_version: Callable[[str], Awaitable[object]],
        session_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._issuer = issuer
        self._launchers = launchers
        self._keys, self._grants = keys, grants
        self._find_key, self._find_version = find_key, find_version
        self._session_s = session_s
        self._clock = clock
        self._lookups: set[asyncio.Task[None]] = set()
        self._logged_second, self._logged = 0, 0

    async def serve(self) -> None:
        """Begin to answer. Raises Forbidden, Unreachable."""
        await self._connection.subscribe(permissions.AUTH_REQUESTS, self._on_request, QUEUE)

    async def close(self) -> None:
        """Give up the lookups under way; nats-server then refuses those connections, and they try again."""
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)

    def _on_request(self, message: Message) -> None:
        if message.subject != permissions.AUTH_REQUESTS:
            return  # steered here by somebody's reply field; the server's own requests look like this
        began = time.perf_counter()
        try:
            request = read_request(message.data)
        except BadMessage as error:
            self._log("authorization_request_unreadable", reason=str(error))
            return
        missing = self._missing(request.token)
        if missing is None or len(self._lookups) >= _LOOKUPS_AT_ONCE:
            self._answer(message.reply, request, began)
            return
        task = asyncio.create_task(self._look_up(missing, message.reply, request, began), name="registry-key-lookup")
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def _missing(self, token: str) -> Callable[[], Awaitable[object]] | None:
        """How to look up what memory does not have for this token; None when there is nothing to look up."""
        try:
            if is_instance_token(token):
                version = str(self._claims(token)[0])
                return None if self._grants.calls_of(version) is not None else lambda: self._find_version(version)
            id_ = key_id(token)
        except Unauthenticated:
            return None
        return None if self._keys.knows(id_) else lambda: self._find_key(id_)

    async def _look_up(
        self, find: Callable[[], Awaitable[object]], reply: str, request: AuthRequest, began: float
    ) -> None:
        try:
            async with asyncio.timeout(1.0):
                await find()
        except (StoreAway, TimeoutError):
            self._log("authorization_lookup_failed", host=request.host)
        self._answer(reply, request, began)

    def _answer(self, reply: str, request: AuthRequest, began: float) -> None:
        now, said = self._clock(), "accepted"
        try:
            name, allowed, expires = self._decide(request.token, now)
        except (Unauthenticated, BadName) as error:
            said = "refused"
            self._log("connection_refused", reason=str(error), host=request.host)
            self._connection.publish(reply, self._issuer.refuse(request, str(error), now=now))
        else:
            self._connection.publish(reply, self._issuer.accept(request, name, allowed, expires, now=now))
        token = "instance" if is_instance_token(request.token) else "key"
        AUTH_SECONDS.observe(time.perf_counter() - began, token, said)

    def _decide(self, token: str, now: float) -> tuple[str, permissions.Permissions, float]:
        if not is_instance_token(token):
            record = self._keys.check(token)
            return caller_of_id(record.id), permissions.of_key(record.id, record.scopes), now + self._session_s
        version, instance, expires, by = self._claims(token)
        if by and not may_attach(self._keys, by, version):
            raise Unauthenticated(f"the key {by} that attached {instance} may not do so any more")
        calls = self._grants.calls_of(str(version))
        if calls is None:
            raise Unauthenticated(f"{version} was never published")
        if self._grants.is_pipeline(str(version)):
            raise Unauthenticated(f"{version} is a named pipeline, which has no instances")
        allowed = permissions.of_instance(version, instance, calls)
        # Under the key's name its connections end with the key (eviction.py).
        return by or version.caller, allowed, min(expires, now + self._session_s)

    def _claims(self, token: str) -> tuple[VersionId, str, float, str]:
        claims = verify_instance_token(token, self._launchers, self._clock())
        return claims.version_id, claims.instance, claims.expires, claims.by

    def _log(self, event: str, **fields: object) -> None:
        second = int(time.monotonic())
        if second != self._logged_second:
            if self._logged > _LOGGED_A_SECOND:
                log.warning("log_lines_left_out", count=self._logged - _LOGGED_A_SECOND)
            self._logged_second, self._logged = second, 0
        self._logged += 1
        if self._logged <= _LOGGED_A_SECOND:
            log.warning(event, **fields)
