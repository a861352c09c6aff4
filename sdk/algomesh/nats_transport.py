"""Calls straight over NATS."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any, Final, Self

from msgspec.structs import replace

from algomesh import errors
from algomesh.allowance import OWN_BUDGET, Allowance
from algomesh.chain import ANYWHERE
from algomesh.claiming import is_claimed
from algomesh.compiling import compile_route
from algomesh.conducting import Conductor, Tally, Trip
from algomesh.content import Content
from algomesh.granting import Grants
from algomesh.lane import Lane
from algomesh.leasing import Leases
from algomesh.order import Order
from algomesh.pending import Pending
from algomesh.pipeline import Pipeline, Stage
from algomesh.response import Metadata, Response
from algomesh.result_cache import Answered, ResultCache, digest_of
from algomesh.transport import DEEPEST, Input, Origin
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory, Resolved
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity, is_instance_token
from algomesh_broker.messages import ContentType, Result, VersionEntry
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.route import Route
from algomesh_observability.tracing import beneath, traceparent

_MOST_KNOWN: Final = 1024


class NatsTransport:
    """A connection, a lane and a copy of the directory, under one identity."""

    def __init__(self, connection: Connection, lane: Lane, directory: Directory) -> None:
        self.connection = connection
        self.lane = lane
        self.directory = directory
        self._caller = connection.identity.caller
        self._loop = asyncio.get_running_loop()
        self._results = ResultCache(connection)
        self.conductor = Conductor(lane, Leases(connection), self._results)
        token = connection.identity.token or ""
        self._grants = Grants(connection, token if is_instance_token(token) else "")
        self._routes: dict[Pipeline, Route] = {}
        directory.on_change.append(lambda _: self._routes.clear())

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
    async def over(cls, connection: Connection, lane: Lane | None = None) -> Self:
        """Use a connection, and a lane, that is there already. Raises Unreachable, PermissionDenied."""
        try:
            return cls(connection, lane or await Lane.open(connection), await Directory.open(connection))
        except BrokerError as error:
            raise translate(error) from error

    def call(
        self, pipeline: Pipeline, content: Input, timeout_s: float, origin: Origin | None
    ) -> Coroutine[Any, Any, Response]:
        """Run a pipeline, every version resolved now; ends within `timeout_s`. Raises MeshError, at once or awaited."""
        if isinstance(pipeline, Stage) and pipeline.is_plain and isinstance(content, Content):
            try:
                version, entry = self.directory.resolve(pipeline.target)
            except BrokerError as error:
                raise translate(error) from error
            if not entry.pipeline:
                digest = digest_of(content) if entry.cache_s > 0 else ""
                if digest:
                    return self._call_kept(version, entry, content, digest, timeout_s, origin)
                return self._call_one(version, entry, content, timeout_s, origin)
        route = self._route(pipeline)
        if origin is None and route.is_plain_chain and isinstance(content, Content):
            return self._call_chain(route, content, timeout_s)
        return self._travel(route, content, timeout_s, origin)

    async def _call_kept(
        self,
        version: VersionId,
        entry: VersionEntry,
        content: Content,
        digest: str,
        timeout_s: float,
        origin: Origin | None,
    ) -> Response:
        """One algorithm whose results are kept: looked up, and run, once at a time."""
        began, now = time.perf_counter(), self._loop.time()
        depth, deadline = 0, now + timeout_s
        if origin is not None:
            depth, deadline = origin.depth + 1, min(deadline, origin.deadline)
        responses: list[Response] = []

        async def send() -> Answered:
            kept = await self._results.get(version, content, deadline)
            if kept is not None:
                return Answered(kept, cached=True)
            left_s = max(0.0, deadline - self._loop.time())
            responses.append(await self._call_one(version, entry, content, left_s, origin))
            return Answered(responses[0].content, cached=responses[0].metadata.cached)

        answered = await self._results.once((version, digest, depth), deadline, send)
        if responses:
            return responses[0]
        return Response(
            answered.content,
            Metadata(
                content_type=answered.content.content_type,
                duration=time.perf_counter() - began,
                run_id=self.conductor.new_run(),
                version=str(version.version),
                algorithm=version.algorithm,
                cached=True,
            ),
        )

    async def _call_one(
        self, version: VersionId, entry: VersionEntry, content: Content, timeout_s: float, origin: Origin | None
    ) -> Response:
        """One algorithm: no route, no token."""
        began = time.perf_counter()
        run = self.conductor.new_run()
        root, parent, root_caller, depth, budget, deadline = run, "", self._caller, 0, OWN_BUDGET, 0.0
        if origin is None:
            deadline = self._loop.time() + timeout_s
        else:
            root, parent, root_caller, depth, allowance, deadline = self._origin(timeout_s, origin, str(version))
            budget = await self.conductor.budget(allowance, 1)
        result, pending = await self.lane.call(
            Order(
                version,
                content,
                deadline,
                run,
                root,
                parent,
                root_caller,
                depth,
                budget,
                traceparent(root, run, _within(origin)),
                attempts=entry.attempts,
            )
        )
        output = Content(result.content_type, result.detail, result.payload)
        if result.writers or is_claimed(output.content_type, output.payload):
            output = await self._read(output, result.writers, root, deadline)
        return _response(output, result, pending, began)

    async def _travel(self, route: Route, content: Input, timeout_s: float, origin: Origin | None) -> Response:
        """Several: by a route, under its token."""
        began = time.perf_counter()
        trip, run = self._trip(route, timeout_s, origin)
        if trip.granted is None and route.needs_grant:
            trip = replace(trip, granted=await self._grants.fetch(route, timeout_s))
        tally = Tally()
        output = await self.conductor.run(trip, 0, content, tally, run)
        if tally.writers or is_claimed(output.content_type, output.payload):
            output = await self._read(output, tally.writers, trip.root, trip.deadline)
        return Response(output, tally.metadata(output.content_type, time.perf_counter() - began, run))

    async def _call_chain(self, route: Route, content: Content, timeout_s: float) -> Response:
        """One call after another, for who begins a run: a single order, since nothing is kept or joined on the way."""
        began = time.perf_counter()
        deadline = self._loop.time() + timeout_s
        granted = None
        if route.needs_grant:
            granted = self._grants.known(route, timeout_s) or await self._grants.fetch(route, timeout_s)
        run = self.conductor.new_run()
        chain = self.conductor.chain(route, 0, granted)
        result, pending = await self.lane.call(
            Order(
                route.places[0].version,
                content,
                deadline,
                run,
                run,
                "",
                self._caller,
                0,
                OWN_BUDGET // len(chain.stages),
                traceparent(run, run),
                chain,
                b"" if granted is None else granted.token,
                ANYWHERE if granted is None else 0,
            )
        )
        output = Content(result.content_type, result.detail, result.payload)
        if result.writers or is_claimed(output.content_type, output.payload):
            output = await self._read(output, result.writers, run, deadline)
        return _response(output, result, pending, began)

    async def stream(
        self,
        pipeline: Pipeline,
        items: Input,
        timeout_s: float,
        origin: Origin | None,
        told: Callable[[Metadata], None],
    ) -> AsyncGenerator[Content, None]:
        """Run a pipeline and give its parts as they come; see `Transport.stream`."""
        began = time.perf_counter()
        trip, run = self._trip(self._route(pipeline), timeout_s, origin)
        if trip.granted is None and trip.route.needs_grant:
            trip = replace(trip, granted=await self._grants.fetch(trip.route, timeout_s))
        tally = Tally()
        kind: ContentType = "json"
        async with aclosing(self.conductor.stream(trip, items, tally, run)) as parts:
            async for part in parts:
                whole = await self.lane.claims.load(part, trip.deadline)
                kind = whole.content_type
                yield whole
        if tally.writers:
            self.lane.release(tally.writers, trip.root)
        told(tally.metadata(kind, time.perf_counter() - began, run))

    async def _read(self, output: Content, writers: Collection[str], root: str, deadline: float) -> Content:
        """An output as it really is; those who kept parts of it need not any more."""
        output = await self.lane.claims.load(output, deadline)
        if writers:
            self.lane.release(writers, root)
        return output

    def _trip(self, route: Route, timeout_s: float, origin: Origin | None) -> tuple[Trip, str]:
        """Everything a journey needs, but for a token that is to be fetched first; and the id of its run."""
        granted = self._grants.known(route, timeout_s) if route.needs_grant else None
        run = self.conductor.new_run()
        if origin is None:
            return Trip(granted, route, run, "", self._caller, self._loop.time() + timeout_s), run
        root, parent, root_caller, depth, allowance, deadline = self._origin(timeout_s, origin, "")
        within = _within(origin)
        return Trip(granted, route, root, parent, root_caller, deadline, depth, allowance, traceparent=within), run

    def _route(self, pipeline: Pipeline) -> Route:
        """The pipeline with every version resolved; made once for as long as the directory stays as it is."""
        route = self._routes.get(pipeline)
        if route is None:
            lasting = True

            def resolve(reference: Reference) -> Resolved:
                nonlocal lasting
                lasting = lasting and self.directory.is_lasting(reference)
                return self.directory.resolve(reference)

            try:
                route = compile_route(pipeline, resolve)
            except BrokerError as error:
                raise translate(error) from error
            if lasting:  # an alias with weights chooses anew for every run
                if len(self._routes) >= _MOST_KNOWN:
                    self._routes.clear()
                self._routes[pipeline] = route
        return route

    def _origin(self, timeout_s: float, origin: Origin, stage: str) -> tuple[str, str, str, int, Allowance, float]:
        """Root, parent, root caller, depth, allowance and deadline of a run's call. Raises DepthExceeded."""
        depth = origin.depth + 1
        if depth > DEEPEST:
            raise errors.DepthExceeded(f"{DEEPEST} algorithms called one another in a row", stage=stage)
        allowance = origin.allowance or Allowance(origin.root, origin.budget)
        deadline = min(self._loop.time() + timeout_s, origin.deadline)
        return origin.root, origin.run, origin.root_caller, depth, allowance, deadline

    async def close(self) -> None:
        """Let go of the connection; calls under way fail."""
        self.lane.close()
        await self.connection.close()


def _within(origin: Origin | None) -> str:
    """The trace of who asks, for what it asks for."""
    return "" if origin is None else beneath(origin.traceparent, origin.run, origin.root)


def _response(output: Content, result: Result, pending: Pending, began: float) -> Response:
    """What a single call, or chain of calls, came to; `began` is of `time.perf_counter`."""
    return Response(
        output,
        Metadata(
            content_type=output.content_type,
            duration=time.perf_counter() - began,
            run_id=pending.call.run,
            version=result.version,
            algorithm=pending.answered_by(result.at),
            cold_start_s=pending.cold_s,
            attempts=pending.call.attempt,
            compute_s=result.compute_ms / 1000,
            queued_s=result.queued_ms / 1000,
            instance=result.instance,
            cached=result.cached,
        ),
    )


def translate(error: BrokerError) -> errors.MeshError:
    """The SDK's error for a broker's."""
    return errors.of_code(error.code, str(error))
