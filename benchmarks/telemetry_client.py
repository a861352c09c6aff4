"""One caller of a warm chain, in a process of its own: a round for every line on stdin, its figures on stdout.

`python -m benchmarks.telemetry_client` with ALGOMESH_URL and ALGOMESH_API_KEY; so that each build is measured with its
own SDK, and their rounds can be interleaved.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import uvloop

import algomesh
from benchmarks import figures

TEXT = "  Hello,   NATS \n World  "
CHAIN = algomesh.stage("demo/clean") | "demo/tokenize" | "demo/count"
WARM_UP = 300


async def main() -> None:
    async with algomesh.connect(os.environ["ALGOMESH_API_KEY"], os.environ["ALGOMESH_URL"]) as client:
        chain = client.algo(CHAIN)
        for _ in range(WARM_UP):
            assert (await chain.pipe(TEXT)).result == 3
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            print(json.dumps(await _round(chain, asked["calls"], [os.getpid(), *asked["pids"]])), flush=True)


async def _round(chain: Any, calls: int, pids: list[int]) -> dict[str, float]:
    took = []
    with figures.Stopwatch(pids) as watch:
        for _ in range(calls):
            began = time.perf_counter()
            await chain.pipe(TEXT)
            took.append(time.perf_counter() - began)
    return {"p50_ms": figures.median(took) * 1000, "cpu_us": watch.cpu_s / calls * 1e6}


if __name__ == "__main__":
    uvloop.run(main())
