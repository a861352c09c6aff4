"""What is known of a piece of work at its end, as a span that may go out.

Made where the work ends, of times that were measured anyway. Attributes hold names, ids, codes and numbers: never
an input, an output, a key, or a sentence of an error, which may quote any of them.
"""

import time
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool

_NS: Final = 1_000_000_000


class SpanRecord(Struct, frozen=True, kw_only=True, gc=False):
    """One span: ids as hex digits, times in nanoseconds since the epoch; no `parent` for the first one of a trace.

    `error` is a code where the work failed.
    """

    trace: str
    span: str
    parent: str = ""
    name: str
    kind: Kind = "internal"
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = {}
    error: str = ""


def nanoseconds(seconds: float) -> int:
    """A clock time in seconds as spans have it."""
    return int(seconds * _NS)


def clock_of(monotonic_ns: int) -> int:
    """The clock time, in nanoseconds, of a moment of CLOCK_MONOTONIC."""
    return time.time_ns() - (time.monotonic_ns() - monotonic_ns)


def messaging(
    operation: Literal["send", "process"], subject: str, version: str, *, run: str, root: str, size_bytes: int = 0
) -> dict[str, Value]:
    """The attributes that the conventions for messaging have for a call of `version` on `subject`."""
    lane = subject.partition(".")[0]
    who = "{forwarder}" if lane == "hop" else "{caller}"
    found: dict[str, Value] = {
        "messaging.system": "nats",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": subject,
        "messaging.destination.template": f"{lane}.{{owner}}.{{name}}.{{version}}.{who}",
        "messaging.message.id": run,
        "messaging.message.conversation_id": root,
        "algomesh.run": run,
        "algomesh.version": version,
    }
    if size_bytes:
        found["messaging.message.body.size"] = size_bytes
    return found
