"""What the pre-warmer shows: the calls it saw, what it started ahead and whether that was used, and what it holds."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from algomesh_broker.connection import Connection
from algomesh_broker.metrics import CONNECTED
from algomesh_observability.metrics import counter, gauge, histogram
from algomesh_services.prewarmer.spared import Began
from algomesh_services.prewarmer.starts import Start

if TYPE_CHECKING:
    from algomesh_services.prewarmer.warming import Warming

_DECISION_S: Final = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.25)

SEEN: Final = counter(
    "algomesh_prewarm_seen_calls_total", "Calls that were seen to begin, by what they met: warm or cold.", ("met",)
)
STARTS: Final = counter(
    "algomesh_prewarm_starts_total",
    "Instances started ahead of calls, once their outcome is known: in_time (ready before the call), late, or unused.",
    ("version", "reason", "outcome"),
)
WASTED: Final = counter(
    "algomesh_prewarm_wasted_gpu_seconds_total",
    "GPU-seconds of instances that were started ahead and never used.",
    ("version", "reason"),
)
SPARED_CALLS: Final = counter(
    "algomesh_prewarm_spared_calls_total",
    "Calls that were spared a wait, by why: next, stage, gap, or kept.",
    ("version", "reason"),
)
SPARED_SECONDS: Final = counter(
    "algomesh_prewarm_spared_seconds_total", "Seconds that those calls would have waited.", ("version", "reason")
)
HOLDS: Final = gauge("algomesh_prewarm_holds", "Wishes that an algorithm be up.")
FOLLOWED: Final = gauge("algomesh_prewarm_followed_ratio", "The share of requests that are looked at; less when busy.")
DECISION_SECONDS: Final = histogram(
    "algomesh_prewarm_decision_seconds", "Time to decide on what was heard.", bounds=_DECISION_S
)


def seen(call: Began) -> None:
    """A call has begun."""
    SEEN.add(call.calls, "cold" if call.is_cold else "warm")


def used(start: Start) -> None:
    """An instance is used for the first time."""
    if start.is_ahead:
        STARTS.add(1, start.version, start.kind, "in_time" if start.in_time else "late")


def gone(start: Start) -> None:
    """An instance is up no more."""
    if start.is_ahead and not start.used_s:
        STARTS.add(1, start.version, start.kind, "unused")
        WASTED.add(max(0.0, start.charged), start.version, start.kind)


def spared(call: Began, seconds: float, why: str) -> None:
    """A call was spared a wait."""
    SPARED_CALLS.add(call.calls, call.version, why)
    SPARED_SECONDS.add(seconds * call.calls, call.version, why)


@contextlib.contextmanager
def watch(warming: "Warming", connection: Connection) -> Iterator[None]:
    """Show what a pre-warmer does while the block runs."""
    warming.starts.on_used, warming.starts.on_gone = used, gone
    warming.spared.on_spared = spared
    with contextlib.ExitStack() as stack:
        stack.callback(HOLDS.follow(lambda: {(): float(len(warming.wishes))}))
        stack.callback(FOLLOWED.follow(lambda: {(): 1.0 / warming.shedding.one_in}))
        stack.callback(CONNECTED.follow(lambda: {("nats",): float(connection.is_connected)}))
        yield
