"""text/sentiment 2.0.0 (MiniLM on torch) with many callers at once: run together, against each call alone.

Both are the catalog's own code on one instance each, called in turn through one mesh; the one that runs alone takes a
list of one. Texts are the catalog's sample posts in an order of their own. Also what a single caller pays.
"""

import asyncio
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import algomesh
from benchmarks import figures
from benchmarks.mesh import ROOT, Mesh

ROUNDS, IN_FLIGHT, EACH, SINGLE = 5, 64, 6, 60
CATALOG = ROOT / "services" / "catalog"
SIDES = {"together": "bench/together", "alone": "bench/alone"}
_ALONE = '''"""The catalog's model under two names, of one instance each, so that both can be measured in one mesh."""

from minilm_sentiment import MiniLmSentiment, Sentiment

from algomesh import Batch, algorithm

Model = MiniLmSentiment.target
options = {"version": "2.0.0", "gpu": 0.25, "memory": "2Gi", "preload": ["torch"], "max_instances": 1}


@algorithm("bench/together", batch=Batch(max=32, wait_ms=4), **options)
class Together(Model):
    pass


@algorithm("bench/alone", **options)
class Alone(Model):
    def apply(self, text: str) -> Sentiment:
        return super().apply([text])[0]
'''


def publish(mesh: Mesh, folder: Path) -> None:
    """Publish the catalog's project with a module that names both sides."""
    shutil.copytree(CATALOG / "text_sentiment_minilm", folder, dirs_exist_ok=True)
    (folder / "sides.py").write_text(_ALONE)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('modules = ["minilm_sentiment"]', 'modules = ["sides"]'))
    mesh.cli("publish", str(folder))


async def measure(algo: Any, texts: list[str]) -> dict[str, float]:
    """One round: one caller, then IN_FLIGHT callers at once."""
    took: list[float] = []
    for text in texts[:SINGLE]:
        began = time.perf_counter()
        await algo.pipe(text)
        took.append(time.perf_counter() - began)
    latencies: list[float] = []
    remaining = iter(texts)

    async def caller() -> None:
        for text in remaining:
            began = time.perf_counter()
            await algo.pipe(text, timeout=300)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(IN_FLIGHT)])
    return {
        "per_s": len(texts) / (time.perf_counter() - began),
        "p50_ms": figures.median(latencies) * 1000,
        "single_p50_ms": figures.median(took) * 1000,
    }


async def compare(mesh: Mesh) -> dict[str, list[dict[str, float]]]:
    """Rounds of both, in turn."""
    posts = (CATALOG / "sample_posts.txt").read_text().splitlines()
    order = random.Random(1)
    texts = [order.choice(posts) for _ in range(IN_FLIGHT * EACH)]
    environment = mesh.environment
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    async with algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client:
        algos = {side: client.algo(name) for side, name in SIDES.items()}
        scores = [[(await algo.pipe(text)).result["score"] for text in posts] for algo in algos.values()]
        assert max(abs(one - other) for one, other in zip(*scores, strict=True)) < 1e-3
        for algo in algos.values():
            await asyncio.gather(*[algo.pipe(text) for text in texts[:IN_FLIGHT]])
        for _ in range(ROUNDS):
            for side, algo in algos.items():
                rounds[side].append(await measure(algo, texts))
    return rounds


def run() -> dict[str, Any]:
    """Measure and print."""
    with Mesh() as mesh, tempfile.TemporaryDirectory() as folder:
        publish(mesh, Path(folder))
        rounds = uvloop.run(compare(mesh))
    medians = {side: {key: figures.median(r[key] for r in of) for key in of[0]} for side, of in rounds.items()}
    ratio = figures.median(
        ours["per_s"] / theirs["per_s"] for ours, theirs in zip(rounds["together"], rounds["alone"], strict=True)
    )
    figures.table(
        f"text/sentiment 2.0.0, {IN_FLIGHT} in flight, one instance; medians of {ROUNDS} interleaved rounds",
        ["", "per s", "p50 ms", "one caller, p50 ms"],
        [[side, *(f"{of[key]:.1f}" for key in ("per_s", "p50_ms", "single_p50_ms"))] for side, of in medians.items()],
    )
    print(f"together / alone: {ratio:.2f}")
    return {"medians": medians, "ratio": ratio}
