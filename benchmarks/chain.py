"""A warm chain of three algorithms in three processes, against the same chain written by hand on nats-py.

Interleaved rounds in one process, uvloop for both; p50 of one caller, chains per second with 64 in flight, and
the CPU time of everything that takes part (client, three workers, nats-server) per chain.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

import algomesh
from algomesh_broker.server import NatsConfig, NatsServer
from benchmarks import figures
from benchmarks.mesh import ROOT, Mesh
from benchmarks.yardstick import Yardstick

TEXT = "  Hello,   NATS \n World  "
ROUNDS, SINGLE, IN_FLIGHT, EACH = 7, 400, 64, 60
COLUMNS = (("p50_ms", 3), ("p99_ms", 3), ("cpu_us_single", 0), ("per_s", 0), ("cpu_us_many", 0))
Chain = Callable[[str], Awaitable[Any]]


async def measure(chain: Chain, pids: list[int]) -> dict[str, float]:
    """One round: latencies one by one, then 64 callers at once."""
    took = []
    with figures.Stopwatch(pids) as single:
        for _ in range(SINGLE):
            began = time.perf_counter()
            await chain(TEXT)
            took.append(time.perf_counter() - began)

    async def caller() -> None:
        for _ in range(EACH):
            await chain(TEXT)

    with figures.Stopwatch(pids) as many:
        await asyncio.gather(*[caller() for _ in range(IN_FLIGHT)])
    return {
        "p50_ms": figures.median(took) * 1000,
        "p99_ms": figures.percentile(took, 0.99) * 1000,
        "cpu_us_single": single.cpu_s / SINGLE * 1e6,
        "per_s": IN_FLIGHT * EACH / many.wall_s,
        "cpu_us_many": many.cpu_s / (IN_FLIGHT * EACH) * 1e6,
    }


async def compare(mesh: Mesh, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Rounds of both, in turn."""
    rounds: dict[str, list[dict[str, float]]] = {"mesh": [], "by hand": []}
    config = NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run")
    environment = mesh.environment
    async with (
        NatsServer(config) as server,
        Yardstick(server.url) as yardstick,
        algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client,
    ):
        stages = [client.algo(f"demo/{name}") for name in ("clean", "tokenize", "count")]

        async def chain(text: str) -> Any:
            response: Any = text
            for stage in stages:
                response = await stage.pipe(response)
            return response.result

        assert server.pid is not None
        assert await chain(TEXT) == await yardstick.chain(TEXT) == 3
        for _ in range(100):
            await chain(TEXT)
        instances = [row["pid"] for row in mesh.cli("ps")]
        mesh_pids = [os.getpid(), mesh.server_pid, *instances]
        for _ in range(ROUNDS):
            rounds["by hand"].append(await measure(yardstick.chain, [*yardstick.pids, server.pid]))
            rounds["mesh"].append(await measure(chain, mesh_pids))
    return rounds


def run(dispatch: str = "") -> dict[str, Any]:
    """Measure with the mesh's own choice of dispatch, or a fixed one."""
    import tempfile

    environment = {"ALGOMESH_DISPATCH": dispatch} if dispatch else {}
    with Mesh(environment) as mesh, tempfile.TemporaryDirectory() as folder:
        mesh.cli("publish", str(ROOT / "services" / "catalog" / "demo.py"))
        rounds = uvloop.run(compare(mesh, Path(folder)))
    name = dispatch or "auto (inline)"
    medians = {side: {key: figures.median([r[key] for r in of]) for key in of[0]} for side, of in rounds.items()}
    ratios = {
        key: figures.median(
            [ours[key] / theirs[key] for ours, theirs in zip(rounds["mesh"], rounds["by hand"], strict=True)]
        )
        for key in rounds["mesh"][0]
    }
    shown = {"mesh": medians["mesh"], "by hand": medians["by hand"], "ratio": ratios}
    figures.table(
        f"Warm chain of 3, dispatch {name}, concurrency 1; medians of {ROUNDS} interleaved rounds",
        ["", "p50 ms", "p99 ms", "CPU µs", f"chains/s ({IN_FLIGHT})", f"CPU µs ({IN_FLIGHT})"],
        [
            [side, *(f"{of[key]:.2f}" if side == "ratio" else f"{of[key]:.{digits}f}" for key, digits in COLUMNS)]
            for side, of in shown.items()
        ],
    )
    return {"dispatch": name, "medians": medians, "ratios": ratios}
