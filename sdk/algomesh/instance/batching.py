"""Runs single calls together: gathers jobs, runs each batch in a thread or awaits it, and gives each its own outcome.

gathering.py decides when; this module does it. An input that does not fit fails before the batch, an output that
cannot travel after it, each for its own caller. A batch that raises is run again one by one, in the place that it
had. The time of a batch counts for each of its runs in equal parts. A run that was given up leaves the queue at
once; inside a batch it is only not answered, and when nobody wants an answer the batch is asked to stop.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from algomesh import content, errors
from algomesh.batch import check_outputs
from algomesh.context import RunContext, enter, leave
from algomesh.decorator import Algorithm
from algomesh.instance.answers import Outcome
from algomesh.instance.gathering import Gathering
from algomesh.instance.job import GRACE_S, Job
from algomesh.instance.threads import Threads
from algomesh.instance.watch import WatchWriter
from algomesh.transport import Origin
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.batching")


class _Several:
    """The host of a context that belongs to several runs: whose child would a call be?"""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    async def call_child(self, context: RunContext, pipeline: Any, value: Any, timeout: float | None) -> NoReturn:
        raise _denied(context)

    def stream_child(
        self, context: RunContext, pipeline: Any, value: Any, timeout: float | None, told: Any
    ) -> NoReturn:
        raise _denied(context)


def _denied(context: RunContext) -> errors.PermissionDenied:
    return errors.PermissionDenied(
        "a batch runs for several callers, so it may not call; call in an algorithm without batch",
        stage=context.algorithm,
    )


class _Running:
    """A batch under way: `jobs` run together, `alone` (with their timeouts) afterwards one by one."""

    __slots__ = ("alone", "context", "error", "jobs", "outcomes", "task")

    def __init__(self, jobs: list[Job], context: RunContext) -> None:
        self.jobs, self.context = jobs, context
        self.alone: dict[Job, float] = {}
        self.outcomes: dict[Job, Outcome] = {}
        self.error: errors.MeshError | None = None
        self.task: asyncio.Task[None] | None = None


class Batcher:
    """The batches of one instance.

    `done(job, outcome, took_s)` is called once for each job that was added; `error_of` says what a caller learns of
    an exception.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any, Any],
        concurrency: int,
        threads: Threads,
        watch: WatchWriter,
        done: Callable[[Job, Outcome, float], None],
        error_of: Callable[[BaseException], errors.MeshError],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._function: Callable[[Any], Any] = algorithm.loaded()
        self._read = algorithm.signature.read
        self._is_async = algorithm.is_async
        self._stage = str(algorithm.version_id)
        self._threads, self._watch, self._done, self._error_of = threads, watch, done, error_of
        options = algorithm.options
        self._gathering = Gathering(options.batch_max, options.batch_wait_ms / 1000, concurrency)
        self._timeouts: dict[Job, float] = {}  # of the jobs that wait, in their order
        self._running: dict[Job, _Running] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_soon = False

    def add(self, job: Job) -> None:
        """Let a job run with others; its timeout counts from then on."""
        self._timeouts[job] = job.limit - job.started
        self._set_limit(job, job.deadline)
        self._gathering.arrive(self._loop.time())
        if not self._looks_soon:  # not now: what else this read of the connection holds goes along
            self._looks_soon = True
            self._loop.call_soon(self._look)

    def give_up(self, job: Job) -> None:
        """Nobody waits for `job` any more."""
        if self._timeouts.pop(job, None) is not None:
            self._gathering.leave()
            self._done(job, errors.Cancelled("the run was stopped"), 0.0)
            return
        running = self._running.get(job)
        if running is None:
            return
        if running.alone.pop(job, None) is not None:
            del self._running[job]
            self._done(job, errors.Cancelled("the run was stopped"), 0.0)
        elif all(other.abandoned_at for other in running.jobs):
            running.context.cancelled = True
            if running.task is not None:
                running.task.cancel()

    def goes_on(self, job: Job, now: float) -> bool:
        """Whether the code that runs for `job`, which was given up, may go on: for others, or since it is async."""
        running = self._running.get(job)
        return running is not None and (
            running.task is not None
            or any(not other.abandoned_at or now - other.abandoned_at <= GRACE_S for other in running.jobs)
        )

    # Beginning

    def _look(self) -> None:
        """Begin what is due, and look again when more will be."""
        self._looks_soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (due := self._gathering.due(now := self._loop.time())) is not None:
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            self._begin(list(islice(self._timeouts, self._gathering.begin(now))))

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._start(job, self._timeouts.pop(job))
        running = _Running(jobs, self._context_of(jobs))
        self._running |= dict.fromkeys(jobs, running)
        self._run(running)

    def _run(self, running: _Running) -> None:
        if self._is_async:
            running.task = self._loop.create_task(self._await(running), name=f"batch-{running.context.run}")
        else:
            self._threads.submit(partial(self._in_thread, running))

    def _start(self, job: Job, timeout_s: float) -> None:
        job.started, job.started_at = self._loop.time(), time.time()
        self._set_limit(job, min(job.deadline, job.started + timeout_s))

    def _set_limit(self, job: Job, limit: float) -> None:
        job.limit = limit
        self._watch.move(job.run, int((limit + GRACE_S) * 1e9))

    def _context_of(self, jobs: list[Job]) -> RunContext:
        first = jobs[0].context
        limit = min(job.limit for job in jobs)
        if len(jobs) == 1:
            first.origin = first.origin._replace(deadline=limit)
            return first
        depth = max(job.call.depth for job in jobs)
        origin = Origin(f"{first.run}+{len(jobs) - 1}", "", "", depth, 0, limit)
        return RunContext(_Several(self._loop), origin, algorithm=self._stage)

    # Running

    def _in_thread(self, running: _Running) -> Callable[[], None]:
        began = time.perf_counter()
        token = enter(running.context)
        try:
            values = self._inputs(running)
            if values:
                self._take_outputs(running, self._function(values))
        except BaseException as error:  # whatever user code raises, SystemExit too, is its callers' to know
            running.error = self._error_of(error)
        finally:
            leave(token)
        return partial(self._end, running, time.perf_counter() - began)

    async def _await(self, running: _Running) -> None:
        began = self._loop.time()
        token = enter(running.context)
        try:
            values = self._inputs(running)
            if values:
                self._take_outputs(running, await self._function(values))
        except asyncio.CancelledError:
            running.error = errors.Cancelled("the run was stopped")
        except BaseException as error:  # as in _in_thread
            running.error = self._error_of(error)
        finally:
            leave(token)
        self._end(running, self._loop.time() - began)

    def _inputs(self, running: _Running) -> list[Any]:
        """The inputs that can be read; the others have their outcome."""
        values = []
        for job in running.jobs:
            call = job.call
            try:
                values.append(self._read(call.content_type, call.detail, call.payload))
            except errors.BadInput as error:
                running.outcomes[job] = error
            except Exception as error:  # what a type of the user's raises when it is made
                running.outcomes[job] = self._error_of(error)
        return values

    def _take_outputs(self, running: _Running, outputs: Any) -> None:
        """Each its own; raises BadOutput when there are not as many as inputs that could be read."""
        ran = [job for job in running.jobs if job not in running.outcomes]
        for job, output in zip(ran, check_outputs(outputs, len(ran)), strict=True):
            try:
                running.outcomes[job] = content.encode(output)
            except Exception as error:
                running.outcomes[job] = self._error_of(error)

    # Ending

    def _end(self, running: _Running, took_s: float) -> None:
        """Begin what comes next, then answer."""
        jobs, outcomes, failed = running.jobs, running.outcomes, running.error
        left = [job for job in jobs if job not in outcomes]
        if failed is not None and len(left) > 1:
            log.info("batch_failed", size=len(left), error=failed.message[:200])
            for job in left:
                if not job.abandoned_at:
                    running.alone[job] = job.limit - job.started
                    self._set_limit(job, job.deadline)
        for job in left:
            if job not in running.alone:
                outcomes[job] = failed or errors.Cancelled("the run was stopped")
        for job in outcomes:
            del self._running[job]
        if running.alone:
            self._go_on_alone(running.alone)
        else:
            says_something = any(isinstance(outcome, content.Content) for outcome in outcomes.values())
            self._gathering.end(self._loop.time(), len(jobs), took_s if says_something else None)
            self._look()
        for job, outcome in outcomes.items():
            self._done(job, outcome, took_s / len(jobs))

    def _go_on_alone(self, alone: dict[Job, float]) -> None:
        job = next(iter(alone))
        self._start(job, alone.pop(job))
        following = _Running([job], self._context_of([job]))
        following.alone = alone
        for other in (job, *alone):
            self._running[other] = following
        self._run(following)
