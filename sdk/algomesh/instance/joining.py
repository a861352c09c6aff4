"""Joins in mid-pipeline: the branches after a step are sent, and joined, by the instance that ran the step.

A join holds no slot, only its task; it says `running` like a run, so that its caller knows where it is and can
cancel it, and an instance with open joins is not idle. When all branches have answered, the joined value goes on
to the next step, or to the caller.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from algomesh import errors
from algomesh.claiming import is_large
from algomesh.conducting import Conductor, Tally, Trip
from algomesh.content import Content
from algomesh.instance.answers import SAY_AGAIN_S, SAY_RUNNING_S, Answers
from algomesh.instance.job import Job
from algomesh.instance.watch import WatchWriter
from algomesh.instance.yielding import NOTHING, Yielding
from algomesh.lane import Lane
from algomesh.leasing import Leases
from algomesh.result_cache import ResultCache
from algomesh_broker import messages
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.route import END, CallStep, EachStep
from algomesh_observability.logger import get_logger
from algomesh_observability.tracing import beneath

log = get_logger("algomesh.joining")

_SPARE_S: Final = 60.0

HandOn = Callable[[Job, int, Content, float, float], None]


class _Join:
    __slots__ = ("cancelled", "job", "task")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task: asyncio.Task[None] | None = None
        self.cancelled: errors.MeshError | None = None


class Joiner:
    """The open joins of one instance."""

    def __init__(
        self,
        connection: Connection,
        instance: str,
        answers: Answers,
        yielding: Yielding,
        watch: WatchWriter,
        hand_on: HandOn,
        results: ResultCache,
    ) -> None:
        """`hand_on(job, at, output, spent_ms, took_s)` sends a value to step `at`."""
        self._connection = connection
        self._answers = answers
        self._yielding = yielding
        self._watch = watch
        self._hand_on = hand_on
        self._results = results
        self._loop = asyncio.get_running_loop()
        self._instance = instance
        self._joins: dict[str, _Join] = {}
        self._kept: dict[str, frozenset[str]] = {}
        self._conductor: Conductor | None = None
        self._lane: Lane | None = None
        self._opening = asyncio.Lock()

    @property
    def active(self) -> int:
        """How many joins are open."""
        return len(self._joins)

    def job(self, run: str) -> Job | None:
        """The job whose output is being joined, by its run."""
        join = self._joins.get(run)
        return None if join is None else join.job

    async def lane(self) -> Lane:
        """The lane of this instance, which its children's calls share. Raises Unreachable, PermissionDenied."""
        async with self._opening:
            if self._lane is None:
                try:
                    self._lane = await Lane.open(self._connection)
                except BrokerError as error:
                    raise errors.of_code(error.code, str(error)) from error
                self._conductor = Conductor(self._lane, Leases(self._connection), self._results)
            return self._lane

    def begin(self, job: Job, output: Content, spent_ms: float, took_s: float) -> None:
        """Send the branches that come after `job`'s step, and see to what follows."""
        join = self._joins[job.run] = _Join(job)
        self._watch.begin(job.run)
        join.task = self._loop.create_task(self._run(join, output, spent_ms, took_s), name=f"join-{job.run}")

    def cancel(self, cancel: messages.Cancel, caller: str) -> None:
        """Whoever waits for a join does not want it any more."""
        for run, join in list(self._joins.items()):
            call = join.job.call
            if call.run == cancel.run and join.job.caller == caller and call.attempt <= cancel.attempt:
                self.abandon(run, errors.Cancelled("its caller stopped it"))

    def forget(self, forget: messages.Forget, caller: str) -> None:
        """Whoever sent the pipeline has read everything: what was kept for it is deleted."""
        if self._lane is not None and caller in self._kept.get(forget.root, ()):
            del self._kept[forget.root]
            self._lane.claims.forget(forget.root)

    def abandon(self, run: str, error: errors.MeshError) -> None:
        """End a join, and its branches, with `error`; nothing happens when there is none for `run`."""
        join = self._joins.get(run)
        if join is not None and join.cancelled is None and join.task is not None:
            join.cancelled = error
            join.task.cancel()

    async def drain(self) -> None:
        """Return when no join is open."""
        while self._joins:
            await asyncio.wait([join.task for join in self._joins.values() if join.task is not None])

    async def close(self) -> None:
        """End what is still open: its caller sends it again when it hears that this instance is gone."""
        tasks = [join.task for join in self._joins.values() if join.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lane is not None:
            self._lane.close()

    async def _run(self, join: _Join, output: Content, spent_ms: float, took_s: float) -> None:
        job = join.job
        saying = self._loop.create_task(self._say_running(job), name=f"say-{job.run}")
        state: messages.RunState = "failed"
        error: errors.MeshError | None = None
        try:
            await self._join(job, output, spent_ms, took_s)
        except asyncio.CancelledError:
            if join.cancelled is None:
                raise  # the instance ends; its death is told by others
            error, state = join.cancelled, "cancelled"
        except errors.MeshError as failure:
            error = failure
            state = "expired" if isinstance(failure, errors.DeadlineExceeded) else "failed"
        except Exception as failure:  # whatever a join meets is its caller's to know, and must not be lost in a task
            log.exception("join_failed", run=job.run)
            error = errors.MeshError(f"the branches could not be joined: {type(failure).__name__}: {failure}")
        finally:
            saying.cancel()
            self._joins.pop(job.run, None)
            self._watch.end(job.run)
        if error is not None:
            self._yielding.abandon(job, error)
            self._answers.fail(job, error, took_s, state)

    async def _join(self, job: Job, output: Content, spent_ms: float, took_s: float) -> None:
        assert job.granted is not None
        await self.lane()
        assert self._conductor is not None
        call, route = job.call, job.granted.route
        trip = Trip(
            granted=job.granted,
            route=route,
            root=call.root,
            parent=job.run,
            root_caller=call.root_caller,
            deadline=job.deadline,
            depth=call.depth,
            allowance=job.allowance,
            agent=call.at,
            is_near=call.is_near,
            traceparent=beneath(call.traceparent, job.run, call.root),
        )
        at = job.next
        tally = Tally()
        while True:
            step = route.steps[at]
            if isinstance(step, EachStep) and step.next == END and call.credit > 0:
                outflow = self._yielding.open_joined(job)
                async with aclosing(self._conductor.stream_each(trip, step, output, tally)) as parts:
                    async for part in parts:
                        await outflow.put_async(part)
                self._yielding.end(job, NOTHING, took_s, spent_ms + tally.compute_ms)
                return
            output = await self._conductor.join(trip, at, output, tally)
            at = route.steps[at].next
            if at == END or isinstance(route.steps[at], CallStep):
                break
        spent_ms += tally.compute_ms
        if tally.cold_s > 0:
            job.context.has_news = True
        job.writers = sorted({*job.writers, *tally.writers})
        if is_large(output):
            output = await self.keep(job, output)
        if at == END:
            self._answers.answer(job, output, took_s, spent_ms)
        else:
            self._hand_on(job, at, output, spent_ms, took_s)

    async def keep(self, job: Job, output: Content) -> Content:
        """Put a large output where its reader can fetch it, until its caller says that all has been read."""
        lane = await self.lane()
        root = job.call.root
        output = await lane.claims.store(output, job.deadline, root, lane.host if job.call.is_near else "")
        allowed = {job.caller, *([] if job.granted is None else [job.granted.sender])}
        self._kept[root] = self._kept.get(root, frozenset()) | allowed
        left_s = max(0.0, job.deadline - self._loop.time()) + _SPARE_S
        self._loop.call_later(left_s, self._kept.pop, root, None)
        lane.claims.expire(root, left_s)
        job.writers = sorted({*job.writers, self._instance})
        return output

    async def _say_running(self, job: Job) -> None:
        """Keep whoever waits informed, as a run does."""
        if not job.said_at:
            await asyncio.sleep(SAY_RUNNING_S)
        while True:
            job.said_at = time.monotonic()
            with contextlib.suppress(BrokerError):
                self._answers.say_running(job)
            await asyncio.sleep(SAY_AGAIN_S)
