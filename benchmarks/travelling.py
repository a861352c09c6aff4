"""A pipeline of three stages that travels by itself, against a routing slip written by hand on nats-py.

Beside both, the same three stages called one by one over the same mesh. Interleaved rounds as in `chain`.
"""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import uvloop

import algomesh
from algomesh_broker.server import NatsConfig, NatsServer
from benchmarks import figures
from benchmarks.chain import COLUMNS, IN_FLIGHT, ROUNDS, TEXT, measure
from benchmarks.mesh import ROOT, Mesh
from benchmarks.yardstick import Yardstick

Rounds = dict[str, list[dict[str, float]]]


async def compare(mesh: Mesh, folder: Path) -> Rounds:
    """Rounds of all three, in turn."""
    rounds: Rounds = {"travelling": [], "slip by hand": [], "one by one": []}
    config = NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run")
    environment = mesh.environment
    async with (
        NatsServer(config) as server,
        Yardstick(server.url) as yardstick,
        algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client,
    ):
        stages = [client.algo(f"demo/{name}") for name in ("clean", "tokenize", "count")]
        pipeline = stages[0] | stages[1] | stages[2]

        async def travel(text: str) -> Any:
            return (await pipeline.pipe(text)).result

        async def one_by_one(text: str) -> Any:
            response: Any = text
            for stage in stages:
                response = await stage.pipe(response)
            return response.result

        assert server.pid is not None
        assert await travel(TEXT) == await one_by_one(TEXT) == await yardstick.travel(TEXT) == 3
        for _ in range(100):
            await travel(TEXT)
        instances = [row["pid"] for row in mesh.cli("ps")]
        mesh_pids = [os.getpid(), mesh.server_pid, *instances]
        for _ in range(ROUNDS):
            rounds["slip by hand"].append(await measure(yardstick.travel, [*yardstick.pids, server.pid]))
            rounds["travelling"].append(await measure(travel, mesh_pids))
            rounds["one by one"].append(await measure(one_by_one, mesh_pids))
            await asyncio.sleep(0)
    return rounds


def run() -> dict[str, Any]:
    """Measure and print."""
    with Mesh() as mesh, tempfile.TemporaryDirectory() as folder:
        mesh.cli("publish", str(ROOT / "services" / "catalog" / "demo.py"))
        rounds = uvloop.run(compare(mesh, Path(folder)))
    medians = {side: {key: figures.median([r[key] for r in of]) for key in of[0]} for side, of in rounds.items()}
    ratios = {
        f"to {other}": {
            key: figures.median(
                [ours[key] / theirs[key] for ours, theirs in zip(rounds["travelling"], rounds[other], strict=True)]
            )
            for key in rounds["travelling"][0]
        }
        for other in ("slip by hand", "one by one")
    }
    figures.table(
        f"A travelling pipeline of 3 stages; medians of {ROUNDS} interleaved rounds",
        ["", "p50 ms", "p99 ms", "CPU µs", f"chains/s ({IN_FLIGHT})", f"CPU µs ({IN_FLIGHT})"],
        [
            *([side, *(f"{of[key]:.{digits}f}" for key, digits in COLUMNS)] for side, of in medians.items()),
            *([f"× {name}", *(f"{of[key]:.2f}" for key, _ in COLUMNS)] for name, of in ratios.items()),
        ],
    )
    return {"medians": medians, "ratios": ratios}
