"""Calls straight over NATS."""

import asyncio
import random
import time
from typing import Self

from algomesh import errors
from algomesh.content import Content
from algomesh.lane import Lane, Order
from algomesh.response import Metadata, Response
from algomesh.transport import DEEPEST, Origin
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference
from algomesh_observability.tracing import traceparent


class NatsTransport:
    """A connection, a lane and a copy of the directory, under one identity."""

    def __init__(self, connection: Connection, lane: Lane, directory: Directory) -> None:
        self.connection = connection
        self.lane = lane
        self.directory = directory
        self._caller = connection.identity.caller
        self._loop = asyncio.get_running_loop()
        # Its own: a program may seed the common one, and two runs must never have one id.
        self._random = random.Random()  # noqa: S311  # an id is a name, no secret

    @classmethod
    async def open(cls, url: str, identity: Identity, *, timeout_s: float = 5.0, name: str = "sdk") -> Self:
        """Connect to `nats://host:port`. Raises Unauthenticated, Unreachable."""
        try:
            connection = await Connection.open(url, identity, name=name, timeout_s=timeout_s)
        except BrokerError as error:
            raise translate(error) from error
        try:
            return await cls.over(connection)
        except BaseException:
            await connection.close()
            raise

    @classmethod
    async def over(cls, connection: Connection) -> Self:
        """Use a connection that is there already. Raises Unreachable, PermissionDenied."""
        try:
            return cls(connection, await Lane.open(connection), await Directory.open(connection))
        except BrokerError as error:
            raise translate(error) from error

    async def call(self, reference: Reference, content: Content, timeout_s: float, origin: Origin | None) -> Response:
        """Run one algorithm. Raises MeshError; ends within `timeout_s` seconds."""
        began = time.perf_counter()
        try:
            version, entry = self.directory.resolve(reference)
        except BrokerError as error:
            raise translate(error) from error
        run = f"{self._random.getrandbits(128):032x}"
        deadline = self._loop.time() + timeout_s
        if origin is None:
            root, parent, root_caller, depth, budget = run, "", self._caller, 0, 10_000
        else:
            root, parent, root_caller = origin.root, origin.run, origin.root_caller
            depth, budget = origin.depth + 1, origin.budget
            deadline = min(deadline, origin.deadline)
            if depth > DEEPEST:
                raise errors.DepthExceeded(f"{DEEPEST} algorithms called one another in a row", stage=str(version))
        result, pending = await self.lane.call(
            Order(
                version=version,
                content=content,
                deadline=deadline,
                attempts=entry.attempts,
                run=run,
                root=root,
                parent=parent,
                root_caller=root_caller,
                depth=depth,
                budget=budget,
                traceparent=traceparent(root, run),
            )
        )
        return Response(
            Content(result.content_type, result.detail, result.payload),
            Metadata(
                content_type=result.content_type,
                duration=time.perf_counter() - began,
                run_id=run,
                version=result.version,
                algorithm=version.algorithm,
                cold_start_s=pending.cold_s,
                attempts=pending.call.attempt,
                compute_s=result.compute_ms / 1000,
                queued_s=result.queued_ms / 1000,
                instance=result.instance,
            ),
        )

    async def close(self) -> None:
        """Let go of the connection; calls under way fail."""
        self.lane.close()
        await self.connection.close()


def translate(error: BrokerError) -> errors.MeshError:
    """The SDK's error for a broker's."""
    return errors.of_code(error.code, str(error))
