"""A replay gives the figures of the pre-warmer's judge, which is somebody else's simulator, where that is at hand."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from algomesh_broker.platform import RunRow
from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.replay import KeepAlive, Predicted, WhatIf, replay
from algomesh_services.prewarmer.replay_fleet import Traits
from algomesh_services.prewarmer.replay_history import record

pytestmark = pytest.mark.integration

SHARED = Path(__file__).parents[3] / "shared"
JUDGE, TRACE = SHARED / "tools" / "prewarm_judge", SHARED / "data" / "trainticket.jsonl.gz"
REQUESTS = 150


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not (JUDGE / "judge.py").exists() or not TRACE.exists():
        pytest.skip("needs the judge of the pre-warmer in ../shared")
    monkeypatch.setattr(sys, "path", [str(JUDGE), *sys.path])
    return importlib.import_module("judge")


def rows_of(trace: Any) -> list[RunRow]:
    return [
        RunRow(
            run=f"{request['r']}x{index}",
            attempt=1,
            root=f"{request['r']}x0",
            parent=f"{request['r']}x{parent}" if parent >= 0 else "",
            algorithm=algorithm,
            version="1.0.0",
            caller="",
            root_caller=request.get("caller") or "",
            instance="",
            state="succeeded",
            queued_at=request["t"] + off_s,
            started_at=request["t"] + off_s,
            ended_at=request["t"] + off_s + took_s,
            compute_ms=1000 * took_s,
            cold_ms=0.0,
            error="",
        )
        for request in trace.reqs
        for index, (algorithm, parent, off_s, took_s) in enumerate(request["calls"])
    ]


@pytest.mark.parametrize(
    ("what_if", "tolerance"), [(KeepAlive(60), 1e-6), (KeepAlive(600), 1e-6), (Predicted(5), 0.02)], ids=str
)
@pytest.mark.parametrize("aborts_loads", [True, False])
def test_it_comes_to_the_same(judge: Any, what_if: WhatIf, tolerance: float, aborts_loads: bool) -> None:
    trace = judge.Trace(str(TRACE))
    trace.reqs = trace.reqs[:REQUESTS]
    rows = rows_of(trace)
    traits = {
        name: Traits(trace.cold.get(name, 0.0), trace.gpu.get(name, 1.0)) for name in {row.algorithm for row in rows}
    }
    policy = judge.Judged(BreakEvenPolicy, 5.0) if isinstance(what_if, Predicted) else judge.B.FixedKA(what_if.value)
    simulated = judge.Sim(trace, policy, split=0, jitter=0, abort=aborts_loads)
    judged = simulated.run()

    outcome = replay(record(rows, slack_s=1e-9), what_if, traits, until_s=simulated.t_end, aborts_loads=aborts_loads)

    assert outcome.idle_gpu_s == pytest.approx(judged["over"], rel=tolerance)
    assert outcome.added_s == pytest.approx(judged["latsum"], rel=tolerance)
    assert outcome.starts == pytest.approx(judged["loads"], rel=tolerance)
    assert outcome.requests == judged["n"] == REQUESTS
