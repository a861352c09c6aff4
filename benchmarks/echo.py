"""One hop there and back with float32 arrays of four sizes, against the same by plain nats-py messages and memcpy.

By hand an array goes as its bytes in one message, which nats-server takes up to 8 MiB; above that there is nothing by
hand to compare with, and `memcpy` (two copies: there and back) says what the memory itself costs.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import numpy as np
import uvloop
from nats.aio.msg import Msg

import algomesh
from algomesh_broker.server import NatsConfig, NatsServer
from benchmarks import figures
from benchmarks.mesh import Mesh

KIB = 1024
SIZES = {"1 KiB": KIB, "64 KiB": 64 * KIB, "1 MiB": KIB * KIB, "64 MiB": 64 * KIB * KIB}
LARGEST_MESSAGE = 8 * KIB * KIB - 4 * KIB
ROUNDS, TIMES = 7, {"1 KiB": 100, "64 KiB": 60, "1 MiB": 20, "64 MiB": 3}
SOURCE = """
import numpy as np
from algomesh import algorithm


@algorithm("bench/echo", version="1.0.0")
def echo(array: np.ndarray) -> np.ndarray:
    return array
"""


async def serve(url: str) -> None:
    """The echo by hand."""
    connection = await nats.connect(url)

    async def answer(message: Msg) -> None:
        array = np.frombuffer(message.data, np.float32)
        await message.respond(array.tobytes())

    await connection.subscribe("echo", queue="workers", cb=answer)
    await connection.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def median_s(times: int, work: Callable[[], Awaitable[Any]]) -> float:
    """The median of so many."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return figures.median(took)


async def compare(mesh: Mesh, url: str) -> dict[str, dict[str, list[float]]]:
    """Rounds of all sizes and sides, in turn."""
    took: dict[str, dict[str, list[float]]] = {size: {"mesh": [], "by hand": [], "memcpy": []} for size in SIZES}
    environment = mesh.environment
    by_hand = await nats.connect(url)
    async with algomesh.connect(environment["ALGOMESH_API_KEY"], environment["ALGOMESH_URL"]) as client:
        echo = client.algo("bench/echo")
        for size in SIZES.values():
            array = np.arange(size // 4, dtype=np.float32)
            assert np.array_equal((await echo.pipe(array)).result, array)
        for _ in range(ROUNDS):
            for name, size in SIZES.items():
                array = np.arange(size // 4, dtype=np.float32)

                async def through_mesh(array: Any = array) -> None:
                    _ = (await echo.pipe(array)).result

                async def hand_made(array: Any = array) -> None:
                    np.frombuffer((await by_hand.request("echo", array.tobytes(), timeout=10)).data, np.float32)

                async def copied(array: Any = array) -> None:
                    array.copy().copy()

                took[name]["mesh"].append(await median_s(TIMES[name], through_mesh))
                if size <= LARGEST_MESSAGE:
                    took[name]["by hand"].append(await median_s(TIMES[name], hand_made))
                took[name]["memcpy"].append(await median_s(TIMES[name], copied))
    await by_hand.close()
    return took


def run() -> dict[str, Any]:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, Mesh() as mesh:
        folder = Path(name)
        (folder / "echo.py").write_text(SOURCE)
        mesh.cli("publish", str(folder / "echo.py"))

        async def together() -> dict[str, dict[str, list[float]]]:
            config = NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run")
            async with NatsServer(config) as server:
                command = [sys.executable, "-m", "benchmarks.echo", server.url]
                worker = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert worker.stdout is not None
                try:
                    await asyncio.to_thread(worker.stdout.readline)
                    return await compare(mesh, server.url)
                finally:
                    worker.kill()
                    worker.wait()
                    worker.stdout.close()

        took = uvloop.run(together())
    medians = {
        size: {side: figures.median(values) for side, values in of.items() if values} for size, of in took.items()
    }
    figures.table(
        f"One hop there and back with a float32 array; medians of {ROUNDS} rounds",
        ["", "mesh ms", "by hand ms", "×", "memcpy ms", "×"],
        [
            [
                size,
                f"{of['mesh'] * 1000:.2f}",
                f"{of['by hand'] * 1000:.2f}" if "by hand" in of else "",
                f"{of['mesh'] / of['by hand']:.2f}" if "by hand" in of else "",
                f"{of['memcpy'] * 1000:.3f}",
                f"{of['mesh'] / of['memcpy']:.1f}",
            ]
            for size, of in medians.items()
        ],
    )
    return {"medians_s": medians}


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
