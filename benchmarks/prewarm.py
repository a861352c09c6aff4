"""The pre-warmer judged by replay: its cost beside tuned baselines, what each part of it is worth, and what it takes.

The judge, its baselines and the trace lie in `../shared`, beside this repository. Traffic of other natures than that
trace is judged by `prewarm_natures.py`.
"""

import gc
import importlib
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from algomesh_services.prewarmer.policy import BreakEvenPolicy
from benchmarks import figures

SHARED = Path(__file__).resolve().parents[2] / "shared"
JUDGE = SHARED / "tools" / "prewarm_judge"
TRACE = SHARED / "data" / "trainticket.jsonl.gz"

LATENCY_VALUES = (1.0, 5.0, 30.0)
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no path": {"path": False},
    "no gap model": {"gaps": False},
    "first order only": {"order": 1},
    "no pooling": {"pooling": False},
}


def run(trace: Path = TRACE) -> dict[str, Any]:
    """Judge the policy on a trace; without the judge, say what is missing and do the rest."""
    answer: dict[str, Any] = {"memory": memory(), "fan_outs": fan_outs()}
    missing = [str(path) for path in (JUDGE / "judge.py", trace) if not path.is_file()]
    if missing:
        print(f"the replay needs {' and '.join(missing)}: not there, so nothing is replayed")
        return answer
    judge, replay = judged(), importlib.import_module("replay")
    seen = replay.Trace(trace)
    costs = {name: _costs(judge, replay, seen, options) for name, options in ABLATIONS.items()}
    best = {family: _best(judge, replay, seen, members) for family, members in judge.FAMILIES.items()}
    whole = costs["whole"]
    figures.table(
        f"{seen.name}: cost of the policy over the best-tuned of each family (below 1 is better)",
        ["family", *(f"latency value {value:g}" for value in LATENCY_VALUES)],
        [[family, *(f"{whole.cost[v] / of[v]:.3f}" for v in LATENCY_VALUES)] for family, of in best.items()],
    )
    figures.table(
        "ablations: cost in GPU-hours, latency converted",
        ["", *(f"latency value {value:g}" for value in LATENCY_VALUES), "µs a decision"],
        [[name, *(f"{of.cost[v]:.1f}" for v in LATENCY_VALUES), f"{of.decision_us:.0f}"] for name, of in costs.items()],
    )
    answer |= {
        "trace": seen.name,
        "ratio": {family: {f"{v:g}": whole.cost[v] / of[v] for v in LATENCY_VALUES} for family, of in best.items()},
        "cost": {name: {f"{v:g}": of.cost[v] for v in LATENCY_VALUES} for name, of in costs.items()},
        "decision_us": whole.decision_us,
    }
    return answer


class Costs(NamedTuple):
    """Of one variant: cost by latency value, and the median time of a decision."""

    cost: dict[float, float]
    decision_us: float


def judged() -> Any:
    """The judge's module; its folder must be there."""
    if str(JUDGE) not in sys.path:
        sys.path.insert(0, str(JUDGE))
    return importlib.import_module("judge")


def _costs(judge: Any, replay: Any, trace: Any, options: dict[str, Any]) -> Costs:
    took: list[float] = []

    class Timed(BreakEvenPolicy):
        def __init__(self, fleet: Any, latency_value: float) -> None:
            super().__init__(fleet, latency_value, **options)

        def called(self, call: Any) -> Any:
            return _timed(took, super().called, call)

        def idle(self, algorithm: str, at_s: float) -> Any:
            return _timed(took, super().idle, algorithm, at_s)

        def finished(self, request: str, at_s: float) -> Any:
            return _timed(took, super().finished, request, at_s)

    cost = {
        value: float(judge.cost(replay.Sim(trace, judge.Judged(Timed, value), seed=0).run(), value))
        for value in LATENCY_VALUES
    }
    return Costs(cost, 1e6 * statistics.median(took))


def policy_of(options: dict[str, Any]) -> type[BreakEvenPolicy]:
    """The policy of these ablations, as the judge makes it."""

    class Variant(BreakEvenPolicy):
        def __init__(self, fleet: Any, latency_value: float) -> None:
            super().__init__(fleet, latency_value, **options)

    return Variant


def _timed(took: list[float], decide: Any, *args: Any) -> Any:
    before = time.perf_counter()
    answer = decide(*args)
    took.append(time.perf_counter() - before)
    return answer


def _best(judge: Any, replay: Any, trace: Any, members: list[Any]) -> dict[float, float]:
    """The least cost that any member of the family reaches, for each latency value its own."""
    best = dict.fromkeys(LATENCY_VALUES, float("inf"))
    for member in members:
        for request in trace.reqs:
            request.pop("_x", None)
        measured = replay.Sim(trace, member, seed=0).run()
        for value in LATENCY_VALUES:
            best[value] = min(best[value], float(judge.cost(measured, value)))
    return best


@dataclass(frozen=True, slots=True)
class _Call:
    request: str
    index: int
    parent: int
    algorithm: str
    caller: str | None
    at_s: float
    ready_at_s: float


class _Fleet:
    """Everything is off, and takes four seconds."""

    def cold_start_s(self, _algorithm: str, /) -> float:
        return 4.0

    def gpu_weight(self, _algorithm: str, /) -> float:
        return 1.0

    def state(self, _algorithm: str, /) -> str:
        return "off"

    def ready_in_s(self, _algorithm: str, /) -> float:
        return 0.0


def memory(algorithms: int = 10_000, rounds: int = 3) -> dict[str, float]:
    """MiB by which this process grows while that many algorithms are called in chains of ten, several times each."""
    gc.collect()
    before = _resident_bytes()
    policy, at_s = BreakEvenPolicy(_Fleet(), 5.0), 0.0
    for number in range(algorithms * rounds // 10):
        for index in range(10):
            name = f"owner/algorithm{(number * 10 + index) % algorithms}"
            at_s += 1.0
            policy.called(_Call(str(number), index, index - 1, name, f"k~{number % 50}", at_s, at_s))
            policy.idle(name, at_s + 0.5)
        policy.finished(str(number), at_s + 1.0)
    gc.collect()
    grown_mib = (_resident_bytes() - before) / 2**20
    print(f"memory with {algorithms:,} algorithms: {grown_mib:.0f} MiB")
    return {"algorithms": algorithms, "mib": grown_mib}


def fan_outs(algorithms: int = 500, each: int = 50, requests: int = 2_000) -> dict[str, float]:
    """Milliseconds a decision of a long run in which every algorithm calls that many others, and those of a snapshot.

    Of this thread's own time, so that others on the machine count for little. A snapshot is made in pieces, and what
    counts is the longest: nobody waits for more.
    """
    rng, policy, took = random.Random(7), BreakEvenPolicy(_Fleet(), 5.0), []
    names = [f"owner/algorithm{k}" for k in range(algorithms)]
    callees = {name: rng.sample(names, each) for name in names}

    def decide(what: Any, *arguments: Any) -> None:
        before = time.thread_time()
        what(*arguments)
        took.append(1e3 * (time.thread_time() - before))

    for number in range(requests):
        root, at_s = rng.choice(names), 10.0 * number
        for index, name in enumerate([root, *callees[root]]):
            now = at_s + 0.1 * index
            decide(policy.called, _Call(str(number), index, min(0, index - 1), name, "k~me", now, now))
            decide(policy.idle, name, now + 0.05)
        decide(policy.finished, str(number), at_s + 6.0)
    pieces, stops = policy.pack(), []
    is_more = True
    while is_more:
        before = time.thread_time()
        is_more = next(pieces, 0) is None
        stops.append(1e3 * (time.thread_time() - before))
    took.sort()
    answer = {
        "median_ms": took[len(took) // 2],
        "p99_ms": took[int(len(took) * 0.99)],
        "snapshot_ms": sum(stops),
        "snapshot_longest_ms": max(stops),
    }
    print(
        f"{algorithms} algorithms that each call {each} others, {requests:,} requests: {answer['median_ms']:.2f} ms a "
        f"decision at the median, {answer['p99_ms']:.1f} ms p99; a snapshot {answer['snapshot_ms']:.0f} ms in pieces "
        f"of at most {answer['snapshot_longest_ms']:.1f} ms"
    )
    return answer


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
