"""Ten against ten thousand published versions: how long until `up` is ready, and what resolving a name costs."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from algomesh import nats_transport
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference
from benchmarks import figures
from benchmarks.mesh import Mesh

FEW, MANY, ROUNDS = 10, 10_000, 5
_SOURCE = """from algomesh import algorithm

{algorithms}
"""
_ONE = """
@algorithm("many/n{number}", version="1.0.0")
def n{number}(value: int) -> int:
    return value
"""


def publish(mesh: Mesh, folder: Path, count: int) -> None:
    """Publish `count` algorithms from one file."""
    file = folder / "many.py"
    file.write_text(_SOURCE.format(algorithms="\n".join(_ONE.format(number=number) for number in range(count))))
    mesh.cli("publish", str(file), timeout_s=1200)


async def resolve_us(mesh: Mesh) -> tuple[float, float]:
    """Microseconds to resolve a name, and milliseconds until a client has connected with its directory."""
    began = time.perf_counter()
    identity = Identity.of_key(mesh.environment["ALGOMESH_API_KEY"])
    transport = await nats_transport.NatsTransport.open(mesh.environment["ALGOMESH_URL"], identity)
    connected = time.perf_counter() - began
    try:
        references = [Reference("many", f"n{number}") for number in range(FEW)]
        began = time.perf_counter()
        for reference in references * 100:
            transport.directory.resolve(reference)
        took = time.perf_counter() - began
    finally:
        await transport.close()
    return took / (100 * FEW) * 1e6, connected * 1000


def run() -> dict[str, Any]:
    """Measure and print."""
    rows: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        states = {}
        for count in (FEW, MANY):
            folder = Path(name) / str(count)
            folder.mkdir()
            states[count] = folder / "state"
            with Mesh(state=states[count]) as mesh:
                publish(mesh, folder, count)
        ready: dict[int, list[float]] = {FEW: [], MANY: []}
        seen: dict[int, list[tuple[float, float]]] = {FEW: [], MANY: []}
        for _ in range(ROUNDS):
            for count, state in states.items():
                with Mesh(state=state) as mesh:
                    ready[count].append(mesh.ready_s)
                    seen[count].append(asyncio.run(resolve_us(mesh)))
        for count in (FEW, MANY):
            rows[count] = {
                "ready_s": figures.median(ready[count]),
                "resolve_us": figures.median([us for us, _ in seen[count]]),
                "connect_ms": figures.median([ms for _, ms in seen[count]]),
            }
    figures.table(
        "Published versions",
        ["versions", "up ready s", "resolve µs", "client connects ms"],
        [
            [count, f"{r['ready_s']:.2f}", f"{r['resolve_us']:.2f}", f"{r['connect_ms']:.1f}"]
            for count, r in rows.items()
        ],
    )
    return {str(count): row for count, row in rows.items()}
