"""Runs that yield: where their parts go, who may ask for more, and how they end.

Parts go to whoever waits for the answer, when it wants parts (`credit` in the call), or to the next step's
instance, when that reads parts: it is handed the run at its beginning, and pulls (inflow.py). Else what is yielded
becomes a list.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from algomesh import content, errors
from algomesh.content import Content
from algomesh.instance.answers import Answers
from algomesh.instance.job import Job
from algomesh.instance.outflow import Outflow
from algomesh_broker import messages
from algomesh_broker.names import is_token
from algomesh_broker.route import END, CallStep
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.yielding")

NOTHING = Content("json", "", b"null")
HandOver = Callable[[Job], None]


class Yielding:
    """The runs of one instance that send parts."""

    def __init__(self, answers: Answers, hand_over: HandOver) -> None:
        """`hand_over(job)` sends the next step to its version, with this instance as its feed."""
        self._answers = answers
        self._hand_over = hand_over
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, Job] = {}

    def open(self, job: Job) -> None:
        """`job` is about to run, and will yield. Raises PayloadTooLarge, Unreachable."""
        if feeds(job):
            self._begin(job, 0)
            self._hand_over(job)
        elif job.next == END and job.call.credit > 0:
            job.reader = (job.caller, job.call.session, job.call.call)
            self._begin(job, job.call.credit)

    def open_joined(self, job: Job) -> Outflow:
        """A join whose caller wants its items as they come."""
        job.reader = (job.caller, job.call.session, job.call.call)
        self._begin(job, job.call.credit)
        assert job.outflow is not None
        return job.outflow

    def send(self, job: Job, parts: Iterator[Any]) -> Content:
        """Send what a generator yields, in its thread; or make a list of it."""
        if job.outflow is None:
            return content.join([content.encode(part) for part in parts], [])
        try:
            for part in parts:
                job.outflow.put(content.encode(part))
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        return NOTHING

    async def send_async(self, job: Job, parts: AsyncIterator[Any]) -> Content:
        """Send what an asynchronous generator yields; or make a list of it."""
        if job.outflow is None:
            return content.join([content.encode(part) async for part in parts], [])
        try:
            async for part in parts:
                await job.outflow.put_async(content.encode(part))
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()
        return NOTHING

    def credit(self, credit: messages.Credit, caller: str) -> None:
        """Who reads has room for more."""
        for job in self._open.values():
            if job.call.run == credit.run and job.call.attempt == credit.attempt and _may_read(job, caller):
                assert job.outflow is not None
                if feeds(job):
                    if not (is_token(credit.session) and is_token(credit.call)):
                        log.warning("credit_ignored", caller=caller, run=job.run)
                        return
                    job.reader = (caller, credit.session, credit.call)
                    if job.is_over:
                        self._close(job)
                job.outflow.give(credit.upto)
                return

    def stop(self, cancel: messages.Cancel, caller: str) -> bool:
        """The next step reads no more: its feed ends without a word to anybody. Says whether it was one."""
        for job in list(self._open.values()):
            if job.call.run == cancel.run and feeds(job) and _may_read(job, caller) and cancel.at == job.call.at:
                return self.lose_reader(job)
        return False

    def lose_reader(self, job: Job) -> bool:
        """Nobody of the next step reads any more: end the run without a word. Says whether it fed a step."""
        if job.outflow is None or not feeds(job):
            return False
        job.is_unread = True
        job.outflow.close(errors.Cancelled("the next step reads no more"))
        return True

    def end(self, job: Job, outcome: Content | errors.MeshError, took_s: float, spent_ms: float | None = None) -> None:
        """The code has come to its end."""
        if job.is_unread:
            self._open.pop(job.run, None)
            self._answers.record(job, "cancelled", took_s)
        elif isinstance(outcome, errors.MeshError):
            self._open.pop(job.run, None)
            self._answers.fail(job, outcome, took_s)
            if feeds(job) and job.reader is not None:
                self._answers.fail_reader(job, outcome)
        elif feeds(job):
            self._answers.record(job, "succeeded", took_s)
            job.is_over = True
            if job.reader is not None:
                self._close(job)
            else:  # nothing was yielded, and nobody has asked yet
                self._loop.call_later(max(0.0, job.deadline - self._loop.time()), self._open.pop, job.run, None)
        else:
            assert job.outflow is not None
            self._open.pop(job.run, None)
            self._answers.answer(job, outcome, took_s, spent_ms, parts=job.outflow.sent)

    def abandon(self, job: Job, error: errors.MeshError) -> None:
        """The run is given up; who waits has been told."""
        if job.outflow is not None:
            job.outflow.close(error)
            if feeds(job) and job.reader is not None:
                self._answers.fail_reader(job, error)
        self._open.pop(job.run, None)

    def _begin(self, job: Job, upto: int) -> None:
        def publish(number: int, part: Content) -> None:
            self._answers.part(job, number, part)

        job.outflow = Outflow(self._loop, publish, upto)
        self._open[job.run] = job

    def _close(self, job: Job) -> None:
        """All parts have been sent to the next step."""
        assert job.outflow is not None
        self._open.pop(job.run, None)
        self._answers.end_parts(job, job.outflow.sent)


def feeds(job: Job) -> bool:
    """Whether the next step reads the parts of this one."""
    if job.granted is None or job.next == END:
        return False
    step = job.granted.route.steps[job.next]
    return isinstance(step, CallStep) and step.takes_parts


def _may_read(job: Job, caller: str) -> bool:
    if not feeds(job):
        return caller == job.caller
    assert job.granted is not None
    return caller == job.granted.route.places[job.next].version.caller
