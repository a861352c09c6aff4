"""A fan-out of eight stages that each wait 100 ms, on idle instances, against one of them alone."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import algomesh
from benchmarks import figures
from benchmarks.mesh import Mesh

STAGES, ROUNDS, WAIT_S = 8, 15, 0.1
SOURCE = """
@algorithm("bench/wait{number}", version="1.0.0")
def wait{number}(text: str) -> str:
    time.sleep(0.1)
    return text
"""
HEAD = """
import time
from algomesh import algorithm

@algorithm("bench/pass", version="1.0.0")
def go_on(text: str) -> str:
    return text
"""


async def compare(mesh: Mesh) -> dict[str, list[float]]:
    """Rounds of one and of all, in turn."""
    took: dict[str, list[float]] = {"one": [], "all": [], "all, in mid-chain": []}
    environment = mesh.environment
    async with algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client:
        one = client.algo("bench/wait0")
        fan = algomesh.all(*[f"bench/wait{number}" for number in range(STAGES)])
        sides = {
            "one": one,
            "all": client.algo(fan),
            "all, in mid-chain": client.algo(algomesh.stage("bench/pass") | fan),
        }
        for side in sides.values():
            for _ in range(3):
                await side.pipe("warm")
        for _ in range(ROUNDS):
            for name, side in sides.items():
                began = time.perf_counter()
                await side.pipe("x")
                took[name].append(time.perf_counter() - began)
                await asyncio.sleep(0)
    return took


def run() -> dict[str, Any]:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, Mesh() as mesh:
        file = Path(name) / "waits.py"
        file.write_text(HEAD + "".join(SOURCE.format(number=number) for number in range(STAGES)))
        mesh.cli("publish", str(file))
        took = uvloop.run(compare(mesh))
    medians = {side: figures.median(values) for side, values in took.items()}
    ratios = {
        side: figures.median([ours / theirs for ours, theirs in zip(values, took["one"], strict=True)])
        for side, values in took.items()
        if side != "one"
    }
    figures.table(
        f"Fan-out of {STAGES} stages that wait {WAIT_S * 1000:.0f} ms; medians of {ROUNDS} rounds",
        ["", "ms", "× one"],
        [[side, f"{value * 1000:.1f}", f"{ratios.get(side, 1.0):.2f}"] for side, value in medians.items()],
    )
    return {"medians_s": medians, "ratios": ratios}
