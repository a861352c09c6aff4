"""Running a route from one of its steps on: what the sender of a pipeline does, and an instance that joins branches.

A chain of calls is one message to its first stage; the stages hand over to one another. What fans out is sent,
and joined, here: every branch is a chain of its own, whose answer comes back. A branch that fails cancels its
siblings, and the error says which branch it was.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

from msgspec import Struct

from algomesh import content as contents
from algomesh import errors
from algomesh.allowance import OWN_BUDGET, TOO_MANY, Allowance
from algomesh.chain import ANYWHERE, Chain, chain_alone, chain_of_route
from algomesh.claiming import is_large
from algomesh.content import Content
from algomesh.lane import Lane
from algomesh.leasing import Leases
from algomesh.order import Order
from algomesh.part_stream import PartStream
from algomesh.pending import Pending
from algomesh.response import Metadata
from algomesh.result_cache import Answered, ResultCache, digest_of, is_kept
from algomesh_broker import messages
from algomesh_broker.grants import Granted
from algomesh_broker.messages import ContentType
from algomesh_broker.names import VersionId
from algomesh_broker.route import END, HEAD, AllStep, CallStep, EachStep, Route
from algomesh_observability.tracing import traceparent

_MOST_KNOWN: Final = 4096
_AHEAD: Final = 8


class Trip(Struct, frozen=True):
    """One journey along a route, on whose behalf and until when; `deadline` is the loop's time.

    `agent` is the step that sends: HEAD for the sender of the whole, else the step of the joining instance.
    `is_near` says whether who reads the end of it may be on this machine. `allowance` counts what a run begins; None
    for who sends from outside. `traceparent` is that of the run it is for.
    """

    granted: Granted | None
    route: Route
    root: str
    parent: str
    root_caller: str
    deadline: float
    depth: int = 0
    allowance: Allowance | None = None
    agent: int = HEAD
    is_near: bool = True
    traceparent: str = ""


class Tally(Struct, eq=False):
    """What the calls of one journey took together; the names are of the last that answered."""

    compute_ms: float = 0.0
    queued_ms: float = 0.0
    cold_s: float = 0.0
    attempts: int = 1
    cached: bool | None = None
    algorithm: str = ""
    version: str = ""
    instance: str = ""
    writers: set[str] = set()

    def add(self, result: messages.Result, pending: Pending) -> None:
        """Count one chain that has ended."""
        self.compute_ms += result.compute_ms
        self.queued_ms += result.queued_ms
        self.cold_s = max(self.cold_s, pending.cold_s)
        self.attempts = max(self.attempts, pending.call.attempt)
        if result.writers:
            self.writers.update(result.writers)
        self.algorithm, self.version, self.instance = pending.answered_by(result.at), result.version, result.instance
        self.cached = result.cached and self.cached is not False

    def add_kept(self, version: VersionId) -> None:
        """Count a chain whose output was kept from another run."""
        self.algorithm, self.version, self.instance = version.algorithm, str(version.version), ""
        self.cached = self.cached is not False

    def metadata(self, content_type: ContentType, duration: float, run: str) -> Metadata:
        """What a caller is told of the journey, which took `duration` seconds."""
        return Metadata(
            content_type=content_type,
            duration=duration,
            run_id=run,
            version=self.version,
            algorithm=self.algorithm,
            cold_start_s=self.cold_s,
            attempts=self.attempts,
            compute_s=self.compute_ms / 1000,
            queued_s=self.queued_ms / 1000,
            instance=self.instance,
            cached=bool(self.cached),
        )


class Conductor:
    """Sends the chains of routes over one lane, and joins branches."""

    def __init__(self, lane: Lane, leases: Leases | None = None, results: ResultCache | None = None) -> None:
        """`leases` is needed where journeys have an allowance, `results` where results are kept."""
        self._results = results
        self._lane = lane
        self._leases = leases
        self._loop = asyncio.get_running_loop()
        self._random = random.Random()  # noqa: S311  # an id is a name, no secret
        self._chains: dict[tuple[bytes, int], Chain] = {}

    def new_run(self) -> str:
        """An id that no other run has."""
        return self._random.randbytes(16).hex()

    async def run(
        self, trip: Trip, at: int, content: Content | AsyncIterator[Content], tally: Tally, run: str = ""
    ) -> Content:
        """From step `at` to the end of its chain; `content` may be items that come one by one, for an `each`.

        Raises the MeshError that it ended in.
        """
        while True:
            step = trip.route.steps[at]
            if isinstance(step, CallStep):
                assert isinstance(content, Content)
                if not step.cache_s or self._results is None or not is_kept(step):
                    return await self._send(trip, at, content, tally, run)
                key = self._flight_key(trip, at, content)
                if key is not None:
                    return await self._fly(self._results, key, trip, at, content, tally, run)
                after, content = await self.skip(trip, at, content, tally)
                if after == END:
                    return content
                if after == at or isinstance(trip.route.steps[after], CallStep):
                    return await self._send(trip, after, content, tally, run)
                at = after
                continue
            content = await self.join(trip, at, content, tally)
            if step.next == END:
                return content
            at = step.next

    async def skip(self, trip: Trip, at: int, content: Content, tally: Tally) -> tuple[int, Content]:
        """Leave out steps, from `at` on, whose results are kept: the first that is not (or END), and its input."""
        steps, version = trip.route.steps, None
        while at != END and self._results is not None and is_kept(steps[at]):
            found = await self._results.get(trip.route.places[at].version, content, trip.deadline)
            if found is None:
                break
            version, content, at = trip.route.places[at].version, found, steps[at].next
        if at == END and version is not None:
            tally.add_kept(version)
        return at, content

    def _flight_key(self, trip: Trip, at: int, content: Content) -> Hashable | None:
        """What a chain has in common with all that must have the same output; None where a step of it may differ."""
        steps, versions = trip.route.steps, []
        while at != END:
            if not is_kept(steps[at]):
                return None
            versions.append(trip.route.places[at].version)
            at = steps[at].next
        digest = digest_of(content)
        return (tuple(versions), digest, trip.depth) if digest else None

    async def _fly(
        self, results: ResultCache, key: Hashable, trip: Trip, at: int, content: Content, tally: Tally, run: str
    ) -> Content:
        """A chain that is the same whoever sends it: looked up, and run, once at a time."""
        last = at
        while trip.route.steps[last].next != END:
            last = trip.route.steps[last].next
        has_counted = False

        async def send() -> Answered:
            nonlocal has_counted
            has_counted = True
            after, given = await self.skip(trip, at, content, tally)
            if after == END:
                return Answered(given, cached=True)
            return Answered(await self._send(trip, after, given, tally, run), cached=False)

        answered = await results.once(key, trip.deadline, send)
        if not has_counted:
            tally.add_kept(trip.route.places[last].version)
        return answered.content

    async def stream(
        self, trip: Trip, content: Content | AsyncIterator[Content], tally: Tally, run: str = ""
    ) -> AsyncGenerator[Content, None]:
        """The whole route, its output part by part. `content` may be items that come one by one, for an `each`."""
        at = 0
        while True:
            step = trip.route.steps[at]
            if isinstance(step, EachStep) and step.next == END:
                async with aclosing(self.stream_each(trip, step, content, tally)) as outputs:
                    async for output in outputs:
                        yield output
                return
            if not isinstance(content, Content) and not isinstance(step, EachStep):
                content = contents.join([item async for item in content], [])
            if isinstance(step, CallStep):
                assert isinstance(content, Content)
                after, content = await self.skip(trip, at, content, tally)
                if after == END:
                    yield content
                    return
                if not isinstance(trip.route.steps[after], CallStep):
                    at = after
                    continue
                at = after
                order = await self._budgeted(trip, at, content, run)
                parts = PartStream(self._lane, order, lambda result: _after(trip, result) == END)
                async with aclosing(parts.parts()) as coming:
                    async for part in coming:
                        yield part
                assert parts.result is not None
                assert parts.pending is not None
                result = parts.result
                tally.add(result, parts.pending)
                if (at := _after(trip, result)) == END:
                    return
                content = Content(result.content_type, result.detail, result.payload)
                continue
            content = await self.join(trip, at, content, tally)
            if step.next == END:
                yield content
                return
            at = step.next

    async def stream_each(
        self, trip: Trip, step: EachStep, content: Content | AsyncIterator[Content], tally: Tally
    ) -> AsyncGenerator[Content, None]:
        """The outputs of an `each`: in the order of the items, or as they come."""
        held: dict[int, Content] = {}
        due = 0

        def has_room(number: int) -> bool:
            """One slow item must not have everything behind it pile up here."""
            return not step.ordered or number < due + _AHEAD * step.in_flight

        async with aclosing(self.each(trip, step, content, tally, has_room)) as coming:
            async for number, output in coming:
                if not step.ordered:
                    yield output
                    continue
                held[number] = output
                while due in held:
                    yield held.pop(due)
                    due += 1

    async def join(self, trip: Trip, at: int, content: Content | AsyncIterator[Content], tally: Tally) -> Content:
        """The branches of step `at`, all of them, as one content. Raises the error of the first that fails."""
        step = trip.route.steps[at]
        if isinstance(step, AllStep):
            assert isinstance(content, Content)
            owner = object()
            if is_large(content):  # once for all branches
                content = await self._lane.keep(content, trip.deadline, owner)
            labels = [_label(trip.route, step, number) for number in range(len(step.branches))]
            branches = [
                self._branch(trip, branch, content, tally, label)
                for branch, label in zip(step.branches, labels, strict=True)
            ]
            try:
                return contents.join(await _all_of(branches), step.names)
            finally:
                self._lane.claims.forget(owner)
        assert isinstance(step, EachStep)
        numbered = [pair async for pair in self.each(trip, step, content, tally)]
        if step.ordered:
            numbered.sort(key=_number)
        return contents.join([item for _, item in numbered], [])

    async def each(
        self,
        trip: Trip,
        step: EachStep,
        content: Content | AsyncIterator[Content],
        tally: Tally,
        has_room: Callable[[int], bool] = lambda _: True,
    ) -> AsyncGenerator[tuple[int, Content], None]:
        """Run the body for every item, `in_flight` at once; yields (number, output) as they end.

        The next item is asked for when there is room for it, so an endless source is fine.
        """
        if isinstance(content, Content):
            content = _listed(contents.split(await self._lane.claims.load(content, trip.deadline)))
        source = content
        running: dict[asyncio.Task[Content], int] = {}
        number = 0
        exhausted = False
        try:
            while True:
                while not exhausted and len(running) < step.in_flight and has_room(number):
                    try:
                        item = await anext(source)
                    except StopAsyncIteration:
                        exhausted = True
                        break
                    work = self._branch(trip, step.body, item, tally, f"item {number}")
                    running[self._loop.create_task(work, name=f"each-{number}")] = number
                    number += 1
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield running.pop(task), task.result()
        finally:
            await _end(running)

    async def _branch(self, trip: Trip, at: int, content: Content, tally: Tally, label: str) -> Content:
        try:
            return await self.run(trip, at, content, tally)
        except errors.MeshError as error:
            error.branch = [label, *error.branch]
            raise

    async def _send(self, trip: Trip, at: int, content: Content, tally: Tally, run: str) -> Content:
        """One chain of calls: to its first stage, and back from its last."""
        if trip.allowance is None:
            chain = self.chain(trip.route, at, trip.granted)
            order = self._order(trip, at, content, run, chain, OWN_BUDGET // len(chain.stages))
        else:
            order = await self._budgeted(trip, at, content, run)
        result, pending = await self._lane.call(order)
        tally.add(result, pending)
        output = Content(result.content_type, result.detail, result.payload)
        after = _after(trip, result)
        return output if after == END else await self.run(trip, after, output, tally)

    async def _budgeted(self, trip: Trip, at: int, content: Content, run: str) -> Order:
        """The order, once its runs have been counted. Raises BudgetExceeded."""
        chain = self.chain(trip.route, at, trip.granted)
        return self._order(trip, at, content, run, chain, await self.budget(trip.allowance, len(chain.stages)))

    def _order(self, trip: Trip, at: int, content: Content, run: str, chain: Chain, budget: int) -> Order:
        run = run or self.new_run()
        root = trip.root or run
        granted = trip.granted
        return Order(
            trip.route.places[at].version,
            content,
            trip.deadline,
            run,
            root,
            trip.parent,
            trip.root_caller,
            trip.depth,
            budget,
            traceparent(root, run, trip.traceparent),
            chain,
            b"" if granted is None else granted.token,
            ANYWHERE if granted is None else at,
            trip.agent != HEAD,
            trip.is_near,
        )

    async def budget(self, allowance: Allowance | None, runs: int) -> int:
        """Begin `runs` runs, and say what each of them may begin unasked. Raises BudgetExceeded."""
        if allowance is None:
            return OWN_BUDGET // runs
        budget = allowance.spend(runs)
        if budget < 0:
            if self._leases is None:
                raise errors.BudgetExceeded(TOO_MANY)
            await self._leases.take(allowance, runs)
        return max(0, budget)

    def chain(self, route: Route, at: int, granted: Granted | None) -> Chain:
        """What is to be known of the chain that begins at step `at`: of that step alone, where there is no token."""
        chain = self._chains.get((route.data, at))
        if chain is None:
            if len(self._chains) >= _MOST_KNOWN:
                self._chains.clear()
            chain = chain_alone(route, at) if granted is None else chain_of_route(route, at)
            self._chains[route.data, at] = chain
        return chain


async def _listed(items: list[Content]) -> AsyncIterator[Content]:
    for item in items:
        yield item


async def _all_of(branches: Sequence[Coroutine[Any, Any, Content]]) -> list[Content]:
    """Run them together; the first error ends the others."""
    tasks = [asyncio.ensure_future(branch) for branch in branches]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Task[Content]]) -> None:
    """Cancel what still runs, and see it end."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # looked at: of several failures only the first is told
    if left:
        await asyncio.gather(*left, return_exceptions=True)


def _after(trip: Trip, result: messages.Result) -> int:
    """Where to go on, where an instance could not join what fans out after its step (docs/protocol.md); else END.

    Only the sender of the whole may go on; raises AlgorithmError for who joins a branch in mid-chain.
    """
    place = trip.route.places.get(result.at)
    if result.parts != messages.NOT_JOINED or place is None:
        return END
    if trip.agent != HEAD:
        raise errors.AlgorithmError(
            "it cannot join what fans out after it, nor can who joins the branch that it is in; "
            "put a stage in Python after it",
            stage=str(place.version),
        )
    return place.next


def _label(route: Route, step: AllStep, number: int) -> str:
    """How an error calls a branch: by its name, else by its place and the algorithm it begins with."""
    if step.names:
        return f"branch {step.names[number]!r}"
    first = route.steps[step.branches[number]]
    begins = f" ({first.version})" if isinstance(first, CallStep) else ""
    return f"branch {number + 1}{begins}"


def _number(pair: tuple[int, Content]) -> int:
    return pair[0]
