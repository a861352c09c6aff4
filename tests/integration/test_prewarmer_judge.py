"""The policy under the judge of the pre-warmer, on its trace: the bars, where the judge is there."""

import importlib
from typing import Any

import pytest

from algomesh_services.prewarmer.policy import BreakEvenPolicy
from benchmarks import prewarm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (prewarm.JUDGE.is_dir() and prewarm.TRACE.is_file()),
        reason="needs the judge of the pre-warmer in ../shared",
    ),
]

FAMILIES = ("static chain", "fixed keep-alive", "hybrid histogram", "knows the rest of each request")
BARS = {1.0: (1.0, 1.0, 1.0, None), 5.0: (0.66, 0.46, 0.20, 1.30), 30.0: (1.0, 1.0, 1.0, None)}

# The members that reached the least cost of their family on this trace at any of the three latency values.
BEST = {
    "static chain": ("Xanadu", (0, 10, 30)),
    "fixed keep-alive": ("FixedKA", (10, 30, 60)),
    "hybrid histogram": ("HybridHist", (10,)),
    "knows the rest of each request": ("ReqOracle", (0,)),
}


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    judge, replay = prewarm.judged(), importlib.import_module("replay")
    trace = replay.Trace(prewarm.TRACE)
    measured: dict[str, Any] = {"judge": judge}
    for value in BARS:
        policy = judge.Judged(BreakEvenPolicy, value)
        measured[f"policy {value}"] = replay.Sim(trace, policy, seed=0).run()
    for family, (name, options) in BEST.items():
        measured[family] = []
        for option in options:
            for request in trace.reqs:
                request.pop("_x", None)
            measured[family].append(replay.Sim(trace, getattr(judge.B, name)(option), seed=0).run())
    return measured


@pytest.mark.parametrize("value", BARS)
def test_the_policy_costs_less_than_the_bars_allow(judged: dict[str, Any], value: float) -> None:
    cost = judged["judge"].cost
    mine = cost(judged[f"policy {value}"], value)

    for family, bar in zip(FAMILIES, BARS[value], strict=True):
        if bar is not None:
            best = min(cost(one, value) for one in judged[family])
            assert mine <= bar * best, f"{mine / best:.3f} of the best {family} at {value:g}, and the bar is {bar}"
