"""W3C trace context for the envelope.

Source: https://www.w3.org/TR/trace-context/. A root run's id is its trace id, so a trace can be found
from a run without a table; inside a caller's own span its trace is continued instead.
"""

import sys

from opentelemetry import trace

_SDK = "opentelemetry.sdk"  # where it is not imported, nobody makes spans, and nobody pays for looking

_SAMPLED, _NOT_SAMPLED = "01", "00"


def traceparent(root: str, run: str) -> str:
    """The `traceparent` of a run: of the current span if there is one, else made of the 32 hex digits of `root`."""
    span = trace.get_current_span() if _SDK in sys.modules else trace.INVALID_SPAN
    if span is not trace.INVALID_SPAN:
        context = span.get_span_context()
        if context.is_valid:
            flags = _SAMPLED if context.trace_flags.sampled else _NOT_SAMPLED
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"
    return f"00-{root}-{run[:16]}-{_NOT_SAMPLED}"


def trace_id(traceparent_: str) -> str:
    """The trace id in a `traceparent`, or nothing when it is not one."""
    parts = traceparent_.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
