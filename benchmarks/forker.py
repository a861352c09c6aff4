"""What a cold start cannot be without, by itself: fork, read the weights, one connection, one answer.

`python -m benchmarks.forker URL WEIGHTS` imports torch, then forks once per line on its input and prints the
seconds from fork to answer. With `--once` it does not fork: one answer, for timing a fresh interpreter.
"""

import asyncio
import gc
import os
import sys
import time
from pathlib import Path


def answer(url: str, weights: Path) -> float:
    """Load, connect, compute."""
    import torch

    from algomesh_broker.connection import Connection
    from algomesh_broker.identity import Identity
    from benchmarks.twenty import WIDTH, load_net

    net = load_net(weights)

    async def connect() -> None:
        await (await Connection.open(url, Identity("bench", "_INBOX.bench"))).close()

    asyncio.run(connect())
    with torch.inference_mode():
        return float(net(torch.full((1, WIDTH), 1.0)).mean())


def main() -> None:
    """Serve forks, or answer once."""
    url, weights = sys.argv[1], Path(sys.argv[2])
    if "--once" in sys.argv:
        print(answer(url, weights), flush=True)
        return
    import torch

    import benchmarks.twenty  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else a child may walk through all that was imported, and copy it: 120 ms
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, str(answer(url, weights)).encode())
            os._exit(0)
        os.close(writing)
        os.read(reading, 100)
        took = time.perf_counter() - began
        os.close(reading)
        os.wait()
        print(took, flush=True)


if __name__ == "__main__":
    main()
