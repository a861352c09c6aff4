"""W3C trace context for the envelope: whose trace a message belongs to, and under which span.

Source: https://www.w3.org/TR/trace-context/. Ids are made of the runs' own, so that everybody who knows a run knows
its spans without having been told, and nothing has to be made before it is known whether a span goes out:

    trace id           that of the caller's own span or request; else the root run's id
    a run's span       the first 16 hex digits of its id; step N of a pipeline, `<run>-N`, adds N + 1
    its sender's span  the last 16 hex digits of its id

Where nobody made a span before the root run, `traceparent` names that run's own span as its parent, not sampled: such
a run has no parent, and whoever makes spans first decides about it (sampling.py), everywhere alike.
"""

import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from hashlib import blake2b
from typing import Final, NamedTuple

from opentelemetry import trace

SDK: Final = "opentelemetry.sdk"  # where it is not imported, nobody makes spans, and nobody pays for looking
_SAMPLED, _NOT_SAMPLED = "01", "00"
_FORM: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?![^-])")
_HEX: Final = re.compile("[0-9a-f]*")
_NO_TRACE, _NO_SPAN = 32 * "0", 16 * "0"
_MOST: Final = 2**64 - 1


class TraceContext(NamedTuple):
    """Where a piece of work belongs: hex digits; no `parent` for the first span of a trace.

    `is_sampled` is None where nobody has decided yet.
    """

    trace: str
    parent: str
    is_sampled: bool | None


class Inbound:
    """A request from outside, whose span is made at its end: the trace is its caller's, else its first root run's.

    `has_news` is set when something under it went wrong or met a cold start: then its own span goes out too.
    """

    __slots__ = ("_samples", "has_news", "is_sampled", "parent", "span", "trace")

    def __init__(
        self, span: str, context: TraceContext | None = None, samples: Callable[[TraceContext], bool] | None = None
    ) -> None:
        """`samples` decides about a trace; where nobody here makes spans, what came is only passed on."""
        self.span, self.trace, self.parent, self.is_sampled, self.has_news = span, "", "", False, False
        self._samples = samples
        if context is not None:
            self._belong(context)

    def traceparent(self, root: str) -> str:
        """The `traceparent` of a run that is sent for this request."""
        if not self.trace:
            self._belong(TraceContext(root, "", None))
        return written(self.trace, self.span, is_sampled=self.is_sampled)

    def _belong(self, context: TraceContext) -> None:
        self.trace, self.parent = context.trace, context.parent
        self.is_sampled = bool(context.is_sampled) if self._samples is None else self._samples(context)


_inbound: ContextVar[Inbound | None] = ContextVar("algomesh_inbound", default=None)
inbound = _inbound.get
enter_inbound, leave_inbound = _inbound.set, _inbound.reset


def traceparent(root: str, run: str, within: str = "") -> str:
    """The `traceparent` of a run: under the current span if there is one, else under `within`, the one who asked's.

    Where there is neither it is made of the ids, and nobody has decided about it.
    """
    if SDK in sys.modules:
        span = trace.get_current_span()
        context = span.get_span_context() if span is not trace.INVALID_SPAN else trace.INVALID_SPAN_CONTEXT
        if context.is_valid:
            flags = _SAMPLED if context.trace_flags.sampled else _NOT_SAMPLED
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"
    if within:
        return within
    request = _inbound.get()
    return f"00-{root}-{run[:16]}-{_NOT_SAMPLED}" if request is None else request.traceparent(root)


def current_header() -> dict[str, str]:
    """The header that puts an HTTP request beneath the current span; nothing where there is none."""
    if SDK not in sys.modules:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    said = written(f"{context.trace_id:032x}", f"{context.span_id:016x}", is_sampled=context.trace_flags.sampled)
    return {"traceparent": said}


def written(trace_id_: str, span: str, *, is_sampled: bool) -> str:
    """A `traceparent` of its parts."""
    return f"00-{trace_id_}-{span}-{_SAMPLED if is_sampled else _NOT_SAMPLED}"


def beneath(traceparent_: str, run: str, root: str) -> str:
    """The `traceparent` of what a run asks for, given its own: the same trace and decision, under the run's span."""
    context = read(traceparent_, root, run)
    return written(context.trace, span_id(run), is_sampled=bool(context.is_sampled))


def read(traceparent_: str, root: str, run: str) -> TraceContext:
    """What a run's `traceparent` says; of one that nobody can read, or none, the trace is made of `root`."""
    found = _FORM.match(traceparent_)
    if found is not None:
        trace_, parent, flags = found.groups()
        if trace_ != _NO_TRACE and parent != _NO_SPAN:
            is_sampled = flags in "13579bdf"
            if parent != run[:16]:
                return TraceContext(trace_, parent, is_sampled)
            return TraceContext(trace_, "", is_sampled or None)
    head = root.partition("-")[0]
    return TraceContext(head if _is_id(head, 32) else _hashed(root or run, 16), "", None)


def read_header(header: str) -> TraceContext | None:
    """The context in a `traceparent` header of a stranger; None for one that is not valid."""
    header = header.strip()
    found = _FORM.match(header)
    if found is None or header.startswith("ff") or (header.startswith("00") and found.end() != len(header)):
        return None
    trace_, parent, flags = found.groups()
    if trace_ == _NO_TRACE or parent == _NO_SPAN:
        return None
    return TraceContext(trace_, parent, flags in "13579bdf")


def span_id(run: str) -> str:
    """The span of a run, or of a step of a pipeline's."""
    head, _, step = run.partition("-")
    first = head[:16]
    if not _is_id(first, 16):
        return _hashed(run, 8)
    if not (step.isascii() and step.isdecimal() and len(step) < 10):
        return first
    return f"{(int(first, 16) + int(step) + 1) & _MOST or 1:016x}"


def sender_span_id(run: str) -> str:
    """The span of whoever sent a run; of a pipeline, all of whose steps have the same sender."""
    head = run.partition("-")[0]
    return head[16:32] if len(head) == 32 and _is_id(head[16:], 16) else _hashed(f"sender of {head}", 8)


def part_span_id(span: str, part: str) -> str:
    """The span of something of which the work of `span` has one."""
    return _hashed(f"{span} {part}", 8)


def trace_id(traceparent_: str) -> str:
    """The trace id in a `traceparent`, or nothing when it is not one."""
    parts = traceparent_.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


def _is_id(text: str, length: int) -> bool:
    """Lower case, and not nothing but zeros, as W3C has it."""
    return len(text) == length and _HEX.fullmatch(text) is not None and text.strip("0") != ""


def _hashed(text: str, size_bytes: int) -> str:
    return blake2b(text.encode(), digest_size=size_bytes).hexdigest()
