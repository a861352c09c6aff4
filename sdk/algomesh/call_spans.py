"""The span of a call at its sender: what it waited for as its sender saw it, and its end.

In a program of the mesh, or an instance, it is made at the end, and only if it goes out. In any other program that has
OpenTelemetry's SDK set up it is a span of that program's own tracer, so that a call stands where it was made.
"""

import time
from typing import Final, Protocol

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from algomesh import errors
from algomesh.chain import ANYWHERE
from algomesh.context import entered
from algomesh.order import Order
from algomesh.pending import PARKED, Pending
from algomesh_observability import telemetry, tracing
from algomesh_observability.spans import SpanRecord, Value, messaging
from algomesh_observability.telemetry import Telemetry
from algomesh_observability.tracing import Inbound

_NS: Final = 1_000_000_000


class CallSpan(Protocol):
    """The span of one call that is under way; its envelope carries `traceparent`."""

    @property
    def traceparent(self) -> str:
        """The call's, beneath this span."""
        ...

    def end(self, pending: Pending, error: BaseException | None, now: float) -> None:
        """The call has come to its end at the loop's time `now`."""
        ...


def begin(order: Order) -> CallSpan | None:
    """The span of a call that is about to be sent; None where nobody makes spans."""
    on = telemetry.active
    return _ApiSpan.of(order) if on is None else _OwnSpan(on, order)


class _OwnSpan:
    """Made at the end: by then it is known whether it goes out."""

    __slots__ = ("_began_ns", "_context", "_inbound", "_is_sampled", "_on", "traceparent")

    def __init__(self, on: Telemetry, order: Order) -> None:
        self._on = on
        self._began_ns = time.time_ns()
        self._context = tracing.read(order.traceparent, order.root, order.run)
        self._is_sampled = on.samples(self._context)
        self._inbound: Inbound | None = tracing.inbound()
        self.traceparent = tracing.written(
            self._context.trace, tracing.sender_span_id(order.run), is_sampled=self._is_sampled
        )

    def end(self, pending: Pending, error: BaseException | None, now: float) -> None:
        code = error.code if isinstance(error, errors.MeshError) else ""
        if code or pending.cold_s > 0:
            self._tell_who_asked()
        elif not self._is_sampled:
            return
        now_ns = time.time_ns()
        run = pending.call.run
        self._on.add(
            SpanRecord(
                trace=self._context.trace,
                span=tracing.sender_span_id(run),
                parent=self._context.parent,
                name=f"send {pending.version}",
                kind="producer",
                start_ns=self._began_ns,
                end_ns=now_ns,
                attributes=_attributes(pending),
                error=code,
            )
        )
        if code and pending.state == PARKED and pending.parked_at:
            self._tell_of_wait(pending, code, now_ns - int((now - pending.parked_at) * _NS), now_ns)

    def _tell_who_asked(self) -> None:
        """Whoever asked for it has been slow, or has failed, for this reason: their spans go out too."""
        context = entered()
        if context is not None:
            context.has_news = True
        if self._inbound is not None:
            self._inbound.has_news = True

    def _tell_of_wait(self, pending: Pending, code: str, parked_ns: int, now_ns: int) -> None:
        """No instance has taken it, so no instance will make its run's span, beneath which its cold start lies."""
        call, at = pending.call, pending.at
        run = call.run if at == ANYWHERE else f"{call.run}-{at}"
        version = pending.chain.stages.get(at, pending.version)
        self._on.add(
            SpanRecord(
                trace=self._context.trace,
                span=tracing.span_id(run),
                parent=tracing.sender_span_id(run),
                name=f"process {version}",
                kind="consumer",
                start_ns=parked_ns,
                end_ns=now_ns,
                attributes={"messaging.system": "nats", "algomesh.version": str(version), "algomesh.parked": True},
                error=code,
            )
        )


class _ApiSpan:
    """A span of the program's own tracer."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span, traceparent: str) -> None:
        self._span, self.traceparent = span, traceparent

    @classmethod
    def of(cls, order: Order) -> "_ApiSpan | None":
        span = trace.get_tracer("algomesh").start_span(f"send {order.version}", kind=SpanKind.PRODUCER)
        context = span.get_span_context()
        if not context.is_valid:
            return None
        traceparent = tracing.written(
            f"{context.trace_id:032x}", f"{context.span_id:016x}", is_sampled=context.trace_flags.sampled
        )
        return cls(span, traceparent)

    def end(self, pending: Pending, error: BaseException | None, now: float) -> None:
        del now
        span = self._span
        if span.is_recording():
            span.set_attributes(_attributes(pending))
            if isinstance(error, errors.MeshError):
                span.set_attribute("error.type", error.code)
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _attributes(pending: Pending) -> dict[str, Value]:
    call = pending.call
    size_bytes = len(call.payload)
    found = messaging(
        "send", pending.subject, str(pending.version), run=call.run, root=call.root, size_bytes=size_bytes
    )
    found["algomesh.attempts"] = call.attempt
    if len(pending.chain.stages) > 1:
        found["algomesh.stages"] = " | ".join(str(stage) for _, stage in sorted(pending.chain.stages.items()))
    if pending.instance:
        found["algomesh.instance"] = pending.instance
    if pending.was_parked:
        found["algomesh.parked"] = True
    if pending.cold_s:
        found["algomesh.cold_start_ms"] = round(pending.cold_s * 1000, 3)
    return found
