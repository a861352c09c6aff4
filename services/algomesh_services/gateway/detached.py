"""Runs that nobody waits for (`output=void`): kept by this gateway while it lives, and no longer.

They are live runs, not durable ones: when the gateway stops they are cancelled, and when it dies they may end as
their instance pleases. The ledger has them like all others.
"""

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Final

import structlog

from algomesh import errors
from algomesh.content import Content
from algomesh.nats_transport import NatsTransport, translate
from algomesh.order import Order
from algomesh_broker.errors import BrokerError
from algomesh_broker.names import Reference
from algomesh_observability.tracing import traceparent

log = structlog.get_logger("algomesh.gateway")

# The broker's refusal of a call comes within a millisecond or two; who may not call should be told.
_REFUSED_WITHIN_S: Final = 0.03
_TOLD: Final = (errors.PermissionDenied, errors.PayloadTooLarge, errors.Unreachable, errors.Overloaded)


class Detached:
    """The runs under way that nobody waits for, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def check(self) -> None:
        """Raises Overloaded when there are too many already."""
        if len(self._tasks) >= self._limit:
            raise errors.Overloaded(f"{self._limit} detached runs are under way at this gateway; try again later")

    async def start(
        self,
        transport: NatsTransport,
        reference: Reference,
        content: Content,
        timeout_s: float,
        held: AsyncExitStack,
    ) -> str:
        """Begin a run and return its id; `held` is closed when it ends.

        Raises MeshError for what is refused at once: unknown names, no permission, too large.
        """
        self.check()
        try:
            version, entry = transport.directory.resolve(reference)
        except BrokerError as error:
            raise translate(error) from error
        if entry.pipeline:
            raise errors.BadInput(f"{version} is a pipeline, and only single algorithms run with output=void so far")
        loop = asyncio.get_running_loop()
        run = secrets.token_hex(16)
        order = Order(
            version=version,
            content=content,
            deadline=loop.time() + timeout_s,
            attempts=entry.attempts,
            run=run,
            root=run,
            parent="",
            root_caller=transport.connection.identity.caller,
            traceparent=traceparent(run, run),
        )
        task = loop.create_task(self._finish(transport, order, held.pop_all()), name=f"detached-{run}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task}, timeout=_REFUSED_WITHIN_S)
        refusal = task.exception() if task.done() and not task.cancelled() else None
        if isinstance(refusal, _TOLD):
            raise refusal
        return run

    async def close(self) -> None:
        """Cancel what is left."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            log.warning("detached_runs_cancelled", count=len(tasks))
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, transport: NatsTransport, order: Order, held: AsyncExitStack) -> None:
        async with held:
            await transport.lane.call(order)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), errors.MeshError):
            run = task.get_name().removeprefix("detached-")
            log.info("detached_run_failed", run=run, code=error.code, stage=error.stage)
