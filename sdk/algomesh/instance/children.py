"""What a run calls: its children, on the instance's own connection.

A run that waits for another has no slot meanwhile, so that algorithms may call one another, or themselves, however
few slots there are; and it is cancelled with its caller.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from algomesh import clients, errors, inputs
from algomesh.content import Content
from algomesh.context import RunContext
from algomesh.instance.intake import Intake
from algomesh.instance.job import Job
from algomesh.instance.joining import Joiner
from algomesh.nats_transport import NatsTransport
from algomesh.pipeline import Pipeline
from algomesh.response import Response
from algomesh.result_stream import Tell
from algomesh_broker.connection import Connection

_MOST_SUSPENDED: Final = 256


class Children:
    """Calls on behalf of the runs of one instance; `jobs` are those under way, by run."""

    def __init__(self, connection: Connection, jobs: Mapping[str, Job], intake: Intake, joiner: Joiner) -> None:
        self._connection, self._jobs, self._intake, self._joiner = connection, jobs, intake, joiner
        self._suspended = 0
        self._transport: NatsTransport | None = None
        self._opening = asyncio.Lock()

    async def call(self, context: RunContext, pipeline: Pipeline, value: Any, timeout: float | None) -> Response:
        """Run a pipeline for a run. Raises MeshError."""
        job = self._caller(context)
        limit_s = clients.check_timeout(timeout, clients.DEFAULT_TIMEOUT_S)
        async with inputs.given(pipeline, value, limit_s) as (items, left_s):
            transport = await self._open()
            async with self._waiting(job):
                return await transport.call(pipeline, items, left_s, context.origin)

    async def stream(
        self, context: RunContext, pipeline: Pipeline, value: Any, timeout: float | None, told: Tell
    ) -> AsyncGenerator[Content, None]:
        """The same, part by part: the slot is given back while the next part is not there."""
        job = self._caller(context)
        limit_s = clients.check_timeout(timeout, clients.DEFAULT_TIMEOUT_S)
        transport = await self._open()
        async with (
            inputs.given(pipeline, value, limit_s) as (items, left_s),
            aclosing(transport.stream(pipeline, items, left_s, context.origin, told)) as parts,
        ):
            while (part := await self._next(job, parts)) is not None:
                yield part

    async def _next(self, job: Job, parts: AsyncGenerator[Content, None]) -> Content | None:
        """The next part; None at the end."""
        taking = asyncio.ensure_future(anext(parts, None))
        try:
            await asyncio.sleep(0)
            if taking.done():  # it was there already: no reason to queue for the slot again
                return taking.result()
            async with self._waiting(job):
                return await taking
        finally:
            if not taking.done():
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)

    def _caller(self, context: RunContext) -> Job:
        job = self._jobs.get(context.run)
        if job is None or job.abandoned_at:
            raise errors.Cancelled("this run has ended; it cannot call any more")
        if self._suspended >= _MOST_SUSPENDED:
            raise errors.Overloaded(f"{_MOST_SUSPENDED} runs of this instance wait for others already")
        return job

    @asynccontextmanager
    async def _waiting(self, job: Job) -> AsyncIterator[None]:
        calling = asyncio.current_task()
        assert calling is not None
        self._suspended += 1
        beside = job.calling = job.calling or set()
        beside.add(calling)
        self._intake.give_slot(job)
        self._intake.serve()
        try:
            yield
        finally:
            self._suspended -= 1
            beside.discard(calling)
            # With several calls under way, the last to return takes the slot back: two would wait for each other.
            if not beside and not job.has_slot and not job.abandoned_at:
                await self._intake.take_slot(job)

    async def _open(self) -> NatsTransport:
        async with self._opening:
            if self._transport is None:
                self._transport = await NatsTransport.over(self._connection, await self._joiner.lane())
            return self._transport
