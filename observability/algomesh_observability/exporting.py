"""From records to an OTLP collector: the one module that imports OpenTelemetry's SDK, itself imported only when on.

A queue of bounded size and a thread of its own: whoever hands over a span never waits. A collector that is away costs
spans, which are counted, and one line in the log until it is back.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from algomesh_observability.sampling import Sampler
from algomesh_observability.spans import SpanRecord

_SCOPE: Final = InstrumentationScope("algomesh")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {kind.name.lower(): kind for kind in SpanKind}
_OK: Final = Status(StatusCode.UNSET)
# They would log every failed try; what matters of it is said here, once.
_NOISY: Final = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


class Outlet(SpanProcessor):
    """Takes spans that have ended, ours and those that user code made, and sends them in batches."""

    def __init__(
        self,
        resource: Mapping[str, str],
        *,
        say: Callable[[str, str], None],
        exporter: SpanExporter | None = None,
        queue_size: int = 2048,
        delay_ms: float = 5000.0,
    ) -> None:
        """`say(event, error)` is called from another thread when spans begin to be lost, and when that is over."""
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.resource = Resource(dict(resource))
        self._queue_size = queue_size
        self._sending = _Sending(exporter or OTLPSpanExporter(), say)
        self._batches = BatchSpanProcessor(
            self._sending,
            max_queue_size=queue_size,
            schedule_delay_millis=delay_ms,
            max_export_batch_size=min(512, queue_size),
        )
        self._taken = self._refused = 0

    @property
    def dropped(self) -> int:
        """How many spans were lost, because the queue was full or the collector did not take them."""
        return self._refused + self._sending.failed

    @property
    def exported(self) -> int:
        """How many spans the collector has taken."""
        return self._sending.sent

    def add(self, record: SpanRecord) -> None:
        """Send a span, sampled or not."""
        if self._has_room():
            self._batches.on_end(self._readable(record))

    def on_end(self, span: ReadableSpan) -> None:
        """Send a span of user code; those not sampled never come here."""
        if self._has_room():
            self._batches.on_end(span)

    def close(self, within_s: float) -> None:
        """Send what there is, for at most `within_s` seconds; a collector that is away is not waited for."""
        if self._sending.is_failing:
            self._sending.shutdown()
        ending = threading.Thread(target=self._batches.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(within_s)

    def provider(self, sampler: Sampler) -> TracerProvider:
        """What gives tracers to user code whose spans are to go the same way."""
        ratio = sampling.TraceIdRatioBased(sampler.rate)
        chosen: sampling.Sampler = sampling.ParentBased(ratio) if sampler.by_parent else ratio
        provider = TracerProvider(sampler=chosen, resource=self.resource, shutdown_on_exit=False)
        provider.add_span_processor(self)
        return provider

    def _has_room(self) -> bool:
        if self._taken - self._sending.seen >= self._queue_size:
            self._refused += 1
            return False
        self._taken += 1
        return True

    def _readable(self, record: SpanRecord) -> ReadableSpan:
        trace_id = int(record.trace, 16)
        parent = None
        if record.parent:
            parent = SpanContext(trace_id, int(record.parent, 16), is_remote=True, trace_flags=_SAMPLED)
        attributes = dict(record.attributes)
        status = _OK
        if record.error:
            attributes["error.type"] = record.error
            status = Status(StatusCode.ERROR)
        return ReadableSpan(
            name=record.name,
            context=SpanContext(trace_id, int(record.span, 16), is_remote=False, trace_flags=_SAMPLED),
            parent=parent,
            resource=self.resource,
            attributes=attributes,
            kind=_KINDS[record.kind],
            status=status,
            start_time=record.start_ns,
            end_time=max(record.start_ns, record.end_ns),
            instrumentation_scope=_SCOPE,
        )


class _Sending(SpanExporter):
    """An exporter that counts, and says once that it fails; used by one thread."""

    def __init__(self, exporter: SpanExporter, say: Callable[[str, str], None]) -> None:
        self.sent = self.failed = self.seen = 0
        self._exporter, self._say = exporter, say
        self.is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.seen += len(spans)
        why = "the collector did not take them"
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # whatever it is, the thread goes on
            result, why = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed != self.is_failing:
            self.is_failing = failed
            self._say("spans_not_sent" if failed else "spans_sent_again", why if failed else "")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def import_all() -> None:
    """Import what an exporter imports when it is made, which takes as long as everything else."""
    OTLPSpanExporter().force_flush()


def install(provider: TracerProvider) -> bool:
    """Give user code its tracers, unless it has set up its own; whether that was done."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    trace.set_tracer_provider(provider)
    return True
