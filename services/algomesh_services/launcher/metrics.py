"""What the launcher shows: its instances, how they started and ended, what waits for one, and what GPUs are held.

Counted where it happens (fleet.py, control.py); how things stand is read from the fleet when it is asked for.
"""

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from algomesh.instance.watch import Phase
from algomesh_broker.connection import Connection
from algomesh_broker.metrics import CONNECTED
from algomesh_observability.metrics import Readings, counter, gauge, histogram
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.externals import Externals
from algomesh_services.launcher.instance import Instance
from algomesh_services.launcher.parked_ages import ParkedAges

if TYPE_CHECKING:
    from algomesh_services.launcher.fleet import Fleet

_START_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

INSTANCES: Final = gauge(
    "algomesh_instances", "Instances, by state: starting, idle, working or draining.", ("version", "state")
)
RUNNING: Final = gauge("algomesh_runs_in_flight", "Runs under way in instances.", ("version",))
PARKED: Final = gauge("algomesh_parked_calls", "Calls that wait in the stream of parked calls.", ("version",))
PARKED_AGE: Final = gauge(
    "algomesh_parked_age_seconds", "How long the oldest of a version's parked calls has waited.", ("version",)
)
START_SECONDS: Final = histogram(
    "algomesh_cold_start_seconds",
    "From the launch of an instance until it is ready, by what it was for: call, next, stage, gap, minimum.",
    ("version", "reason"),
    _START_S,
)
PHASE_SECONDS: Final = histogram(
    "algomesh_cold_start_phase_seconds",
    "The parts of a start: prepare (its files), fork, import, load, connect.",
    ("version", "phase"),
    _START_S,
)
START_FAILURES: Final = counter(
    "algomesh_start_failures_total", "Instances that died before they were ready.", ("version", "code")
)
DEATHS: Final = counter(
    "algomesh_instance_deaths_total",
    "Instances that are gone, by why: retired is the usual one.",
    ("version", "reason"),
)
GPU_HELD: Final = counter(
    "algomesh_gpu_held_seconds_total", "Seconds of GPUs given to instances, by what those did.", ("version", "state")
)
INSTANCES_LIMIT: Final = gauge("algomesh_instances_limit", "How many instances there may be at once.")
MEMORY_LIMIT: Final = gauge("algomesh_instance_memory_limit_bytes", "Memory that instances may have together.")
MEMORY_RESERVED: Final = gauge("algomesh_instance_memory_reserved_bytes", "Memory that instances were given.")
GPUS: Final = gauge("algomesh_gpus", "GPUs of the machine that instances may have.")
GPUS_HELD: Final = gauge("algomesh_gpus_held", "GPUs that instances were given, in shares.")


def kind_of(reason: str, key: str) -> str:
    """What an instance was launched for, in a word, from the sentence and the hold's key that it was launched with."""
    if key:
        return "gap" if key.startswith("gap") else "stage" if reason.startswith("stage") else "next"
    return "minimum" if "min_instances" in reason or reason.startswith("minimum") else "call"


def started(instance: Instance) -> None:
    """An instance is ready."""
    version = str(instance.version)
    kind = kind_of(instance.reason, instance.key)
    START_SECONDS.observe(instance.ready_at - instance.launched_at, version, kind, trace_id=instance.trace)
    for phase, took_s in phases(instance):
        PHASE_SECONDS.observe(took_s, version, phase, trace_id=instance.trace)


def ended(instance: Instance, reason: str, failure_code: str = "") -> None:
    """An instance is gone; with a code it never was ready."""
    DEATHS.add(1, str(instance.version), reason)
    if failure_code:
        START_FAILURES.add(1, str(instance.version), failure_code)


def phases(instance: Instance) -> list[tuple[str, float]]:
    """How long each part of a start took, in seconds."""
    if instance.process is None:
        return []
    began_ns = instance.process.watch.began_ns
    prepared_at = instance.prepared_at or instance.launched_at
    found = [("prepare", prepared_at - instance.launched_at)]
    before = prepared_at
    for name, following in (
        ("fork", Phase.IMPORTING), ("import", Phase.LOADING), ("load", Phase.CONNECTING), ("connect", Phase.READY),
    ):  # fmt: skip
        at = began_ns(following) / 1e9
        if at:  # an instance in another language may leave phases out
            found.append((name, max(0.0, at - before)))
            before = at
    return found


class GpuHeld:
    """Adds up how long GPUs are held: what an instance did at one look, it did until the next."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, str, str, float]] = {}

    def look(self, instances: Iterable[Instance], now: float) -> None:
        """See what all of them do at `now`; those that are gone were there until now."""
        before, self._since = self._since, {}
        for at, version, state, gpus in before.values():
            GPU_HELD.add(gpus * max(0.0, now - at), version, state)
        for instance in instances:
            gpus = _gpus_of(instance)
            if gpus:
                self._since[instance.id] = (now, str(instance.version), state_of(instance), gpus)


def state_of(instance: Instance) -> str:
    """What an instance does."""
    if instance.state != "ready":
        return instance.state
    return "working" if instance.load else "idle"


@contextlib.contextmanager
def watch(
    fleet: "Fleet", externals: Externals, parked: ParkedAges, connection: Connection, capacity: Capacity
) -> Iterator[None]:
    """Show how things stand with a launcher while the block runs."""

    def instances() -> Readings:
        states = Tally((str(each.version), state_of(each)) for each in fleet.instances.values())
        for row in externals.rows():
            state = row.state if row.state != "ready" else "working" if row.load else "idle"
            states[f"{row.algorithm}/{row.version}", state] += 1
        return {labels: float(count) for labels, count in states.items()}

    def running() -> Readings:
        loads: Tally[tuple[str]] = Tally()
        for each in fleet.instances.values():
            loads[(str(each.version),)] += each.load
        for row in externals.rows():
            loads[(f"{row.algorithm}/{row.version}",)] += row.load
        return {labels: float(count) for labels, count in loads.items()}

    follows: tuple[tuple[Callable[[Callable[[], Readings]], Callable[[], None]], Callable[[], Readings]], ...] = (
        (INSTANCES.follow, instances),
        (RUNNING.follow, running),
        (PARKED.follow, parked.counts),
        (PARKED_AGE.follow, lambda: parked.ages(time.time())),
        (INSTANCES_LIMIT.follow, lambda: {(): float(capacity.max_instances)}),
        (MEMORY_LIMIT.follow, lambda: {(): float(capacity.memory_bytes)}),
        (
            MEMORY_RESERVED.follow,
            lambda: {(): float(sum(each.place.memory_bytes for each in fleet.instances.values()))},
        ),
        (GPUS.follow, lambda: {(): float(len(capacity.gpus))}),
        (GPUS_HELD.follow, lambda: {(): sum(_gpus_of(each) for each in fleet.instances.values())}),
        (CONNECTED.follow, lambda: {("nats",): float(connection.is_connected)}),
    )
    with contextlib.ExitStack() as stack:
        for follow, read in follows:
            stack.callback(follow(read))
        yield


def _gpus_of(instance: Instance) -> float:
    return instance.place.share * len(instance.place.gpus)
