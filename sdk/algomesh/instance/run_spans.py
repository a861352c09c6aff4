"""The spans of an instance's runs: one per run, its wait and its user code beneath it, made when it has ended.

They go out where the run's trace is sampled, or it failed, or waited for a cold start, or called something that did.
While user code runs, OpenTelemetry's current span is its run's, so that spans of its own and of libraries lie beneath
it; that span is looked up when somebody asks for it, and costs a run nothing.
"""

import time
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from algomesh.context import entered
from algomesh.instance.job import Job
from algomesh_broker import subjects
from algomesh_broker.boot import Boot
from algomesh_broker.messages import RunState
from algomesh_broker.names import VersionId
from algomesh_observability import telemetry, tracing
from algomesh_observability.spans import SpanRecord, Value, messaging, nanoseconds
from algomesh_observability.telemetry import Telemetry

_NO_FAULT: Final = frozenset({"succeeded", "cancelled"})


def begin(boot: Boot) -> None:
    """Set up telemetry in this instance, if its environment says so, before its event loop begins."""
    on = telemetry.configure(f"{boot.owner}/{boot.name}", instance=boot.instance, version=boot.version)
    if on is not None:
        on.serve_user_code()
        attach()


def attach() -> None:
    """Have the current span of this thread, or of what it begins, be that of the run it is in."""
    if telemetry.active is not None:
        otel_context.attach(trace.set_span_in_context(_RunSpan()))


class RunSpans:
    """Makes the spans of one version's runs."""

    def __init__(self, on: Telemetry, version: VersionId) -> None:
        self._on, self._version = on, str(version)

    @classmethod
    def if_on(cls, version: VersionId) -> "RunSpans | None":
        """None where nobody wants spans."""
        return None if telemetry.active is None else cls(telemetry.active, version)

    def ended(self, job: Job, state: RunState, took_s: float, error: str) -> None:
        """A run has come to its end, after `took_s` seconds of user code; or was refused before it began."""
        call = job.call
        context = tracing.read(call.traceparent, call.root, call.run)
        fault = error if state not in _NO_FAULT else ""
        if not (fault or job.cold_ms or job.has_news or self._on.samples(context)):
            return
        now_ns = time.time_ns()
        begun_ns = nanoseconds(job.started_at) if job.started else now_ns
        waited_s = job.started - job.arrived if job.started else 0.0
        queued_ns = begun_ns - nanoseconds(max(waited_s, job.waited_ms / 1000))
        span = tracing.span_id(job.run)
        self._on.add(
            SpanRecord(
                trace=context.trace,
                span=span,
                parent=context.parent,
                name=f"process {self._version}",
                kind="consumer",
                start_ns=queued_ns,
                end_ns=now_ns,
                attributes=self._attributes(job, state, took_s),
                error=fault,
            )
        )
        if job.started:
            ended_ns = min(now_ns, begun_ns + nanoseconds(took_s))
            self._part(context.trace, span, "queue wait", queued_ns, begun_ns)
            self._part(context.trace, span, "user code", begun_ns, ended_ns, fault)

    def _part(self, trace_id: str, parent: str, name: str, start_ns: int, end_ns: int, error: str = "") -> None:
        """Something of which a run has one: its id is made of the run's, and the same again for the same run."""
        self._on.add(
            SpanRecord(
                trace=trace_id,
                span=tracing.part_span_id(parent, name),
                parent=parent,
                name=name,
                start_ns=start_ns,
                end_ns=end_ns,
                error=error,
            )
        )

    def _attributes(self, job: Job, state: RunState, took_s: float) -> dict[str, Value]:
        call = job.call
        found = messaging(
            "process", job.subject, self._version, run=job.run, root=call.root, size_bytes=len(call.payload)
        )
        found["messaging.consumer.group.name"] = subjects.WORKERS
        found["algomesh.state"] = state
        found["algomesh.caller"] = job.caller
        found["algomesh.root_caller"] = call.root_caller
        found["algomesh.attempt"] = call.attempt
        found["algomesh.compute_ms"] = round(took_s * 1000, 3)
        if call.parent:
            found["algomesh.parent"] = call.parent
        if job.is_parked:
            found["algomesh.parked"] = True
        if job.cold_ms:
            found["algomesh.cold_start_ms"] = round(job.cold_ms, 3)
        if job.is_cached:
            found["algomesh.cached"] = True
        return found


class _RunSpan(NonRecordingSpan):
    """The span of whichever run the asking code is in."""

    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)

    def get_span_context(self) -> SpanContext:
        run, on = entered(), telemetry.active
        if run is None or on is None:
            return trace.INVALID_SPAN_CONTEXT
        origin = run.origin
        context = tracing.read(origin.traceparent, origin.root, origin.run)
        return SpanContext(
            int(context.trace, 16),
            int(tracing.span_id(origin.run), 16),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if on.samples(context) else TraceFlags.DEFAULT),
        )
