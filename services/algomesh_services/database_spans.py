"""Spans of what the services write to PostgreSQL, by the conventions for database clients.

A write belongs to many runs, or to a request that brings no trace; so each is a trace of its own, sampled like one, and
sent in any case when it failed. No statement and no value is in it.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Final, ParamSpec, TypeVar, cast

from algomesh_observability import telemetry
from algomesh_observability.spans import SpanRecord, Value
from algomesh_observability.tracing import TraceContext

P = ParamSpec("P")
T = TypeVar("T")
_SYSTEM: Final = "postgresql"


def writes(
    operation: str, table: str, *, is_batch: bool = False
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """A method that does `operation` on `table`; of a batch, its first argument is the rows."""

    def decorate(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(method)
        async def traced(*arguments: P.args, **named: P.kwargs) -> T:
            on = telemetry.active
            if on is None:
                return await method(*arguments, **named)
            began_ns = time.time_ns()
            error = ""
            try:
                return await method(*arguments, **named)
            except Exception as failure:
                error = type(failure).__name__
                raise
            finally:
                rows = len(cast("Sequence[object]", arguments[1])) if is_batch else 1
                _tell(on, operation, table, rows, began_ns, error)

        return traced

    return decorate


def _tell(on: telemetry.Telemetry, operation: str, table: str, rows: int, began_ns: int, error: str) -> None:
    context = TraceContext(secrets.token_hex(16), "", None)
    if not error and not on.samples(context):
        return
    attributes: dict[str, Value] = {
        "db.system.name": _SYSTEM,
        "db.operation.name": operation,
        "db.collection.name": table,
        "db.query.summary": f"{operation} {table}",
    }
    if rows > 1:
        attributes["db.operation.batch.size"] = rows
    on.add(
        SpanRecord(
            trace=context.trace,
            span=secrets.token_hex(8),
            name=f"{operation} {table}",
            kind="client",
            start_ns=began_ns,
            end_ns=time.time_ns(),
            attributes=attributes,
            error=error,
        )
    )
