"""`make bench`: all figures, or some: `python -m benchmarks chain cold_start versions`."""

import json
import sys

from benchmarks import (
    batching,
    chain,
    claims,
    cold_start,
    drivers,
    echo,
    fan_out,
    figures,
    prewarm,
    prewarm_natures,
    telemetry,
    travelling,
    versions,
)

BENCHMARKS = {
    "batching": batching.run,
    "chain": chain.run,
    "chain_inline": lambda: chain.run("inline"),
    "chain_thread": lambda: chain.run("thread"),
    "claims": claims.run,
    "cold_start": cold_start.run,
    "drivers": drivers.run,
    "echo": echo.run,
    "fan_out": fan_out.run,
    "prewarm": prewarm.run,
    "prewarm_natures": prewarm_natures.run,
    "telemetry": telemetry.run,
    "travelling": travelling.run,
    "versions": versions.run,
}

if __name__ == "__main__":
    print(figures.machine())
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    print(json.dumps({name: BENCHMARKS[name]() for name in chosen}))
