"""What an instance says about its runs: results, failures, that they run, and the record of it all."""

import time
from typing import Final

from msgspec.structs import replace

from algomesh import content, errors
from algomesh.instance.job import Job
from algomesh.instance.record import Record
from algomesh.instance.run_spans import RunSpans
from algomesh.instance.sightings import Sightings
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError, PayloadTooLarge
from algomesh_broker.names import VersionId
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.answers")

Outcome = content.Content | errors.MeshError

# When whoever waits is told that a run, or a join, is under way.
SAY_RUNNING_S: Final = 0.1
SAY_AGAIN_S: Final = 1.0
_LONGEST_MESSAGE: Final = 8192
_LONGEST_TYPE: Final = 256


class Answers:
    """Speaks for one instance, always in its own name, to where the call came from."""

    def __init__(self, connection: Connection, version: VersionId, boot: Boot, ready_ns: int) -> None:
        self._connection = connection
        self._instance = boot.instance
        self._ready_ns = ready_ns
        self._start_ms = max(0, ready_ns - boot.launched_ns) // 1_000_000
        self._record = Record(connection, version)
        self._sightings = Sightings(connection, version)
        self._spans = RunSpans.if_on(version)
        # Made once: they are in every answer and every record.
        self._stage, self._algorithm, self._number = str(version), version.algorithm, str(version.version)
        self._replies = subjects.replies_of(version.caller)

    @property
    def ready_ms(self) -> int:
        """For how long this instance has been ready."""
        return (time.monotonic_ns() - self._ready_ns) // 1_000_000

    def flush(self) -> None:
        """Send what the record and the sightings hold."""
        self._record.flush()
        self._sightings.flush()

    def began(self, job: Job) -> None:
        """Record that a run has begun."""
        self._record.begin(self._event(job, "running"))

    def answer(
        self,
        job: Job,
        outcome: Outcome,
        took_s: float,
        spent_ms: float | None = None,
        *,
        parts: int = -1,
        kept_at: int = -1,
    ) -> None:
        """Send the result or the failure of a run that took `took_s` seconds, and record it.

        `spent_ms` is the time of all user code on the way here, this run's included; `parts` how many were sent;
        `kept_at` the later step whose kept result the outcome is.
        """
        call = job.call
        subject = subjects.answer_to(self._replies, job.caller, call.session, call.call)
        if isinstance(outcome, content.Content):
            place = None if kept_at < 0 or job.granted is None else job.granted.route.places[kept_at]
            result = messages.Result(
                call.run,
                call.attempt,
                self._instance,
                self._number if place is None else str(place.version.version),
                outcome.content_type,
                outcome.detail,
                memoryview(outcome.payload),
                (job.started - job.arrived) * 1000,
                call.spent_ms + took_s * 1000 if spent_ms is None else spent_ms,
                self.ready_ms if job.is_parked else 0,
                0,
                call.at if place is None else kept_at,
                parts,
                job.is_cached,
                job.writers,
            )
            try:
                self._connection.publish(subject, codec.encode(result))
            except PayloadTooLarge as error:
                outcome = errors.PayloadTooLarge(f"the output is too large: {error}; return less at once")
            except BrokerError as error:
                log.warning("answer_lost", run=call.run, error=str(error))
        if isinstance(outcome, errors.MeshError):
            self.fail(job, outcome, took_s)
        else:
            self.succeeded(job, took_s)

    def succeeded(self, job: Job, took_s: float) -> None:
        """Record a run that has just ended well."""
        self._record.add(self._event(job, "succeeded", took_s))

    def fail(self, job: Job, error: errors.MeshError, took_s: float = 0.0, state: messages.RunState = "failed") -> None:
        """Send the failure of a run, and record it as `state`."""
        self.fail_step(job.call, job.caller, error)
        self._record.add(self._event(job, state, took_s, error.code))

    def fail_step(self, call: messages.Call, caller: str, error: errors.MeshError) -> None:
        """Send a failure to who waits for `call`, be it ours or the next step's."""
        failure = messages.Failure(
            run=call.run,
            attempt=call.attempt,
            instance=self._instance,
            code=error.code,
            message=error.message[:_LONGEST_MESSAGE],
            stage=error.stage or self._stage,
            error_type=error.error_type[:_LONGEST_TYPE],
            at=call.at,
            branch=error.branch,
        )
        try:
            subject = subjects.answer_to(self._replies, caller, call.session, call.call)
            self._connection.publish(subject, codec.encode(failure))
        except BrokerError as lost:
            log.warning("answer_lost", run=call.run, error=str(lost))

    def refuse(self, job: Job, code: str, message: str) -> None:
        """Answer for a job that will not run."""
        self.fail(job, errors.of_code(code, message), state="refused")

    def refuse_hop(self, subject: str, reason: str) -> None:
        """Record a hop without a valid route token; nobody is answered, since its claims are unproved."""
        forwarder = subject.rpartition(".")[2]
        log.warning("hop_refused", forwarder=forwarder, algorithm=self._stage, reason=reason)
        now = time.time()
        self._record.add(
            messages.RunEvent(
                run=f"hop-{now:.6f}",
                attempt=1,
                root="",
                parent="",
                algorithm=self._algorithm,
                version=self._number,
                caller=forwarder,
                root_caller=forwarder,
                instance=self._instance,
                state="refused",
                ended_at=now,
                error="permission_denied",
            )
        )

    def _event(self, job: Job, state: messages.RunState, took_s: float = 0.0, error: str = "") -> messages.RunEvent:
        call = job.call
        now = time.time()
        if self._spans is not None and state != "running":
            self._spans.ended(job, state, took_s, error)
        if job.started:
            self._sightings.add(job, 0.0 if state == "running" else now)
        return messages.RunEvent(
            job.run,
            call.attempt,
            call.root,
            call.parent,
            self._algorithm,
            self._number,
            job.caller,
            call.root_caller,
            self._instance,
            state,
            job.started_at - (job.started - job.arrived) if job.started else now,
            job.started_at,
            0.0 if state == "running" else now,
            took_s * 1000,
            job.cold_ms,
            error,
        )

    def say_running(self, job: Job) -> None:
        """Tell the caller who has its run; the server tells us when nobody listens any more."""
        call = job.call
        running = messages.Running(
            run=call.run,
            attempt=call.attempt,
            instance=self._instance,
            ready_ms=self.ready_ms,
            start_ms=self._start_ms,
            at=call.at,
        )
        subject = subjects.answer_to(self._replies, job.caller, call.session, call.call)
        self._connection.publish(subject, codec.encode(running), f"{self._connection.identity.inbox}.gone.{job.run}")

    def record(self, job: Job, state: messages.RunState, took_s: float) -> None:
        """Record a run's end of which nobody is told."""
        self._record.add(self._event(job, state, took_s))

    def part(self, job: Job, number: int, part: content.Content) -> None:
        """Send one part of what a run yields to who reads it."""
        if job.reader is None:
            return
        call = job.call
        message = messages.Part(
            run=call.run,
            attempt=call.attempt,
            instance=self._instance,
            number=number,
            content_type=part.content_type,
            detail=part.detail,
            payload=memoryview(part.payload),
            at=call.at,
        )
        # The server tells us when nobody listens any more.
        gone = f"{self._connection.identity.inbox}.gone.{job.run}"
        try:
            self._connection.publish(subjects.answer_to(self._replies, *job.reader), codec.encode(message), gone)
        except PayloadTooLarge as error:
            assert job.outflow is not None
            job.outflow.close(errors.PayloadTooLarge(f"part {number} is too large: {error}; yield smaller parts"))

    def end_parts(self, job: Job, count: int) -> None:
        """Tell the next step, which reads the parts, that there are no more."""
        assert job.reader is not None
        call = job.call
        result = messages.Result(
            run=call.run,
            attempt=call.attempt,
            instance=self._instance,
            version=self._number,
            content_type="json",
            payload=memoryview(b"null"),
            at=call.at,
            parts=count,
        )
        self._connection.publish(subjects.answer_to(self._replies, *job.reader), codec.encode(result))

    def fail_reader(self, job: Job, error: errors.MeshError) -> None:
        """Tell the next step, which reads the parts, that this one has failed."""
        assert job.reader is not None
        caller, session, number = job.reader
        self.fail_step(replace(job.call, session=session, call=number), caller, error)

    def say_handed_over(self, job: Job, at: int) -> None:
        """Tell who waits, and believes the run to be here, that its output went on to step `at`."""
        call = job.call
        moved = messages.HandedOver(run=call.run, attempt=call.attempt, instance=self._instance, at=at)
        subject = subjects.answer_to(self._replies, job.caller, call.session, call.call)
        self._connection.publish(subject, codec.encode(moved))

    def say_parked(self, call: messages.Call, caller: str) -> None:
        """Tell who waits that step `call.at` waits for an instance."""
        parked = messages.Parked(run=call.run, attempt=call.attempt, instance=self._instance, at=call.at)
        subject = subjects.answer_to(self._replies, caller, call.session, call.call)
        self._connection.publish(subject, codec.encode(parked))
