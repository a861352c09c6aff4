"""A cold start, from the call to its answer, against what it cannot be without, and against a fresh interpreter."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import algomesh
from algomesh_broker.server import NatsConfig, NatsServer
from benchmarks import figures
from benchmarks.mesh import Mesh

STARTS, FRESH = 20, 5


def make_project(folder: Path) -> Path:
    """twenty.py and weights for it."""
    import safetensors.torch
    import torch

    from benchmarks import twenty

    torch.manual_seed(1)
    project = folder / "twenty"
    project.mkdir()
    shutil.copy(twenty.__file__, project / "twenty.py")
    safetensors.torch.save_file(twenty.make_net().state_dict(), project / "weights.safetensors")
    return project


async def measure(mesh: Mesh, project: Path, url: str) -> dict[str, list[float]]:
    """Starts in turn: the mesh's, by hand, and now and then a fresh interpreter."""
    took: dict[str, list[float]] = {"mesh": [], "fork + weights + connection": [], "fresh interpreter": []}
    command = [sys.executable, "-m", "benchmarks.forker", url, str(project / "weights.safetensors")]
    forker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert forker.stdin is not None
    assert forker.stdout is not None
    try:
        await asyncio.to_thread(forker.stdout.readline)
        environment = mesh.environment
        async with algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client:
            twenty = client.algo("bench/twenty")
            await twenty.pipe(1.0)  # the zygote starts with the first of all calls
            for start in range(STARTS):
                await asyncio.to_thread(mesh.cli, "stop", "bench/twenty")
                while await asyncio.to_thread(mesh.cli, "ps"):
                    await asyncio.sleep(0.05)
                began = time.perf_counter()
                response = await twenty.pipe(1.0)
                took["mesh"].append(time.perf_counter() - began)
                assert response.metadata.cold_start_s > 0
                forker.stdin.write("\n")
                forker.stdin.flush()
                took["fork + weights + connection"].append(float(await asyncio.to_thread(forker.stdout.readline)))
                if start < FRESH:
                    began = time.perf_counter()
                    await asyncio.to_thread(subprocess.run, [*command, "--once"], check=True, stdout=subprocess.DEVNULL)
                    took["fresh interpreter"].append(time.perf_counter() - began)
    finally:
        forker.stdin.close()
        forker.wait(10)
        forker.stdout.close()
    return took


def run() -> dict[str, Any]:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, Mesh() as mesh:
        folder = Path(name)
        project = make_project(folder)
        mesh.cli("publish", str(project))

        async def together() -> dict[str, list[float]]:
            config = NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run")
            async with NatsServer(config) as server:
                return await measure(mesh, project, server.url)

        took = asyncio.run(together())
    medians = {side: figures.median(values) for side, values in took.items()}
    pairs = zip(took["mesh"], took["fork + weights + connection"], strict=True)
    ratios = {
        "to fork + weights + connection": figures.median([ours / theirs for ours, theirs in pairs]),
        "fresh interpreter to mesh": medians["fresh interpreter"] / medians["mesh"],
    }
    figures.table(
        f"Cold start of a torch algorithm with 20 M parameters, {STARTS} starts",
        ["", "median ms", "least ms", "most ms"],
        [[side, *(f"{x * 1000:.1f}" for x in (medians[side], min(of), max(of)))] for side, of in took.items()],
    )
    print(*(f"{name}: {value:.2f} ×" for name, value in ratios.items()), sep="\n")
    return {"medians_s": medians, "ratios": ratios}
