"""Runs user code: inline, in a thread, or awaited; and answers for it.

A plain function runs in a thread or inline in the loop (dispatch.py says when), `async def` is awaited.
`ALGOMESH_DISPATCH=inline|thread` fixes the choice for plain functions.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from algomesh import content, errors, streams
from algomesh.claiming import MAY_BE_CLAIMED, is_claimed
from algomesh.context import RunContext, enter, leave
from algomesh.decorator import Algorithm
from algomesh.instance.answers import Answers, Outcome
from algomesh.instance.batching import Batcher
from algomesh.instance.capacity import Capacity
from algomesh.instance.children import Children
from algomesh.instance.coalescing import Coalescing
from algomesh.instance.dispatch import LONG_S, choose_dispatch
from algomesh.instance.express import Express
from algomesh.instance.inflow import Feeds
from algomesh.instance.intake import Intake
from algomesh.instance.job import GRACE_S, Job
from algomesh.instance.onward import Onward
from algomesh.instance.output import error_of
from algomesh.instance.oversight import MORE_TIME, Oversight
from algomesh.instance.threads import Threads
from algomesh.instance.watch import WatchWriter
from algomesh.pipeline import Pipeline
from algomesh.response import Response
from algomesh.result_stream import Tell
from algomesh_broker import subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection
from algomesh_broker.grants import GrantBook
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.runner")


STUCK_CODE: Final = 74


class Runner:
    """The runs of one instance; `stuck` is set when a thread does not come back and the instance must end."""

    def __init__(
        self, connection: Connection, algorithm: Algorithm[Any, Any], boot: Boot, watch: WatchWriter, ready_ns: int = 0
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.stuck = asyncio.Event()
        self._connection = connection
        self._algorithm = algorithm
        self._version = algorithm.version_id
        self._stage = str(self._version)
        self._boot = boot
        self._watch = watch
        self._function: Callable[[Any], Any] = algorithm.loaded()
        self._read, self._yields = algorithm.signature.read, algorithm.yields
        self._timeout_s = boot.options.timeout_s
        self._read_item = algorithm.signature.read_item if algorithm.item_taken is not None else None
        together = 2 * algorithm.options.batch_max or 1  # a batch runs while the next one gathers
        self._capacity = Capacity(boot.options.concurrency * together, boot.options.concurrency)
        self._answers = Answers(connection, self._version, boot, ready_ns)
        self._onward = Onward(connection, boot.instance, self._answers, watch)
        self._yielding, self._joiner = self._onward.yielding, self._onward.joiner
        self._same = Coalescing(0.0 if algorithm.yields else boot.options.cache_s)
        self._feeds = Feeds(connection)
        self._threads = Threads(self.loop, "run")
        self._intake = Intake(
            connection,
            self._version,
            boot.instance,
            self._capacity,
            self._start,
            self._answers.refuse,
            self._answers.refuse_hop,
            GrantBook(boot.route_key),
        )
        self._jobs: dict[str, Job] = {}
        self._ended = asyncio.Event()
        self._children = Children(connection, self._jobs, self._intake, self._joiner)
        self._dispatch = choose_dispatch(algorithm)
        self._express = Express(
            self._stage,
            self._timeout_s,
            self,
            capacity=self._capacity,
            dispatch=self._dispatch,
            jobs=self._jobs,
            intake=self._intake,
            onward=self._onward,
            run=self._run_inline,
            end=self._done,
        )
        if not boot.options.cache_s:
            self._intake.at_once = self._express.take
        self._batcher = (
            Batcher(algorithm, boot.options.concurrency, self._threads, watch, self._done, error_of)
            if algorithm.options.batch_max
            else None
        )
        self._oversight = Oversight(
            self._jobs, self._answers, self._onward, self._same, watch, self._batcher, self._share, self.stuck
        )

    async def open(self) -> None:
        """Take calls from now on."""
        self._connection.join(subjects.controls_of(self._boot.instance), self._oversight.on_control)
        self._connection.join(f"{self._connection.identity.inbox}.gone.*", self._oversight.on_gone)
        self._onward.open()
        await self._intake.open()

    async def drain(self, within_s: float) -> None:
        """Take no more, let what runs come to its end, tell the ledger."""
        await self._intake.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                if self._jobs and not self.stuck.is_set():
                    await self._ended.wait()
                await self._onward.drain()
        await self._joiner.close()
        self._answers.flush()

    @property
    def active(self) -> int:
        """Runs under way, and joins that wait for branches."""
        return len(self._jobs) + self._onward.active

    # Starting

    def _start(self, job: Job) -> None:
        """Run a job that has its slot."""
        known = self._jobs.get(job.run)
        if known is not None and self._adopts(known, job):
            return
        now = self.loop.time()
        if now + self._capacity.median_s >= job.deadline and self._comes_too_late(job, now):
            return
        if job.call.content_type in MAY_BE_CLAIMED and is_claimed(job.call.content_type, job.call.payload):
            self._fetch(job, now)
            return
        job.started, job.started_at = now, time.time()
        place = job.place
        if self._same.may_join(place) and not self._yields and self._same.joins(job):
            self._wait_for_same(job, now)
            return
        timeout_s = self._timeout_s
        if place is not None and place.step.timeout_s is not None:
            timeout_s = min(timeout_s or place.step.timeout_s, place.step.timeout_s)
        job.limit = job.deadline if timeout_s is None else min(job.deadline, now + timeout_s)
        job.host, job.algorithm = self, self._stage
        if job.cold_ms:
            job.cold_ms = max(0.0, job.cold_ms - self._answers.ready_ms)
        if self._dispatch.mode == "inline":
            self._run_here(job)
        else:
            self._watch.begin(job.run, _kill_at_ns(job))
            self._jobs[job.run] = job
            self._start_beside(job, now)

    def _run_here(self, job: Job) -> None:
        """Run it in this turn of the loop: nothing else happens meanwhile, so it stands in no table.

        What runs here yields nothing, reads no parts and cannot be given up, hence its own short way to the end.
        """
        outcome, took_s = self._run_inline(job)
        if took_s > LONG_S or self._dispatch.strikes or self._same:
            self._done(job, outcome, took_s)
            return
        self._capacity.observe(took_s)
        self._intake.give_slot(job)
        self._onward.finish(job, outcome, took_s)
        self._express.learn(job)
        self._intake.serve()

    def _run_inline(self, job: Job) -> tuple[Outcome, float]:
        """Its outcome, and how many seconds its code took."""
        self._watch.begin_alone(_kill_at_ns(job))
        began = time.perf_counter()  # the loop's clock is one of milliseconds
        outcome = self._work(job)
        took_s = time.perf_counter() - began
        self._watch.end_alone()
        return outcome, took_s

    def _start_beside(self, job: Job, now: float) -> None:
        """Run what is not over at once: in a thread, in a task or in a batch."""
        job.context  # noqa: B018  # made here, since it is this thread's to make
        if self._yields:
            try:
                self._yielding.open(job)
            except errors.MeshError as error:
                self._done(job, error, 0.0)
                return
        if job.call.feed and self._read_item is not None:
            job.inflow = self._feeds.open(job)
        if job.is_parked:
            self._oversight.say_running(job, now)
        self._answers.began(job)
        self._oversight.watch()
        if self._batcher is not None:
            self._batcher.add(job)
        elif self._dispatch.mode == "await":
            job.task = self.loop.create_task(self._await(job), name=f"run-{job.run}")
        else:
            self._threads.submit(partial(self._in_thread, job))

    def _comes_too_late(self, job: Job, now: float) -> bool:
        """A child, or a later step, that cannot end in time by all that is known does not begin."""
        usual_s, left_s = self._capacity.median_s, job.deadline - now
        if left_s <= 0:
            self._end_slot(job)
            return True
        if left_s >= usual_s or (job.call.depth == 0 and job.call.at <= 0):
            return False
        late = f"{left_s:.3g} s were left for it, and its runs take {usual_s:.3g} s; {MORE_TIME}"
        self._answers.fail(job, errors.DeadlineExceeded(late), state="refused")
        self._end_slot(job)
        return True

    def _wait_for_same(self, job: Job, now: float) -> None:
        """The same is being run for another: its outcome is this job's too, and it needs no slot."""
        job.limit = job.deadline
        self._jobs[job.run] = job
        if job.is_parked:
            self._oversight.say_running(job, now)
        self._oversight.watch()
        self._end_slot(job)

    def _fetch(self, job: Job, now: float) -> None:
        """Its input lies elsewhere: fetch it, in its slot, and start it then."""
        job.started, job.limit = now, job.deadline
        self._jobs[job.run] = job
        self._oversight.watch()
        job.task = self.loop.create_task(self._fetched(job), name=f"fetch-{job.run}")

    async def _fetched(self, job: Job) -> None:
        call, error = job.call, None
        try:
            lane = await self._joiner.lane()
            given = content.Content(call.content_type, call.detail, call.payload)
            real = await lane.claims.load(given, job.deadline)
            job.call = replace(
                call, content_type=real.content_type, detail=real.detail, payload=memoryview(real.payload)
            )
        except errors.MeshError as failure:
            error = failure
        finally:
            if self._jobs.get(job.run) is job:
                del self._jobs[job.run]
            job.task = None
        if error is not None and not job.abandoned_at:
            self._answers.fail(job, error)
        if error is not None or job.abandoned_at:
            self._end_slot(job)
        else:
            self._start(job)

    def _adopts(self, known: Job, job: Job) -> bool:
        """The same run again, since its sender thought it lost: go on with the one, answer to the newer attempt."""
        if known.outflow is not None and known.call.attempt < job.call.attempt:
            # Its parts went to somebody who is gone: what yields begins anew.
            self._yielding.abandon(known, errors.Cancelled("it was sent again"))
            known.abandoned_at = self.loop.time()
            return False
        if job.call.attempt > known.call.attempt:
            known.call = job.call
        self._end_slot(job)
        self._oversight.say_running(known, self.loop.time())
        return True

    def _end_slot(self, job: Job) -> None:
        self._intake.give_slot(job)
        self.loop.call_soon(self._intake.serve)

    # Running

    def _work(self, job: Job) -> Outcome:
        """Read the input, run the code, encode the output; whatever goes wrong becomes an error."""
        token = enter(job)
        try:
            try:
                call = job.call
                plain = self._read_item is None
                value = self._read(call.content_type, call.detail, call.payload) if plain else self._input(job)
            except errors.BadInput as error:
                return error
            output = self._function(value)
            return self._yielding.send(job, output) if self._yields else content.encode(output)
        except BaseException as error:  # whatever user code raises, SystemExit too, is its caller's to know
            return error_of(error)
        finally:
            leave(token)

    def _input(self, job: Job) -> Any:
        """The value that the code gets. Raises BadInput."""
        call, algorithm, read = job.call, self._algorithm, self._read_item
        if read is None:
            return self._read(call.content_type, call.detail, call.payload)
        if job.inflow is not None:
            return job.inflow.iterate_async(read) if algorithm.is_async else job.inflow.iterate(read)
        parts = content.split(content.Content(call.content_type, call.detail, call.payload))
        items = map(read, parts)
        return streams.async_iterator(items) if algorithm.is_async else items

    def _in_thread(self, job: Job) -> Callable[[], None]:
        began, began_cpu = time.perf_counter(), time.thread_time()
        outcome = self._work(job)
        return partial(self._done, job, outcome, time.perf_counter() - began, time.thread_time() - began_cpu)

    async def _await(self, job: Job) -> None:
        began = self.loop.time()
        token = enter(job)
        outcome: Outcome
        try:
            output = self._function(self._input(job))
            if self._yields:
                outcome = await self._yielding.send_async(job, output)
            else:
                outcome = content.encode(await output)
        except asyncio.CancelledError:
            outcome = errors.Cancelled("the run was stopped")
        except BaseException as error:  # as in _work
            outcome = error_of(error)
        finally:
            leave(token)
        self._done(job, outcome, self.loop.time() - began)

    def _done(self, job: Job, outcome: Outcome, took_s: float, cpu_s: float | None = None) -> None:
        """The code has come to its end: make room, answer, go on."""
        if self._jobs.get(job.run) is job:
            del self._jobs[job.run]
        self._watch.end(job.run)
        self._capacity.observe(took_s)
        self._intake.give_slot(job)
        if job.inflow is not None:
            job.inflow.close()
        first = self._same.end(job) if self._same else None
        if first is not None and isinstance(outcome, content.Content):
            self._onward.results.put(self._version, first.digest, outcome, first.cache_s)
        if job.abandoned_at:
            pass
        elif job.outflow is not None:
            self._yielding.end(job, outcome, took_s)
        else:
            self._onward.finish(job, outcome, took_s)
        if first is not None:
            self._share(first.waiting, outcome)
        self._intake.serve()
        if self._dispatch.observe(took_s, cpu_s):
            log.info("dispatch_changed", dispatch=self._dispatch.mode, took_ms=round(took_s * 1000, 2))
        if self._intake.is_draining and not self._jobs:
            self._ended.set()

    def _share(self, waiting: list[Job], outcome: Outcome) -> None:
        """Answer who waited for the same; an error that came of the other's time or allowance is not theirs."""
        is_theirs = isinstance(outcome, content.Content | errors.AlgorithmError | errors.BadInput | errors.BadOutput)
        for job in waiting:
            self._jobs.pop(job.run, None)
            if is_theirs:
                job.is_cached = isinstance(outcome, content.Content)
                self._onward.finish(job, outcome, 0.0)
            else:
                self._intake.park(job)

    # Children

    async def call_child(self, context: RunContext, pipeline: Pipeline, value: Any, timeout: float | None) -> Response:
        """Call on behalf of a run, which gives its slot back while it waits."""
        return await self._children.call(context, pipeline, value, timeout)

    def stream_child(
        self, context: RunContext, pipeline: Pipeline, value: Any, timeout: float | None, told: Tell
    ) -> AsyncGenerator[content.Content, None]:
        """The same, part by part; `told` gets the metadata at the end."""
        return self._children.stream(context, pipeline, value, timeout, told)


def _kill_at_ns(job: Job) -> int:
    """When its code is to be ended by force, on the watch page's clock."""
    return int((job.limit + GRACE_S) * 1e9)
