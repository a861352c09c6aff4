"""The policy under the judge of the pre-warmer, on its trace: the bars, where the judge is there."""

import importlib
from typing import Any

import pytest

from algomesh_services.prewarmer.policy import BreakEvenPolicy
from benchmarks import prewarm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),  # five replays, of seconds each on a machine that does nothing else
    pytest.mark.skipif(
        not (prewarm.JUDGE.is_dir() and prewarm.TRACE.is_file()),
        reason="needs the judge of the pre-warmer in ../shared",
    ),
]

VALUE = 5.0
# The member that reaches the least cost of its family on this trace at this latency value, and the bar beside it;
# `python -m benchmarks prewarm` compares with whole families, at other values too.
BEST = {
    "static chain": ("Xanadu", 10, 0.66),
    "fixed keep-alive": ("FixedKA", 10, 0.46),
    "hybrid histogram": ("HybridHist", 10, 0.20),
    "knows the rest of each request": ("ReqOracle", 0, 1.30),
}


@pytest.fixture(scope="module")
def trace() -> Any:
    prewarm.judged()
    return importlib.import_module("replay").Trace(prewarm.TRACE)


def cost(trace: Any, policy: Any) -> float:
    for request in trace.reqs:
        request.pop("_x", None)
    judge, replay = prewarm.judged(), importlib.import_module("replay")
    return float(judge.cost(replay.Sim(trace, policy, seed=0).run(), VALUE))


def test_the_policy_costs_less_than_the_bars_allow(trace: Any) -> None:
    judge = prewarm.judged()
    mine = cost(trace, judge.Judged(BreakEvenPolicy, VALUE))

    for family, (name, option, bar) in BEST.items():
        best = cost(trace, getattr(judge.B, name)(option))
        assert mine <= bar * best, f"{mine / best:.3f} of the best {family}, and the bar is {bar}"
