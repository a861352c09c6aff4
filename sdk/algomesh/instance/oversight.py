"""What happens to runs from outside: their time is over, they are cancelled, or their caller has gone.

A run that goes on is said to, now and then; one that must end is answered for at once, and its code is asked to stop:
async code is cancelled, a thread is asked and given a little time, after which its instance must end.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from algomesh import errors
from algomesh.instance.answers import SAY_AGAIN_S, SAY_RUNNING_S, Answers, Outcome
from algomesh.instance.batching import Batcher
from algomesh.instance.coalescing import Coalescing
from algomesh.instance.job import GRACE_S, Job
from algomesh.instance.onward import Onward
from algomesh.instance.watch import WatchWriter
from algomesh_broker import codec, messages
from algomesh_broker.connection import Message
from algomesh_broker.errors import BadMessage
from algomesh_broker.protocol import NO_RESPONDERS
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.oversight")

MORE_TIME: Final = "give more time (timeout=…)"
_LONGER: Final = "raise `timeout` in @algorithm, or send less at once"
_SWEEP_S: Final = 0.05
_GONE_TWICE: Final = 3


class Oversight:
    """Sees to the runs of one instance that stand in `jobs`.

    `share` tells those who wait for the same as a run how that ended; `stuck` is set when a thread does not listen.
    """

    def __init__(
        self,
        jobs: dict[str, Job],
        answers: Answers,
        onward: Onward,
        same: Coalescing,
        watch: WatchWriter,
        batcher: Batcher | None,
        share: Callable[[list[Job], Outcome], None],
        stuck: asyncio.Event,
    ) -> None:
        self._jobs, self._answers, self._same, self._page = jobs, answers, same, watch
        self._yielding, self._joiner = onward.yielding, onward.joiner
        self._batcher, self._share, self._stuck = batcher, share, stuck
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """There is a run to see to."""
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def say_running(self, job: Job, now: float) -> None:
        """Tell the caller of `job` who has it."""
        job.said_at = now
        self._answers.say_running(job)

    def _sweep(self) -> None:
        """Say what still runs, end what runs too long."""
        self._sweeping = None
        now = self._loop.time()
        self._page.beat(time.monotonic_ns())
        for job in list(self._jobs.values()):
            if job.abandoned_at:
                goes_on = self._batcher is not None and self._batcher.goes_on(job, now)
                if now - job.abandoned_at > GRACE_S and job.task is None and not goes_on:
                    self._stuck.set()
            elif now >= job.limit:
                expired = job.limit >= job.deadline
                limit_s = job.limit - job.started
                error: errors.MeshError = (
                    errors.DeadlineExceeded(f"your time was over after {limit_s:.3g} s of running; {MORE_TIME}")
                    if expired
                    else errors.RunTimeout(f"the run took longer than its timeout of {limit_s:g} s; {_LONGER}")
                )
                self.abandon(job, error, "expired" if expired else "failed")
            elif now - job.started >= SAY_RUNNING_S and now - job.said_at >= SAY_AGAIN_S:
                self.say_running(job, now)
        if self._jobs:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def abandon(self, job: Job, error: errors.MeshError, state: messages.RunState) -> None:
        """Answer now; async code is cancelled, a thread is asked to stop and given a little time."""
        if job.abandoned_at:
            return
        self._answers.fail(job, error, self._loop.time() - job.started, state)
        if self._same.leaves(job):
            del self._jobs[job.run]
            return
        job.abandoned_at = self._loop.time()
        first = self._same.end(job)
        if first is not None:
            self._share(first.waiting, error)
        if job.host is not None:
            job.context.cancelled = True
        if job.task is not None:
            job.task.cancel()
        self._yielding.abandon(job, error)
        if job.inflow is not None:
            job.inflow.close()
        for calling in job.calling or ():
            calling.cancel()
        if self._batcher is not None:
            self._batcher.give_up(job)

    def on_control(self, message: Message) -> None:
        """A caller, or the next step, has something to say."""
        try:
            word = codec.decode_control(message.data)
        except BadMessage as error:
            log.warning("control_ignored", error=str(error))
            return
        caller = message.subject.rpartition(".")[2]
        match word:
            case messages.Credit():
                self._yielding.credit(word, caller)
                return
            case messages.Forget():
                self._joiner.forget(word, caller)
                return
        if self._yielding.stop(word, caller):
            return
        for job in list(self._jobs.values()):
            if job.call.run == word.run and job.caller == caller and job.call.attempt <= word.attempt:
                self.abandon(job, errors.Cancelled("its caller stopped it"), "cancelled")
        self._joiner.cancel(word, caller)

    def on_gone(self, message: Message) -> None:
        """Nobody listened to our Running: after the third time in a row the caller has gone for good."""
        run = message.subject.rpartition(".")[2]
        job = self._jobs.get(run) or self._joiner.job(run)
        if job is not None and message.status == NO_RESPONDERS:
            job.gone += 1
            if job.gone >= _GONE_TWICE and not self._yielding.lose_reader(job):
                gone = errors.Cancelled("its caller has gone")
                self._joiner.abandon(run, gone)
                if run in self._jobs:
                    self.abandon(job, gone, "cancelled")
