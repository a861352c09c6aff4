"""Call traces of different natures, made from a seed, in the schema that the judge of the pre-warmer replays.

    python -m benchmarks.prewarm_traces FOLDER        writes one NAME.jsonl.gz for each

Each nature is one that a policy tuned on another would get wrong: calls with a period, bursts, chains much longer than
a load, fan-outs, a graph that changes, loads of half a second and of minutes, algorithms hardly ever called, requests
that overlap. A request is drawn as a tree of calls with their warm offsets and durations.
"""

import gzip
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

Calls = list[tuple[str, int, float, float]]


class Arrival(NamedTuple):
    """When which caller asks for which root."""

    at_s: float
    caller: str
    root: str


class Graph:
    """Who calls whom: for each algorithm its children, each with a probability; and how long things take."""

    def __init__(self, rng: random.Random, *, cold_s: tuple[float, float], work_s: tuple[float, float]) -> None:
        self.rng = rng
        self.children: dict[str, list[tuple[str, float]]] = {}
        self.is_parallel: set[str] = set()
        self._cold_s, self._work_s = cold_s, work_s
        self.cold: dict[str, float] = {}
        self.work: dict[str, float] = {}

    def add(self, name: str, *children: tuple[str, float], is_parallel: bool = False) -> None:
        """An algorithm and what it calls."""
        self.children[name] = list(children)
        if is_parallel:
            self.is_parallel.add(name)
        for each in (name, *(child for child, _ in children)):
            if each not in self.cold:
                self.cold[each] = _log_uniform(self.rng, *self._cold_s)
                self.work[each] = _log_uniform(self.rng, *self._work_s)

    def calls(self, root: str) -> Calls:
        """One request, drawn: depth first, so that parents come before children; sorted by offset."""
        drawn: Calls = []
        self._call(drawn, root, -1, 0.0)
        order = sorted(range(len(drawn)), key=lambda i: (drawn[i][2], i))
        place = {i: k for k, i in enumerate(order)}
        return [(drawn[i][0], place.get(drawn[i][1], -1), drawn[i][2], drawn[i][3]) for i in order]

    def _call(self, drawn: Calls, name: str, parent: int, at_s: float) -> float:
        index = len(drawn)
        drawn.append((name, parent, at_s, 0.0))
        step = self.work[name] * self.rng.lognormvariate(0.0, 0.3) / (len(self.children.get(name, ())) + 1)
        now = end = at_s + step
        for child, probability in self.children.get(name, ()):
            if self.rng.random() < probability:
                end = max(end, self._call(drawn, child, index, now) + step)
                now = now + 0.01 if name in self.is_parallel else end
        drawn[index] = (name, parent, at_s, end - at_s)
        return end


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _poisson(rng: random.Random, every_s: float, until_s: float) -> Iterator[float]:
    at_s = rng.expovariate(1 / every_s)
    while at_s < until_s:
        yield at_s
        at_s += rng.expovariate(1 / every_s)


def _bursts(rng: random.Random, every_s: float, until_s: float) -> Iterator[float]:
    """Poisson, modulated: long silence, then a burst at twenty times the rate."""
    for begin in _poisson(rng, every_s * 20, until_s):
        at_s = begin
        for _ in range(1 + int(rng.expovariate(1 / 20))):
            yield at_s
            at_s += rng.expovariate(20 / every_s)


def _chain(graph: Graph, name: str, length: int, probability: float = 1.0) -> str:
    names = [f"{name}/step{k}" for k in range(length)]
    graph.add(names[-1])
    for this, following in pairwise(names):
        graph.add(this, (following, probability))
    return names[0]


def _requests(arrivals: list[Arrival], calls_of: Callable[[Arrival], Calls]) -> list[dict[str, Any]]:
    arrivals.sort()
    return [
        {"r": k, "t": arrival.at_s, "caller": arrival.caller, "calls": calls_of(arrival)}
        for k, arrival in enumerate(arrivals)
    ]


def _periodic(rng: random.Random) -> tuple[Graph, list[dict[str, Any]]]:
    """Six callers, each with a period of its own and little jitter, of short chains that they partly share."""
    graph = Graph(rng, cold_s=(1, 10), work_s=(0.1, 1))
    roots = [_chain(graph, f"job{k}", 3) for k in range(4)]
    arrivals = []
    for k in range(6):
        period = rng.uniform(90, 1200)
        arrivals += [
            Arrival(n * period + rng.gauss(0, period * 0.005) + 5, f"cron{k}", roots[k % 4])
            for n in range(int(60_000 / period))
        ]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


def _bursty(rng: random.Random) -> tuple[Graph, list[dict[str, Any]]]:
    """Bursts of requests with silence between them, through a graph with branches."""
    graph = Graph(rng, cold_s=(2, 20), work_s=(0.2, 2))
    graph.add("shop/front", ("shop/search", 0.7), ("shop/cart", 0.3))
    graph.add("shop/search", ("shop/rank", 1.0), ("shop/images", 0.6))
    graph.add("shop/cart", ("shop/price", 1.0), ("shop/pay", 0.5))
    graph.add("shop/pay", ("shop/fraud", 1.0))
    arrivals = [Arrival(at_s, "web", "shop/front") for at_s in _bursts(rng, 120, 90_000)]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


def _deep(rng: random.Random) -> tuple[Graph, list[dict[str, Any]]]:
    """Chains of twelve, each step of them a few seconds."""
    graph = Graph(rng, cold_s=(3, 30), work_s=(1, 6))
    roots = [_chain(graph, f"deep{k}", 12, 0.97) for k in range(3)]
    arrivals = [Arrival(at_s, f"user{rng.randrange(5)}", rng.choice(roots)) for at_s in _poisson(rng, 200, 100_000)]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


def _wide(rng: random.Random, every_s: float) -> tuple[Graph, list[dict[str, Any]]]:
    """Fan-outs: twelve at once, most of them each time, and one that joins."""
    graph = Graph(rng, cold_s=(2, 15), work_s=(0.3, 3))
    for k in range(2):
        graph.add(f"wide{k}/all", *((f"wide{k}/part{j}", 0.85) for j in range(12)), is_parallel=True)
        graph.add(f"wide{k}/root", (f"wide{k}/plan", 1.0), (f"wide{k}/all", 1.0), (f"wide{k}/join", 1.0))
    arrivals = [
        Arrival(at_s, "team", f"wide{rng.random() < 0.3:d}/root") for at_s in _poisson(rng, every_s, every_s * 400)
    ]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


def _drifting(rng: random.Random) -> tuple[Graph, list[dict[str, Any]]]:
    """Every three hours each algorithm that calls others calls different ones."""
    graph = Graph(rng, cold_s=(2, 20), work_s=(0.5, 4))
    pool = [f"lib/part{k}" for k in range(24)]
    arrivals = [
        Arrival(at_s, f"user{rng.randrange(3)}", f"app{rng.randrange(3)}/main") for at_s in _poisson(rng, 120, 86_400)
    ]
    epoch = -1

    def calls_of(arrival: Arrival) -> Calls:
        nonlocal epoch
        if int(arrival.at_s // 10_800) != epoch:
            epoch = int(arrival.at_s // 10_800)
            for k in range(3):
                first, second, *rest = rng.sample(pool, 5)
                graph.add(f"app{k}/main", (f"app{k}/front", 1.0), (first, 0.9), (second, 0.6))
                graph.add(f"app{k}/front", *((name, 0.8) for name in rest))
        return graph.calls(arrival.root)

    return graph, _requests(arrivals, calls_of)


def _branching(
    rng: random.Random, cold_s: tuple[float, float], every_s: float, count: int = 700
) -> tuple[Graph, list[dict[str, Any]]]:
    graph = Graph(rng, cold_s=cold_s, work_s=(0.5, 5))
    for k in range(4):
        graph.add(f"svc{k}/root", (f"svc{k}/a", 0.9), (f"svc{k}/b", 0.4), ("common/auth", 1.0))
        graph.add(f"svc{k}/a", (f"svc{k}/c", 0.7), ("common/store", 0.8))
        graph.add(f"svc{k}/b", ("common/store", 1.0), (f"svc{k}/d", 0.3))
    arrivals = [
        Arrival(at_s, f"user{rng.randrange(6)}", f"svc{min(3, int(rng.expovariate(1)))}/root")
        for at_s in _poisson(rng, every_s, every_s * count)
    ]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


def _rare(rng: random.Random) -> tuple[Graph, list[dict[str, Any]]]:
    """Sixty chains, each called a few times a day."""
    graph = Graph(rng, cold_s=(2, 20), work_s=(0.5, 4))
    roots = [_chain(graph, f"rare{k}", rng.randrange(1, 5)) for k in range(60)]
    rates = [_log_uniform(rng, 3_000, 60_000) for _ in roots]
    arrivals = [
        Arrival(at_s, f"user{k % 7}", root)
        for k, (root, rate) in enumerate(zip(roots, rates, strict=True))
        for at_s in _poisson(rng, rate, 260_000)
    ]
    return graph, _requests(arrivals, lambda arrival: graph.calls(arrival.root))


NATURES: dict[str, Callable[[random.Random], tuple[Graph, list[dict[str, Any]]]]] = {
    "periodic": _periodic,
    "bursty": _bursty,
    "deep": _deep,
    "wide": lambda rng: _wide(rng, 150),
    "wide_busy": lambda rng: _wide(rng, 25),
    "drifting": _drifting,
    "small_loads": lambda rng: _branching(rng, (0.1, 0.6), 60),
    "large_loads": lambda rng: _branching(rng, (40, 240), 900),
    "rare": _rare,
    "overlapping": lambda rng: _branching(rng, (3, 25), 6, 2000),
}


def write(name: str, path: Path, seed: int = 0) -> None:
    """One trace, as the judge reads it."""
    rng = random.Random(f"{name} {seed}")
    graph, requests = NATURES[name](rng)
    weights = {algorithm: rng.choice((1.0, 1.0, 0.25)) for algorithm in graph.cold}
    with gzip.open(path, "wt") as file:
        file.write(
            json.dumps({"meta": {"name": name, "cold": graph.cold, "gpu": weights, "notes": ["synthetic"]}}) + "\n"
        )
        for request in requests:
            file.write(json.dumps(request) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for nature in NATURES:
        write(nature, folder / f"{nature}.jsonl.gz")
