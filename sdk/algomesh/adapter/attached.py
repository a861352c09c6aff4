"""An instance that no launcher started: it runs in this process for as long as its user wants, and answers calls of one
version like any other.

The registry gives it a token for the user's key. It says once a second that it lives, so launchers show it and count on
it, and asks for a new token long before the old one is over.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, cast

from algomesh import errors
from algomesh.decorator import Algorithm
from algomesh.instance.runner import Runner
from algomesh.instance.watch import SIZE_BYTES, WatchReader, WatchWriter
from algomesh.nats_transport import translate
from algomesh.publishing import publish_outside
from algomesh.requests import ask
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.messages import LeasePhase
from algomesh_broker.names import Version, VersionId
from algomesh_broker.platform import Attach, Attached, Manifest
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.adapter")

Function = Callable[[Any], Awaitable[Any]]

LEASE_S: Final = 1.0
_RENEW_AT: Final = 0.5
_RENEW_AGAIN_S: Final = 5.0
_DRAIN_S: Final = 30.0


async def serve(
    connection: Connection,
    url: str,
    manifest: Manifest,
    function: Function,
    stop: asyncio.Event,
    *,
    on_ready: Callable[[str, bool], None] = lambda instance, is_new: None,
) -> None:
    """Publish `manifest` unless it is, and be an instance of it at the server `url` until `stop` is set; then drain.

    `connection` is that of the user's key; `function` gets each input as a plain value, and is cancelled when its run
    is given up. `on_ready` is told the instance's id, and whether the version is new. Raises VersionExists,
    PermissionDenied, BadProject, Unreachable.
    """
    version = VersionId(manifest.owner, manifest.name, Version.parse(manifest.version))
    published = await publish_outside(connection, manifest)
    wanted = Attach(version=str(version.version))
    attached = await ask(connection, "registry", "attach", version.algorithm, wanted, Attached)
    identity = Identity.of_instance(attached.token, version, attached.instance)
    try:
        own = await Connection.open(url, identity, name=attached.instance)
    except BrokerError as error:
        raise translate(error) from error
    async with own:
        instance = AttachedInstance(own, connection, version, attached, function)
        await instance.open()
        on_ready(attached.instance, published.created)
        try:
            await stop.wait()
        finally:
            await instance.drain()


class AttachedInstance:
    """One instance on a connection of its own; `asking` is the connection of the key that attached it."""

    def __init__(
        self, connection: Connection, asking: Connection, version: VersionId, attached: Attached, function: Function
    ) -> None:
        self._connection, self._asking = connection, asking
        self._version, self._attached = version, attached
        page = bytearray(SIZE_BYTES)
        self._watch, self._seen = WatchWriter(page), WatchReader(page)
        boot = Boot(
            instance=attached.instance,
            launcher="",
            owner=version.owner,
            name=version.name,
            version=str(version.version),
            folder="",
            entry="",
            nats_url="",
            token=attached.token,
            options=attached.options,
            launched_ns=time.monotonic_ns(),
            reason="attached",
            route_key=attached.route_key,
        )
        self._runner = Runner(
            connection, _algorithm(function, version, attached), boot, self._watch, time.monotonic_ns()
        )
        self._phase: LeasePhase = "connecting"
        self._drain_s = _DRAIN_S if boot.options.timeout_s is None else min(_DRAIN_S, boot.options.timeout_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Take calls from now on."""
        # Before its first call: its first lease has the consumer made that it pulls parked calls from.
        self._enter("connecting")
        await self._runner.open()
        self._enter("ready")
        self._tasks = [
            asyncio.create_task(self._say_often(), name="lease"),
            asyncio.create_task(self._renew(), name="renew-token"),
        ]

    async def drain(self) -> None:
        """Take no more, finish what runs, say goodbye."""
        self._enter("draining")
        await self._runner.drain(self._drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._enter("ended")
        with contextlib.suppress(BrokerError):
            await self._connection.flush()

    def _enter(self, phase: LeasePhase) -> None:
        self._phase = phase
        self._say()

    def _say(self) -> None:
        deadline_ns = self._seen.deadline_ns
        lease = messages.InstanceLease(
            instance=self._attached.instance,
            phase=self._phase,
            active=self._seen.active,
            total=self._seen.runs_total,
            overdue_ms=max(0, time.monotonic_ns() - deadline_ns) // 1_000_000 if deadline_ns else 0,
            token=self._attached.token,
        )
        if self._connection.is_connected:  # an old one would be no news
            with contextlib.suppress(BrokerError):
                self._connection.publish(subjects.lease(self._attached.instance), codec.encode(lease))

    async def _say_often(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S)
            self._say()

    async def _renew(self) -> None:
        """Ask for the next token when half of this one's time is over, and again until it is there."""
        while True:
            await asyncio.sleep(max(0.0, (self._attached.expires - time.time()) * _RENEW_AT))
            await self._renew_once()

    async def _renew_once(self) -> None:
        wanted = Attach(version=str(self._version.version), token=self._attached.token)
        try:
            self._attached = await ask(self._asking, "registry", "attach", self._version.algorithm, wanted, Attached)
        except errors.MeshError as error:
            log.warning("token_not_renewed", instance=self._attached.instance, error=str(error))
            await asyncio.sleep(_RENEW_AGAIN_S)
        else:  # shown when the connection is made the next time
            self._connection.identity = replace(self._connection.identity, token=self._attached.token)


def _algorithm(function: Function, version: VersionId, attached: Attached) -> Algorithm[Any, Any]:
    async def run(value):  # type: ignore[no-untyped-def]  # what has no annotation takes whatever comes
        return await function(value)

    return cast("Algorithm[Any, Any]", Algorithm(run, version, attached.options))
