"""The spans of cold starts: one per start, its phases beneath it, in the trace of the call that waited for it.

Made at the end of a start from times that are known anyway. They always go out: a start is rare, and the answer to
"why was this slow". A start that no call waited for (a hold, a minimum) is a trace of its own.
"""

import secrets
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

from algomesh.instance.watch import Phase
from algomesh_broker import codec
from algomesh_broker.errors import BadMessage
from algomesh_broker.messages import Demand
from algomesh_broker.names import VersionId
from algomesh_observability import telemetry, tracing
from algomesh_observability.spans import SpanRecord, Value, clock_of
from algomesh_services.launcher.instance import Instance, StartFailed

_MOST_CAUSES: Final = 4096
_FRESH_NS: Final = 60 * 1_000_000_000
# What a start does from one moment of the watch page to the next.
_PHASES: Final = (
    ("fork", Phase.IMPORTING),
    ("import", Phase.LOADING),
    ("load", Phase.CONNECTING),
    ("connect", Phase.READY),
)
_SHORTEST_PREPARING_NS: Final = 1_000_000


class _Cause(NamedTuple):
    trace: str
    parent: str
    run: str
    heard_ns: int


class StartSpans:
    """What makes the spans of one launcher's starts."""

    def __init__(self, add: Callable[[SpanRecord], None], clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._add, self._clock_ns = add, clock_ns
        self._causes: dict[VersionId, _Cause] = {}
        self._starts: dict[str, _Cause | None] = {}

    @classmethod
    def if_on(cls) -> "StartSpans | None":
        """None where nobody wants spans."""
        return None if telemetry.active is None else cls(telemetry.active.add)

    def hear(self, version: VersionId, body: bytes | memoryview) -> None:
        """Somebody waits for `version`: the next start of it is in their trace."""
        try:
            demand = codec.decode_demand(body)
        except BadMessage:
            return
        if len(self._causes) >= _MOST_CAUSES:
            self._causes.clear()
        self._causes[version] = _cause_of(demand, self._clock_ns())

    def begun(self, instance: Instance) -> str:
        """An instance is being launched; the trace that its start belongs to, where a call waits for it."""
        cause = self._starts[instance.id] = self._take(instance)
        return "" if cause is None else cause.trace

    def ended(self, instance: Instance, failure: StartFailed | None = None) -> None:
        """Its start is over: it is ready, or has failed. Later calls for the same instance do nothing."""
        if instance.id not in self._starts:
            return
        # What was begun ahead of a call may have been waited for all the same, since then.
        cause = self._starts.pop(instance.id) or self._take(instance) or _Cause(secrets.token_hex(16), "", "", 0)
        begun_ns, now_ns = round(instance.launched_at * 1e9), self._clock_ns()
        marks = _marks(instance, begun_ns)
        is_ready = instance.process is not None and instance.process.watch.began_ns(Phase.READY) > 0
        end_ns = marks[-1][1] if is_ready else now_ns
        error = "" if is_ready and failure is None else failure.code if failure is not None else "stopped"
        start = self._span(
            cause, cause.parent, f"cold start {instance.version}", begun_ns, end_ns, _attributes(instance, cause), error
        )
        times = [begun_ns, *(at_ns for _, at_ns in marks)]
        for (name, _), (from_ns, to_ns) in zip(marks, pairwise(times), strict=True):
            self._span(cause, start, name, from_ns, to_ns)
        if not is_ready:
            self._span(cause, start, _unfinished(marks), times[-1], now_ns, error=error)

    def _take(self, instance: Instance) -> _Cause | None:
        """Who waits for an instance of this version; each start belongs to another, where several do."""
        cause = self._causes.pop(instance.version, None)
        return None if cause is None or self._clock_ns() - cause.heard_ns > _FRESH_NS else cause

    def _span(
        self,
        cause: _Cause,
        parent: str,
        name: str,
        from_ns: int,
        to_ns: int,
        attributes: dict[str, Value] | None = None,
        error: str = "",
    ) -> str:
        span = secrets.token_hex(8)
        self._add(
            SpanRecord(
                trace=cause.trace,
                span=span,
                parent=parent,
                name=name,
                start_ns=clock_of(from_ns),
                end_ns=clock_of(to_ns),
                attributes=attributes or {},
                error=error,
            )
        )
        return span


def _cause_of(demand: Demand, now_ns: int) -> _Cause:
    context = tracing.read(demand.traceparent, demand.root, demand.run)
    return _Cause(context.trace, context.parent or tracing.span_id(demand.run), demand.run, now_ns)


def _marks(instance: Instance, begun_ns: int) -> list[tuple[str, int]]:
    """What has been done, each with when it was over."""
    found: list[tuple[str, int]] = []
    if instance.process is None:
        return found
    watch = instance.process.watch
    prepared_ns = round(instance.prepared_at * 1e9)
    if prepared_ns - begun_ns > _SHORTEST_PREPARING_NS:
        found.append(("prepare", prepared_ns))
    has_all = True
    for name, until in _PHASES:
        at_ns = watch.began_ns(until)
        if at_ns:  # an instance in another language may not say everything
            found.append((name if has_all else "start", max(at_ns, found[-1][1] if found else begun_ns)))
        has_all = bool(at_ns)
    return found


def _unfinished(marks: list[tuple[str, int]]) -> str:
    """The phase in which a start that failed ended."""
    names = [name for name, _ in _PHASES]
    done = sum(name != "prepare" for name, _ in marks)
    return names[min(done, len(names) - 1)] if marks else "prepare"


def _attributes(instance: Instance, cause: _Cause) -> dict[str, Value]:
    found: dict[str, Value] = {
        "algomesh.version": str(instance.version),
        "algomesh.algorithm": instance.version.algorithm,
        "algomesh.instance": instance.id,
        "algomesh.reason": instance.reason,
    }
    if cause.run:
        found["algomesh.run"] = cause.run
        waited_ns = round(instance.launched_at * 1e9) - cause.heard_ns
        found["algomesh.waited_for_place_ms"] = max(0.0, round(waited_ns / 1e6, 3))
    return found
