"""What each part of the pre-warmer is worth on traffic of different natures (prewarm_traces.py), judged by replay.

On one trace a part may gain nothing and still be needed: the gap model where calls have a period, pooling where
algorithms are called too rarely to learn by themselves. This says where each gains, and where it costs.
"""

import importlib
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import figures, prewarm_traces
from benchmarks.prewarm import ABLATIONS, JUDGE, judged, policy_of

LATENCY_VALUE = 5.0
TELLING = 0.01  # of the cost: less is chance


def run(latency_value: float = LATENCY_VALUE) -> dict[str, Any]:
    """Judge every variant on every nature; without the judge, say what is missing."""
    if not (JUDGE / "judge.py").is_file():
        print(f"the replay needs {JUDGE / 'judge.py'}: not there, so nothing is replayed")
        return {}
    judge, replay = judged(), importlib.import_module("replay")
    costs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for nature in prewarm_traces.NATURES:
            path = Path(folder) / f"{nature}.jsonl.gz"
            prewarm_traces.write(nature, path)
            seen = replay.Trace(path)
            costs[nature] = {
                name: float(
                    judge.cost(
                        replay.Sim(seen, judge.Judged(policy_of(options), latency_value), seed=0).run(), latency_value
                    )
                )
                for name, options in ABLATIONS.items()
            }
            print(f"{nature}: {', '.join(f'{name} {cost:.2f}' for name, cost in costs[nature].items())}", flush=True)
    figures.table(
        f"cost of each variant over that of the whole, latency value {latency_value:g} (above 1: the part gains)",
        ["nature", "whole, GPU-hours", *(name for name in ABLATIONS if name != "whole")],
        [
            [
                nature,
                f"{of['whole']:.2f}",
                *(f"{cost / of['whole']:.3f}" for name, cost in of.items() if name != "whole"),
            ]
            for nature, of in costs.items()
        ],
    )
    for name in ABLATIONS:
        if name != "whole":
            print(_verdict(name, {nature: of[name] / of["whole"] for nature, of in costs.items()}))
    return {"latency_value": latency_value, "cost": costs}


def _verdict(name: str, ratios: dict[str, float]) -> str:
    gains = [f"{nature} ({100 * (ratio - 1):.0f} %)" for nature, ratio in ratios.items() if ratio > 1 + TELLING]
    costs = [f"{nature} ({100 * (1 - ratio):.0f} %)" for nature, ratio in ratios.items() if ratio < 1 - TELLING]
    rest = len(ratios) - len(gains) - len(costs)
    return (
        f"{name}: dearer on {', '.join(gains) or 'none'}; cheaper on {', '.join(costs) or 'none'}; "
        f"within {100 * TELLING:g} % on {rest} of {len(ratios)}"
    )
