"""Runs user code: inline, in a thread, or awaited; and answers for it.

A plain function runs in a thread or inline in the loop (dispatch.py says when), `async def` is awaited.
`ALGOMESH_DISPATCH=inline|thread` fixes the choice for plain functions.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from algomesh import clients, content, errors
from algomesh.context import RunContext, enter, leave
from algomesh.decorator import Algorithm
from algomesh.instance.answers import Answers, Outcome
from algomesh.instance.capacity import Capacity
from algomesh.instance.dispatch import DispatchChoice
from algomesh.instance.intake import Intake
from algomesh.instance.job import Job
from algomesh.instance.output import log_exception
from algomesh.instance.threads import Threads
from algomesh.instance.watch import WatchWriter
from algomesh.nats_transport import NatsTransport
from algomesh.response import Response
from algomesh.transport import Origin
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage
from algomesh_broker.names import Reference
from algomesh_broker.protocol import NO_RESPONDERS

log = structlog.get_logger("algomesh.runner")


SAY_RUNNING_S: Final = 0.1
SAY_AGAIN_S: Final = 1.0
GRACE_S: Final = 2.0
STUCK_CODE: Final = 74
_SWEEP_S: Final = 0.05
_MOST_SUSPENDED: Final = 256
_GONE_TWICE: Final = 3


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
        self._read = algorithm.signature.read
        self._capacity = Capacity(boot.options.concurrency)
        self._answers = Answers(connection, self._version, boot, ready_ns)
        self._threads = Threads(self.loop, "run")
        self._intake = Intake(
            connection,
            self._version,
            boot.instance,
            self._capacity,
            self._start,
            self._answers.refuse,
            self._answers.refuse_hop,
        )
        self._jobs: dict[str, Job] = {}
        self._ended = asyncio.Event()
        self._suspended = 0
        self._children: NatsTransport | None = None
        self._children_lock = asyncio.Lock()
        self._sweeping: asyncio.TimerHandle | None = None
        self._dispatch = _choose_dispatch(algorithm)

    async def open(self) -> None:
        """Take calls from now on."""
        self._connection.join(subjects.controls_of(self._boot.instance), self._on_control)
        self._connection.join(f"{self._connection.identity.inbox}.gone.*", self._on_gone)
        await self._intake.open()

    async def drain(self, within_s: float) -> None:
        """Take no more, let what runs come to its end, tell the ledger."""
        await self._intake.drain()
        if self._jobs and not self.stuck.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._ended.wait()
        self._answers.flush()

    @property
    def active(self) -> int:
        """Runs under way."""
        return len(self._jobs)

    # Starting

    def _start(self, job: Job) -> None:
        """Run a job that has its slot."""
        known = self._jobs.get(job.call.run)
        if known is not None:
            self._adopt(known, job)
            return
        now = self.loop.time()
        if now >= job.deadline:
            self._end_slot(job)
            return
        job.started, job.started_at = now, time.time()
        timeout_s = self._boot.options.timeout_s
        job.limit = job.deadline if timeout_s is None else min(job.deadline, now + timeout_s)
        job.context = self._context_of(job)
        if job.cold_ms:
            job.cold_ms = max(0.0, job.cold_ms - self._answers.ready_ms)
        self._jobs[job.call.run] = job
        self._watch.begin(job.call.run, int((job.limit + GRACE_S) * 1e9))
        if self._dispatch.mode == "inline":
            self._done(job, self._work(job), self.loop.time() - now)
            return
        if job.is_parked:
            self._say_running(job, now)
        self._answers.began(job)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)
        if self._dispatch.mode == "await":
            job.task = self.loop.create_task(self._await(job), name=f"run-{job.call.run}")
        else:
            self._threads.submit(partial(self._in_thread, job))

    def _context_of(self, job: Job) -> RunContext:
        call = job.call
        origin = Origin(call.run, call.root, call.root_caller, call.depth, call.budget, job.limit)
        return RunContext(self, origin, parent=call.parent, caller=job.caller, algorithm=self._stage)

    def _adopt(self, known: Job, job: Job) -> None:
        """The same run again, since its sender thought it lost: go on with the one, answer to the newer attempt."""
        if job.call.attempt > known.call.attempt:
            known.call = job.call
        self._end_slot(job)
        self._say_running(known, self.loop.time())

    def _end_slot(self, job: Job) -> None:
        self._intake.give_slot(job)
        self.loop.call_soon(self._intake.serve)

    # Running

    def _work(self, job: Job) -> Outcome:
        """Read the input, run the code, encode the output; whatever goes wrong becomes an error."""
        assert job.context is not None
        token = enter(job.context)
        try:
            call = job.call
            try:
                value = self._read(call.content_type, call.detail, call.payload)
            except errors.BadInput as error:
                return error
            return content.encode(self._function(value))
        except BaseException as error:  # whatever user code raises, SystemExit too, is its caller's to know
            return _error_of(error)
        finally:
            leave(token)

    def _in_thread(self, job: Job) -> Callable[[], None]:
        began, began_cpu = time.perf_counter(), time.thread_time()
        outcome = self._work(job)
        return partial(self._done, job, outcome, time.perf_counter() - began, time.thread_time() - began_cpu)

    async def _await(self, job: Job) -> None:
        assert job.context is not None
        began = self.loop.time()
        token = enter(job.context)
        outcome: Outcome
        try:
            value = self._read(job.call.content_type, job.call.detail, job.call.payload)
            outcome = content.encode(await self._function(value))
        except asyncio.CancelledError:
            outcome = errors.Cancelled("the run was stopped")
        except BaseException as error:  # as in _work
            outcome = _error_of(error)
        finally:
            leave(token)
        self._done(job, outcome, self.loop.time() - began)

    def _done(self, job: Job, outcome: Outcome, took_s: float, cpu_s: float | None = None) -> None:
        """The code has come to its end: make room, answer, go on."""
        if self._jobs.get(job.call.run) is job:
            del self._jobs[job.call.run]
        self._watch.end(job.call.run)
        self._capacity.observe(took_s)
        self._intake.give_slot(job)
        if not job.abandoned_at:
            self._answers.answer(job, outcome, took_s)
        self._intake.serve()
        if self._dispatch.observe(took_s, cpu_s):
            log.info("dispatch_changed", dispatch=self._dispatch.mode, took_ms=round(took_s * 1000, 2))
        if self._intake.is_draining and not self._jobs:
            self._ended.set()

    # Time, cancel, callers that have gone

    def _say_running(self, job: Job, now: float) -> None:
        job.said_at = now
        self._answers.say_running(job)

    def _sweep(self) -> None:
        """Say what still runs, end what runs too long."""
        self._sweeping = None
        now = self.loop.time()
        self._watch.beat(time.monotonic_ns())
        for job in list(self._jobs.values()):
            if job.abandoned_at:
                if now - job.abandoned_at > GRACE_S and job.task is None:
                    self.stuck.set()
            elif now >= job.limit:
                expired = job.limit >= job.deadline
                limit_s = job.limit - job.started
                error: errors.MeshError = (
                    errors.DeadlineExceeded(f"your time was over after {limit_s:.3g} s of running; {_MORE_TIME}")
                    if expired
                    else errors.RunTimeout(f"the run took longer than its timeout of {limit_s:g} s; {_LONGER}")
                )
                self._abandon(job, error, "expired" if expired else "failed")
            elif now - job.started >= SAY_RUNNING_S and now - job.said_at >= SAY_AGAIN_S:
                self._say_running(job, now)
        if self._jobs:
            self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)

    def _abandon(self, job: Job, error: errors.MeshError, state: messages.RunState) -> None:
        """Answer now; async code is cancelled, a thread is asked to stop and given a little time."""
        if job.abandoned_at:
            return
        self._answers.fail(job, error, self.loop.time() - job.started, state)
        job.abandoned_at = self.loop.time()
        if job.context is not None:
            job.context.cancelled = True
        if job.task is not None:
            job.task.cancel()

    def _on_control(self, message: Message) -> None:
        try:
            cancel = codec.decode_control(message.data)
        except BadMessage as error:
            log.warning("control_ignored", error=str(error))
            return
        job = self._jobs.get(cancel.run)
        if job is not None and job.caller == message.subject.rpartition(".")[2] and job.call.attempt <= cancel.attempt:
            self._abandon(job, errors.Cancelled("its caller stopped it"), "cancelled")

    def _on_gone(self, message: Message) -> None:
        """Nobody listened to our Running: after the third time in a row the caller has gone for good."""
        job = self._jobs.get(message.subject.rpartition(".")[2])
        if job is not None and message.status == NO_RESPONDERS:
            job.gone += 1
            if job.gone >= _GONE_TWICE:
                self._abandon(job, errors.Cancelled("its caller has gone"), "cancelled")

    # Children

    async def call_child(
        self, context: RunContext, reference: Reference, value: Any, timeout: float | None
    ) -> Response:
        """Call on behalf of a run, which gives its slot back while it waits."""
        job = self._jobs.get(context.run)
        if job is None:
            raise errors.Cancelled("this run has ended; it cannot call any more")
        if self._suspended >= _MOST_SUSPENDED:
            raise errors.Overloaded(f"{_MOST_SUSPENDED} runs of this instance wait for others already")
        payload = clients.encode_input(value)
        limit_s = clients.check_timeout(timeout, clients.DEFAULT_TIMEOUT_S)
        transport = await self._children_transport()
        self._suspended += 1
        job.children += 1
        self._intake.give_slot(job)
        self._intake.serve()
        try:
            return await transport.call(reference, payload, limit_s, context.origin)
        finally:
            self._suspended -= 1
            job.children -= 1
            if not job.has_slot and not job.abandoned_at:
                await self._intake.take_slot(job)

    async def _children_transport(self) -> NatsTransport:
        async with self._children_lock:
            if self._children is None:
                self._children = await NatsTransport.over(self._connection)
            return self._children


_MORE_TIME = "give more time (timeout=…)"
_LONGER = "raise `timeout` in @algorithm, or send less at once"


def _choose_dispatch(algorithm: Algorithm[Any, Any]) -> DispatchChoice:
    """The dispatch to begin with; what may wait for others must not do so in the loop."""
    if algorithm.is_async:
        return DispatchChoice("await", is_fixed=True)
    if algorithm.options.calls:
        return DispatchChoice("thread", is_fixed=True)
    wanted = os.environ.get("ALGOMESH_DISPATCH", "")
    return DispatchChoice("inline" if wanted == "inline" else "thread", is_fixed=wanted in ("inline", "thread"))


def _error_of(error: BaseException) -> errors.MeshError:
    """What a caller learns of an exception in user code; the traceback stays in the log."""
    if isinstance(error, errors.AlgorithmError | errors.BadOutput | errors.BadInput):
        if not isinstance(error, errors.BadOutput):
            log_exception(error)
        return error
    log_exception(error)
    if isinstance(error, errors.MeshError):  # a child's: its own code and stage go on to the caller
        return error
    if isinstance(error, SystemExit):
        return errors.AlgorithmError(f"the algorithm called exit({error.code!r})", error_type="SystemExit")
    text = str(error) or "no message"
    return errors.AlgorithmError(f"{type(error).__name__}: {text}", error_type=type(error).__name__)
